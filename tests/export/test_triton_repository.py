"""A bundle as a model repository: what is served, what is not, and how the server reads it."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
import sys
import types
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from support.swapping import swap_after_hash

from drexperts import runtime
from drexperts.export import triton_repository
from drexperts.export.graph.to_onnx import onnx_from_model
from drexperts.export.triton_repository import write_triton_repository
from drexperts.runtime.errors import BundleError, ConfigError, UserError
from drexperts.runtime.manifest import BatchProfile, EnginePlan, read_manifest, write_manifest
from drexperts.runtime.manifest import digest as manifest_digest
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.trust import note_built_here


@pytest.fixture(autouse=True)
def state(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture(scope="module")
def schema():
    """The server's own schema, from its client, of which nothing else is imported."""
    try:
        client = importlib.metadata.distribution("tritonclient")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tritonclient is not installed")
    path = client.locate_file("tritonclient/grpc/model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parsed(schema):
    """parsed(repository, entry): its configuration, as the server reads it."""
    from google.protobuf import text_format  # type: ignore[import-untyped]

    def read(repository, entry):
        text = (repository / entry / "config.pbtxt").read_text()
        return text_format.Parse(text, schema.ModelConfig())

    return read


@pytest.fixture(scope="module")
def exported(toy_bundle, tiny, random_model, tmp_path_factory):
    """A bundle of a real graph, 64 px images, with the toy bundle's proof, of batch 8 at most."""
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    config = tiny()
    shutil.copytree(toy_bundle, folder)
    onnx.save(onnx_from_model(random_model(config).eval(), True, "fp32", 16), folder / "model.onnx")
    manifest = dataclasses.replace(
        read_manifest(folder),
        config=config.as_dict(),
        preprocessing=Preprocessing(64, 64, 128, 2),
    )
    write_manifest(manifest, folder)
    engine = manifest.engines[0]
    assert engine.invariance is not None
    certified = dataclasses.replace(engine.invariance, batches=(1, 8))
    known = digest(folder, "model.onnx")
    rewrite(folder, [dataclasses.replace(engine, sha256=known, max_batch=16, invariance=certified)])
    return folder


@pytest.fixture
def bundle(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "bundle")


def digest(folder, file):
    return hashlib.sha256((folder / file).read_bytes()).hexdigest()


def rewrite(folder, engines, **changes):
    changes |= {"engines": tuple(engines)}
    write_manifest(dataclasses.replace(read_manifest(folder), **changes), folder)


def first(folder):
    return read_manifest(folder).engines[0]


def add(folder, file, *capabilities, profiles=((1, 8, 16),), backend="tensorrt", **changes):
    """Add a file in place of a plan, with the record of a proven plan that was built here."""
    (folder / file).write_bytes(file.encode())
    note_built_here(digest(folder, file))
    plan: dict[str, Any] = {
        "version": "11.4.0.106",
        "capabilities": capabilities,
        "platform": "linux-x86_64",
        "profiles": tuple(BatchProfile(*sizes) for sizes in profiles),
        "version_compatible": False,
        "hardware_compatibility": "none",
        "stripped": False,
        "plugin_layers": 0,
        "fused_attention": True,
        "onnx_sha256": "0" * 64,
        "inspected": True,
    }
    of_plan = {name: changes.pop(name) for name in list(changes) if name in plan}
    of_engine = {"backend": backend, "file": file, "sha256": digest(folder, file)}
    of_engine |= {"plan": EnginePlan(**plan | of_plan), "precision": "fp16"}
    engine = dataclasses.replace(first(folder), **of_engine | changes)
    rewrite(folder, [*read_manifest(folder).engines, engine])


def test_a_bundle_with_onnx_only(bundle, tmp_path, parsed):
    out = tmp_path / "repository"
    files = write_triton_repository(bundle, out)
    names = ["README.md", "drexperts_onnx/1/model.onnx", "drexperts_onnx/config.pbtxt"]
    assert [str(path.relative_to(out)) for path in files] == names
    config = parsed(out, "drexperts_onnx")
    assert (config.name, config.backend) == ("drexperts_onnx", "onnxruntime")
    assert first(bundle).max_batch == 16
    assert config.max_batch_size == first(bundle).certified_batch == 8
    assert [sample.batch_size for sample in config.model_warmup] == [1, 8]
    (group,) = config.instance_group
    assert (group.count, group.Kind.Name(group.kind)) == (1, "KIND_CPU")
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert list(config.version_policy.specific.versions) == [1]
    assert not config.HasField("optimization")
    assert (out / "drexperts_onnx/1/model.onnx").read_bytes() == (
        bundle / "model.onnx"
    ).read_bytes()


@pytest.mark.parametrize("maps", [True, False])
@pytest.mark.slow
def test_agrees_with_the_model(maps, bundle, tmp_path, parsed, schema, tiny, random_model):
    if not maps:
        onnx.save(
            onnx_from_model(random_model(tiny()).eval(), False, "fp32", 16), bundle / "model.onnx"
        )
        engine = dataclasses.replace(first(bundle), sha256=digest(bundle, "model.onnx"))
        rewrite(bundle, [engine], outputs=("score", "weights"))
    out = tmp_path / "repository"
    write_triton_repository(bundle, out)
    config = parsed(out, "drexperts_onnx")
    model = onnxruntime.InferenceSession(
        out / "drexperts_onnx/1/model.onnx", providers=["CPUExecutionProvider"]
    )

    def described(tensor):
        dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
        return tensor.name, schema.DataType.Name(tensor.data_type), list(dims)

    types = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}
    for tensors, nodes in (
        (config.input, model.get_inputs()),
        (config.output, model.get_outputs()),
    ):
        wanted = [(node.name, types[node.type], list(node.shape[1:])) for node in nodes]
        assert [described(tensor) for tensor in tensors] == wanted
    # What is warmed up, the model runs; [B] is served as [B, 1].
    for sample in config.model_warmup:
        shape = (sample.batch_size, *sample.inputs["pixels"].dims)
        score, *_ = model.run(["score"], {"pixels": np.zeros(shape, np.uint8)})
        assert score.size == sample.batch_size * np.prod(config.output[0].dims)


