"""Engines for OpenVINO: what is built, read back, proven, refused and preferred."""

import io
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from drexperts import runtime
from drexperts.export import EngineOptions, build_engine, export_bundle, verify
from drexperts.export.engines import openvino_engine
from drexperts.export.engines.openvino_types import asked_types, check_types
from drexperts.export.graph import openvino_precision
from drexperts.export.graph.bfloat16_blocks import bfloat16_blocks
from drexperts.export.graph.openvino_graph import openvino_graph
from drexperts.export.graph.openvino_precision import has_bfloat16
from drexperts.export.graph.precision import PrecisionChoice
from drexperts.runtime.cpus import cpu_capability
from drexperts.runtime.errors import BuildError, DeviceError, UserError
from drexperts.runtime.manifest import read_manifest, write_manifest
from drexperts.runtime.openvino_library import openvino_core
from drexperts.runtime.openvino_products import Layer, products
from drexperts.runtime.openvino_session import DEVICE, OpenvinoSession, settings_of
from drexperts.runtime.progress import SILENT
from drexperts.runtime.proof import EXPORT_LIMITS, LIMITS, SEARCH_LIMITS

bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="this CPU multiplies no bfloat16")
LAYERS = 24  # linear layers in the blocks of the tiny model
ATTENTIONS = 4  # in them, of which each is compiled as one


@pytest.fixture
def lowest_is_fastest(monkeypatch):
    """Of a tiny model float32 is, because there is little to multiply."""

    def by_speed(sessions, side):
        return sorted(sessions, key=openvino_precision.SAFETY.index)

    monkeypatch.setattr(openvino_precision, "by_speed", by_speed)


@pytest.fixture
def lenient(monkeypatch):
    """Limits that a tiny model with sharp softmaxes keeps in every precision."""
    for limits in (LIMITS, EXPORT_LIMITS, SEARCH_LIMITS):
        for precision in ("bf16", "int8"):
            monkeypatch.setitem(limits, precision, {"score_max": 10.0})


def test_float32_needs_no_checkpoint(bundle):
    before = read_manifest(bundle)
    engine = build_engine(bundle, "openvino", precision="fp32").engines[-1]
    assert (engine.backend, engine.precision, engine.evidence) == ("openvino", "fp32", "executed")
    assert engine.products.keys() == {"fp32"}
    assert engine.proven_on == cpu_capability()
    assert engine.invariance is not None
    assert engine.invariance.passed
    assert engine.parity is None
    assert read_manifest(bundle).engines == (*before.engines, engine)


def test_float32_is_proven_and_preferred(bundle, checkpoint_file, pictures):
    manifest = build_engine(
        bundle, "openvino", precision="fp32", checkpoint=checkpoint_file, images=pictures
    )
    engine = manifest.engines[-1]
    assert engine.parity is not None
    assert engine.parity.score_max < 1e-4
    with (
        runtime.load(bundle, engine="openvino", allow_unverified=True) as ours,
        runtime.load(bundle, engine="onnx", allow_unverified=True) as reference,
    ):
        got, expected = ours.score(pictures[0]), reference.score(pictures[0])
    assert got.value == pytest.approx(expected.value, abs=1e-2)
    assert got.fingerprint != expected.fingerprint


def test_a_second_build_replaces_the_first(bundle):
    build_engine(bundle, "openvino", precision="fp32")
    manifest = build_engine(bundle, "openvino", precision="fp32")
    assert [engine.backend for engine in manifest.engines] == ["onnx", "openvino"]
    files = {path.name for path in bundle.iterdir()}
    assert files == {"manifest.json", *(engine.file for engine in manifest.engines)}


@bfloat16
def test_bfloat16_is_the_default_where_the_cpu_has_it(bundle):
    engine = build_engine(bundle, "openvino").engines[-1]
    assert engine.precision == "bf16"
    assert engine.products["bf16"] == LAYERS + ATTENTIONS


