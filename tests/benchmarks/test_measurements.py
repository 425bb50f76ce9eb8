"""The committed receipts, and the tables that are computed from them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drexperts.bench.json_files import read_json, write_json
from drexperts.bench.provenance import Gpu, Machine, Source
from drexperts.benchmarks import measurements
from drexperts.benchmarks.measurements import FOLDER, PAGE, SECTIONS, page, readme, section
from drexperts.benchmarks.receipt_types import kernel_receipt, model_receipt
from drexperts.benchmarks.receipt_types.answers import Answers, Reference
from drexperts.benchmarks.receipt_types.kernel_receipt import Check, KernelReceipt, Row
from drexperts.benchmarks.receipt_types.model_receipt import (
    AGAIN,
    BatchDrift,
    BatchRow,
    VariantCheck,
)
from drexperts.benchmarks.receipt_types.receipt import markdown
from drexperts.runtime.errors import UserError

KERNELS = "kernels-cpu.json"
H100 = Machine(
    cpu="Xeon",
    cores=16,
    threads=None,
    system="Linux",
    python="3.11",
    versions={"torch": "2.15.0"},
    gpus=(Gpu("NVIDIA H100", "580.1"),),
)
SOURCE = Source("0123456789abcdef", False, ("drexperts.kernels",))


@pytest.mark.slow
def test_the_page_and_the_readme_are_what_the_receipts_give(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert measurements.main(["--check"]) == 0, capsys.readouterr().out


COMMITTED = [
    (path, kind) for kinds in SECTIONS.values() for path, _, kind in measurements.receipts(kinds)
]


def test_every_committed_receipt_has_its_place() -> None:
    assert {path for path, _ in COMMITTED} == set(FOLDER.glob("*.json"))


@pytest.mark.parametrize(("path", "kind"), COMMITTED, ids=lambda given: getattr(given, "stem", ""))
def test_a_committed_receipt_holds_what_was_asked(path: Path, kind: Any) -> None:
    receipt = read_json(path, kind.receipt)
    assert receipt.source.commit
    assert receipt.source.dirty is False
    assert not getattr(receipt, "failures", [])
    assert getattr(receipt, "is_correct", True)
    assert getattr(receipt, "losses_agree", True)


@pytest.fixture
def committed() -> KernelReceipt:
    return read_json(FOLDER / KERNELS, KernelReceipt)


def test_an_edit_by_hand_is_shown_and_undone(
    tmp_path: Path,
    committed: KernelReceipt,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_json(committed, tmp_path / KERNELS)
    monkeypatch.setattr(measurements, "FOLDER", tmp_path)
    empty = "".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in SECTIONS)
    capacity = "<!-- capacity -->\n<!-- end of capacity -->\n"
    for name, text in (("PAGE", empty), ("CAPACITY", capacity), ("README", "no markers")):
        monkeypatch.setattr(measurements, name, tmp_path / f"{name}.md")
        (tmp_path / f"{name}.md").write_text(text)
    assert measurements.main([]) == 0
    written = (tmp_path / "PAGE.md").read_text()
    assert (tmp_path / "README.md").read_text() == "no markers"
    capsys.readouterr()
    row = next(line for line in written.splitlines() if line.startswith("| 1 | forward |"))
    (tmp_path / "PAGE.md").write_text(written.replace(row, f"{row} edited"))
    assert measurements.main(["--check"]) == 1
    shown = capsys.readouterr().out
    assert f"-{row} edited\n+{row}\n" in shown
    assert f"{KERNELS}: {(committed.source.commit or '')[:9]}, " in shown
    assert measurements.main([]) == 0
    assert (tmp_path / "PAGE.md").read_text() == written


def test_the_tables_follow_the_samples(tmp_path: Path, committed: KernelReceipt) -> None:
    first, *others = committed.rows
    slower = replace(first, seconds={name: (0.0123,) * 3 for name in first.seconds})
    write_json(replace(committed, rows=(slower, *others)), tmp_path / KERNELS)
    shown = section("head", tmp_path)
    commit = (committed.source.commit or "")[:7]
    assert f"Measured at commit `{commit}` by `python benchmarks/bench_kernels.py" in shown
    assert "| 1 | forward | 12.3 | 12 | 1 (1-1) |" in shown


def test_without_receipts(tmp_path: Path) -> None:
    assert "No measurement on a GPU is committed" in section("gpu", tmp_path)
    assert section("head", tmp_path) == "\n"
    text = "<!-- measured -->\nas it is\n<!-- end of measured -->"
    assert readme(text, tmp_path) == text


def test_a_page_without_a_section_is_an_error(tmp_path: Path) -> None:
    for name in SECTIONS:
        with pytest.raises(UserError, match=f"<!-- {name} -->"):
            page(PAGE.read_text().replace(f"<!-- end of {name} -->", ""), tmp_path)


def test_a_file_that_is_not_a_receipt_is_named(tmp_path: Path) -> None:
    (tmp_path / KERNELS).write_text('{"rows": []}')
    with pytest.raises(UserError, match=KERNELS):
        section("head", tmp_path)


# Receipts of a GPU, of which none is committed --------------------------------------------------


def check(name: str, role: str) -> Check:
    return Check(name, role, {"result 0": 1e-4}, {"result 0": 1e-3}, True, {}, False)


@pytest.fixture
def kernels_on_a_gpu(committed: KernelReceipt) -> KernelReceipt:
    problem = "pooling/single/B64/N577/float16"
    medians = {"ours": 1e-5, "ours, other": 9e-6, "eager": 9e-5, "compiled": 2e-5}
    roles = {"ours": "ours", "ours, other": "ours", "eager": "eager", "compiled": "baseline"}
    row = Row(problem, "forward, hot, graph", {n: (m,) * 9 for n, m in medians.items()}, {})
    return replace(
        committed,
        machine=H100,
        source=SOURCE,
        device="NVIDIA H100",
        checks={problem: tuple(check(name, role) for name, role in roles.items())},
        rows=(row, replace(row, mode="forward, cold, graph")),
    )


def test_kernels_on_a_gpu(kernels_on_a_gpu: KernelReceipt) -> None:
    shown = markdown(kernel_receipt.gpu_parts(kernels_on_a_gpu))
    assert shown.startswith("\nNVIDIA H100, driver 580.1; ")
    (line,) = (line for line in shown.splitlines() if line.startswith("| pooling/single"))
    cells = "forward | 10 | compiled | 20 | 2.00 (2.00-2.00) |"
    assert line == f"| pooling/single/B64/N577/float16 | {cells}"


@pytest.fixture
def model_on_a_gpu(committed: KernelReceipt) -> model_receipt.ModelReceipt:
    scores = tuple(i / 200 for i in range(120))
    same: dict[str, float | None] = {"weights_max": 0.0, "leading_flips": 0.0}
    answers = Answers(scores=(0.0012, *scores[1:]), weights_and_maps=same)
    names = {"reduced, compiled": 0.002, "dense, eager": 0.04}
    times = {**names, AGAIN: 0.002, "head, compiled": 0.0001}
    worst = dict.fromkeys(("score_max", "weights_max", "maps_max"), 0.0)
    checks = tuple(
        VariantCheck(
            precision="fp16",
            batch=8,
            variant=name,
            answers=answers,
            repeatable=True,
            drift=BatchDrift("each alone", (8,), worst),
        )
        for name in names
    )
    row = BatchRow("fp16", 8, {n: (t,) * 9 for n, t in times.items()}, {}, {}, {})
    return model_receipt.ModelReceipt(
        command="python benchmarks/gpu_model.py",
        machine=H100,
        source=SOURCE,
        trial=False,
        complete=True,
        device="NVIDIA H100",
        cuda="13.2",
        preset="official",
        weights="random",
        images="photographs",
        boundary="device events",
        reference=Reference(scores, 1.0, {"photographs": 20, "synthetic": 100}),
        checks=checks,
        rows=(row,),
        clocks=(),
        left_out={"fp16, B8, folded, eager": "no time was left"},
    )


def test_the_model_on_a_gpu(model_on_a_gpu: model_receipt.ModelReceipt) -> None:
    shown = markdown(model_receipt.parts(model_on_a_gpu))
    rows = [line for line in shown.splitlines() if line.startswith("| 8 |")]
    cells = "20.00 (20.00-20.00) | 0.12 | 1.00000 |"
    assert len(rows) == 2
    assert rows[1] == f"| 8 | fp16, dense, eager | 40 | 40 | 200 | {cells}"
    assert "The head takes 5.0% of reduced, compiled with batch 8." in shown
    assert "Left out. fp16, B8, folded, eager (no time was left)." in shown
    assert "Failed" not in shown


def test_a_failed_check_and_a_stopped_run_are_shown(
    model_on_a_gpu: model_receipt.ModelReceipt, kernels_on_a_gpu: KernelReceipt
) -> None:
    first, other = model_on_a_gpu.checks
    failed = replace(first, repeatable=False)
    stopped = replace(model_on_a_gpu, checks=(failed, other), complete=False)
    shown = markdown(model_receipt.parts(stopped))
    assert "**Failed: fp16, B8, reduced, compiled: two runs differ.**" in shown
    assert "stopped before its end" in shown
    wrong = replace(check("ours", "ours"), errors={"result 0": None})
    red = replace(kernels_on_a_gpu, checks={"problem": (wrong,)}, rows=())
    assert "failed" in markdown(kernel_receipt.gpu_parts(red))


@pytest.mark.parametrize("changed", [{"trial": True}, {"device": None}])
def test_only_a_gpu_has_a_place_among_the_measurements_on_gpus(
    changed: dict[str, Any],
    kernels_on_a_gpu: KernelReceipt,
    model_on_a_gpu: model_receipt.ModelReceipt,
) -> None:
    shown: list[Callable[[], Any]] = [
        lambda: markdown(kernel_receipt.gpu_parts(replace(kernels_on_a_gpu, **changed))),
        lambda: markdown(model_receipt.parts(replace(model_on_a_gpu, **changed))),
    ]
    for show in shown:
        with pytest.raises(UserError):
            show()