def test_cuda_provider_keeps_float32(bundle, tmp_path, parsed):
    cuda = dataclasses.replace(first(bundle), backend="onnx-cuda")
    rewrite(bundle, [first(bundle), cuda])
    write_triton_repository(bundle, tmp_path / "out", name="iqa", instances=3, max_queue_delay=0)
    config = parsed(tmp_path / "out", "iqa_onnx_cuda")
    (group,) = config.instance_group
    assert (group.count, group.Kind.Name(group.kind)) == (3, "KIND_GPU")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, accelerator.parameters["use_tf32"]) == ("cuda", "0")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert parsed(tmp_path / "out", "iqa_onnx").instance_group[0].kind != group.kind


def test_plans_of_several_capabilities(bundle, tmp_path, parsed):
    add(bundle, "a.engine", "8.0", "8.6")
    add(bundle, "b.engine", "8.6", "9.0")
    add(bundle, "c.engine", "9.0")
    out = tmp_path / "out"
    write_triton_repository(bundle, out)
    config = parsed(out, "drexperts_tensorrt")
    assert config.backend == "tensorrt"
    assert dict(config.cc_model_filenames) == {
        "8.0": "a.engine",
        "8.6": "a.engine",
        "9.0": "b.engine",
    }
    assert config.default_model_filename == ""
    assert {path.name for path in (out / "drexperts_tensorrt/1").iterdir()} == {
        "a.engine",
        "b.engine",
    }
    assert "c.engine (tensorrt): a preferred one is served" in (out / "README.md").read_text()
    assert config.instance_group[0].Kind.Name(config.instance_group[0].kind) == "KIND_GPU"
    assert not config.instance_group[0].profile
    assert not config.dynamic_batching.preferred_batch_size


@pytest.mark.parametrize(
    ("plans", "default"),
    [
        ({"exact": {}, "any": {"hardware_compatibility": "ampere+"}}, "any.engine"),
        ({"float32": {"precision": "fp32"}, "exact": {}}, ""),
    ],
)
def test_which_plan_is_served(plans, default, bundle, tmp_path, parsed):
    """The first of 16 bits on its own GPU, and one for any later GPU on the others."""
    for name, changes in plans.items():
        add(bundle, f"{name}.engine", "8.9", **changes)
    write_triton_repository(bundle, tmp_path / "out")
    config = parsed(tmp_path / "out", "drexperts_tensorrt")
    assert dict(config.cc_model_filenames) == {"8.9": "exact.engine"}
    assert config.default_model_filename == default


