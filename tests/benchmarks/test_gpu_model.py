"""The whole model's gate and bench, on a CPU. No test asserts a time.

CUDA graphs and device events are exercised by a run on a GPU alone, and torch.compile and packages
by hand: they take minutes to come up on a CPU.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drexperts.benchmarks import gpu_contenders, gpu_model
from drexperts.benchmarks.bench_kernels import Budget
from drexperts.benchmarks.gpu_contenders import (
    COMPILED,
    DENSE,
    EAGER,
    FOLDED,
    PACKAGED,
    PLAN,
    REDUCED,
    Contender,
)
from drexperts.benchmarks.gpu_gate import Gate, outputs_of, repeats
from drexperts.benchmarks.gpu_images import crops_for
from drexperts.benchmarks.gpu_model import (
    AGAIN,
    LATE,
    NO_CUDA,
    NOTHING,
    Bench,
    lines,
    timed_row,
    verdict,
)
from drexperts.benchmarks.gpu_settings import Settings
from drexperts.benchmarks.kernel_timing import require_writes
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import ScoreScale

CPU = torch.device("cpu")
EAGERS = [f"{form}, eager" for form in (REDUCED, DENSE, FOLDED)]
QUICK = Settings(batches=(2, 3), without=(COMPILED, PACKAGED), device="cpu", quick=True)
CONTENDER = Contender(REDUCED, EAGER)


@pytest.fixture(scope="module", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)


# Forms -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_model() -> Any:
    model, _ = QUICK.model()
    return model


@pytest.fixture(scope="module")
def noise() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=generator)


def test_all_forms_say_the_same(tiny_model: Any, noise: Tensor) -> None:
    forms = gpu_contenders.forms(tiny_model, "fp32", CPU)
    dense, *others = (forms[name](noise) for name in (DENSE, REDUCED, FOLDED))
    for other in others:
        torch.testing.assert_close(other, dense, rtol=1e-4, atol=1e-5)


def test_the_paper_s_dense_form_runs_in_16_bits(noise: Tensor) -> None:
    model, _ = Settings(preset="paper", quick=True).model()
    dense = gpu_contenders.forms(model, "fp16", CPU)[DENSE]
    assert all(result.isfinite().all() for result in dense(noise))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_types_of_forms(tiny_model: Any, precision: str) -> None:
    forms = gpu_contenders.forms(tiny_model, precision, CPU)
    dtype = gpu_contenders.DTYPES[precision]
    assert {p.dtype for p in forms[DENSE].model.parameters()} == {dtype}
    assert {p.dtype for p in forms[REDUCED].model.encoder.parameters()} == {dtype}
    assert {p.dtype for p in forms[REDUCED].model.saliency.parameters()} == {torch.float32}
    assert not any(p.requires_grad for form in forms.values() for p in form.parameters())
    assert {p.dtype for p in tiny_model.parameters()} == {torch.float32}  # and is left alone


def test_the_head_is_what_follows_the_encoders(tiny_model: Any, noise: Tensor) -> None:
    whole = gpu_contenders.forms(tiny_model, "fp16", CPU)[REDUCED]
    head = gpu_contenders.Head(whole, noise)
    torch.testing.assert_close(head(torch.zeros(1)), whole(noise), rtol=0, atol=0)


def test_the_plan_names_everybody_once() -> None:
    assert len({contender.name for contender in PLAN}) == len(PLAN)
    assert {contender.maker for contender in PLAN} == {EAGER, COMPILED, PACKAGED}
    taken = {contender.name for contender in PLAN if contender.any_batch}
    assert taken == {*EAGERS, "reduced, AOTInductor"}


def test_what_cannot_be_made_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, noise: Tensor
) -> None:
    tried = []

    def refuse(*_: object, **__: object) -> None:
        tried.append(1)
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    programs = gpu_contenders.Programs({REDUCED: nn.Identity()}, tmp_path)
    for graph in (True, False):
        with pytest.raises(RuntimeError, match="no compiler"):
            programs.program(Contender(REDUCED, COMPILED, graph), noise)
    assert tried == [1]


def test_a_captured_program_reads_a_buffer_of_its_own(tiny_model: Any, noise: Tensor) -> None:
    """With a graph that is the function itself; capturing one takes a GPU."""

    class Replays:
        def captured(self, run: Callable[[], object], copies: int) -> Callable[[], object]:
            run()
            return run

    program = gpu_contenders.forms(tiny_model, "fp32", CPU)[REDUCED]
    first, other = noise[:1].clone(), noise[1:2]
    captured = gpu_contenders.Captured(program, first, Replays())  # type: ignore[arg-type]
    torch.testing.assert_close(captured(other), program(other))
    assert torch.equal(first, noise[:1])


# The gate ----------------------------------------------------------------------------------------


def brightness(pixels: Tensor) -> tuple[Tensor, ...]:
    """A model whose score, weights and maps follow the brightness of a crop."""
    score = pixels.float().mean((1, 2, 3)) / 255
    return (
        score,
        score[:, None] * torch.arange(1, 11),
        score[:, None, None, None].expand(-1, 10, 2, 2),
    )


def scaled(pixels: Tensor) -> tuple[Tensor, ...]:
    return tuple(1.1 * result for result in brightness(pixels))


def not_a_number(pixels: Tensor) -> tuple[Tensor, ...]:
    score, *others = brightness(pixels)
    return score * float("nan"), *others


def of_the_batch(pixels: Tensor) -> tuple[Tensor, ...]:
    """What a crop is given depends on the batch that it is in."""
    return tuple(result * (1 + 0.003 * len(pixels)) for result in brightness(pixels))


def of_its_place(pixels: Tensor) -> tuple[Tensor, ...]:
    score, *others = brightness(pixels)
    return score + 0.005 * torch.arange(len(score)), *others


def of_black_neighbours(pixels: Tensor) -> tuple[Tensor, ...]:
    score, *others = brightness(pixels)
    return score + 0.01 * bool(pixels.amin() == 0), *others


def unsteady() -> Callable[[Tensor], tuple[Tensor, ...]]:
    calls: list[int] = []

    def run(pixels: Tensor) -> tuple[Tensor, ...]:
        calls.append(1)
        return tuple(result * (1 + 1e-6 * (len(calls) % 2)) for result in brightness(pixels))

    return run


@pytest.fixture
def gate() -> Gate:
    levels = 255 - 2 * torch.arange(120).view(-1, 1, 1, 1)
    pixels = levels.expand(-1, 3, 4, 4).to(torch.uint8)
    expected = outputs_of(brightness, pixels, 8)
    return Gate("fp16", pixels, {"all": 120}, expected, ScoreScale(0.0, 1.0, True), largest=8)


@pytest.mark.parametrize(
    ("program", "mistakes"),
    [
        (brightness, []),
        (scaled, ["parity with float32"]),
        (not_a_number, ["its outputs are no finite numbers"]),
        (of_the_batch, ["batch invariance"]),
        (of_black_neighbours, ["batch invariance"]),
        (unsteady(), ["two runs differ"]),
    ],
)
def test_gate(gate: Gate, program: Any, mistakes: list[str]) -> None:
    assert gate.judge(CONTENDER, program, 1)["mistakes"] == mistakes


def test_of_a_baseline_parity_is_asked_alone(gate: Gate) -> None:
    baseline = Contender(DENSE, EAGER)
    for program in (of_the_batch, unsteady()):
        assert not gate.judge(baseline, program, 1)["mistakes"]
    assert gate.judge(baseline, scaled, 1)["mistakes"] == ["parity with float32"]


def test_a_program_of_one_batch_size_is_held_to_itself(gate: Gate) -> None:
    fixed = Contender(REDUCED, COMPILED)
    found = gate.judge(fixed, of_its_place, 4)
    assert "batch invariance" in found["mistakes"]
    assert found["invariance"]["against"] == "the same batch in order"
    assert found["invariance"]["batches"] == [4]


def test_a_program_of_one_batch_size_is_held_to_what_it_said_of_one(gate: Gate) -> None:
    fixed = Contender(REDUCED, COMPILED)
    gate.judge(fixed, brightness, 1)
    found = gate.judge(fixed, lambda pixels: tuple(1.003 * r for r in brightness(pixels)), 4)
    assert found["invariance"]["against"] == "each alone"
    assert "batch invariance" in found["mistakes"]


def test_a_program_of_every_size_is_tried_on_all_of_them_once(gate: Gate) -> None:
    first, second = (gate.judge(CONTENDER, brightness, 2)["invariance"] for _ in range(2))
    assert (first["batches"], second["batches"]) == ([1, 2, 3, 4, 5, 6, 7, 8], [2])


def test_neighbours_change_with_the_batch_size(gate: Gate) -> None:
    seen: set[tuple[int, ...]] = set()

    def noting(pixels: Tensor) -> tuple[Tensor, ...]:
        seen.add(tuple((255 - pixels[:, 0, 0, 0].int()).tolist()))
        return brightness(pixels)

    found = gate.judge(CONTENDER, noting, 8)
    assert {(4, 6), (6, 8, 10)} <= seen  # crops 2 and 3; crops 3, 4 and 5
    assert "extremes" in found["invariance"]["cases"]


def test_a_program_may_write_over_its_results(gate: Gate) -> None:
    """As a captured one does."""
    buffers: list[Tensor] = []

    def static(pixels: Tensor) -> tuple[Tensor, ...]:
        results = [result.contiguous() for result in brightness(pixels)]
        if not buffers:
            buffers.extend(results)
        for buffer, result in zip(buffers, results, strict=True):
            buffer.copy_(result)
        return tuple(buffers)

    assert repeats(static, gate.pixels[:4])
    buffers.clear()
    fixed = Contender(REDUCED, EAGER, graph=True)
    assert not gate.judge(fixed, static, 4)["mistakes"]


def test_the_last_batch_is_filled_up_and_cut(gate: Gate) -> None:
    whole, parts = (outputs_of(brightness, gate.pixels[:10], batch) for batch in (10, 4))
    np.testing.assert_array_equal(whole.scores, parts.scores)
    assert parts.maps is not None
    assert len(parts.maps) == parts.rows == 10


# Photographs -------------------------------------------------------------------------------------


def test_a_folder_of_photographs(tmp_path: Path, photo: Callable[..., Any], tiny: Any) -> None:
    for i in range(4):
        photo(90, 80, seed=i).save(tmp_path / f"{i}.png")
    pixels, sizes, origin = crops_for(tiny(), tmp_path)
    assert sizes["photographs"] == 4
    assert sum(sizes.values()) == len(pixels) > 100
    assert pixels.shape[1:] == (3, 64, 64)
    assert "4 photographs" in origin


def test_too_few_photographs_are_an_error(tmp_path: Path, tiny: Any) -> None:
    with pytest.raises(UserError, match="at least 3"):
        crops_for(tiny(), tmp_path)


# The bench ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The receipt of a run of the script on this processor."""
    receipt = tmp_path_factory.mktemp("trial") / "receipt.json"
    words = ["--device", "cpu", "--quick", "--batches", "2", "3", "--receipt", str(receipt)]
    assert gpu_model.main([*words, "--without", COMPILED, PACKAGED]) == 0
    return json.loads(receipt.read_text())


