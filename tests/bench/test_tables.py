"""The tables of a report: its numbers in its units."""

from dataclasses import replace

import pytest
from support import sample_reports

from drexperts.bench import tables
from drexperts.bench.reports import AGAIN, ENGINE, BatchTimes, Trial
from drexperts.bench.timing import Summary
from drexperts.ui.markdown import Table


def values(table: Table) -> dict[str, str]:
    """The values of a table of names and values."""
    return {row[0]: row[1] for row in table.rows}


def test_latency_is_in_milliseconds() -> None:
    entry = sample_reports.batch(4, {ENGINE: 0.1, "other": 0.2}, 9)
    table = tables.latency([entry])
    engine, other = (dict(zip(table.headings, row, strict=True)) for row in table.rows)
    p50 = Summary.of(entry.seconds[ENGINE]).p50
    assert (engine["batch"], engine["variant"]) == ("4", ENGINE)
    assert float(engine["p50 ms"]) == float(f"{1e3 * p50:.4g}")
    assert float(engine["crops/s"]) == float(f"{4 / p50:.4g}")
    assert engine["times the engine"] == ""
    assert other["times the engine"] == str(entry.ratio("other"))


def test_the_engines_second_turn_is_no_variant() -> None:
    report = sample_reports.cpu()
    assert AGAIN in report.batches[0].seconds
    assert all(AGAIN not in row for row in tables.latency(report.batches).rows)
    assert AGAIN not in tables.throughput_points(report)


def test_numbers_that_are_not_known() -> None:
    report = sample_reports.cpu()
    costs = values(tables.costs(report))
    assert costs["memory of the device, largest batch"] == "-"
    assert costs["energy of an image"] == f"- ({report.energy.source})"
    assert costs["load, page cache warm"] == "0.84 s"
    assert tables.text(None) == "-"
    assert tables.text(12345.6) == "12346"
    cold = replace(report.cold_start, resident_bytes=None)
    assert values(tables.costs(replace(report, cold_start=cold)))["memory after it"] == "-"


def test_where_it_is_from() -> None:
    report = sample_reports.cpu()
    shown = values(tables.origin(report))
    assert shown["commit"] == report.source.commit
    assert not [name for name in shown if name.startswith("GPU")]
    changed = replace(report, source=replace(report.source, dirty=True))
    assert values(tables.origin(changed))["commit"] != shown["commit"]
    gpu = values(tables.origin(sample_reports.gpu()))
    assert "1980" in gpu["GPU 0"]
    assert "1410" in gpu["GPU 0 after the last round"]
    missing = replace(report.machine, missing={"gpus": "nvidia-ml-py is not installed"})
    unknown = values(tables.origin(replace(report, machine=missing)))
    assert "nvidia-ml-py is not installed" in unknown.values()


def test_conditions() -> None:
    report = sample_reports.cpu()
    shown = values(tables.conditions(report))
    assert shown == {
        "date": "2026-11-28T20:59:06+00:00, for 63.2 s",
        "load average": "0.31 before, at most 2.4 during",
        "steal": "0.42 % of the CPUs' time",
        "CPU": f"AMD EPYC 7763 64-Core Processor ({report.machine.cpu_id}), 2 cores",
        "engine": "model.onnx: onnx, fp32, SHA-256 0123456789ab",
        "bundle": "digest sha256:89abcdef0123",
        "options": "intra op num threads 1, graph optimization level ORT_ENABLE_ALL",
        "warm-ups": "1 before 30 timed rounds",
    }
    assert report.conditions
    unknown = replace(report.conditions, load_before=None, loads=(), steal=None)
    shown = values(tables.conditions(replace(report, conditions=unknown)))
    assert shown["load average"] == "- before, at most - during"
    assert shown["steal"].startswith("- ")


def test_an_earlier_report_has_no_conditions() -> None:
    shown = values(tables.conditions(sample_reports.bare()))
    assert not {"date", "load average", "steal"} & shown.keys()
    assert (shown["bundle"], shown["options"]) == ("-", "-")
    assert shown["warm-ups"] == "- before 3 timed rounds"


def test_each_batch_has_its_own_noise_floor() -> None:
    report = sample_reports.cpu()
    for entry in report.batches:
        assert f"{entry.ratio(AGAIN)} with batch {entry.batch}" in tables.noise_floor(report)
    assert "not measured" in tables.noise_floor(sample_reports.bare())


