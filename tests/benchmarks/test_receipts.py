"""The committed receipts hold, and one that was tampered with does not."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drexperts.bench import provenance
from drexperts.bench.caveats import warnings
from drexperts.bench.provenance import head
from drexperts.bench.tables import AGAIN
from drexperts.bench.timing import ratio, statistics
from drexperts.benchmarks import receipts
from drexperts.benchmarks.receipt_arithmetic import claims
from drexperts.benchmarks.receipt_gates import GATES
from drexperts.export.proof.agreement import score_agreement
from drexperts.export.proof.batch_invariance import TOLERANCES
from drexperts.export.proof.parity import LIMITS, Outputs, compare
from drexperts.runtime.manifest import MIN_IMAGES, Parity, ScoreScale

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
    counted = {"planned": 8, "queries": 8}
    trials = [
        {"rate": rate, "met": met, "latency": statistics(rounds(3, latency)), **counted}
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
    found = scores(MIN_IMAGES)
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
    clean = {"contender": "engine", "role": "ours", "errors": errors, "limits": limits}
    return clean | {"repeatable": True, "broken": False} | changes


def row() -> Report:
    return {"problem": "a problem", "ours": ["engine"]} | contenders()


@pytest.fixture(scope="module")
def honest() -> str:
    """A receipt with one of everything that is computed again."""
    batches = [{"batch": 1} | contenders()]
    made = {
        **head("kernels", "python measure.py", receipts.MODULES["kernels"], 1),
        "gates": {"correct": True},
        "verdicts": {
            "a problem": [
                verdict(),
                verdict(contender="eager", role="eager"),
                verdict(contender=AGAIN, role="baseline"),
            ]
        },
        "rows": [row()],
        "batches": batches,
        "noise_floor": dict(batches[0]["ratio"][AGAIN]),
        "scenarios": scenarios(),
        "set": drift(),
        "proof": parity(),
        "invariance": invariance(),
        "peak_bytes": {"ours": 100, "dense": 250},
        "peak_ratio": {"dense": 2.5},
        "profile": {"total_s": 0.75, "parts": [{"seconds": 0.5}, {"seconds": 0.25}]},
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


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_receipt_holds(path: Path) -> None:
    finding = receipts.check(path)
    assert finding.faults == []
    assert not finding.report["kind"].endswith("-trial")


def test_an_honest_receipt_holds(honest: str, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    path.write_text(honest)
    finding = receipts.check(path)
    assert finding.faults == []
    # Nine statistics, four ratios, the server and its trials, three sets of figures of scores and
    # pixels, two proofs and what the sets of one add up to, offline, the noise floor, the peaks,
    # the profile, the gate.
    assert finding.recomputed == 9 + 4 + 4 + 3 + 2 + 2 + 5


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
        (
            "batches[0].ratio.dense",
            dict.fromkeys(("p20", "p50", "p80"), 9.0),
            "batches[0].ratio.dense is stated, and nothing",
        ),
        ("noise_floor.p80", 1.0, "noise_floor.p80 is 1.0"),
        ("scenarios.server.images_per_s", 4.0, "scenarios.server.images_per_s is 4.0; computed"),
        ("scenarios.server.bound_s", 0.15, "scenarios.server.trials[1].met is True"),
        ("scenarios.server.trials", [], "scenarios.server.images_per_s is stated, and nothing"),
        ("scenarios.server.trials[0].queries", 400, "trials[0].queries is 400; computed again"),
        ("scenarios.server.trials[0].planned", 9, "trials[0].met is True; computed again it is F"),
        ("scenarios.server.trials[0].met", False, "trials[0].met is False; computed again it is T"),
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
        ("set.pixels", {"other": {"max": [0], "mean": [0]}}, "set.drift.int8 is stated, and noth"),
        ("proof.parity.int8.score_mean", 0.0, "proof.parity.int8.score_mean is 0.0; computed"),
        ("proof.parity.int8.sets.photographs.score_max", 0.0, "photographs.score_max is 0.0;"),
        ("proof.parity.int8.limits.score_max", 1e-3, "proof.parity.int8.passed is True; computed"),
        ("invariance.weights_max", 2e-4, "invariance.passed is True; computed again it is False"),
        ("peak_ratio.dense", 3.5, "peak_ratio.dense is 3.5; computed again it is 2.5"),
        ("verdicts.a problem[0].errors.result 0", 1e-2, "gates.correct is True; computed again"),
        ("verdicts.a problem[0].repeatable", False, "gates.correct is True; computed again"),
        ("verdicts.a problem[0].errors.other", 9.0, "gates.correct is True; computed again"),
        ("verdicts.a problem[0].limits", {}, "gates.correct is True; computed again"),
        ("verdicts.a problem[1].limits", {}, "gates.correct is True; computed again"),
        ("verdicts.a problem[0].role", "eager", "gates.correct is True; computed again"),
        ("verdicts.a problem", [verdict()], "gates.correct is True; computed again"),
        ("verdicts.another", [verdict(errors={"result 0": 9.0})], "gates.correct is True; comp"),
        ("verdicts", {}, "verdicts is missing or empty"),
        ("rows", [], "rows[].ours is missing or empty"),
        ("rows[0].ours", [], "rows[].ours is missing or empty"),
        ("rows[0].latency", {}, "rows[].latency is missing or empty"),
        (
            "batches[0].latency.eager",
            {"p50": 0.1, "mean": 0.1},
            "batches[0] cannot be computed again",
        ),
        ("set.sets", {"p50": 0.1, "mean": 0.1}, "set.sets cannot be computed again: KeyError: 's"),
        ("profile.parts[0].seconds", 0.1, "profile.total_s is 0.75; computed again"),
        ("gates.correct", False, "gates.correct is False; computed again it is True"),
        ("gates.speed", False, "gates.speed is false: it failed"),
        ("gates.speed", True, "gates.speed is stated, and nothing raw is there"),
        ("gates.speed", "yes", "gates.speed is 'yes'"),
        ("gates", {}, "gates is {}"),
        ("known_negative", {"correct": "slow"}, "known_negative.correct speaks of a gate"),
        ("known_negative", None, "known_negative is None"),
        ("known_negative", ["correct"], "known_negative is ['correct']"),
        ("known_negative", {"correct": " "}, "known_negative.correct is ' ', no reason"),
        ("machine.cores", "two", "machine.cores is 'two'"),
        ("machine.cores", True, "machine.cores is True"),
        ("machine.gpus", [1], "machine.gpus has 1"),
        ("machine.gpus", [{}], "machine.gpus has {}"),
        ("machine.gpus", [{"name": "NVIDIA H100"}], "machine.gpus has {'name'"),
        ("schema", True, "schema is True"),
        ("source.modules", [1], "source.modules has 1"),
        ("source.modules", ["sys"], "source.modules has 'sys'"),
        ("source.modules", [".x"], "source.modules has '.x'"),
        ("kind", "any", "kind is 'any', whose gates nothing here decides"),
        ("source.modules", [], "source.modules is []"),
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
        ('{"kind": 1e999}', "1e999 is not JSON"),
        ('{"kind": -1e999}', "-1e999 is not JSON"),
        ("[" * 200_000 + "]" * 200_000, "this is no receipt: maximum recursion depth"),
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
            "engines",
            {"rows": []},
            {"inspected": False, "unfused": False},
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
        (
            "drift",
            {"sets": [], "fingerprints": {"a": "1"}},
            {"runtime_met_again": False, "fingerprints_apart": False},
        ),
    ],
)
def test_gates_that_numbers_decide(kind: str, report: Report, decided: dict[str, bool]) -> None:
    assert GATES[kind](report) == decided


def proven(precision: str = "fp32") -> Report:
    """Proofs within the limits of a precision."""
    same = np.random.default_rng(0).normal(size=MIN_IMAGES)
    scores = score_agreement(same, same, 2.0)
    alike = dict.fromkeys(("weights_srcc", "weights_plcc", "maps_plcc"), 1.0)
    apart = dict.fromkeys(("score_mean", "score_p99", "score_units", "weights_max"), 0.0)
    more = {"rows": MIN_IMAGES, "reference": "the model", "maps_max": 0.0, "leading_flips": 0}
    more |= dict.fromkeys(("weights_srcc_interval", "weights_plcc_interval"), scores.srcc_interval)
    limits = LIMITS[precision]
    proof = Parity(**vars(scores), **alike, **apart, **more, sets={}, limits=limits, passed=True)
    steady = invariance() | {"tolerance": TOLERANCES[precision]}
    return {"parity": asdict(proof), "invariance": steady}


def bench() -> Report:
    """What the gates and the warnings of a benchmark are decided by."""
    times = statistics(rounds(0, 0.1))
    made: Report = {
        "kind": "bench",
        "bundle": {"precision": "fp32"},
        "against": {"engine-int8": {"precision": "int8"}},
        "proofs": {"engine": proven(), "engine-int8": proven("int8")},
        "gates": {
            f"{proof} of {name}": True
            for name in ("engine", "engine-int8")
            for proof in ("parity", "invariance")
        },
        "batches": [{"batch": 1} | contenders()],
        "engine_gpu": [{"batch": 1, "latency": {"engine": times}}],
        "image": {"crops": 6, "preprocess": times, "image_e2e": times},
        "scenarios": {},
        "machine": {"gpus": []},
        "gpus_after": [],
    }
    made["bundle"] |= {"preset": "paper", "session": "onnxruntime", "bytes": 10}
    made |= {"weights": "random", "boundaries": {}, "left_out": {}, "noise_floor": {}}
    made["noise_floor"] = made["batches"][0]["ratio"][AGAIN]
    made["cold_start"] = dict.fromkeys(("import_s", "load_s", "first_inference_s"), 0.1)
    made["cold_start"]["resident_bytes"] = None
    made["memory"] = dict.fromkeys(("host_peak_bytes", "device_peak_bytes"))
    made["energy"] = {"joules_per_image": None, "source": "none"}
    return made | {"warnings": warnings(made, [], [])}


WIDE = {"score_max": 1e5}
STRAY = invariance() | {"score_max": 1e-3, "limits": WIDE}


@pytest.mark.parametrize(
    ("field", "changed", "fault"),
    [
        ("proofs", {}, "gates.parity of engine is"),
        ("proofs.engine-int8", {}, "gates.invariance of engine-int8 is"),
        ("proofs.engine.invariance", None, "gates.invariance of engine is"),
        ("proofs.engine.parity.srcc", 0.1, "gates.parity of engine is"),
        ("proofs.engine.parity", proven()["parity"] | {"srcc": 0.1, "limits": WIDE}, "gates.par"),
        ("proofs.engine.invariance.score_max", 1e-3, "gates.invariance of engine is"),
        ("proofs.engine.invariance", STRAY, "gates.invariance of engine is"),
        ("against.other", {"precision": "int8"}, "gates.parity of other is missing"),
        ("gates", {"speed": True}, "gates.speed is stated, and nothing raw is there"),
        ("warnings", [], "warnings is []; computed again"),
        ("batches[0].batch", 40, "engine_gpu[].batch is [1]; computed again it is [40]"),
    ],
)
def test_a_benchmark_is_as_good_as_its_proofs(field: str, changed: Any, fault: str) -> None:
    report = bench()
    assert [each for claim in claims(report) for each in claim.faults()] == []
    put(report, field, changed)
    found = [each for claim in claims(report) for each in claim.faults()]
    assert any(fault in each for each in found), found


@pytest.mark.parametrize("field", receipts.STATED["bench"])
def test_what_a_benchmark_must_state(field: str, faults: Callable[[Report], list[str]]) -> None:
    report = head("bench", "drx bench", receipts.MODULES["bench"], 1) | bench()
    report["machine"] = provenance.machine_card(1)
    assert faults(report) == []
    put(report, field, True)
    assert faults(report) == [f"{field} is True"]
    *path, last = field.split(".")
    del (report[path[0]] if path else report)[last]
    assert faults(report) == [f"{field} is missing"]
    if field == "warnings":
        del report["gpus_after"]
        assert faults(report) == ["gpus_after is missing", "warnings is missing"]


PARITY = "proofs.engine.parity"
HALF = {"images": 50, "pairs": 1225, "order_flips": 0, "score_max": 0.0, "srcc": 1.0, "plcc": 1.0}


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("pairs", 4951, "pairs is 4951; what is beside it allows 0 to 4950"),
        ("clear_flips", 1, "clear_flips is 1; what is beside it allows 0 to 0"),
        ("clear_pairs", 4951, "clear_pairs is 4951; what is beside it allows 0 to 4950"),
        ("score_mean", 1e-6, "score_mean is 1e-06; what is beside it allows 0 to 0"),
        ("score_p99", 1e-6, "score_p99 is 1e-06; what is beside it allows 0 to 0"),
        ("srcc", 0.99995, "srcc is 0.99995; what is beside it allows 1.0 to 1.0"),
        ("plcc", 0.99995, "plcc is 0.99995; what is beside it allows 1.0 to 1.0"),
        ("weights_srcc", 0.99995, "weights_srcc is 0.99995; what is beside it allows"),
        ("sets", {"a": HALF}, "images is 100; computed again it is 50"),
        ("sets", {"a": HALF, "b": HALF | {"score_max": 1e-6}}, "score_max is 0.0; computed again"),
        ("sets", {"a": HALF, "b": HALF | {"order_flips": 1}}, "order_flips is 0; what is beside"),
        ("sets", {"a": HALF, "b": HALF | {"pairs": 1226}}, "sets.b.pairs is 1226; what is beside"),
    ],
)
def test_a_parity_without_scores_agrees_with_itself(field: str, value: Any, fault: str) -> None:
    report = bench()
    put(report, f"{PARITY}.{field}", value)
    found = [each for claim in claims(report) for each in claim.faults()]
    assert any(each.startswith(f"{PARITY}.{fault}") for each in found), found


def test_parity_of_whole_sets_agrees_with_itself() -> None:
    report = bench()
    put(report, f"{PARITY}.sets", {"a": HALF, "b": HALF})
    assert [each for claim in claims(report) for each in claim.faults()] == []


@pytest.mark.parametrize("proof", ["parity", "invariance"])
def test_a_proof_without_limits_is_none(proof: str) -> None:
    report = bench()
    report["proofs"]["engine"][proof].pop("limits" if proof == "parity" else "tolerance")
    with pytest.raises(receipts.ReceiptError, match=f"proofs.engine.{proof} cannot be computed"):
        list(claims(report))


@pytest.mark.parametrize("kind", receipts.REQUIRED)
def test_what_every_kind_must_have(
    kind: str, report: Report, faults: Callable[[Report], list[str]]
) -> None:
    bare = {name: report[name] for name in ("schema", "command", "machine", "source", "gates")}
    found = faults(bare | {"kind": kind})
    lacking = [f"{field} is missing or empty" for field in receipts.REQUIRED[kind]]
    assert found == lacking + [f"{field} is missing" for field in receipts.STATED.get(kind, ())]


def way(scores_of: Any, expected: Any, drift: float = 0.0) -> Report:
    """A way to eight bits as `bench_precision.py` notes it."""
    outputs = [
        Outputs(scores, scores[:, None] * np.ones(10), None, len(scores))
        for scores in (expected, scores_of)
    ]
    scale, sizes = ScoreScale(0.0, 2.0, higher_is_better=True), {"a": 20, "b": len(expected) - 20}
    found = {"parity": asdict(compare(*outputs, scale, LIMITS["int8"], sizes))}
    return found | {"scores": scores_of.tolist(), "batch_drift": drift, "invariant": drift <= 1e-5}


def precision() -> Report:
    """A search of four parts: none and two in float32 fail, three and four pass."""
    expected = np.random.default_rng(0).normal(size=MIN_IMAGES)
    auto = way(expected + 1e-5 * rounds(1, 1.0, MIN_IMAGES), expected)
    figures = {"score_max": auto["parity"]["score_max"], "weight_bytes": 9}
    figures["srcc"] = auto["parity"]["srcc_interval"]["low"]
    searched = [figures | {"islands": n, "passed": n > 2} for n in (0, 2, 3)]
    return {
        "kind": "precision",
        "gates": {"auto": True},
        "images": MIN_IMAGES,
        "span": 2.0,
        "eager_scores": expected.tolist(),
        "layers": 4,
        "islands": ["a", "b", "c"],
        "searched": searched,
        "ways": {"auto": auto, "dynamic": way(-expected, expected, 0.1)},
    }


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("ways.dynamic.invariant", True, "ways.dynamic.invariant is True; computed again"),
        ("ways.auto.batch_drift", 1e-4, "ways.auto.invariant is True; computed again"),
        ("ways.auto.batch_drift", 1e-4, "gates.auto is True; computed again"),
        ("ways.dynamic.parity.srcc", 0.5, "ways.dynamic.parity.srcc is 0.5; computed again"),
        ("ways.dynamic.parity.sets.b.srcc", 0.5, "ways.dynamic.parity.sets.b.srcc is 0.5; comp"),
        ("ways.dynamic.scores[3]", None, "ways.dynamic.parity.score_max is"),
        ("images", 99, "images is 99; computed again it is 100"),
        ("searched[2].score_max", 0.5, "searched[2].passed is True; computed again it is False"),
        ("searched[2].srcc", 0.5, "searched[2].passed is True; computed again it is False"),
        ("searched[2].score_max", 1e-6, "searched[2].score_max is 1e-06; computed again"),
        ("searched[2].passed", False, "searched[].islands is [0, 2, 3]; computed again"),
        ("searched[2].passed", False, "islands is 3; computed again it is 4"),
        ("searched[1].passed", True, "islands is 3; computed again it is 2"),
        ("searched[0].passed", True, "islands is 3; computed again it is 0"),
        ("islands", ["a"], "islands is 1; computed again it is 3"),
        ("layers", 40, "searched[].islands is [0, 2, 3]; computed again"),
    ],
)
def test_a_search_for_precision_holds_by_itself(field: str, value: Any, fault: str) -> None:
    report = precision()
    assert [each for claim in claims(report) for each in claim.faults()] == []
    put(report, field, value)
    found = [each for claim in claims(report) for each in claim.faults()]
    assert any(each.startswith(fault) for each in found), found


def test_a_score_that_is_no_number_is_computed_again() -> None:
    report = precision()
    expected, got = np.array(report["eager_scores"]), np.array(report["eager_scores"])
    got[3] = np.nan
    scores = [*got[:3].tolist(), None, *got[4:].tolist()]
    report["ways"]["broken"] = way(got, expected) | {"scores": scores}
    assert [each for claim in claims(report) for each in claim.faults()] == []


def test_a_run_on_a_gpu_that_was_broken_off_is_no_receipt() -> None:
    report = {"kind": "gpu-model", "complete": False}
    broken = "complete is False: the run was broken off"
    assert broken in list(receipts.content_mistakes(report))
    assert broken not in list(receipts.content_mistakes(report | {"complete": True}))
    assert broken not in list(receipts.content_mistakes(report | {"kind": "gpu-model-trial"}))


def test_gates_of_the_model_on_a_gpu() -> None:
    proof = proven("fp16")

    def judged(repeatable: bool = True, **changes: Any) -> Report:
        return {"repeatable": repeatable, "invariance": proof["invariance"] | changes}

    others = {"a": judged(), "b": judged(repeatable=False), "c": judged(weights_max=0.5)}
    others |= {"dense, eager": judged(repeatable=False), "no numbers": {"mistakes": ["none"]}}
    block = {"precision": "fp16", "batch": 8, "others": others}
    block["parity"] = dict.fromkeys(("a", "b", "c", "dense, eager"), proof["parity"])
    timed = {"precision": "fp16", "batch": 8, "latency": {"a": {}, "never judged": {}, AGAIN: {}}}
    decided = GATES["gpu-model"]({"verdicts": [block], "batches": [timed]})
    assert decided == {
        "fp16, B8, a": True,
        "fp16, B8, b": False,
        "fp16, B8, c": False,
        "fp16, B8, dense, eager": True,
        "fp16, B8, no numbers": False,
        "fp16, B8, never judged": False,
    }


def test_a_known_negative_result_is_no_fault(
    report: Report, faults: Callable[[Report], list[str]]
) -> None:
    report["verdicts"]["a problem"][0]["repeatable"] = False
    report["gates"]["correct"] = False
    report["known_negative"] = {"correct": "atomic additions come in any order"}
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


def test_only_the_source_that_counts_makes_a_receipt_fresh(report: Report) -> None:
    report["source"] = provenance.source_card("drexperts.bench.timing")
    assert not receipts.fresh(report)
    report["source"] = provenance.source_card(
        "drexperts.bench.timing", *receipts.MODULES["kernels"]
    )
    assert receipts.fresh(report)


@pytest.mark.parametrize(
    "script", ["bench_engines", "bench_kernels", "bench_precision", "gpu_model"]
)
def test_what_must_be_spoken_of_is_what_is_measured(script: str) -> None:
    kind = script.removeprefix("bench_").replace("_", "-")
    given = re.search(
        r"^MODULES = \((.*?)\)$", (receipts.FOLDER.parent / f"{script}.py").read_text(), re.M | re.S
    )
    assert given is not None
    assert set(receipts.MODULES[kind]) <= set(re.findall('"(.*?)"', given[1]))
    assert "drexperts.model.config" in receipts.MODULES[kind]


def test_a_training_step_speaks_of_all_that_it_takes() -> None:
    names = ("config", "loading", "images", "contenders")
    assert {f"drexperts.{name}" for name in names} <= set(receipts.MODULES["training"])


def test_another_copy_of_the_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    with pytest.raises(SystemExit, match="pip install --editable"):
        receipts.main([])


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


def test_malformed_receipts_leave_the_others_in_the_table(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nested = json.dumps(report)[:-1] + f', "deep": {"[" * 800}{"]" * 800}}}'
    changes = {"gpus": {"machine": report["machine"] | {"gpus": [1]}}, "known": {}}
    changes["known"]["known_negative"] = None
    changes["huge"] = {"invariance": report["invariance"] | {"score_max": 10**400}}
    changes["markup"] = {"machine": report["machine"] | {"cpu": "[/b]"}}
    texts = {name: json.dumps(report | changed) for name, changed in changes.items()}
    texts |= {"a-honest": json.dumps(report), "nested": nested, "empty": ""}
    for name, text in texts.items():
        (tmp_path / f"{name}.json").write_text(text)
    assert receipts.main([str(path) for path in sorted(tmp_path.iterdir())]) == 1
    shown = capsys.readouterr().out
    for name in texts:
        assert f"{name}.json" in shown
    (row,) = [line for line in shown.splitlines() if "a-honest.json" in line]
    assert "holds" in row