def test_a_trial_is_marked_as_one(trial: Any) -> None:
    assert trial["kind"] == "gpu-model-trial"
    assert trial["device"] is None
    assert "no GPU figure" in trial["boundary"]
    assert trial["complete"]


def test_a_receipt_holds(trial: Any, tmp_path: Path) -> None:
    from drexperts.benchmarks import receipts

    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(trial))
    finding = receipts.check(path)
    assert finding.faults == []
    assert finding.recomputed > 20


def test_everybody_able_is_judged_and_timed(trial: Any) -> None:
    assert [row["batch"] for row in trial["batches"]] == [2, 3]
    for row in trial["batches"]:
        assert list(row["latency"]) == [*EAGERS, AGAIN]
        assert set(row["ratio"]) == {*EAGERS[1:], AGAIN}
        assert set(row["head"]) == {EAGERS[0]}
        assert not row["refused"]
    labels = {f"fp16, B{batch}, {name}" for batch in (2, 3) for name in EAGERS}
    assert set(trial["gates"]) == labels | {
        f"bf16, B3, {REDUCED}, eager",  # the largest: one image would have no neighbours
        f"bf16, B3, {FOLDED}, eager",
    }
    assert trial["left_out"]["fp16, B2, reduced, eager, graph"] == NO_CUDA


