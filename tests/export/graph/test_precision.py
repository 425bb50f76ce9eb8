"""The precision of each part: what int8 computes, and the fewest islands that keep the gate."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from drexperts import runtime
from drexperts.evaluation.predict import TorchSession
from drexperts.export import build_engine, export_bundle
from drexperts.export.engines.inspection import expectation_from_graph
from drexperts.export.graph import precision
from drexperts.export.graph.calibration import block_linears
from drexperts.export.graph.fold import inference_model
from drexperts.export.graph.precision import (
    Half,
    Int8,
    QuantisedLinear,
    choices_of_precision,
    ever_more_islands,
    fewest_islands,
)
from drexperts.export.graph.to_onnx import onnx_from_model
from drexperts.export.proof.photographs import verification_images
from drexperts.model.checkpoint import Checkpoint, default_preprocessing
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import ScoreScale, read_manifest, write_manifest
from drexperts.runtime.onnx_session import OnnxSession
from drexperts.runtime.proof import (
    EXPORT_LIMITS,
    SEARCH_LIMITS,
    ConfidenceInterval,
    Parity,
    tightened,
)

SCALE = ScoreScale(-1.0, 1.0, higher_is_better=True)


@pytest.fixture(scope="module")
def official(tiny, random_model):
    model = random_model(tiny("official"), spread=0.05)
    return Checkpoint(model, SCALE, default_preprocessing(model.config))


@pytest.fixture(scope="module")
def photographs():
    return verification_images()[:9]


@pytest.fixture(scope="module")
def int8(official, photographs):
    return Int8(official, photographs[:4], maps=True, max_batch=4)


def parity(passed: bool, srcc: float = 0.9) -> Parity:
    """A report that passed, or did not."""
    return Parity(
        images=4,
        rows=4,
        reference="none",
        score_max=0.1,
        score_mean=0.1,
        score_p99=0.1,
        srcc=srcc,
        plcc=1.0,
        order_flips=0,
        pairs=6,
        weights_max=0.0,
        maps_max=None,
        limits={"score_max": 1.0 if passed else 0.01},
        passed=passed,
    )


def measured_at(values: dict[str, float], low: float) -> Parity:
    """A failed report of what is just within `values`, and beyond the limits of a search."""
    interval = ConfidenceInterval(max(low, values["srcc_low"]), 1.0)
    measures: dict[str, Any] = {
        k: values[k] for k in ("score_p99", "srcc", "plcc", "weights_p99") if k in values
    }
    return replace(
        parity(passed=False),
        **measures,
        score_max=values["score_p99"],
        srcc_interval=interval,
        plcc_interval=interval,
        leading_flips=0,
        limits=SEARCH_LIMITS["int8"],
    )


class Parts:
    """A stand-in for a model; the name of its graph lists the parts in float32."""

    precision, rest = "int8", "fp32"

    def __init__(self, count: int) -> None:
        self.parts = [f"part {i}" for i in range(count)]

    def ranked(self) -> list[str]:
        return self.parts

    def graph(self, islands: Any) -> onnx.ModelProto:
        return onnx.ModelProto(producer_name=",".join(islands))

    def session(self, islands: Any) -> Any:
        return list(islands)

    def ms(self, session: Any) -> float:
        return 100.0 + len(session)

    def weight_bytes(self, islands: Any) -> int:
        return 100 + len(islands)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 24, 144])
def test_the_fewest_islands_are_found(count):
    for needed in range(count + 1):
        counts: list[int] = []

        def test(islands: Any, needed: int = needed, counts: list[int] = counts) -> Parity:
            counts.append(len(islands))
            return parity(len(islands) >= needed)

        parts = Parts(count)
        found = fewest_islands(parts, test)
        assert found.islands == tuple(parts.parts[:needed])
        assert found.graph.producer_name == ",".join(found.islands)
        assert len(counts) == len(set(counts)) <= 3 + np.log2(count)
        tried = [each.islands for each in found.trials]
        assert tried == sorted(counts)
        assert all(each.passed == (each.islands >= needed) for each in found.trials)


@pytest.mark.parametrize(("needed", "first"), [(0, ()), (1, ("part 0", "part 1"))])
def test_a_candidate_without_islands_needs_no_margin_of_the_search(needed, first):
    """It fails the limits of a search and keeps those of an export; the next one fails as well."""

    def test(islands: Any) -> Parity:
        kept = tightened(EXPORT_LIMITS["int8"], dict.fromkeys(EXPORT_LIMITS["int8"], 1.1))
        near = len(islands) in (needed, 1)
        return measured_at(kept, 0.999) if near else parity(passed=len(islands) > 1)

    assert fewest_islands(Parts(4), test).islands == first


def test_limits_that_even_float32_misses_leave_all_parts_in_float32():
    parts = Parts(5)
    found = fewest_islands(parts, lambda _: parity(passed=False))
    assert found.islands == tuple(parts.parts)
    assert not any(each.passed for each in found.trials)
    assert found.trials[-1].islands == 5


@pytest.mark.parametrize(("needed", "counts"), [(2, [2, 4, 7]), (0, [0, 1, 2, 4, 7]), (7, [7])])
def test_each_further_choice_has_twice_as_many_islands(needed, counts):
    parts = Parts(7)
    first = fewest_islands(parts, lambda islands: parity(len(islands) >= needed))  # type: ignore[arg-type]
    choices = list(ever_more_islands(parts, first))
    assert [choice.islands for choice in choices] == [tuple(parts.parts[:n]) for n in counts]
    assert [c.graph.producer_name for c in choices] == [",".join(c.islands) for c in choices]


def test_a_quantised_layer_is_what_the_graph_computes(int8):
    name = "encoder.blocks.0.fc1"
    linear = block_linears(int8.folded)[name]
    given = int8.ranges[name]
    rows = torch.empty(9, linear.in_features).uniform_(given.low, given.high)
    reduced = QuantisedLinear(linear, given, int8.factors[name])
    got, exact = reduced(rows), linear(rows)
    error = (got - exact).abs().max()
    assert 0 < error < 0.1 * exact.abs().max()
    torch.testing.assert_close(reduced(rows[3:4]), got[3:4])


def test_int8_scores_are_near_float32_in_any_batch(official, int8, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 64, 64), dtype=np.uint8)
    runs = {}
    for name, graph in (("int8", int8.graph(())), ("fp32", int8.float_graph)):
        onnx.save(graph, tmp_path / name)
        session = OnnxSession(tmp_path / name, max_batch=6)
        runs[name] = session.run(pixels)["score"]
        if name == "int8":
            alone = np.concatenate([session.run(image[None])["score"] for image in pixels])
            assert np.abs(alone - runs[name]).max() < 1e-5 * SCALE.span
    assert 0 < np.abs(runs["int8"] - runs["fp32"]).max() < 0.05 * SCALE.span
    # The float graph is smoothed, which changes nothing.
    eager = TorchSession(official.model).run(pixels)["score"]
    np.testing.assert_allclose(runs["fp32"], eager, rtol=1e-4, atol=1e-4)


def test_islands_of_int8_are_products_in_float32(int8):
    ranked = int8.ranked()
    assert sorted(ranked) == sorted(int8.ranges)
    kept = ranked[:3]
    graph = int8.graph(kept)
    floats = {node.input[1] for node in graph.graph.node if node.op_type == "Gemm"}
    assert {f"model.{name}.weight" for name in kept} <= floats
    quantised = {n.output[0] for n in graph.graph.node if n.op_type == "DequantizeLinear"}
    assert all(f"model.{name}.weight.int8" not in quantised for name in kept)
    assert f"model.{ranked[-1]}.weight.int8" in quantised
    assert graph.ByteSize() > int8.graph(()).ByteSize()


def test_islands_of_float16_are_blocks_in_float32(official):
    island = "encoder.blocks.1"
    folded = inference_model(official.model, "fp16", [island])
    kinds = {name: p.dtype for name, p in folded.named_parameters() if ".blocks." in name}
    for name, kind in kinds.items():
        assert kind == (torch.float32 if name.startswith(island) else torch.float16)


@pytest.mark.slow
def test_an_island_adds_its_products_to_those_in_float32(official):
    island = "encoder.blocks.1"
    all_half = expectation_from_graph(onnx_from_model(official.model, precision="fp16"))
    mixed = onnx_from_model(official.model, precision="fp16", islands=[island])
    counts = [
        list(found.products.values()).count("fp32")
        for found in (all_half, expectation_from_graph(mixed))
    ]
    # Six linear layers and two products of the attention.
    assert counts[1] == counts[0] + 8


def test_float16_is_ranked_by_blocks(official, photographs):
    half = Half(official, photographs, maps=False, max_batch=2)
    assert sorted(half.ranked()) == [
        *(f"controller.vit.blocks.{i}" for i in range(2)),
        *(f"encoder.blocks.{i}" for i in range(2)),
    ]


@pytest.mark.slow
def test_auto_takes_the_fewest_islands_and_records_what_it_tried(
    official, photographs, tmp_path, monkeypatch
):
    limits = {"score_max": 1e-3}  # int8 does not keep it, a few islands do
    monkeypatch.setitem(SEARCH_LIMITS, "int8", limits)
    manifest = export_bundle(
        official, tmp_path / "b", images=photographs, precision="auto", max_batch=2
    )
    (engine,) = manifest.engines
    assert engine.precision == "int8"
    assert 0 < len(engine.islands) < 24
    passed = {each.islands: each.passed for each in engine.frontier}
    assert not passed[0]
    assert passed[len(engine.islands)]
    assert not passed.get(len(engine.islands) - 1, False)
    assert read_manifest(tmp_path / "b") == manifest
    sizes = [each.weight_bytes for each in engine.frontier]
    assert sizes == sorted(sizes)
    if engine.proven:
        assert runtime.load(tmp_path / "b").score(photographs[0]).value


@pytest.mark.slow
def test_the_loss_of_int8_is_reported(official, photographs, tmp_path):
    manifest = export_bundle(
        official, tmp_path / "b", images=photographs, precision="int8", max_batch=2
    )
    (engine,) = manifest.engines
    assert (engine.precision, engine.islands, engine.frontier) == ("int8", (), ())
    assert engine.parity is not None
    assert engine.invariance is not None
    assert engine.invariance.passed
    assert engine.parity.score_max > 1e-5


def test_a_gpu_engine_is_not_built_from_int8(bundle):
    manifest = read_manifest(bundle)
    int8 = replace(manifest.engines[0], precision="int8")
    write_manifest(replace(manifest, engines=(int8,)), bundle)
    with pytest.raises(UserError, match="onnx-cuda"):
        build_engine(bundle, "onnx-cuda")
    with pytest.raises(UserError, match="tensorrt"):
        build_engine(bundle, "tensorrt", precision="int8")


def test_an_error_that_is_not_finite_is_the_worst():
    errors = {"a": 0.1, "b": float("nan"), "c": 5.0, "d": float("inf"), "e": 0.2}
    assert precision._worst_first(errors) == ["b", "d", "c", "e", "a"]


def test_float16_is_measured_in_float16(official, photographs):
    """A block whose activations are beyond float16 is found, and kept in float32."""
    model = copy.deepcopy(official.model)
    block = model.encoder.vit.blocks[1]
    with torch.no_grad():  # equal in float32, since the next layer takes it back
        block.attn.qkv.weight[-32:] *= 1e6
        block.attn.qkv.bias[-32:] *= 1e6
        block.attn.proj.weight /= 1e6
    moved = official._replace(model=model)
    half = Half(moved, photographs, maps=False, max_batch=2)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    assert not np.isfinite(half.session(()).run(pixels)["score"]).all()
    assert np.isfinite(half.session(["encoder.blocks.1"]).run(pixels)["score"]).all()
    assert half.ranked()[0] == "encoder.blocks.1"


@pytest.mark.slow
def test_layers_of_equal_weights_stay_apart(official, photographs, tmp_path):
    model = copy.deepcopy(official.model)
    first, second = model.encoder.vit.blocks
    with torch.no_grad():
        for layer in ("fc1", "fc2"):
            for name in ("weight", "bias"):
                value = getattr(getattr(first.mlp, layer), name)
                getattr(getattr(second.mlp, layer), name).copy_(value)
    int8 = Int8(official._replace(model=model), photographs, maps=False, max_batch=2)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    assert np.isfinite(int8.session(()).run(pixels)["score"]).all()
    kept = int8.session(["encoder.blocks.0.fc1"]).run(pixels)["score"]
    assert not np.array_equal(kept, int8.session(()).run(pixels)["score"])


@pytest.mark.slow
def test_plain_precisions_have_no_islands(official):
    (made,) = choices_of_precision(official, "fp32", "cpu", {}, maps=False, max_batch=2)
    assert (made.precision, made.islands, made.trials) == ("fp32", (), ())
