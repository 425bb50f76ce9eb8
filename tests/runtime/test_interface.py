"""Graphs whose inputs and outputs are, and are not, those that the manifest describes."""

import dataclasses
import re
import shutil

import onnx
import pytest
from conftest import toy_graph
from onnx import TensorProto, helper
from support.command_line import change_engine

from drexperts import runtime
from drexperts.runtime.errors import BundleError
from drexperts.runtime.interface import Tensor, misfit
from drexperts.runtime.manifest import read_manifest, sha256_of, write_manifest

PIXELS = Tensor("pixels", "uint8", (None, 3, 32, 32))
SCORE = Tensor("score", "float32", (None,))
WEIGHTS = Tensor("weights", "float32", (None, 10))
MAPS = Tensor("maps", "float32", (None, 10, 4, 4))


@pytest.fixture
def bundle(toy_bundle, tmp_path):
    return shutil.copytree(toy_bundle, tmp_path / "bundle")


@pytest.fixture
def manifest(toy_bundle):
    return read_manifest(toy_bundle)


@pytest.fixture
def with_graph(bundle):
    """with_graph(graph, **changes of its engine): the bundle with another graph."""

    def make(graph, **changes):
        onnx.save(graph, bundle / "model.onnx")
        change_engine(bundle, sha256=sha256_of(bundle / "model.onnx"), **changes)
        return bundle

    return make


FITTING = [
    (PIXELS, (SCORE, WEIGHTS, MAPS)),
    (PIXELS, (MAPS, WEIGHTS, SCORE)),
    (PIXELS._replace(shape=(None,) * 4), (SCORE, WEIGHTS._replace(shape=(None, None)), MAPS)),
    (PIXELS, (SCORE, WEIGHTS, MAPS._replace(shape=(None, 10, None, None)))),
    (PIXELS, (SCORE, WEIGHTS, MAPS, Tensor("more", "int64", ()))),
]
OTHER = [
    ((), (SCORE, WEIGHTS, MAPS), "takes nothing"),
    ((PIXELS, PIXELS._replace(name="more")), (SCORE, WEIGHTS, MAPS), "'more'"),
    ((PIXELS._replace(name="images"),), (SCORE, WEIGHTS, MAPS), "'images'"),
    ((PIXELS._replace(type="float32"),), (SCORE, WEIGHTS, MAPS), "float32"),
    ((PIXELS._replace(shape=(None, 3, 32)),), (SCORE, WEIGHTS, MAPS), r"\[free, 3, 32\]"),
    ((PIXELS._replace(shape=(8, 3, 32, 32)),), (SCORE, WEIGHTS, MAPS), r"\[8, 3, 32, 32\]"),
    ((PIXELS._replace(shape=(1, 3, 32, 32)),), (SCORE, WEIGHTS, MAPS), r"\[1, 3, 32, 32\]"),
    ((PIXELS._replace(shape=(None, 1, 32, 32)),), (SCORE, WEIGHTS, MAPS), r"\[free, 1,"),
    ((PIXELS._replace(shape=(None, 3, 32, 64)),), (SCORE, WEIGHTS, MAPS), "32, 64"),
    ((PIXELS,), (SCORE, WEIGHTS), "no output 'maps'"),
    ((PIXELS,), (SCORE._replace(name="quality"), WEIGHTS, MAPS), "no output 'score'"),
    ((PIXELS,), (SCORE._replace(type="float64"), WEIGHTS, MAPS), "float64"),
    ((PIXELS,), (SCORE._replace(type="int64"), WEIGHTS, MAPS), "int64"),
    ((PIXELS,), (SCORE._replace(shape=(None, 1)), WEIGHTS, MAPS), r"\[free, 1\]"),
    ((PIXELS,), (SCORE._replace(shape=(1,)), WEIGHTS, MAPS), r"float32 \[1\]"),
    ((PIXELS,), (SCORE, WEIGHTS._replace(shape=(None, 9)), MAPS), r"\[free, 9\]"),
    ((PIXELS,), (SCORE, WEIGHTS, MAPS._replace(shape=(None, 10, 4, 5))), "4, 5"),
    ((PIXELS,), (SCORE, WEIGHTS, MAPS._replace(shape=(None, 9, 4, 4))), "9, 4, 4"),
]


