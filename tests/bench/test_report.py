"""The files of a report: whole, complete, and shown as they are."""

import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from support import sample_reports

from drexperts.bench import tables
from drexperts.bench.report import markdown, observations, write_report

EACH = pytest.mark.parametrize("name", sample_reports.REPORTS)


def at(document: Any, pointer: str) -> Any:
    """What a JSON Pointer points to (RFC 6901)."""
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document


@EACH
def test_every_observation_is_where_it_says(name: str, tmp_path: Path) -> None:
    write_report(sample_reports.REPORTS[name](), tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    lines = (tmp_path / "out" / "observations.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        found = at(report, line["set"])
        assert found["samples"][line["round"]] == line["seconds"]
        assert found is at(report, line["set"])
    samples = re.findall(r'"samples": \[([^\]]*)\]', json.dumps(report))
    assert len(lines) == sum(len(each.split(",")) for each in samples) > 0


def test_observations_name_their_contender_and_batch() -> None:
    report = sample_reports.cpu()
    found = list(observations(report))
    timed = [one for one in found if one["set"] == "/batches/1/latency/eager-dense"]
    assert [one["round"] for one in timed] == list(range(30))
    assert {(one["contender"], one["batch"]) for one in timed} == {("eager-dense", 2)}
    apart = {one["set"]: (one["contender"], one["batch"]) for one in found}
    assert apart["/image/preprocess"] == (None, None)
    assert apart["/scenarios/single_stream"] == (None, None)


def test_odd_names_have_a_pointer() -> None:
    report = sample_reports.bare()
    report["batches"] = [sample_reports.batch(1, {"engine": 0.1, "a/b~c": 0.2}, 2)]
    assert at(report, list(observations(report))[-1]["set"])["samples"]


@EACH
def test_report_is_the_document(name: str, tmp_path: Path) -> None:
    report = sample_reports.REPORTS[name]()
    write_report(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"report.json", "observations.jsonl", "report.md", "index.html"}


def test_a_number_that_is_none_leaves_what_was_there(tmp_path: Path) -> None:
    report = sample_reports.cpu()
    write_report(report, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    report["cold_start"]["load_s"] = math.nan
    with pytest.raises(ValueError, match="JSON"):
        write_report(report, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_text_that_is_no_text_is_written(tmp_path: Path) -> None:
    report = sample_reports.cpu() | {"command": "drx bench caf\udce9"}
    write_report(report, tmp_path)
    assert "caf" in (tmp_path / "index.html").read_text(encoding="utf-8")


def rendered(report: dict[str, Any]) -> str:
    return MarkdownIt("gfm-like", {"linkify": False}).render(markdown(report))


def test_markdown_has_what_was_measured() -> None:
    report = sample_reports.cpu()
    report["batches"][2]["ratio"]["engine again"] = {"p20": 0.5, "p50": 0.77, "p80": 0.9}
    shown = unescape(rendered(report))
    engine = report["batches"][0]["latency"]["engine"]
    for said in (
        *(f"{1e3 * engine[quantile]:.4g}" for quantile in ("p50", "p90", "p95", "p99")),
        *tables.calls(report["scenarios"]["single_stream"]),
        "0.77 (0.50-0.90) with batch 4",
        "1.3e-07",
        *("eager-dense", "torch.compile", "no NVIDIA GPU", "Noise floor", "single-stream"),
        *report["boundaries"].values(),
        *report["warnings"],
        *(report["machine"]["cpu"], report["source"]["sha256"], report["command"]),
    ):
        assert said in shown


def test_markdown_shows_what_comes_from_outside_as_it_is() -> None:
    shown = rendered(sample_reports.gpu())
    assert " ".join(sample_reports.HOSTILE.split()) in unescape(shown)
    for tag in ("<script", "<a ", "<code"):
        assert tag not in shown
    columns = [row.count("<td") for row in shown.split("<tr>")]
    assert set(columns) <= {0, *range(2, 12)}


def test_markdown_leaves_out_what_is_missing() -> None:
    shown = markdown(sample_reports.bare())
    assert "Roofline" not in shown
    assert "Left out" not in shown
    assert "\n\n\n" not in shown
    assert "None" not in shown
