"""Where an ONNX graph can keep a tensor, each once outside the file, and damaged files."""

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import toy_graph
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from drexperts.runtime import onnx_file
from drexperts.runtime.errors import BundleError
from drexperts.runtime.onnx_file import check_self_contained
from drexperts.runtime.onnx_providers import cpu_session, new_options


def inside():
    return numpy_helper.from_array(np.ones(3, np.float32), "inside")


def outside():
    tensor = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[3])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def sparse(values, indices):
    tensor = onnx.SparseTensorProto(dims=[9])
    tensor.values.CopyFrom(values)
    tensor.indices.CopyFrom(indices)
    return tensor


def node(**attributes):
    return helper.make_node("Any", [], ["x"], **attributes)


def graph(nodes=(), initializers=(), sparse_initializers=()):
    return helper.make_graph(
        nodes, "graph", [], [], initializers, sparse_initializer=sparse_initializers
    )


def model(of):
    return helper.make_model(of)


def with_function(tensor):
    made = model(graph())
    made.functions.add(name="f", domain="d").node.append(node(value=tensor))
    return made


def with_default(tensor):
    made = model(graph())
    made.functions.add(name="f").attribute_proto.append(helper.make_attribute("value", tensor))
    return made


def with_training(tensor, part):
    made = model(graph())
    getattr(made.training_info.add(), part).CopyFrom(graph(initializers=[tensor]))
    return made


