"""A table of the paper as Markdown, with what was measured here below what is reported."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import isnan

from drexperts.paper.reported import IMAGES, SOURCE, TABLES
from drexperts.paper.results import MeasuredCell, Reproduction
from drexperts.ui.markdown import Table
from drexperts.ui.pages import render

_RUN = ("trained", "tested on", "split", "digest", "images", "epoch", "SRCC", "PLCC")


def page(done: Reproduction) -> str:
    """The Markdown page of a reproduced table."""
    return render(
        "paper.md.j2",
        done=done,
        number=done.table.removeprefix("table"),
        paper=SOURCE,
        standing=standing(done),
        cells=cells_table(done),
        runs=runs_table(done),
        failures=failures_by_error(done),
    )


def cells_table(done: Reproduction) -> Table:
    """The paper's rows, and ours below each that can be measured here; SRCC/PLCC."""
    return Table(("", *TABLES[done.table].columns), list(_rows(done)))


def runs_table(done: Reproduction, shown: Sequence[str] = _RUN) -> Table:
    """Every test behind the medians. shown: the columns by their headings"""
    places = [_RUN.index(heading) for heading in shown]
    return Table(tuple(shown), [tuple(row[place] for place in places) for row in _runs(done)])


def standing(done: Reproduction) -> str:
    """What the table says of the paper's numbers."""
    if not any(cell.runs for cell in done.cells):
        return "This is no reproduction of the paper's numbers: nothing was measured here."
    if differences := list(_differences(done)):
        return f"This is no reproduction of the paper's numbers: {', '.join(differences)}."
    return "All data sets measured here have all their images, and the weights are published."


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
        ours = {cell.column: cell for cell in done.cells if cell.row == row}
        for test in dict.fromkeys(test for cell in ours.values() for test in cell.medians):
            cells_here = [ours[column] for column in table.columns]
            yield (
                f"{row}, {here}, {test}",
                *(_ours(cell, test, done.splits) for cell in cells_here),
            )


def _ours(cell: MeasuredCell, test: str, splits: int) -> str:
    """The medians of the splits that are finished, and what is the matter with the others."""
    found = cell.medians[test]
    if not found.splits:
        return cell.state
    numbers = f"{_pair(found.srcc, found.plcc)} ({found.splits} of {splits})"
    return numbers if cell.state in ("done", "partly done") else f"{numbers}, {cell.state}"


def _pair(srcc: float | None, plcc: float | None) -> str:
    """Such as 0.941/0.954."""
    return f"{_number(srcc)}/{_number(plcc)}"


def _number(value: float | None) -> str:
    return "-" if value is None or isnan(value) else f"{value:.3f}"


def _runs(done: Reproduction) -> Iterator[tuple[str, ...]]:
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


def failures_by_error(done: Reproduction) -> dict[str, list[str]]:
    """The jobs that failed by their error, which many jobs often share."""
    jobs: dict[str, list[str]] = defaultdict(list)
    for failure in done.failures:
        jobs[failure.error].append(failure.job)
    return jobs