@bfloat16
def test_a_bundle_in_eight_bits_is_built_as_it_is(checkpoint, pictures, tmp_path):
    images = [*pictures, *[image.rotate(180) for image in pictures]]
    made = export_bundle(
        checkpoint, tmp_path / "b", images=images, precision="int8", max_batch=2
    ).engines[0]
    engine = build_engine(tmp_path / "b", "openvino").engines[-1]
    assert engine.precision == "int8"
    assert engine.products["int8"] == LAYERS
    assert engine.calibrated_on == made.calibrated_on


@pytest.mark.slow
@bfloat16
@pytest.mark.usefixtures("lowest_is_fastest", "lenient")
def test_auto_records_what_it_tried(bundle, checkpoint_file, pictures):
    images = [*pictures, *[image.rotate(180) for image in pictures]]
    manifest = build_engine(
        bundle, "openvino", precision="auto", checkpoint=checkpoint_file, images=images
    )
    engine = manifest.engines[-1]
    assert engine.precision in ("bf16", "int8")
    assert {trial.precision for trial in engine.frontier} == {"bf16", "int8"}
    assert all(trial.ms and trial.ms > 0 for trial in engine.frontier)
    assert engine.searched_on
    assert engine.calibrated_on
    assert engine.parity is not None
    assert engine.parity.seen == 0
    assert read_manifest(bundle) == manifest


@pytest.mark.slow
@bfloat16
def test_what_misses_its_proof_falls_to_a_safer_type(
    bundle, checkpoint_file, pictures, monkeypatch, lowest_is_fastest
):
    for limits in (LIMITS, EXPORT_LIMITS):
        monkeypatch.setitem(limits, "bf16", {"score_max": 1e-9})
        monkeypatch.setitem(limits, "int8", {"score_max": 1e-9})
    monkeypatch.setitem(SEARCH_LIMITS, "bf16", {"score_max": 10.0})
    monkeypatch.setitem(SEARCH_LIMITS, "int8", {"score_max": 1e-9})
    images = [*pictures, *[image.rotate(180) for image in pictures]]
    engine = build_engine(
        bundle, "openvino", precision="auto", checkpoint=checkpoint_file, images=images
    ).engines[-1]
    assert engine.missed > 0
    assert engine.precision == "fp32"
    assert engine.products.keys() == {"fp32"}
    files = {path.name for path in bundle.iterdir()}
    assert files == {"manifest.json", "model.onnx", engine.file}


def test_what_needs_the_checkpoint_says_so(bundle):
    for precision in ("int8", "auto"):
        with pytest.raises(UserError, match="checkpoint"):
            build_engine(bundle, "openvino", precision=precision)


def test_a_cpu_without_bfloat16_refuses_it(bundle, monkeypatch):
    for module in (openvino_engine, openvino_precision):
        monkeypatch.setattr(module, "has_bfloat16", lambda: False)
    with pytest.raises(UserError, match="fp32"):
        build_engine(bundle, "openvino", precision="bf16")
    assert build_engine(bundle, "openvino").engines[-1].precision == "fp32"


def test_options_of_tensorrt_are_refused(bundle):
    with pytest.raises(UserError, match="TensorRT"):
        build_engine(bundle, "openvino", EngineOptions(optimization_level=1))
    with pytest.raises(UserError, match="fp16"):
        build_engine(bundle, "openvino", precision="fp16")


