"""A reproduced table as Markdown: what was measured here under what is reported."""

from collections.abc import Iterator, Sequence
from typing import Any

from drexperts.paper.reported import IMAGES, SOURCE, TABLES, Correlations
from drexperts.ui.html import Table, markdown_table

# The paper can be read either way, see `drexperts.data.splits.reduced`.
_SHARES = {
    "table3": (
        "",
        "20, 40 and 60 % are shares of all images of a data set, not of the training part of a "
        "split, and what an epoch is chosen by is among them; the test part stays whole. The paper "
        "can be read either way.",
    )
}


def page(report: dict[str, Any]) -> str:
    """The page of a report of `drexperts.paper.reproduce`."""
    table = TABLES[report["table"]]
    number = report["table"].removeprefix("table")
    lines = [
        f"# Table {number}: {table.title}",
        "",
        "SRCC/PLCC. **Only the rows that say `here` were measured here**: medians over the splits "
        f"that are done, their number behind them. All other rows are as reported in {SOURCE}.",
        "",
        _caveat(report),
        "",
        f"Trained from {report['start']}, {' or '.join(report['schedules'])}; tested by the "
        f"protocol `{report['protocol']}`; epochs chosen by the {report['selected_on']} images. "
        "The splits are in `splits/`.",
        *_SHARES.get(report["table"], ()),
        "",
        *markdown_table(Table(("", *table.columns), list(_rows(report)))),
        "",
        "## Measured here",
        "",
        *(_runs_lines(report) or ["Nothing."]),
    ]
    if report["failures"]:
        lines += ["", "## Failed", ""]
        lines += _failure_lines(report["failures"])
    return "\n".join(lines) + "\n"


def _caveat(report: dict[str, Any]) -> str:
    """What sets the numbers measured here apart from the paper's, where anything does."""
    used: dict[str, int] = {}
    for cell in report["cells"]:
        for run in cell["runs"]:
            for name, count in run["used"].items():
                used[name] = min(count, used.get(name, count))
    differences = [
        f"{name} {used[name]} of {count} images"
        for name, count in IMAGES.items()
        if used.get(name, count) != count
    ]
    if not report["published"]:
        differences.append("not trained from the published weights")
    if not used:
        differences = ["nothing was measured here"]
    if not differences:
        return "All data sets measured here have all their images, and the weights are published."
    return f"**This is no reproduction of the paper's numbers**: {', '.join(differences)}."


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The paper's rows, and under each that we have measured or can, ours."""
    table = TABLES[report["table"]]
    for row, cells in table.rows.items():
        yield (row, *(_text(cell) for cell in cells))
        ours = {cell["column"]: cell for cell in report["cells"] if cell["row"] == row}
        tests = dict.fromkeys(test for cell in ours.values() for test in cell["medians"])
        for test in tests:
            medians = [ours[column]["medians"][test] for column in table.columns]
            yield (f"{row}, here, {test}", *(_ours(one, report["splits"]) for one in medians))


def _ours(found: dict[str, Any], splits: int) -> str:
    if not found["splits"]:
        return "missing"
    pair = _text(Correlations(found["srcc"], found["plcc"]))
    return f"{pair} ({found['splits']} of {splits})"


def _text(cell: Correlations | None) -> str:
    """Such as 0.941/0.954; table 2 has no PLCC, and some cells nothing."""
    return "-" if cell is None else "/".join(map(_number, cell))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _runs_lines(report: dict[str, Any]) -> list[str]:
    """Every run behind the medians."""
    headings = ("trained", "tested on", "split", "digest", "images", "epoch", "SRCC", "PLCC")
    rows = [
        (
            cell["name"],
            test if cell["target"] is None else f"{cell['target']}, {test}",
            str(run["split"]),
            run["split_digest"],
            " + ".join(map(str, run["images"])),
            str(run["best_epoch"]),
            *(_number(metrics[name]) for name in ("srcc", "plcc")),
        )
        for cell in report["cells"]
        for run in cell["runs"]
        for test, metrics in run["tests"].items()
    ]
    return list(markdown_table(Table(headings, rows))) if rows else []


def _failure_lines(failures: Sequence[dict[str, str]]) -> Iterator[str]:
    """A line an error: the same one mostly has many jobs."""
    jobs: dict[str, list[str]] = {}
    for failure in failures:
        jobs.setdefault(failure["error"], []).append(failure["job"])
    for error, failed in jobs.items():
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        yield f"- {failed[0]}{more}: {error}"
