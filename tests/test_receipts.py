"""The committed receipts hold, and one that was tampered with does not."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import receipts
from receipt_gates import GATES

from drexperts.bench_tables import AGAIN
from drexperts.export.agreement import score_agreement
from drexperts.provenance import head
from drexperts.runtime.manifest import ENOUGH_IMAGES, Parity
from drexperts.timing import ratio, statistics

Report = dict[str, Any]
COMMITTED = sorted(receipts.FOLDER.glob("*.json"))


def rounds(seed: int, mean: float, count: int = 8) -> Any:
    return mean * np.random.default_rng(seed).uniform(0.9, 1.2, count)


def contenders() -> Report:
    times = {"engine": rounds(0, 0.1), "eager": rounds(1, 0.6), AGAIN: rounds(2, 0.1)}
    return {
        "latency": {name: statistics(taken) for name, taken in times.items()},
        "ratio": {name: ratio(times[name], times["engine"]) for name in ("eager", AGAIN)},
    }


def scenarios() -> Report:
    trials = [
        {"rate": rate, "met": met, "latency": statistics(rounds(3, latency)), "queries": 8}
        for rate, latency, met in ((1.0, 0.1, True), (2.0, 0.2, True), (4.0, 0.9, False))
    ]
    for trial in trials:
        trial["p99"] = trial["latency"]["p99"]
    return {
        "server": {"bound_s": 0.5, "images_per_s": 2.0, "trials": trials},
        "offline": {"images": 9, "seconds": 4.5, "images_per_s": 2.0},
    }


def scores(images: int) -> dict[str, Any]:
    reference = np.random.default_rng(0).normal(size=images)
    return {"the model": reference, "int8": reference + 0.01 * rounds(1, 1.0, images)}


def drift() -> Report:
    """A set of `drift.py`."""
    found = scores(ENOUGH_IMAGES)
    figures = asdict(score_agreement(*found.values(), 2.0)) | {"version": "any"}
    return {
        "span": 2.0,
        "scores": {name: values.tolist() for name, values in found.items()},
        "pixels": {"int8": {"max": [3, 5], "mean": [0.1, 0.3]}},
        "drift": {"int8": figures | {"pixel_max": 5, "pixel_mean": 0.2}},
    }


def parity() -> Report:
    """What a manifest and a GPU's receipt say, of all images and of two sets of them."""
    found = scores(60)
    reference, got = found.values()
    parts = {"photographs": slice(20), "distorted": slice(20, 60)}
    proof = Parity(
        **vars(score_agreement(reference, got, 2.0)),
        sets={name: score_agreement(reference[i], got[i], 2.0) for name, i in parts.items()},
        score_mean=float(np.abs(got - reference).mean() / 2),
        score_units=float(np.abs(got - reference).max()),
        score_p99=float(np.quantile(np.abs(got - reference), 0.99) / 2),
        **{"rows": 60, "reference": "the model", "weights_max": 0.0, "maps_max": None},
        limits={"score_max": 0.01, "srcc": 0.99},
        passed=True,
    )
    return {
        "span": 2.0,
        "scores": {name: values.tolist() for name, values in found.items()},
        "parity": {"int8": asdict(proof)},
    }


def invariance() -> Report:
    measured = {"score_max": 1e-6, "weights_max": 2e-5, "maps_max": None}
    return {"batches": [1, 4], "tolerance": 1e-5, "passed": True} | measured


def verdict(**changes: Any) -> Report:
    errors = {"result 0": 1e-6, "gradient of x": 2e-6}
    limits = dict.fromkeys(errors, 1e-5)
    clean = {"role": "ours", "errors": errors, "limits": limits, "repeatable": True}
    return clean | {"broken": False} | changes


@pytest.fixture(scope="module")
def honest() -> str:
    """A receipt with one of everything that is computed again."""
    batches = [{"batch": 1} | contenders()]
    made = {
        **head("kernels", "python measure.py", ("drexperts.timing",), 1),
        "gates": {"correct": True},
        "verdicts": {"a problem": [verdict()]},
        "batches": batches,
        "noise_floor": dict(batches[0]["ratio"][AGAIN]),
        "scenarios": scenarios(),
        "set": drift(),
        "proof": parity(),
        "invariance": invariance(),
        "peak_bytes": {"ours": 100, "dense": 250},
        "peak_ratio": {"dense": 2.5},
    }
    return json.dumps(made)


