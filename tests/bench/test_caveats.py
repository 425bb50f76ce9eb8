"""What is said beside the numbers."""

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drexperts import runtime
from drexperts.bench.caveats import boundaries, warnings
from drexperts.bench.timing import statistics
from drexperts.runtime.manifest import Engine

STEADY = [1.0 + 0.001 * (i % 7) for i in range(100)]


def report(steady: list[float], other: list[float]) -> dict[str, Any]:
    latency = {"engine": statistics(steady), "eager-dense": statistics(other)}
    return {
        "batches": [{"batch": 4, "latency": latency}],
        "engine_gpu": [{"batch": 4, "latency": {"engine": statistics(steady)}}],
        "image": {"preprocess": statistics(steady), "image_e2e": statistics(steady)},
        "scenarios": {},
    }


def server(note: str | None, best: list[float]) -> dict[str, Any]:
    """Two trials: a rate that met the bound, and a wild one that was stopped early."""
    trials = [{"rate": 3.0, "latency": statistics(best)}]
    trials.append({"rate": 9.0, "latency": statistics([1.0, 50.0])})
    return {"images_per_s": 3.0, "trials": trials, "note": note}


def card(active: str) -> dict[str, str]:
    return {"name": "A GPU", "clocks_throttle_reasons.active": active}


def test_nothing_to_say() -> None:
    assert warnings(report(STEADY, STEADY), [], []) == []


def test_unstable_times_are_named() -> None:
    (said,) = warnings(report(STEADY, [1.0, 2.0] * 50), [], [])
    assert "unstable" in said
    assert said.endswith("of eager-dense batch 4 33%")


def test_few_samples() -> None:
    (said,) = warnings(report(STEADY, STEADY[:15]), [], [])
    assert "p99 of 15 samples" in said
    assert "--repeats 100" in said


def test_decoding_is_looked_at_too() -> None:
    made = report(STEADY, STEADY)
    made["image"]["preprocess"] = statistics([1.0, 2.0] * 50)
    assert warnings(made, [], [])[0].endswith("of preprocess 33%")
    made["image"]["preprocess"] = statistics(STEADY[:15])
    (said,) = warnings(made, [], [])
    assert said.startswith("p99 of 15 samples, of preprocess, is little more")


def test_queries_of_scenarios() -> None:
    made = report(STEADY, STEADY)
    made["scenarios"] = {
        "single_stream": statistics([1.0, 2.0] * 50),
        "multi_stream": statistics(STEADY[:23]),
        "server": server(None, [1.0, 3.0] * 50),
        "offline": {"images": 1, "seconds": 1.0, "images_per_s": 1.0},
    }
    unstable, few = warnings(made, [], [])
    assert unstable.endswith("of single_stream 33%, server at 3/s 50%")
    assert few == (
        "p99 of 23 queries, of multi_stream, is little more than the slowest: more --seconds for "
        "one that says something"
    )


def test_the_servers_note_is_said_first() -> None:
    made = report(STEADY, STEADY[:15])
    made["scenarios"] = {"server": {"images_per_s": None, "trials": [], "note": "no verdict"}}
    said, few = warnings(made, [], [])
    assert said == "server: no verdict"
    assert "p99 of 15 samples" in few
    made["scenarios"] = {"server": server("few queries", STEADY[:15])}
    assert warnings(made, [], [])[:1] == ["server: few queries"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("0x0000000000000001", "0x0000000000000001", None),  # idle
        ("[N/A]", "[N/A]", None),
        ("0x0000000000000001", "0x0000000000000024", "power cap, software thermal limit"),
        ("0x0000000000000040", "0x0000000000000001", "hardware thermal limit"),
    ],
)
def test_throttling_at_either_end(before: str, after: str, said: str | None) -> None:
    found = warnings(report(STEADY, STEADY), [card(before)], [card(after)])
    assert found == ([] if said is None else [f"GPU 0 lowered its clocks: {said}"])


def test_boundaries_of_a_cpu(toy_bundle: Path) -> None:
    found = boundaries(runtime.load(toy_bundle))
    assert list(found) == ["kernel", "engine_gpu", "engine_e2e", "image_e2e"]
    assert "folded into engine_gpu" in found["kernel"]
    assert "copies" not in found["engine_e2e"]


def test_boundaries_of_a_gpu(planned: Callable[..., Engine], toy_bundle: Path) -> None:
    found = boundaries(types.SimpleNamespace(engine=planned()))  # type: ignore[arg-type]
    assert "CUDA's events" in found["engine_gpu"]
    assert "copies" in found["engine_e2e"]
    cuda = types.SimpleNamespace(backend="onnx-cuda", plan=None)
    host = boundaries(types.SimpleNamespace(engine=cuda))  # type: ignore[arg-type]
    assert "host's clock" in host["engine_gpu"]
