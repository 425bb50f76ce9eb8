"""The benchmark of the whole model, on a CPU: its forms, its checks, its receipt.

Only a run on a GPU exercises CUDA graphs and device events. torch.compile and packages are tried by
hand, because they take minutes to come up on a CPU.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drexperts.bench.json_files import read_json
from drexperts.benchmarks import gpu_model, gpu_variants
from drexperts.benchmarks.bench_kernels import Budget
from drexperts.benchmarks.gpu_check import Checker, outputs_of, repeats
from drexperts.benchmarks.gpu_images import crops_for
from drexperts.benchmarks.gpu_model import (
    LATE,
    NO_CUDA,
    NOTHING,
    Batch,
    ModelBenchmark,
    Options,
    status,
    verdict,
)
from drexperts.benchmarks.gpu_variants import (
    COMPILED,
    EAGER,
    PACKAGED,
    VARIANTS,
    Forms,
    Programs,
    Variant,
)
from drexperts.benchmarks.operations.timing import require_writes
from drexperts.benchmarks.receipt_types.model_receipt import (
    AGAIN,
    DENSE,
    FOLDED,
    REDUCED,
    BatchRow,
    ModelReceipt,
)
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import ScoreScale

pytestmark = pytest.mark.slow  # what they share takes seconds to make

CPU = torch.device("cpu")
EAGERS = [f"{form}, eager" for form in (REDUCED, DENSE, FOLDED)]
QUICK = Options(batches=(2, 3), without=(COMPILED, PACKAGED), device="cpu", quick=True)
VARIANT = Variant(REDUCED, EAGER)


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


def test_all_forms_have_the_same_outputs(tiny_model: Any, noise: Tensor) -> None:
    forms = Forms.of(tiny_model, "fp32", CPU)
    dense, *others = (form(noise) for form in (forms.dense, forms.reduced, forms.folded))
    for other in others:
        torch.testing.assert_close(other, dense, rtol=1e-4, atol=1e-5)


def test_the_paper_s_dense_form_runs_in_16_bits(noise: Tensor) -> None:
    model, _ = Options(preset="paper", quick=True).model()
    results = Forms.of(model, "fp16", CPU).dense(noise)
    assert all(result.isfinite().all() for result in results)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_types_of_forms(tiny_model: Any, precision: str) -> None:
    forms = Forms.of(tiny_model, precision, CPU)
    dtype = gpu_variants.DTYPES[precision]
    assert {p.dtype for p in forms.dense.model.parameters()} == {dtype}
    assert {p.dtype for p in forms.reduced.model.encoder.parameters()} == {dtype}
    assert {p.dtype for p in forms.reduced.model.saliency.parameters()} == {torch.float32}
    made = forms.named().values()
    assert not any(p.requires_grad for form in made for p in form.parameters())
    assert {p.dtype for p in tiny_model.parameters()} == {torch.float32}  # and is left alone


def test_the_head_is_what_follows_the_encoders(tiny_model: Any, noise: Tensor) -> None:
    whole = Forms.of(tiny_model, "fp16", CPU).reduced
    head = gpu_variants.Head(whole, noise)
    torch.testing.assert_close(head(torch.zeros(1)), whole(noise), rtol=0, atol=0)


def test_every_variant_is_named_once() -> None:
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)
    assert {variant.maker for variant in VARIANTS} == {EAGER, COMPILED, PACKAGED}
    any_batch = {variant.name for variant in VARIANTS if variant.any_batch}
    assert any_batch == {*EAGERS, "reduced, AOTInductor"}


def test_what_cannot_be_made_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, noise: Tensor
) -> None:
    tried = []

    def refuse(*_: object, **__: object) -> None:
        tried.append(1)
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    programs = Programs({REDUCED: nn.Identity()}, tmp_path)
    for graph in (True, False):
        with pytest.raises(RuntimeError, match="no compiler"):
            programs.program(Variant(REDUCED, COMPILED, graph), noise)
    assert tried == [1]


def test_a_captured_program_reads_a_buffer_of_its_own(tiny_model: Any, noise: Tensor) -> None:
    """With a graph that is the function itself; capturing one takes a GPU."""

    class Replays:
        def captured(self, run: Callable[[], object], copies: int) -> Callable[[], object]:
            run()
            return run

    program = Forms.of(tiny_model, "fp32", CPU).reduced
    first, other = noise[:1].clone(), noise[1:2]
    captured = gpu_variants.Captured(program, first, Replays())  # type: ignore[arg-type]
    torch.testing.assert_close(captured(other), program(other))
    assert torch.equal(first, noise[:1])


# The check --------------------------------------------------------------------------------------


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
def checker() -> Checker:
    levels = 255 - 2 * torch.arange(120).view(-1, 1, 1, 1)
    pixels = levels.expand(-1, 3, 4, 4).to(torch.uint8)
    expected = outputs_of(brightness, pixels, 8)
    return Checker("fp16", pixels, {"all": 120}, expected, ScoreScale(0.0, 1.0, True), largest=8)


def mistakes(checker: Checker, variant: Variant, program: Any, batch: int) -> list[str]:
    return checker.check(variant, program, batch).mistakes(checker.reference)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (brightness, []),
        (scaled, ["parity with float32"]),
        (not_a_number, ["its outputs are not finite"]),
        (of_the_batch, ["batch invariance"]),
        (of_black_neighbours, ["batch invariance"]),
        (unsteady(), ["two runs differ"]),
    ],
)
def test_check(checker: Checker, program: Any, expected: list[str]) -> None:
    assert mistakes(checker, VARIANT, program, 1) == expected


def test_only_parity_is_asked_of_the_dense_form(checker: Checker) -> None:
    dense = Variant(DENSE, EAGER)
    for program in (of_the_batch, unsteady()):
        assert not mistakes(checker, dense, program, 1)
    assert mistakes(checker, dense, scaled, 1) == ["parity with float32"]


def test_a_program_of_one_batch_size_is_compared_with_itself(checker: Checker) -> None:
    found = checker.check(Variant(REDUCED, COMPILED), of_its_place, 4)
    assert "batch invariance" in found.mistakes(checker.reference)
    assert found.drift is not None
    assert found.drift.against == "the same batch in order"
    assert found.drift.batches == (4,)


def test_a_program_of_one_batch_size_is_compared_with_its_single_images(checker: Checker) -> None:
    fixed = Variant(REDUCED, COMPILED)
    checker.check(fixed, brightness, 1)
    found = checker.check(fixed, lambda pixels: tuple(1.003 * r for r in brightness(pixels)), 4)
    assert found.drift is not None
    assert found.drift.against == "each alone"
    assert "batch invariance" in found.mistakes(checker.reference)


def test_a_program_of_every_size_is_tried_on_all_of_them_once(checker: Checker) -> None:
    first, second = (checker.check(VARIANT, brightness, 2).drift for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.batches, second.batches) == ((1, 2, 3, 4, 5, 6, 7, 8), (2,))


def test_neighbours_change_with_the_batch_size(checker: Checker) -> None:
    seen: set[tuple[int, ...]] = set()

    def noting(pixels: Tensor) -> tuple[Tensor, ...]:
        seen.add(tuple((255 - pixels[:, 0, 0, 0].int()).tolist()))
        return brightness(pixels)

    checker.check(VARIANT, noting, 8)
    assert {(4, 6), (6, 8, 10)} <= seen  # crops 2 and 3; crops 3, 4 and 5


def test_a_program_may_write_over_its_results(checker: Checker) -> None:
    """As a captured one does."""
    buffers: list[Tensor] = []

    def static(pixels: Tensor) -> tuple[Tensor, ...]:
        results = [result.contiguous() for result in brightness(pixels)]
        if not buffers:
            buffers.extend(results)
        for buffer, result in zip(buffers, results, strict=True):
            buffer.copy_(result)
        return tuple(buffers)

    assert repeats(static, checker.pixels[:4])
    buffers.clear()
    fixed = Variant(REDUCED, EAGER, graph=True)
    assert not mistakes(checker, fixed, static, 4)


def test_the_last_batch_is_filled_up_and_cut(checker: Checker) -> None:
    whole, parts = (outputs_of(brightness, checker.pixels[:10], batch) for batch in (10, 4))
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


# The run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> ModelReceipt:
    """The receipt of a run of the script on this processor."""
    receipt = tmp_path_factory.mktemp("trial") / "receipt.json"
    words = ["--device", "cpu", "--quick", "--batches", "2", "3", "--receipt", str(receipt)]
    assert gpu_model.main([*words, "--without", COMPILED, PACKAGED]) == 0
    return read_json(receipt, ModelReceipt)


def test_a_trial_is_marked_as_one(trial: ModelReceipt) -> None:
    assert trial.trial
    assert trial.device is None
    assert trial.complete
    assert trial.failures == {}
    assert trial.command.endswith("--without compiled AOTInductor")
    assert "receipt" not in trial.command


def test_every_variant_that_can_run_is_checked_and_timed(trial: ModelReceipt) -> None:
    assert [row.batch for row in trial.rows] == [2, 3]
    for row in trial.rows:
        assert set(row.seconds) == {*EAGERS, AGAIN, "head, eager"}
        assert list(row.variants) == EAGERS
        assert set(row.head_shares()) == {EAGERS[0]}
        assert not row.refused
    labels = {f"fp16, B{batch}, {name}" for batch in (2, 3) for name in EAGERS}
    assert {check.label for check in trial.checks} == labels | {
        f"bf16, B3, {REDUCED}, eager",  # the largest batch: one image would have no neighbours
        f"bf16, B3, {FOLDED}, eager",
    }
    assert trial.left_out["fp16, B2, reduced, eager, graph"] == NO_CUDA


def benchmark(folder: Path, seconds: float = 600, options: Options = QUICK) -> ModelBenchmark:
    return ModelBenchmark(options, Budget(seconds), "a test", folder)


def test_what_fails_is_not_timed_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Forms.of

    def perturbed(*given: Any) -> Forms:
        forms = made(*given)
        forms.reduced.model.score.weight.mul_(1.5)
        return forms

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(Forms, "of", perturbed)
    monkeypatch.setattr(gpu_variants.Dense, "forward", out_of_memory)
    receipt = benchmark(tmp_path, options=replace(QUICK, batches=(2,))).run()
    assert "fp16, B2, reduced, eager" in receipt.failures
    assert "fp16, B2, folded, eager" not in receipt.failures
    assert receipt.left_out["fp16, B2, dense, eager"] == "OutOfMemoryError: too large"
    assert list(receipt.rows[0].variants) == [EAGERS[2]]
    assert status(receipt) == 1
    assert any("FAILED fp16, B2, reduced, eager" in line for line in verdict(receipt))


def checked_at_2(run: ModelBenchmark, checker: Any, variant: Variant = VARIANT) -> Batch:
    """A batch in which one variant was checked, whose program is `brightness`."""
    forms: Any = {variant.form: brightness}
    batch = Batch(2, checker, Programs(forms, run.folder))
    run._check_all(batch, [variant])
    return batch


class CheckerThat:
    """Raises an error in every check."""

    precision, pixels = "fp16", torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    reference = None

    def __init__(self, error: Exception) -> None:
        self.error = error

    def check(self, *_: object) -> None:
        raise self.error


LABEL = "fp16, B2, reduced, eager"


def test_an_error_in_a_check_is_a_failure(tmp_path: Path) -> None:
    run = benchmark(tmp_path)
    batch = checked_at_2(run, CheckerThat(RuntimeError("an illegal address")))
    assert run.receipt().failures == {LABEL: ["RuntimeError: an illegal address"]}
    assert run.left_out == {}
    assert batch.able == {}
    assert status(run.receipt()) == 1


def test_what_has_no_memory_is_left_out(tmp_path: Path) -> None:
    run = benchmark(tmp_path)
    checked_at_2(run, CheckerThat(torch.OutOfMemoryError("too large")))
    assert run.checks == []
    assert run.left_out == {LABEL: "OutOfMemoryError: too large"}


def test_a_graph_that_writes_nothing_is_a_failure(tmp_path: Path, checker: Checker) -> None:
    class WritesNothing:
        def captured(self, run: Callable[[], Any], copies: int) -> None:
            require_writes(lambda: None, run())

    run = benchmark(tmp_path)
    run.options = replace(run.options, device="cuda")  # else no graph is tried
    run.timer = WritesNothing()  # type: ignore[assignment]
    checked_at_2(run, checker, Variant(REDUCED, EAGER, graph=True))
    (found,) = run.checks
    assert found.label == f"{LABEL}, graph"
    assert found.error is not None
    assert found.error.startswith("RuntimeError")


@pytest.mark.parametrize(
    ("names", "left_out", "expected"),
    [
        (["reduced, eager"], {"folded": "RuntimeError: no"}, 0),
        (["dense, eager"], {}, 1),
        ([], {"reduced": "RuntimeError: no"}, 1),
        ([], {"reduced": LATE}, NOTHING),
    ],
)
def test_one_of_our_forms_must_be_checked(
    names: list[str], left_out: dict[str, str], expected: int, trial: ModelReceipt
) -> None:
    checks = tuple(each for each in trial.checks if each.variant in names)
    receipt = replace(trial, checks=checks, left_out=left_out)
    assert status(receipt) == expected
    assert any("none of our forms" in line for line in verdict(receipt)) == (expected != 0)


def test_without_time_nothing_is_checked(tmp_path: Path) -> None:
    receipt = benchmark(tmp_path, 0).run()
    assert receipt.checks == ()
    assert receipt.left_out == {"fp16, B2": LATE, "fp16, B3": LATE, "bf16": LATE}
    assert status(receipt) == NOTHING


def test_nothing_is_made_that_there_is_no_time_for(tmp_path: Path) -> None:
    run = benchmark(tmp_path, 100)
    programs = Programs({}, tmp_path)
    slow = Variant(REDUCED, COMPILED)
    assert run.why_not(slow, programs) is None
    run.longest = 90  # seconds that another took; half of the time is what one may be given
    run.budget = Budget(100, iter([0.0, 60.0]).__next__)
    assert run.why_not(slow, programs) == LATE
    run.budget = Budget(100, iter([0.0, 60.0]).__next__)
    assert run.why_not(VARIANT, programs) is None


def test_ratios_are_to_the_first_and_the_head_has_its_share() -> None:
    times: dict[str, tuple[float, ...]] = {
        "reduced, eager": (2.0, 4.0),
        AGAIN: (1.0, 2.0),
        "dense, eager": (4.0, 8.0),
        "head, eager": (1.0, 2.0),
    }
    row = BatchRow("fp16", 8, times, {}, {}, {})
    assert list(row.variants) == ["reduced, eager", "dense, eager"]
    assert row.ratio("reduced, eager") is None
    assert str(row.ratio("dense, eager")) == "2.00 (2.00-2.00)"
    assert row.head_shares()["reduced, eager"].p50 == 0.5


def test_without_a_device_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_model.main([]) == NOTHING


def test_presets_have_their_own_configurations() -> None:
    presets = {
        Options(preset=preset, quick=True).model()[0].config.preset
        for preset in ("official", "paper")
    }
    assert presets == {"official", "paper"}