# A model that holds a tensor, by the place that it holds it in.
PLACES = {
    "initializer": lambda t: model(graph(initializers=[inside(), t])),
    "sparse values": lambda t: model(graph(sparse_initializers=[sparse(t, inside())])),
    "sparse indices": lambda t: model(graph(sparse_initializers=[sparse(inside(), t)])),
    "attribute": lambda t: model(graph([node(value=t)])),
    "attribute list": lambda t: model(graph([node(values=[inside(), t])])),
    "sparse attribute": lambda t: model(graph([node(value=sparse(t, inside()))])),
    "sparse attribute list": lambda t: model(graph([node(values=[sparse(inside(), t)])])),
    "subgraph": lambda t: model(graph([node(body=graph(initializers=[t]))])),
    "subgraph list": lambda t: model(graph([node(bodies=[graph(), graph([node(value=t)])])])),
    "nested subgraph": lambda t: model(
        graph([node(body=graph([node(body=graph(initializers=[t]))]))])
    ),
    "function": with_function,
    "function's default": with_default,
    "training, initialization": lambda t: with_training(t, "initialization"),
    "training, algorithm": lambda t: with_training(t, "algorithm"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_outside_the_file(place):
    check_self_contained(PLACES[place](inside()).SerializeToString(), "m")
    with pytest.raises(BundleError, match=r"m keeps weights outside itself.*drx export"):
        check_self_contained(PLACES[place](outside()).SerializeToString(), "m")


def every_tensor_field(descriptor, path=(), met=frozenset()):
    """The paths of fields from a message to TensorProto, each message once in a path."""
    for field in descriptor.fields:
        inner = field.message_type
        if inner is None or inner.full_name in met:
            continue
        if inner.name == "TensorProto":
            yield (*path, (descriptor.name, field.number))
        else:
            yield from every_tensor_field(
                inner, (*path, (descriptor.name, field.number)), met | {inner.full_name}
            )


def test_no_field_of_the_schema_is_left_out():
    """Each field that leads to a tensor is walked, in the schema of the installed onnx."""
    fields = {step for path in every_tensor_field(onnx.ModelProto.DESCRIPTOR) for step in path}
    names = {"TrainingInfoProto": "Training", "SparseTensorProto": "SparseTensor"}
    for message, number in fields:
        kind = names.get(message, message.removesuffix("Proto"))
        assert number in onnx_file._HOLDS[kind], (message, number)
    described = onnx.TensorProto.DESCRIPTOR.fields_by_name
    assert described["external_data"].number == onnx_file._EXTERNAL_DATA
    assert described["data_location"].number == onnx_file._DATA_LOCATION


@pytest.mark.parametrize("marks", [("data_location",), ("external_data",)])
def test_either_mark_is_enough(marks):
    tensor = inside()
    if "data_location" in marks:
        tensor.data_location = TensorProto.EXTERNAL
    else:
        tensor.external_data.add(key="location", value="*/_ORT_MEM_ADDR_/*")
    with pytest.raises(BundleError, match="outside"):
        check_self_contained(model(graph(initializers=[tensor])).SerializeToString(), "m")


def test_a_field_that_occurs_twice_is_merged_by_protobuf():
    """The graph in two parts, and a location that a later one seems to take back."""
    first = model(graph(initializers=[outside()])).SerializeToString()
    with pytest.raises(BundleError, match="outside"):
        check_self_contained(first + toy_graph().SerializeToString(), "m")
    tensor = outside().SerializeToString() + inside().SerializeToString()
    with pytest.raises(BundleError, match="outside"):
        check_self_contained(wrapped(7, wrapped(5, tensor)), "m")


def wrapped(number, content):
    """A message whose one field has this number and content."""
    size, length = len(content), b""
    while size >= 128:
        length, size = length + bytes([size % 128 + 128]), size // 128
    return bytes([number * 8 + 2]) + length + bytes([size]) + content


@pytest.mark.parametrize(
    "content",
    [
        b"not a model",
        b"\x3a",  # a tag and nothing else
        b"\x3a\x05\x00",  # longer than the file
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0b\x0c",  # a group, which ONNX has none of
        b"\x00\x00",  # no field has the number 0
        b"\xff\xff\xff\xff\x7f\x00",  # nor one beyond 2**29
        b"\x09\x00",  # eight bytes, of which one is there
        wrapped(7, b"\x2a\x7f"),
    ],
)
def test_damaged_files(content):
    with pytest.raises(BundleError, match="m is not an ONNX file"):
        check_self_contained(content, "m")


def test_depth_and_number_of_fields_are_bounded(monkeypatch):
    content = b""
    for _ in range(40):  # a graph in an attribute of a node of a graph
        content = wrapped(1, wrapped(5, wrapped(6, content)))
    with pytest.raises(BundleError, match="nested"):
        check_self_contained(wrapped(7, content), "m")
    monkeypatch.setattr(onnx_file, "_MOST_FIELDS", 10)
    with pytest.raises(BundleError, match="more than 10 fields"):
        check_self_contained(b"\x08\x01" * 11, "m")


def test_weights_are_skipped_and_not_walked(monkeypatch):
    monkeypatch.setattr(onnx_file, "_MOST_FIELDS", 50)
    weights = numpy_helper.from_array(np.zeros(1_000_000, np.float32), "w")
    check_self_contained(model(graph(initializers=[weights])).SerializeToString(), "m")


def tensors(message):
    """Every tensor inside a message, as protobuf reads it."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from tensors(inner)


@given(st.data())
def test_whatever_protobuf_reads_is_seen(data):
    """Of mutated files that are accepted, protobuf finds no tensor outside either."""
    place = data.draw(st.sampled_from(sorted(PLACES)))
    content = bytearray(
        PLACES[place](data.draw(st.sampled_from([inside(), outside()]))).SerializeToString()
    )
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        check_self_contained(bytes(content), "m")
        parsed = onnx.load_from_string(bytes(content))
    except (BundleError, DecodeError):
        return
    assert all(tensor.data_location == TensorProto.DEFAULT for tensor in tensors(parsed))


def test_onnx_runtime_itself_finds_no_file_outside(tmp_path, monkeypatch):
    """The second guard: with the check left out, the session finds no file to read."""
    graph = toy_graph()
    for tensor in graph.graph.initializer[3:]:  # the floats; only raw values are written outside
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    onnx.save(
        graph, tmp_path / "model.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    assert (tmp_path / "w").is_file()
    monkeypatch.chdir(tmp_path)
    content = (tmp_path / "model.onnx").read_bytes()
    plain = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert plain.get_inputs()[0].name == "pixels"
    with pytest.raises(BundleError, match="cannot load m"):
        cpu_session(onnxruntime, content, new_options(onnxruntime, 1), "m")
