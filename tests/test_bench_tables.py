"""The tables of a report: its numbers in its units."""

import pytest
import sample_reports

from drexperts import bench_tables as tables
from drexperts.timing import ratio_text


def test_latency_is_in_milliseconds() -> None:
    entry = sample_reports.batch(4, {"engine": 0.1, "other": 0.2}, 9)
    table = tables.latency([entry])
    engine, other = (dict(zip(table.headings, row, strict=True)) for row in table.rows)
    times = entry["latency"]["engine"]
    assert (engine["batch"], engine["contender"]) == ("4", "engine")
    assert float(engine["p50 ms"]) == float(f"{1e3 * times['p50']:.4g}")
    assert float(engine["crops/s"]) == float(f"{4 / times['p50']:.4g}")
    assert engine["times the engine"] == ""
    assert other["times the engine"] == ratio_text(entry["ratio"]["other"])


def test_the_engines_second_turn_is_no_contender() -> None:
    report = sample_reports.cpu()
    assert tables.AGAIN in report["batches"][0]["latency"]
    shown = [*tables.latency(report["batches"]).rows, *tables.throughput(report).rows]
    assert all(tables.AGAIN not in row for row in shown)


def test_numbers_that_are_not_known() -> None:
    report = sample_reports.cpu()
    costs = dict(tables.costs(report).rows)
    assert costs["build"] == costs["peak memory on the device"] == "-"
    assert costs["energy of an image"] == "- (this platform does not report energy)"
    assert costs["load"] == "0.84 s"
    assert tables.text(None) == "-"
    assert tables.text(12345.6) == "12346"


def test_a_contender_that_ran_in_some_batches_only() -> None:
    report = sample_reports.cpu()
    del report["batches"][1]["latency"]["backbones"]
    rows = {row[0]: row[1:] for row in tables.throughput(report).rows}
    assert rows["backbones"][1] == "-"
    assert "-" not in rows["engine"]


def test_scenarios() -> None:
    report = sample_reports.cpu()
    single, multi, server, offline = tables.scenarios(report).rows
    found = report["scenarios"]
    assert single[1] == tables.text(1 / found["single_stream"]["mean"])
    assert multi[1] == tables.text(8 / found["multi_stream"]["mean"])
    assert server[1] == tables.text(found["server"]["images_per_s"])
    slowest = max(trial["p99"] for trial in found["server"]["trials"] if trial["met"])
    assert server[-1] == tables.milliseconds(slowest)
    assert offline[1] == tables.text(found["offline"]["images_per_s"])
    rates = [float(row[0]) for row in tables.server_trials(report).rows]
    assert rates == sorted(rates)


def test_no_rate_met_the_bound() -> None:
    (server,) = tables.scenarios(sample_reports.bare()).rows
    assert server[1:] == ("-",) * 4


def test_shares_of_parts_are_of_their_sum() -> None:
    rows = tables.parts(sample_reports.cpu()).rows
    assert sum(float(row[2].removesuffix(" %")) for row in rows) == pytest.approx(100, abs=0.3)


def test_roofline() -> None:
    report = sample_reports.cpu()
    found = report["roofline"]
    points = tables.roofline_points(report)
    alone = report["engine_gpu"][1]["latency"]["engine"]["p50"]
    assert points[2][0] == 2 * found["flop_per_image"] / found["weight_bytes"]
    assert points[2][1] == 2 * found["flop_per_image"] / alone
    assert tables.attainable(found, 1.0) == found["bandwidth"]
    assert tables.attainable(found, 1e9) == found["peak_flops"]
    assert tables.attainable(found | {"peak_flops": None}, 1.0) is None
    assert tables.roofline_points(report | {"engine_gpu": []})[2][1] < points[2][1] * 1.1
    assert tables.roofline_points(sample_reports.bare()) == {}