def bench(tmp_path: Path, seconds: float = 600, settings: Settings = QUICK) -> Bench:
    return Bench(settings, Budget(seconds), "a test", tmp_path)


def test_red_ones_are_not_timed_broken_ones_are_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = gpu_model.forms

    def perturbed(*given: Any) -> dict[str, nn.Module]:
        forms = made(*given)
        forms[REDUCED].model.score.weight.mul_(1.5)
        return forms

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(gpu_model, "forms", perturbed)
    monkeypatch.setattr(gpu_contenders.Dense, "forward", out_of_memory)
    report = bench(tmp_path, settings=replace(QUICK, batches=(2,))).run()
    assert report["gates"]["fp16, B2, reduced, eager"] is False
    assert report["gates"]["fp16, B2, folded, eager"] is True
    assert report["left_out"]["fp16, B2, dense, eager"] == "OutOfMemoryError: too large"
    assert list(report["batches"][0]["latency"]) == [EAGERS[2], AGAIN]
    assert verdict(report) == 1
    assert "RED fp16, B2, reduced, eager" in lines(report)


def judged_at_2(run: Bench, contender: Contender, program: Any, gate: Any) -> Any:
    """What is noted of one contender, whose program is given."""
    programs = gpu_contenders.Programs({contender.form: program}, run.folder)
    return run._judged(2, programs, gate, [contender])


class GateThat:
    """Raises whatever it is asked."""

    precision, expected = "fp16", outputs_of(brightness, torch.zeros(3, 3, 4, 4), 3)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def judge(self, *_: object) -> None:
        raise self.error