@pytest.mark.parametrize(("pixels", "outputs"), FITTING)
def test_what_fits(pixels, outputs, manifest):
    assert misfit(manifest, manifest.engines[0], [pixels], outputs) is None


@pytest.mark.parametrize(("inputs", "outputs", "said"), OTHER)
def test_what_does_not(inputs, outputs, said, manifest):
    found = misfit(manifest, manifest.engines[0], inputs, outputs)
    assert found is not None
    assert re.search(said, found)


def test_one_image_at_a_time(manifest):
    single = dataclasses.replace(manifest.engines[0], max_batch=1)
    pixels = PIXELS._replace(shape=(1, 3, 32, 32))
    outputs = (SCORE._replace(shape=(1,)), WEIGHTS._replace(shape=(1, 10)), MAPS)
    assert misfit(manifest, single, [pixels], outputs) is None


def test_maps_of_a_bundle_that_does_not_say_the_patch_size(manifest):
    unknown = dataclasses.replace(manifest, config={"encoder": {"patch_size": "8"}})
    assert unknown.grid is None
    of_any_size = MAPS._replace(shape=(None, 10, 7, 7))
    engine = manifest.engines[0]
    assert misfit(unknown, engine, [PIXELS], (SCORE, WEIGHTS, of_any_size)) is None


def renamed_input():
    graph = toy_graph()
    graph.graph.input[0].name = graph.graph.node[0].input[0] = "images"
    return graph


def float_input():
    graph = toy_graph()
    graph.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return graph


def two_inputs():
    graph = toy_graph()
    more = helper.make_tensor_value_info("more", TensorProto.UINT8, ["B", 3, 32, 32])
    graph.graph.input.append(more)
    return graph


def without_maps():
    graph = toy_graph()
    del graph.graph.output[2]
    return graph


def integer_score():
    graph = toy_graph()
    graph.graph.output[0].name = "rounded"
    score = helper.make_tensor_value_info("score", TensorProto.INT64, ["B"])
    for node in graph.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == "score":
                    names[i] = "rounded"
    graph.graph.node.append(helper.make_node("Cast", ["rounded"], ["score"], to=TensorProto.INT64))
    del graph.graph.output[0]
    graph.graph.output.append(score)
    return graph


def nine_weights():
    graph = toy_graph()
    shares = helper.make_tensor("shares", TensorProto.FLOAT, [1, 9], [1.0] * 9)
    graph.graph.initializer[3].CopyFrom(shares)
    graph.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 9
    return graph


@pytest.mark.parametrize(
    "make", [renamed_input, float_input, two_inputs, without_maps, integer_score, nine_weights]
)
def test_a_graph_that_does_not_fit_is_refused_when_it_is_opened(make, with_graph):
    with pytest.raises(BundleError, match="does not fit its manifest"):
        runtime.load(with_graph(make()))


def test_a_graph_with_free_sizes_scores(with_graph, photo):
    graph = toy_graph()
    for value in (*graph.graph.input, *graph.graph.output):
        for i, size in enumerate(value.type.tensor_type.shape.dim):
            size.dim_param = f"{value.name} {i}"
    with runtime.load(with_graph(graph)) as scorer:
        assert 0 < scorer.score(photo(40, 40)).value < 255


def test_outputs_that_the_manifest_leaves_out(bundle, photo):
    manifest = read_manifest(bundle)
    write_manifest(dataclasses.replace(manifest, outputs=("score", "weights")), bundle)
    assert runtime.load(bundle).score(photo(40, 40)).error is None
