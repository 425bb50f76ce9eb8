"""A report for its readers: its files are whole, and show everything as it is."""

import io
import json
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from support import sample_reports

from drexperts.bench import tables
from drexperts.bench.caveats import boundaries, warnings
from drexperts.bench.json_files import document, read_json
from drexperts.bench.report import (
    markdown,
    print_report,
    print_table,
    print_training_report,
    trace,
    with_summary,
    write_report,
)
from drexperts.bench.reports import AGAIN, BenchReport
from drexperts.bench.timing import Summary
from drexperts.ui.markdown import Table

EACH = pytest.mark.parametrize("name", sample_reports.REPORTS)


@EACH
@pytest.mark.slow
def test_the_files_of_a_report(name: str, tmp_path: Path) -> None:
    report = sample_reports.REPORTS[name]()
    write_report(report, tmp_path / "out")
    assert read_json(tmp_path / "out" / "report.json", BenchReport) == report
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files - {"trace.json"} == {"report.json", "report.md", "index.html"}
    assert ("trace.json" in files) == (report.profile is not None)


def test_a_report_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    report = sample_reports.bare()
    earlier = document(report)
    for name in ("warm_ups", "conditions"):
        del earlier[name]
    for place, names in (("bundle", ("digest", "options")), ("machine", ("cpu_id",))):
        for name in names:
            del earlier[place][name]
    (tmp_path / "report.json").write_text(json.dumps(earlier))
    assert read_json(tmp_path / "report.json", BenchReport) == report


@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_terminal_breaks_no_name_and_no_number(width: int) -> None:
    report, stream = sample_reports.cpu(), io.StringIO()
    for table in (
        tables.latency(report.batches),
        tables.scenarios(report),
        tables.server_trials(report),
    ):
        print_table(table, Console(file=stream, width=width))
        for row in table.rows:
            for cell, number in zip(row, table.numeric, strict=True):
                for whole in [cell] if number else cell.split():
                    assert whole in stream.getvalue()
    assert max(map(len, stream.getvalue().splitlines())) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in stream.getvalue()


def test_a_table_without_rows_is_printed() -> None:
    stream = io.StringIO()
    print_table(Table(("batch", "ms"), []), Console(file=stream, width=80), "Latency")
    assert stream.getvalue().split()[:3] == ["Latency", "batch", "ms"]


def test_a_wide_terminal_shows_each_table_whole() -> None:
    report, stream = sample_reports.cpu(), io.StringIO()
    print_report(report, Console(file=stream, width=160))
    lines = stream.getvalue().splitlines()
    assert sum("variant" in line and "crops/s" in line for line in lines) == 2
    for row in tables.latency(report.batches).rows:
        assert any(all(cell in line for cell in row) for line in lines)


def test_a_number_that_json_does_not_have_leaves_what_was_there(tmp_path: Path) -> None:
    report = sample_reports.bare()
    write_report(report, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = replace(report, cold_start=replace(report.cold_start, load_s=float("nan")))
    with pytest.raises(ValueError, match="JSON"):
        write_report(broken, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_command_line_that_is_no_text_is_written(tmp_path: Path) -> None:
    write_report(replace(sample_reports.bare(), command="drx bench caf\udce9"), tmp_path)
    assert "caf" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_a_trace_has_every_layer_inside_the_image() -> None:
    profile = sample_reports.profile(0.003)
    image, decode, crop, engine, *layers = trace(profile)["traceEvents"]
    assert [each["name"] for each in (image, decode, crop, engine)] == [
        "image",
        "decode",
        "crop",
        "engine",
    ]
    assert image["dur"] == pytest.approx(1e6 * sum(profile.parts.values()))
    assert [layer["name"] for layer in layers] == [layer.name for layer in profile.layers]
    assert [layer["cat"] for layer in layers] == ["encoder", "controller"]
    start = engine["ts"]
    for layer in layers:
        assert layer["ph"] == "X"
        assert layer["ts"] == pytest.approx(start)
        start += layer["dur"]
    assert start <= engine["ts"] + engine["dur"] <= image["dur"] + 1e-6


def test_the_summary_is_computed_from_the_samples() -> None:
    report = sample_reports.cpu()
    made = json.loads(json.dumps(with_summary(report), allow_nan=False))
    summary = made.pop("summary")
    assert made == json.loads(json.dumps(document(report)))
    engine = Summary.of(report.batches[0].seconds["engine"])
    ratio = report.batches[0].ratio(AGAIN)
    assert ratio
    assert summary["batches"][0]["latency"]["engine"] == vars(engine)
    assert summary["batches"][0]["ratio"][AGAIN] == vars(ratio)
    assert summary["server_images_per_s"] == pytest.approx(0.7 / 1.25)
    assert summary["warnings"] == warnings(report)
    training = with_summary(sample_reports.training())["summary"]
    assert training["losses_agree"] is True
    assert training["ratio"].keys() == {"ours, fp32", "dense", "released"}


def test_it_is_printed() -> None:
    report, shown = sample_reports.cpu(), io.StringIO()
    print_report(report, Console(file=shown, width=160))
    for promised in (
        "eager-dense",
        "Noise floor",
        "engine_gpu",
        "server",
        "no NVIDIA GPU",
        "warning: ",
        "encoder",
        str(report.batches[0].ratio("eager-dense")),
    ):
        assert promised in shown.getvalue()
    assert f" {AGAIN} " not in shown.getvalue()


def test_a_training_step_is_printed() -> None:
    report, shown = sample_reports.training(), io.StringIO()
    print_training_report(report, Console(file=shown, width=120))
    for name in (*report.variants, *report.parts, "data"):
        assert name in shown.getvalue()


def rendered(report: BenchReport) -> str:
    return MarkdownIt("gfm-like", {"linkify": False}).render(markdown(report))


def test_markdown_has_what_was_measured() -> None:
    report = sample_reports.cpu()
    shown = unescape(rendered(report))
    assert report.scenarios.single_stream
    for promised in (
        *tables.calls(report.batches[0].seconds["engine"]),
        *tables.calls(report.scenarios.single_stream),
        str(report.batches[2].ratio(AGAIN)),
        "1.3e-07",
        *("eager-dense", "compile", "no NVIDIA GPU", "single-stream"),
        *boundaries(report.bundle).values(),
        *warnings(report),
        *(report.machine.cpu or "", report.source.commit or "", report.command),
    ):
        assert promised in shown


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
    assert "None" not in shown