def test_all_profiles_are_named(bundle, tmp_path, parsed):
    add(bundle, "a.engine", "8.9", profiles=((1, 1, 1), (2, 4, 6), (7, 16, 16)))
    write_triton_repository(bundle, tmp_path / "out")
    config = parsed(tmp_path / "out", "drexperts_tensorrt")
    assert list(config.instance_group[0].profile) == ["0", "1", "2"]
    # 16 is more than certified.
    assert list(config.dynamic_batching.preferred_batch_size) == [1, 4, 8]


@pytest.mark.parametrize(
    ("profiles", "batch"),
    [(((1, 2, 4), (6, 8, 8)), 4), (((1, 2, 16),), 8), (((1, 1, 1),), 1)],
)
def test_batch_has_a_profile_at_each_size(profiles, batch, bundle, tmp_path, parsed):
    add(bundle, "a.engine", "8.9", profiles=profiles)
    write_triton_repository(bundle, tmp_path / "out")
    config = parsed(tmp_path / "out", "drexperts_tensorrt")
    assert config.max_batch_size == batch
    assert [sample.batch_size for sample in config.model_warmup] == sorted({1, batch})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backend": "tensorrt-rtx"}, "not the one for RTX"),
        ({"stripped": True}, "without its weights"),
        ({"profiles": ((2, 4, 8),)}, "a batch of 1"),
        ({"parity": None, "invariance": None}, "is inspected and not proven"),
        ({"parity": None}, "is executed and not proven"),
    ],
)
def test_what_cannot_be_served_is_left_out(changes, reason, bundle, tmp_path):
    add(bundle, "a.engine", "8.9", **changes)
    out = tmp_path / "out"
    write_triton_repository(bundle, out)
    assert {path.name for path in out.iterdir()} == {"README.md", "drexperts_onnx"}
    assert reason in (out / "README.md").read_text()
    rewrite(bundle, read_manifest(bundle).engines[1:])
    with pytest.raises(BundleError, match=reason):
        write_triton_repository(bundle, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_onnx_tensorrt_is_left_out(bundle, tmp_path):
    rewrite(bundle, [first(bundle), dataclasses.replace(first(bundle), backend="onnx-tensorrt")])
    write_triton_repository(bundle, tmp_path / "out")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "(onnx-tensorrt): ONNX Runtime would build" in readme


def test_a_plan_from_elsewhere_needs_trust(bundle, tmp_path, monkeypatch):
    add(bundle, "a.engine", "8.9")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state of another user"))
    write_triton_repository(bundle, tmp_path / "out")
    assert not (tmp_path / "out" / "drexperts_tensorrt").exists()
    assert "was not built here" in (tmp_path / "out" / "README.md").read_text()
    write_triton_repository(bundle, tmp_path / "out", trust=True)
    assert (tmp_path / "out" / "drexperts_tensorrt" / "1" / "a.engine").is_file()
    rewrite(bundle, read_manifest(bundle).engines[1:])
    with pytest.raises(BundleError, match="not built here"):
        write_triton_repository(bundle, tmp_path / "other")


def test_a_proof_with_limits_of_its_own_is_none(bundle, tmp_path):
    parity = first(bundle).parity
    assert parity is not None
    loose = dataclasses.replace(parity, limits=parity.limits | {"score_max": 1e300})
    rewrite(bundle, [dataclasses.replace(first(bundle), parity=loose)])
    with pytest.raises(BundleError, match="score_max"):
        write_triton_repository(bundle, tmp_path / "out")


def test_only_the_pinned_bundle_is_written(bundle, tmp_path):
    pinned = manifest_digest(read_manifest(bundle))
    write_triton_repository(bundle, tmp_path / "out", digest=pinned)
    with pytest.raises(BundleError, match=pinned):
        write_triton_repository(bundle, tmp_path / "other", digest=f"sha256:{'0' * 64}")
    assert not (tmp_path / "other").exists()


def test_a_file_swapped_after_its_hash_is_not_written(bundle, tmp_path, monkeypatch):
    content = (bundle / "model.onnx").read_bytes()
    swap_after_hash(monkeypatch, bundle / "model.onnx", b"another")
    write_triton_repository(bundle, tmp_path / "out")
    assert (bundle / "model.onnx").read_bytes() == b"another"
    assert (tmp_path / "out" / "drexperts_onnx" / "1" / "model.onnx").read_bytes() == content


def test_a_graph_with_weights_elsewhere_is_refused(bundle, tmp_path):
    graph = onnx.load(bundle / "model.onnx")
    onnx.save(graph, bundle / "model.onnx", save_as_external_data=True, size_threshold=0)
    changed = dataclasses.replace(first(bundle), sha256=digest(bundle, "model.onnx"))
    rewrite(bundle, [changed])
    with pytest.raises(BundleError, match="outside itself"):
        write_triton_repository(bundle, tmp_path / "out")


INJECTED = 'fp32\n}\nmodel_operations { op_library_filename: "evil.so" }\n#'


def test_no_text_of_a_manifest_adds_to_a_configuration(bundle, tmp_path, parsed):
    """Every string of the manifest, one by one: refused, or of no effect on what the server reads.

    The comments of the configuration hold words of the manifest too.
    """
    add(bundle, "a.engine", "8.9")
    original = (bundle / "manifest.json").read_text()
    document = json.loads(original)
    entries = ("drexperts_onnx", "drexperts_tensorrt")
    refused = 0
    for *parents, last in list(string_places(document)):
        changed = json.loads(original)
        target = changed
        for part in parents:
            target = target[part]
        target[last] = INJECTED
        (bundle / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(BundleError):
            write_triton_repository(bundle, tmp_path / "out", allow_unverified=True)
        refused += 1
    assert refused > 40
    (bundle / "manifest.json").write_text(original)
    write_triton_repository(bundle, tmp_path / "out")
    for entry in entries:
        assert not parsed(tmp_path / "out", entry).HasField("model_operations")


def string_places(document, path=()):
    """The path of every string inside a document."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        if isinstance(value, str):
            yield (*path, key)
        elif isinstance(value, (dict, list)):
            yield from string_places(value, (*path, key))


@pytest.mark.parametrize("text", ["a", 'a"b', "a\\b", "a\nb", "a'b", "\x00\x7f", "é\u2028"])
def test_a_quoted_string_is_read_back(text, schema):
    from google.protobuf import text_format

    written = f"name: {triton_repository._quoted(text)}"
    assert written.isprintable()
    assert text_format.Parse(written, schema.ModelConfig()).name == text


def test_plans_of_other_profiles_do_not_share_an_entry(bundle, tmp_path, parsed):
    add(bundle, "a.engine", "8.0")
    add(bundle, "b.engine", "8.9", profiles=((1, 4, 4),))
    write_triton_repository(bundle, tmp_path / "out")
    assert "8.9" not in parsed(tmp_path / "out", "drexperts_tensorrt").cc_model_filenames
    assert "build both with the same ones" in (tmp_path / "out" / "README.md").read_text()


def test_unverified_engines_are_included_on_request_and_marked(bundle, tmp_path, parsed):
    add(bundle, "a.engine", "8.9", parity=None, invariance=None, inspected=False)
    out = tmp_path / "out"
    write_triton_repository(bundle, out, allow_unverified=True)
    text = (out / "drexperts_tensorrt" / "config.pbtxt").read_text()
    assert "# a.engine: tensorrt, fp16, built, not proven equal to the model\n" in text
    proven = (out / "drexperts_onnx" / "config.pbtxt").read_text()
    assert "# model.onnx: onnx, fp32, executed, proven equal to the model\n" in proven
    assert parsed(out, "drexperts_tensorrt").max_batch_size == 16


def test_readme_says_what_the_plans_need(bundle, tmp_path):
    add(bundle, "a.engine", "8.9", version_compatible=True)
    write_triton_repository(bundle, tmp_path / "out")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "a.engine needs TensorRT 11.4.0.106 or later and compute capability 8.9." in readme
    assert "--backend-config=tensorrt,version-compatible=true" in readme


def test_readme_client_scores_as_the_runtime_does(bundle, tmp_path, photo, monkeypatch, capsys):
    """The README's own code, with ONNX Runtime in place of the server."""
    out = tmp_path / "out"
    write_triton_repository(bundle, out)
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    served = {}

    class InferInput:
        def __init__(self, name, shape, datatype):
            self.header = (name, tuple(shape), datatype)

        def set_data_from_numpy(self, array):
            assert self.header == ("pixels", array.shape, "UINT8")
            assert array.dtype == np.uint8
            self.array = array

    class InferenceServerClient:
        def __init__(self, address):
            assert address == "localhost:8000"

        def infer(self, model, inputs):
            assert len(inputs[0].array) <= 8
            session = onnxruntime.InferenceSession(
                out / model / "1" / "model.onnx", providers=["CPUExecutionProvider"]
            )
            (scores,) = session.run(["score"], {"pixels": inputs[0].array})
            served["score"] = scores.reshape(-1, 1)
            return types.SimpleNamespace(as_numpy=served.__getitem__)

    http = types.SimpleNamespace(InferInput=InferInput, InferenceServerClient=InferenceServerClient)
    monkeypatch.setitem(sys.modules, "tritonclient", types.SimpleNamespace(http=http))
    monkeypatch.setitem(sys.modules, "tritonclient.http", http)
    photo(100, 90).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    expected = runtime.load(bundle).score("photo.jpg").value
    assert float(capsys.readouterr().out) == pytest.approx(expected, rel=1e-5)


def test_writing_again_gives_the_same_files(bundle, tmp_path):
    out = tmp_path / "out"
    add(bundle, "a.engine", "8.9")
    first_time = {path: path.read_bytes() for path in write_triton_repository(bundle, out)}
    assert {path: path.read_bytes() for path in write_triton_repository(bundle, out)} == first_time
    rewrite(bundle, read_manifest(bundle).engines[:1])
    write_triton_repository(bundle, out)
    assert {path.name for path in out.iterdir()} == {"README.md", "drexperts_onnx"}
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "out"}


@pytest.mark.parametrize("change", [lambda b: b + b"\0", lambda b: b[:-1]])
def test_changed_file_is_refused_and_leaves_what_was_there(change, bundle, tmp_path):
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in write_triton_repository(bundle, out)}
    add(bundle, "a.engine", "8.9")
    (bundle / "a.engine").write_bytes(change((bundle / "a.engine").read_bytes()))
    with pytest.raises(BundleError, match="SHA-256"):
        write_triton_repository(bundle, out)
    (bundle / "a.engine").unlink()
    with pytest.raises(BundleError, match="is missing"):
        write_triton_repository(bundle, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "out"}