def test_a_variant_that_ran_in_some_batches_only() -> None:
    report = sample_reports.cpu()
    first, second = report.batches[:2]
    without = {name: times for name, times in second.seconds.items() if name != "backbones"}
    some = replace(report, batches=(first, BatchTimes(second.batch, without)))
    points = tables.throughput_points(some)
    assert [batch for batch, _ in points["backbones"]] == [1]
    assert [batch for batch, _ in points[ENGINE]] == [1, 2]


def test_scenarios() -> None:
    report = sample_reports.cpu()
    found = report.scenarios
    assert found.single_stream
    assert found.multi_stream
    assert found.offline
    single, multi, server, offline = tables.scenarios(report).rows
    assert tables.scenarios(report).headings[2:] == tables.CALLS
    assert single[1] == tables.text(1 / Summary.of(found.single_stream).mean)
    assert multi[1] == tables.text(8 / Summary.of(found.multi_stream).mean)
    assert server[1] == tables.text(0.7 / 1.25)
    assert offline[1] == tables.text(found.offline.images_per_s)
    assert single[2:] == tables.calls(found.single_stream)
    assert multi[2:] == tables.calls(found.multi_stream)
    assert offline[2:] == ("-",) * len(tables.CALLS)


def test_the_servers_latency_is_that_of_its_rate() -> None:
    """Of several rates that met the bound, another may have the slowest p99."""
    report = sample_reports.cpu()
    server = report.scenarios.server
    assert server
    assert server.best
    slower = Trial(0.1, 1, (server.bound_s,))
    more = replace(server, trials=(*server.trials, slower))
    changed = replace(report, scenarios=replace(report.scenarios, server=more))
    row = next(row for row in tables.scenarios(changed).rows if row[0].startswith("server"))
    assert row[2:] == tables.calls(server.best.seconds)


def test_trials_that_were_stopped_are_marked() -> None:
    table = tables.server_trials(sample_reports.cpu())
    rates = [float(row[0]) for row in table.rows]
    assert rates == sorted(rates)
    assert [(row[1], row[-1]) for row in table.rows] == [
        ("120 of 120", "yes"),
        ("120 of 120", "yes"),
        ("61 of 120", "no, stopped early"),
        ("9 of 120", "no, stopped early"),
    ]


def test_no_rate_met_the_bound() -> None:
    (server,) = tables.scenarios(sample_reports.bare()).rows
    assert server[1:] == ("-",) * (1 + len(tables.CALLS))


def test_parts_add_up_to_an_image() -> None:
    report = sample_reports.cpu()
    assert report.profile
    assert sum(report.profile.parts.values()) == pytest.approx(100 * 0.003)
    rows = {part: (ms, share) for part, ms, share in tables.parts(report).rows}
    assert rows["encoder"] == ("210", "70.0 %")
    assert rows["between kernels"] == ("9", "3.0 %")
    slowest = [float(row[-1]) for row in tables.layers(report).rows]
    assert slowest == sorted(slowest, reverse=True)


def test_roofline() -> None:
    report = sample_reports.cpu()
    found = report.roofline
    assert found
    points = tables.roofline_points(report)
    alone = Summary.of(report.engine_gpu[1].seconds[ENGINE]).p50
    assert points[2] == pytest.approx(
        (2 * found.flop_per_image / found.weight_bytes, 2 * found.flop_per_image / alone)
    )
    assert tables.attainable(found, 1.0) == found.bandwidth
    assert tables.attainable(found, 1e9) == found.peak_flops
    assert tables.attainable(replace(found, peak_flops=None), 1.0) is None
    whole = Summary.of(report.batches[1].seconds[ENGINE]).p50
    with_copies = tables.roofline_points(replace(report, engine_gpu=()))
    assert with_copies[2][1] == pytest.approx(2 * found.flop_per_image / whole)
    assert tables.roofline_points(sample_reports.bare()) == {}


def test_a_training_step() -> None:
    report = sample_reports.training()
    rows = {row[0]: row[1:] for row in tables.training(report).rows}
    assert rows["dense"][-1] == "3.20"
    assert rows["dense"][-3] == str(report.ratio("dense"))
    assert rows["ours"][-1] == rows["ours"][-3] == ""
    parts, data = tables.training_parts(report)
    assert "25%" in parts
    assert "80 ms" in data
    assert report.losses_agree
    apart = replace(report.variants["dense"], loss=0.1021)
    assert not replace(report, variants=report.variants | {"dense": apart}).losses_agree