@bfloat16
def test_a_silent_float32_engine_is_an_error(bundle):
    """As on a CPU without bfloat16: oneDNN is told to use no more than AVX2.

    The build would refuse the variable that tells it, if it saw it.
    """
    code = (
        "from drexperts.export.engines import build\n"
        "build.forcing_variable = lambda: None\n"
        f"build.build_engine({str(bundle)!r}, 'openvino', precision='bf16')\n"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "BuildError" in done.stderr
    assert len(read_manifest(bundle).engines) == 1
    assert {path.name for path in bundle.iterdir()} == {"manifest.json", "model.onnx"}


LOAD = """
import sys
from drexperts import runtime
scorer = runtime.load(sys.argv[1], "cpu", allow_unverified=True)
print(scorer.engine.file, *(reason for _, _, reason in scorer.passed_over))
"""


@bfloat16
def test_what_was_built_is_loaded_where_the_cpu_computes_as_it_did(bundle, tmp_path):
    """Three processes: the first compiles, the second opens what was kept, the third may not."""
    engine = build_engine(bundle, "openvino", precision="bf16").engines[-1]
    places = {"XDG_CACHE_HOME": str(tmp_path / "c"), "XDG_STATE_HOME": str(tmp_path / "s")}
    told = []
    for isa in ("DEFAULT", "DEFAULT", "AVX2"):
        command = [sys.executable, "-P", "-c", LOAD, str(bundle)]
        environment = os.environ | places | {"ONEDNN_MAX_CPU_ISA": isa}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        told.append(done.stdout.strip())
    assert told[:2] == [engine.file] * 2
    assert told[2].startswith("model.onnx ")
    assert "unset ONEDNN_MAX_CPU_ISA" in told[2]


@bfloat16
def test_the_products_do_not_depend_on_threads_or_on_being_kept(bundle):
    engine = build_engine(bundle, "openvino", precision="bf16").engines[-1]
    stream = io.BytesIO()
    for threads, streams in ((1, 1), (2, 2), (64, 1)):
        session = OpenvinoSession(
            bundle / engine.file, max_batch=1, threads=threads, streams=streams
        )
        assert session.products == engine.products
    session.compiled.export_model(stream)
    for threads in (1, 3):
        settings = settings_of(threads, 1)
        kept = openvino_core().import_model(stream.getvalue(), DEVICE, settings)
        assert products(kept) == engine.products


def with_first_attention_in_float32(graph: onnx.ModelProto) -> onnx.ModelProto:
    nodes = list(graph.graph.node)
    position = next(i for i, node in enumerate(nodes) if node.op_type == "Softmax")
    first, _, second = attention = nodes[position - 1 : position + 2]
    assert (first.op_type, second.op_type) == ("MatMul", "MatMul")
    casts = []
    for node, places in ((first, (0, 1)), (second, (1,))):
        for place in places:
            name = node.input[place]
            wide = f"{name}.wide"
            casts.append(helper.make_node("Cast", [name], [wide], wide, to=TensorProto.FLOAT))
            node.input[place] = wide
    result = second.output[0]
    second.output[0] = f"{result}.wide"
    narrow = helper.make_node("Cast", [f"{result}.wide"], [result], to=TensorProto.BFLOAT16)
    del graph.graph.node[:]
    graph.graph.node.extend(
        [*nodes[: position - 1], *casts, *attention, narrow, *nodes[position + 2 :]]
    )
    del graph.graph.value_info[:]
    return graph


@bfloat16
def test_an_attention_in_another_type_is_noticed(bundle):
    engine = build_engine(bundle, "openvino", precision="bf16").engines[-1]
    graph = with_first_attention_in_float32(onnx.load(bundle / engine.file))
    with pytest.raises(DeviceError, match=f"with {LAYERS + ATTENTIONS - 1} bf16"):
        OpenvinoSession("m", max_batch=1, content=graph.SerializeToString(), wanted=engine.products)


def test_types_are_compared_by_layer():
    asked: dict[tuple[str, ...], str] = {("a.product", "a"): "bf16", ("b", "b"): "fp32"}

    def layers(**kinds: str) -> list[Layer]:
        return [Layer(name, "FullyConnected", kind, "", (name,)) for name, kind in kinds.items()]

    check_types(asked, layers(a="bf16", b="fp32"))
    with pytest.raises(BuildError, match="a in fp32"):
        check_types(asked, layers(a="fp32", b="fp32"))
    with pytest.raises(BuildError, match="b in bf16"):  # a silent bf16 engine
        check_types(asked, layers(a="bf16", b="bf16"))
    with pytest.raises(BuildError, match="read back"):
        check_types(asked, layers(a="bf16"))


@bfloat16
def test_every_product_of_a_graph_is_asked_for(bundle):
    engine = build_engine(bundle, "openvino", precision="bf16").engines[-1]
    graph = onnx.load(bundle / engine.file)
    asked = asked_types(graph)
    assert len(asked) == sum(n.op_type in ("MatMul", "Gemm", "Conv") for n in graph.graph.node)
    kinds = [kind for names, kind in asked.items() if ".blocks." in names[0]]
    assert kinds == ["bf16"] * LAYERS


def test_verify_measures_it_again(bundle, checkpoint_file, pictures):
    build_engine(bundle, "openvino", precision="fp32")
    manifest = read_manifest(bundle)
    forgotten = replace(manifest.engines[-1], invariance=None, proven_on=None)
    assert forgotten.evidence == "inspected"
    done = verify(bundle, checkpoint=checkpoint_file, images=pictures)
    assert [each.parity for each in done.measured] == [True, True]
    assert done.manifest.engines[-1].proven_on == cpu_capability()


def test_scores_do_not_depend_on_the_batch(bundle):
    build_engine(bundle, "openvino", precision="fp32")
    x = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), np.uint8)
    with runtime.load(bundle, engine="openvino", allow_unverified=True) as scorer:
        whole = scorer.session.run(x)["score"]
        alone = np.concatenate([scorer.session.run(x[i : i + 1])["score"] for i in range(4)])
    np.testing.assert_allclose(alone, whole, rtol=1e-4)