@pytest.fixture
def report(honest: str) -> Report:
    return json.loads(honest)


@pytest.fixture
def faults(tmp_path: Path) -> Callable[[Report], list[str]]:
    def found(report: Report) -> list[str]:
        path = tmp_path / "receipt.json"
        path.write_text(json.dumps(report))
        return receipts.check(path).faults

    return found


@pytest.mark.parametrize("path", COMMITTED, ids=[path.stem for path in COMMITTED])
def test_a_committed_receipt_holds(path: Path) -> None:
    assert receipts.check(path).faults == []


def test_an_honest_receipt_holds(honest: str, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    path.write_text(honest)
    finding = receipts.check(path)
    assert finding.faults == []
    # Six statistics, two ratios, the server and its trials, three sets of figures of scores and
    # pixels, two proofs, offline, the noise floor, the peaks, the gate.
    assert finding.recomputed == 6 + 2 + 4 + 3 + 2 + 4


def put(report: Report, field: str, value: Any) -> None:
    """Change a field, named as in a fault."""
    *path, last = field.replace("[", "/[").replace(".", "/").split("/")
    for name in path:
        report = report[int(name[1:-1]) if name[0] == "[" else name]
    report[int(last[1:-1]) if last[0] == "[" else last] = value


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("batches[0].latency.engine.samples[3]", 0.5, "batches[0].latency.engine.mean is"),
        ("batches[0].latency.engine.samples[3]", 0.5, "batches[0].ratio.eager.p20 is"),
        ("batches[0].latency.eager.p99", 0.5, "batches[0].latency.eager.p99 is 0.5; computed"),
        ("scenarios.server.trials[0].latency.samples", [], "samples are [], no times"),
        ("batches[0].latency.eager.samples", [0.5], "different numbers of rounds"),
        ("batches[0].ratio.eager.p50", 9.0, "batches[0].ratio.eager.p50 is 9.0; computed again"),
        ("batches[0].ratio", {}, "batches[0].ratio.eager is missing"),
        ("batches[0].ratio.dense", {"p50": 9.0}, "batches[0].ratio.dense is stated, and nothing"),
        ("noise_floor.p80", 1.0, "noise_floor.p80 is 1.0"),
        ("scenarios.server.images_per_s", 4.0, "scenarios.server.images_per_s is 4.0; computed"),
        ("scenarios.server.bound_s", 0.15, "scenarios.server.trials[1].met is True"),
        ("scenarios.server.trials[0].p99", 0.01, "scenarios.server.trials[0].p99 is 0.01"),
        (
            "scenarios.offline.seconds",
            3.0,
            "scenarios.offline.images_per_s is 2.0; computed again it is 3",
        ),
        ("set.scores.int8[0]", 0.0, "set.drift.int8.srcc is"),
        ("set.drift.int8.srcc_interval.low", 0.99999, "set.drift.int8.srcc_interval.low is"),
        ("set.drift.int8.order_flips", 999, "set.drift.int8.order_flips is 999; computed"),
        ("set.drift", {}, "set.drift.int8 is missing"),
        ("set.drift.other", {"srcc": 1.0}, "set.drift.other is stated, and nothing raw"),
        ("set.drift.int8.pixel_max", 3, "set.drift.int8.pixel_max is 3; computed again it is 5"),
        ("proof.parity.int8.score_mean", 0.0, "proof.parity.int8.score_mean is 0.0; computed"),
        ("proof.parity.int8.sets.photographs.score_max", 0.0, "photographs.score_max is 0.0;"),
        ("proof.parity.int8.limits.score_max", 1e-3, "proof.parity.int8.passed is True; computed"),
        ("invariance.weights_max", 2e-4, "invariance.passed is True; computed again it is False"),
        ("peak_ratio.dense", 3.5, "peak_ratio.dense is 3.5; computed again it is 2.5"),
        ("verdicts.a problem[0].errors.result 0", 1e-2, "gates.correct is True; computed again"),
        ("verdicts.a problem[0].repeatable", False, "gates.correct is True; computed again"),
        ("verdicts", {}, "gates.correct is True; computed again it is False"),
        ("gates.correct", False, "gates.correct is False; computed again it is True"),
        ("gates.speed", False, "gates.speed is false: it failed"),
        ("gates.speed", "yes", "gates.speed is 'yes'"),
        ("gates", {}, "gates is {}"),
        ("known_negative", {"correct": "slow"}, "known_negative.correct speaks of a gate"),
        ("machine.cores", "two", "machine.cores is 'two'"),
        ("schema", 99, "schema is 99"),
        ("source.sha256", "none", "source.sha256 is 'none'"),
    ],
)
def test_tampering_is_named(
    field: str, value: Any, fault: str, report: Report, faults: Callable[[Report], list[str]]
) -> None:
    put(report, field, value)
    found = faults(report)
    assert any(fault in each for each in found), found