LABEL = "fp16, B2, reduced, eager"


def test_whoever_raises_where_it_is_judged_is_red(tmp_path: Path) -> None:
    run = bench(tmp_path)
    found = judged_at_2(run, CONTENDER, brightness, GateThat(RuntimeError("an illegal address")))
    assert run.report["gates"] == {LABEL: False}
    assert run.left_out == {}
    assert found.able == {}
    mistakes = run.report["verdicts"][0]["others"]["reduced, eager"]["mistakes"]
    assert mistakes == ["RuntimeError: an illegal address"]
    assert verdict(run.report) == 1


def test_for_want_of_memory_it_is_left_out(tmp_path: Path) -> None:
    run = bench(tmp_path)
    judged_at_2(run, CONTENDER, brightness, GateThat(torch.OutOfMemoryError("too large")))
    assert run.report["gates"] == {}
    assert run.left_out == {LABEL: "OutOfMemoryError: too large"}


def test_a_graph_that_writes_nothing_is_red(tmp_path: Path, gate: Gate) -> None:
    class WritesNothing:
        def captured(self, run: Callable[[], Any], copies: int) -> None:
            require_writes(lambda: None, run())

    run = bench(tmp_path)
    run.settings = replace(run.settings, device="cuda")  # else no graph is tried
    run.timer = WritesNothing()  # type: ignore[assignment]
    judged_at_2(run, Contender(REDUCED, EAGER, graph=True), brightness, gate)
    assert run.report["gates"] == {f"{LABEL}, graph": False}
    (other,) = run.report["verdicts"][0]["others"].values()
    assert "left results unwritten" in other["mistakes"][0]


def report_of(names: list[str], **left_out: str) -> dict[str, Any]:
    return {
        "batches": [],
        "gates": dict.fromkeys(names, True),
        "verdicts": [{"others": {name: {"mistakes": []} for name in names}}],
        "left_out": left_out,
    }


@pytest.mark.parametrize(
    ("names", "left_out", "status"),
    [
        (["reduced, eager"], {"folded": "RuntimeError: no"}, 0),
        (["dense, eager"], {}, 1),
        ([], {"reduced": "RuntimeError: no"}, 1),
        ([], {"reduced": LATE}, NOTHING),
    ],
)
def test_one_of_ours_is_judged(names: list[str], left_out: dict[str, str], status: int) -> None:
    report = report_of(names, **left_out)
    assert verdict(report) == status
    assert (lines(report)[-1:] == ["none of ours was judged"]) == (status != 0)


def test_without_time_nothing_is_judged(tmp_path: Path) -> None:
    report = bench(tmp_path, 0).run()
    assert report["gates"] == {}
    assert report["left_out"] == {"fp16, B2": LATE, "fp16, B3": LATE, "bf16": LATE}
    assert verdict(report) == NOTHING


def test_nothing_is_made_that_there_is_no_time_for(tmp_path: Path) -> None:
    run = bench(tmp_path, 100)
    programs = gpu_contenders.Programs({}, tmp_path)
    slow = Contender(REDUCED, COMPILED)
    assert run._why_not(slow, programs) is None
    run.making = 90  # seconds that another took; half of the time is what one may be given
    run.budget = Budget(100, iter([0.0, 60.0]).__next__)
    assert run._why_not(slow, programs) == LATE
    run.budget = Budget(100, iter([0.0, 60.0]).__next__)
    assert run._why_not(CONTENDER, programs) is None


def test_ratios_are_over_the_first_and_shares_of_the_whole() -> None:
    row = timed_row(
        {"reduced, eager": [2.0, 4.0], "dense, eager": [4.0, 8.0], "head, eager": [1.0, 2.0]},
        "reduced, eager",
    )
    assert row["ratio"] == {"dense, eager": {"p20": 2.0, "p50": 2.0, "p80": 2.0}}
    assert row["head"]["reduced, eager"]["share"]["p50"] == 0.5
    assert "head, eager" not in row["latency"]


def test_a_second_turn_goes_with_the_first() -> None:
    taken = {"dense, eager": [4.0], "folded, eager": [8.0], AGAIN: [2.0]}
    row = timed_row(taken, "reduced, eager")
    assert list(row["latency"]) == ["dense, eager", "folded, eager"]
    assert list(row["ratio"]) == ["folded, eager"]
    assert timed_row(taken, "dense, eager")["ratio"][AGAIN]["p50"] == 0.5


def test_without_a_device_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_model.main([]) == NOTHING


def test_presets_have_configurations_of_their_own() -> None:
    assert {
        Settings(preset=p, quick=True).model()[0].config.preset for p in ("official", "paper")
    } == {
        "official",
        "paper",
    }