def test_a_refuted_engine_leaves_the_proven_one(bundle, checkpoint_file, pictures, monkeypatch):
    build_engine(bundle, "openvino", precision="fp32")
    manifest = read_manifest(bundle)
    proven = replace(
        manifest.engines[-1],
        parity=manifest.engines[0].parity,
        invariance=manifest.engines[0].invariance,
    )
    monkeypatch.setattr(type(proven), "proven", property(lambda self: not self.refuted))
    monkeypatch.setitem(EXPORT_LIMITS, "fp32", LIMITS["fp32"] | {"score_mean": 0.0})
    write_manifest(replace(manifest, engines=(manifest.engines[0], proven)), bundle)
    engines = build_engine(
        bundle, "openvino", precision="fp32", checkpoint=checkpoint_file, images=pictures
    ).engines
    assert [engine.refuted for engine in engines[1:]] == [False, True]
    assert all(engine.file_state(bundle) == "intact" for engine in engines)


def test_a_killed_build_leaves_nothing_for_good(bundle):
    left = bundle / "openvino-bf16-0123abcd.onnx"
    left.write_bytes(b"")
    build_engine(bundle, "openvino", precision="fp32")
    assert not left.exists()


def test_a_file_that_the_manifest_names_stays(bundle, monkeypatch):
    """The same bytes fail a proof on other images, and a safer engine follows."""
    named = build_engine(bundle, "openvino", precision="fp32").engines[-1]
    manifest = read_manifest(bundle)
    graph = onnx.load(bundle / named.file)
    work = openvino_engine._OpenvinoBuild(
        bundle, manifest, None, None, SILENT, manifest.engines[0], {}
    )
    refuted = iter([True, False])
    monkeypatch.setattr(type(named), "refuted", property(lambda self: next(refuted)))
    choice = PrecisionChoice(graph, "fp32")
    work.first_to_hold(iter([choice, choice]))
    assert (bundle / named.file).exists()


@bfloat16
def test_mixtures_without_their_type_are_not_tried(graph_of):
    floats = openvino_graph(graph_of("official", "fp32"))
    lowered = bfloat16_blocks(floats)
    assert openvino_precision._is_lowered(PrecisionChoice(lowered, "bf16"))
    assert not openvino_precision._is_lowered(PrecisionChoice(floats, "bf16"))
    assert not openvino_precision._is_lowered(PrecisionChoice(lowered, "int8"))
