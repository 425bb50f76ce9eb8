"""The tables of a report: its numbers in its units."""

import pytest
from support import sample_reports

from drexperts.bench import tables
from drexperts.bench.timing import ratio_text


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
    assert costs["peak memory on the device"] == "-"
    assert costs["energy of an image"] == "- (this platform does not report energy)"
    assert costs["load, page cache warm"] == "0.84 s"
    assert tables.text(None) == "-"
    assert tables.text(12345.6) == "12346"
    report["cold_start"]["resident_bytes"] = None  # where the system does not say
    assert dict(tables.costs(report).rows)["memory after it"] == "-"


def test_an_older_report_says_how_long_its_engine_was_built() -> None:
    report = sample_reports.cpu()
    older = report | {"bundle": report["bundle"] | {"build_seconds": None}}
    assert tables.costs(older) == tables.costs(report)


def test_where_it_is_from() -> None:
    report = sample_reports.cpu()
    shown = dict(tables.machine(report).rows)
    assert shown["engine"] == "model.onnx: onnx, fp32, SHA-256 0123456789ab"
    assert shown["baselines' weights"] == "random"
    assert "weights" not in shown
    assert not [name for name in shown if name.startswith("GPU")]
    ends = dict(tables.machine(sample_reports.gpu()).rows)
    assert "1980 MHz" in ends["GPU 0"]
    assert "1410 MHz" in ends["GPU 0 after the last round"]


def test_agreement() -> None:
    rows = tables.agreement(sample_reports.cpu()).rows
    assert rows == [("engine", "1.3e-07"), ("eager-dense", "0.0e+00")]
    assert not tables.agreement(sample_reports.bare()).rows
    assert dict(tables.machine(sample_reports.bare()).rows)["engine"] == "model.onnx: onnx, fp32"


def test_each_batch_has_its_own_noise_floor() -> None:
    report = sample_reports.cpu()
    report["batches"] = report["batches"][:2]
    report["batches"][1]["ratio"][tables.AGAIN] = {"p20": 0.9, "p50": 1.02, "p80": 1.3}
    first = ratio_text(report["noise_floor"])
    said = f"is {first} times as slow with batch 1, 1.02 (0.90-1.30) with batch 2. A ratio within"
    assert said in tables.noise_floor(report)
    assert tables.noise_floor(sample_reports.bare()) == "The noise floor was not measured."


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
    assert offline[1] == tables.text(found["offline"]["images_per_s"])
    assert tables.scenarios(report).headings[2:] == tables.CALLS
    for row, times in ((single, found["single_stream"]), (multi, found["multi_stream"])):
        assert row[2:] == tables.calls(times)
    assert offline[2:] == ("-",) * len(tables.CALLS)


def test_the_servers_latency_is_that_of_its_rate() -> None:
    """Of several rates that met the bound the slowest p99 may be another's."""
    report = sample_reports.cpu()
    server = report["scenarios"]["server"]
    slower = sample_reports.trial(0.9, 1.25, met=True, answered=120) | {"rate": 0.1}
    server["trials"].append(slower)
    best = next(one for one in server["trials"] if one["rate"] == server["images_per_s"])
    assert best["p99"] < slower["p99"]
    row = next(row for row in tables.scenarios(report).rows if row[0].startswith("server"))
    assert row[2:] == tables.calls(best["latency"])


def test_trials_that_were_stopped_are_marked() -> None:
    report = sample_reports.cpu()
    table = tables.server_trials(report)
    rates = [float(row[0]) for row in table.rows]
    assert rates == sorted(rates)
    assert table.headings[2:-1] == tables.CALLS
    counts = [(row[1], row[-1]) for row in table.rows]
    assert counts == [
        ("120 of 120", "yes"),
        ("120 of 120", "yes"),
        ("61 of 120", "no, stopped early"),
        ("9 of 120", "no, stopped early"),
    ]


def test_no_rate_met_the_bound() -> None:
    (server,) = tables.scenarios(sample_reports.bare()).rows
    assert server[1:] == ("-",) * (1 + len(tables.CALLS))


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