def test_an_interrupted_run_leaves_what_was_there(bundle, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_triton_repository(bundle, out)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(triton_repository, "_readme", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_triton_repository(bundle, out, name="other")
    assert {path.name for path in out.iterdir()} == {"README.md", "drexperts_onnx"}
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "out"}


@pytest.mark.parametrize(
    "foreign",
    ["notes.txt", "README.md", "resnet/1/model.onnx", "resnet/config.pbtxt", "drexperts_onnx/2/x"],
)
def test_other_things_are_not_replaced(foreign, bundle, tmp_path):
    out = tmp_path / "out"
    write_triton_repository(bundle, out)
    (out / foreign).parent.mkdir(parents=True, exist_ok=True)
    (out / foreign).write_text('name: "resnet"')
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match="choose another"):
        write_triton_repository(bundle, out)
    assert sorted(out.rglob("*")) == before


def test_where_a_repository_may_be_written(bundle, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="choose another"):
        write_triton_repository(bundle, tmp_path / "file")
    for place in (bundle, bundle / "repository"):
        with pytest.raises(UserError, match="choose another"):
            write_triton_repository(bundle, place)
    assert not (bundle / "repository").exists()
    (tmp_path / "empty").mkdir()
    write_triton_repository(bundle, tmp_path / "empty")
    write_triton_repository(bundle, tmp_path / "new" / "deep")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "../up"}, "letters, digits"),
        ({"name": 'a"b'}, "letters, digits"),
        ({"name": ""}, "letters, digits"),
        ({"instances": 0}, "1 to 64"),
        ({"max_queue_delay": -1}, "microseconds"),
    ],
)
def test_bad_arguments(arguments, message, bundle, tmp_path):
    with pytest.raises(ConfigError, match=message):
        write_triton_repository(bundle, tmp_path / "out", **arguments)


def test_manifest_without_the_encoder(toy_bundle, tmp_path):
    bundle = shutil.copytree(toy_bundle, tmp_path / "bundle")
    manifest = read_manifest(bundle)
    write_manifest(dataclasses.replace(manifest, config={}), bundle)
    with pytest.raises(BundleError, match="patch size"):
        write_triton_repository(bundle, tmp_path / "out")