@pytest.mark.parametrize("field", receipts.FIELDS)
def test_a_missing_field_is_named(
    field: str, report: Report, faults: Callable[[Report], list[str]]
) -> None:
    *path, last = field.split(".")
    node = report
    for name in path:
        node = node[name]
    del node[last]
    assert f"{field} is missing" in faults(report)[0]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"kind": NaN}', "NaN is not JSON"),
        ('{"kind": Infinity}', "Infinity is not JSON"),
        ('{"kind": 1', "this is no receipt: Expecting"),
        ("[]", "kind is missing"),
    ],
)
def test_what_is_no_document_of_finite_numbers(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "receipt.json").write_text(text)
    (found,) = receipts.check(tmp_path / "receipt.json").faults
    assert fault in found


@pytest.mark.parametrize(
    ("kind", "report", "decided"),
    [
        (
            "bench",
            {"proofs": {"engine": {"parity": {"passed": True}, "invariance": None}}},
            {"parity of engine": True, "invariance of engine": False},
        ),
        (
            "engines",
            {"rows": [{"inspected": True, "fused_attention": False, "attention_kernels": 2}]},
            {"inspected": True, "unfused": False},
        ),
        (
            "training",
            {"loss": {"ours": 0.02, "ours, fp32": 0.024, "dense": 0.0241}},
            {"losses": False},
        ),
        (
            "drift",
            {"sets": [{"met_again": True}], "fingerprints": {"a": "1", "b": "1"}},
            {"runtime_met_again": True, "fingerprints_apart": False},
        ),
    ],
)
def test_gates_that_numbers_decide(kind: str, report: Report, decided: dict[str, bool]) -> None:
    assert GATES[kind](report) == decided


def test_gates_of_the_model_on_a_gpu() -> None:
    def judged(repeatable: bool = True, invariant: bool = True) -> Report:
        return {"repeatable": repeatable, "invariance": {"passed": invariant}}

    others = {"a": judged(), "b": judged(repeatable=False), "c": judged(invariant=False)}
    others |= {"dense, eager": judged(repeatable=False), "no numbers": {"mistakes": ["none"]}}
    block = {"precision": "fp16", "batch": 8, "others": others}
    block["parity"] = {name: {"passed": True} for name in ("a", "b", "c", "dense, eager")}
    decided = GATES["gpu-model"]({"verdicts": [block]})
    assert [name for name, green in decided.items() if green] == [
        "fp16, B8, a",
        "fp16, B8, dense, eager",
    ]


def test_a_known_negative_result_is_no_fault(
    report: Report, faults: Callable[[Report], list[str]]
) -> None:
    report["gates"]["ten times"] = False
    report["known_negative"] = {"ten times": "7 times is what this machine gives"}
    assert faults(report) == []


def test_a_changed_source_is_stale_and_no_fault(
    report: Report, faults: Callable[[Report], list[str]]
) -> None:
    assert receipts.fresh(report)
    report["source"]["sha256"] = "0" * 64
    assert not receipts.fresh(report)
    report["source"]["modules"] = ["drexperts.gone_since"]
    assert not receipts.fresh(report)
    assert faults(report) == []


def test_the_command_says_file_and_field_and_fails(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    honest, changed = tmp_path / "honest.json", tmp_path / "changed.json"
    honest.write_text(json.dumps(report))
    assert receipts.main([str(honest)]) == 0
    report["batches"][0]["latency"]["engine"]["p50"] /= 2
    report["source"]["sha256"] = "0" * 64
    changed.write_text(json.dumps(report))
    capsys.readouterr()
    assert receipts.main([str(honest), str(changed)]) == 1
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if ".json " in line}
    assert "fresh" in rows["honest.json"]
    assert "stale" in rows["changed.json"]
    assert "changed.json: batches[0].latency.engine.p50 is" in shown
