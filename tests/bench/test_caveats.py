"""What is shown beside the numbers."""

from dataclasses import replace

import pytest
from support.sample_reports import BUNDLE, MACHINE, bare

from drexperts.bench.caveats import boundaries, warnings
from drexperts.bench.conditions import Conditions
from drexperts.bench.provenance import Gpu
from drexperts.bench.reports import (
    BatchTimes,
    BenchReport,
    ImageTimes,
    Scenarios,
    Seconds,
    Server,
    Trial,
)

STEADY = tuple(1.0 + 0.001 * (i % 7) for i in range(100))
WILD = (1.0, 2.0) * 50


def report(other: Seconds = STEADY, preprocess: Seconds = STEADY) -> BenchReport:
    return replace(
        bare(),
        batches=(BatchTimes(4, {"engine": STEADY, "eager-dense": other}),),
        engine_gpu=(BatchTimes(4, {"engine": STEADY}),),
        image=ImageTimes(0, (4,), preprocess, STEADY),
        scenarios=Scenarios(),
    )


def test_nothing_to_say() -> None:
    assert warnings(report()) == []


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (report(other=WILD), "eager-dense batch 4 33%"),
        (report(preprocess=WILD), "preprocess 33%"),
        (report(other=STEADY[:15]), "15 samples for eager-dense batch 4"),
        (report(preprocess=STEADY[:15]), "15 samples for preprocess"),
    ],
)
def test_unstable_times_and_few_samples_are_named(made: BenchReport, named: str) -> None:
    (warning,) = warnings(made)
    assert named in warning


@pytest.mark.parametrize(
    ("load", "steal", "named"),
    [
        (0.5, 0.01, []),
        (None, None, []),
        (0.51, 0.0, ["0.51"]),
        (0.0, 0.05, ["5.0%"]),
        (3.0, 0.5, ["3.00", "50.0%"]),
    ],
)
def test_a_machine_that_others_used(
    load: float | None, steal: float | None, named: list[str]
) -> None:
    """It has two cores."""
    found = warnings(replace(report(), conditions=Conditions("", 1.0, load, (9.0,), steal)))
    assert len(found) == len(named)
    assert all(name in warning for name, warning in zip(named, found, strict=True))


def test_queries_of_scenarios() -> None:
    # The wild trial was stopped early, so the verdict rests on the other.
    trials = Trial(3.0, 100, (1.0, 3.0) * 50), Trial(9.0, 100, (1.0, 50.0))
    scenarios = Scenarios(
        single_stream=WILD, multi_stream=STEADY[:23], server=Server(4.0, 0.1, trials)
    )
    server, unstable, few = warnings(replace(report(), scenarios=scenarios))
    assert scenarios.server
    assert scenarios.server.note
    assert scenarios.server.note in server
    assert unstable.endswith("single_stream 33%, server at 3/s 50%")
    assert "23 queries for multi_stream" in few


@pytest.mark.parametrize(
    ("before", "after", "reasons"),
    [
        ((), (), None),
        (None, None, None),
        ((), ("power cap", "software thermal limit"), "power cap, software thermal limit"),
        (("hardware thermal limit",), (), "hardware thermal limit"),
    ],
)
def test_throttling_at_either_end(
    before: tuple[str, ...] | None, after: tuple[str, ...] | None, reasons: str | None
) -> None:
    made = replace(
        report(),
        machine=replace(MACHINE, gpus=(Gpu("A GPU", throttled=before),)),
        gpus_after=(Gpu("A GPU", throttled=after),),
    )
    assert [warning.partition(": ")[2] for warning in warnings(made)] == [reasons] * bool(reasons)


@pytest.mark.parametrize(
    ("backend", "clock", "copies"),
    [
        ("onnx", "on a CPU", False),
        ("onnx-cuda", "host's clock", True),
        ("tensorrt", "CUDA's events", True),
    ],
)
def test_boundaries_depend_on_the_backend(backend: str, clock: str, copies: bool) -> None:
    found = boundaries(replace(BUNDLE, backend=backend))
    assert list(found) == ["kernel", "engine_gpu", "engine_e2e", "image_e2e"]
    assert clock in found["engine_gpu"]
    assert ("copies" in found["engine_e2e"]) == copies
