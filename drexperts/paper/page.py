"""A table of the paper as Markdown, with what was measured here below what is reported."""

from collections import defaultdict
from collections.abc import Iterator
from math import isnan

from drexperts.paper.reported import IMAGES, SOURCE, TABLES
from drexperts.paper.results import Failure, Median, Reproduction
from drexperts.ui.markdown import Table
from drexperts.ui.pages import render


def page(done: Reproduction) -> str:
    """The Markdown page of a reproduced table."""
    headings = ("trained", "tested on", "split", "digest", "images", "epoch", "SRCC", "PLCC")
    return render(
        "paper.md.j2",
        done=done,
        number=done.table.removeprefix("table"),
        paper=SOURCE,
        differences=list(_differences(done)),
        measured=any(cell.runs for cell in done.cells),
        cells=Table(("", *TABLES[done.table].columns), list(_rows(done))),
        runs=Table(headings, list(_runs(done))),
        failures=_by_error(done.failures),
    )


def _differences(done: Reproduction) -> Iterator[str]:
    """How the trainings behind the table differ from the paper's."""
    used: dict[str, int] = {}
    for cell in done.cells:
        for run in cell.runs:
            for name, count in run.used.items():
                used[name] = min(count, used.get(name, count))
    for name, count in IMAGES.items():
        if used.get(name, count) != count:
            yield f"{name} {used[name]} of {count} images"
    if not done.published:
        yield "not trained from the published weights"


def _rows(done: Reproduction) -> Iterator[tuple[str, ...]]:
    """The rows of the paper, and ours below each that can be measured here."""
    table = TABLES[done.table]
    here = "here" if done.published else "here, not from the published weights"
    for row, cells in table.rows.items():
        yield (row, *("-" if cell is None else _pair(*cell) for cell in cells))
        ours = {cell.column: cell.medians for cell in done.cells if cell.row == row}
        for test in dict.fromkeys(test for medians in ours.values() for test in medians):
            medians = [ours[column][test] for column in table.columns]
            yield (f"{row}, {here}, {test}", *(_ours(each, done.splits) for each in medians))


def _ours(found: Median, splits: int) -> str:
    pair = _pair(found.srcc, found.plcc)
    return f"{pair} ({found.splits} of {splits})" if found.splits else "missing"


def _pair(srcc: float | None, plcc: float | None) -> str:
    """Such as 0.941/0.954."""
    return f"{_number(srcc)}/{_number(plcc)}"


def _number(value: float | None) -> str:
    return "-" if value is None or isnan(value) else f"{value:.3f}"


def _runs(done: Reproduction) -> Iterator[tuple[str, ...]]:
    """Every test behind the medians."""
    for cell in done.cells:
        for run in cell.runs:
            for test, metrics in run.tests.items():
                yield (
                    cell.name,
                    test if cell.target is None else f"{cell.target}, {test}",
                    str(run.split),
                    run.split_digest,
                    " + ".join(map(str, run.images)),
                    str(run.best_epoch),
                    _number(metrics.srcc),
                    _number(metrics.plcc),
                )


def _by_error(failures: tuple[Failure, ...]) -> dict[str, list[str]]:
    """The jobs that failed by their error, which many jobs often share."""
    jobs: dict[str, list[str]] = defaultdict(list)
    for failure in failures:
        jobs[failure.error].append(failure.job)
    return jobs
