"""Which recorded proofs this version accepts. What a proof may say is in test_manifest."""

import dataclasses
import json
from pathlib import Path

import pytest

from drexperts.runtime.errors import ConfigError
from drexperts.runtime.manifest import digest, read_manifest
from drexperts.runtime.proof import (
    EXPORT_LIMITS,
    EXTREME_OF,
    LIMITS,
    LOWER_LIMITS,
    MARGINS,
    PRECISIONS,
    SEARCH_LIMITS,
    TOLERANCES,
    SetParity,
    looser,
    tightened,
)

SCHEMA_1 = Path(__file__).parents[1] / "fixtures" / "schema-1" / "bundle"


@pytest.fixture
def engine(toy_bundle):
    return read_manifest(toy_bundle).engines[0]


@pytest.fixture
def parity(engine):
    return engine.parity


def test_an_honest_proof_is_accepted(parity, engine):
    assert parity.objection("fp32") is None
    assert engine.invariance.objection("fp32") is None
    assert engine.proven


def test_a_bundle_of_an_earlier_version_is_still_proven():
    (engine,) = read_manifest(SCHEMA_1).engines
    assert engine.objection is None


@pytest.mark.parametrize("name", LIMITS["fp32"])
def test_each_limit_counts(parity, name):
    without = {other: limit for other, limit in parity.limits.items() if other != name}
    looser_limit = -1.0 if name in LOWER_LIMITS else 1e300
    for limits in (without, parity.limits | {name: looser_limit}):
        found = dataclasses.replace(parity, limits=limits).objection("fp32")
        assert name in (found or "")
    stricter = parity.limits[name] + (1e-6 if name in LOWER_LIMITS else 0)
    assert looser(parity.limits | {name: stricter}, LIMITS["fp32"]) == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [({}, None), ({"weights_max": 0.15}, "weights_p99"), ({"score_p99": 0.02}, "score_p99")],
)
def test_a_proof_from_before_the_quantiles_is_judged_by_what_it_measured(parity, changed, named):
    before = {n: limit for n, limit in LIMITS["int8"].items() if n not in EXTREME_OF}
    before |= {"score_max": 0.03, "weights_max": 0.2, "maps_plcc": 0.9}
    old = dataclasses.replace(
        parity, limits=before, weights_p99=None, maps_p99=None, maps_plcc_p01=None, **changed
    )
    found = old.objection("int8")
    assert (named is None) == (found is None)
    assert named is None or named in (found or "")


def test_limits_are_those_of_the_precision(parity):
    for precision in PRECISIONS:
        of_it = dataclasses.replace(parity, limits=LIMITS[precision])
        assert of_it.objection(precision) is None
    rough = dataclasses.replace(parity, limits=LIMITS["bf16"])
    assert rough.objection("fp16")


def test_a_proof_needs_enough_images(parity):
    few = dataclasses.replace(parity, images=99, pairs=4851)
    assert "99 images" in (few.objection("fp32") or "")


def test_a_failed_proof_is_none(parity, engine):
    failed = "it failed its proof"
    assert dataclasses.replace(parity, passed=False).objection("fp32") == failed
    assert dataclasses.replace(engine.invariance, passed=False).objection("fp32") == failed


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_tolerance_of_batch_invariance_counts(engine, precision):
    at_most = dataclasses.replace(engine.invariance, tolerance=TOLERANCES[precision])
    assert at_most.objection(precision) is None
    more = dataclasses.replace(engine.invariance, tolerance=1.01 * TOLERANCES[precision])
    assert "tolerance" in (more.objection(precision) or "")


def part(**changes):
    whole = {"images": 50, "score_max": 1e-6, "srcc": 1.0, "plcc": 1.0, "order_flips": 0}
    return SetParity(**whole | {"pairs": 1225} | changes)


@pytest.mark.parametrize(
    ("sets", "agree"),
    [
        ({"a": part(), "b": part()}, True),
        ({"a": part()}, False),
        ({"a": part(), "b": part(), "c": part()}, False),
        ({"a": part(), "b": part(score_max=2e-6)}, False),
        ({"a": part(), "b": part(order_flips=1)}, False),
    ],
)
def test_sets_are_parts_of_the_whole(parity, sets, agree):
    found = dataclasses.replace(parity, sets=sets).objection("fp32")
    assert (found is None) == agree


@pytest.mark.parametrize(
    "changes",
    [
        {"pairs": 4951},
        {"rows": 99},
        {"clear_flips": 0, "clear_pairs": 4951},
        {"reference": "a\nb"},
        {"limits": {"beauty": 0.5}},
        {"sets": {"a\x1b[31m": part()}},
    ],
)
def test_a_proof_that_cannot_be(parity, changes):
    with pytest.raises(ConfigError):
        dataclasses.replace(parity, **changes)


def test_the_digest_follows_every_value_and_no_layout(toy_bundle, tmp_path):
    manifest = read_manifest(toy_bundle)
    found = digest(manifest)
    assert len(found) == len("sha256:") + 64
    document = json.loads((toy_bundle / "manifest.json").read_text())
    for text in (json.dumps(document), json.dumps(dict(reversed(document.items())), indent=7)):
        (tmp_path / "manifest.json").write_text(text)
        assert digest(read_manifest(tmp_path)) == found
    engine = manifest.engines[0]
    for changed in (
        dataclasses.replace(manifest, preset="custom"),
        dataclasses.replace(manifest, engines=()),
        dataclasses.replace(manifest, engines=(dataclasses.replace(engine, sha256="0" * 64),)),
        dataclasses.replace(manifest, engines=(dataclasses.replace(engine, parity=None),)),
        dataclasses.replace(manifest, engines=(dataclasses.replace(engine, islands=("a",)),)),
    ):
        assert digest(changed) != found


def test_the_digest_of_an_earlier_bundle_stays():
    """A pinned digest outlives the versions of this package."""
    known = "sha256:9abac8c0aef40c3472fa013eb3a10a638c57a7206e5c609d10afc266a938269b"
    assert digest(read_manifest(SCHEMA_1)) == known


def test_a_margin_divides_the_distance_from_perfect_agreement():
    limits = {"score_max": 0.03, "srcc": 0.999, "maps_plcc": 0.9, "order_flips": 0.02}
    tight = tightened(limits, {"score_max": 2.0, "srcc": 4.0, "maps_plcc": 2.0})
    assert tight == pytest.approx(
        {"score_max": 0.015, "srcc": 0.99975, "maps_plcc": 0.95, "order_flips": 0.02}
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_made_keeps_a_margin_and_what_is_searched_keeps_it_twice(precision):
    plain, made, searched = (t[precision] for t in (LIMITS, EXPORT_LIMITS, SEARCH_LIMITS))
    assert looser(made, plain) == looser(searched, made) == []
    if precision == "fp32":  # whose limits are of rounding alone
        assert made == plain
        return
    assert set(looser(plain, made)) == set(looser(made, searched)) == MARGINS.keys() & plain.keys()
    assert made["score_p99"] == plain["score_p99"] / MARGINS["score_p99"]
    assert made["score_max"] == plain["score_max"]


def test_headroom_is_that_of_the_measure_nearest_to_its_limit(parity):
    near = dataclasses.replace(parity, score_max=0.04, limits=LIMITS["int8"], sets={})
    assert near.headroom("int8") == (pytest.approx(2.5), "score_max")
    worse = dataclasses.replace(near, srcc=0.9992)
    assert worse.headroom("int8") == (pytest.approx(1.25), "srcc")
    off = SetParity(images=100, score_max=0.2, srcc=1.0, plcc=1.0, order_flips=0, pairs=4950)
    failed = dataclasses.replace(near, passed=False, score_max=0.2, sets={"synthetic": off})
    assert failed.headroom("int8") == (pytest.approx(0.5), "score_max")
    few = {"synthetic": dataclasses.replace(off, images=99, pairs=4851)}
    assert dataclasses.replace(near, sets=few).headroom("int8") == near.headroom("int8")


def test_a_perfect_proof_has_no_headroom_to_tell(parity):
    nothing = dict.fromkeys(("score_max", "score_mean", "score_p99", "weights_max"), 0.0)
    perfect = dataclasses.replace(
        parity, **nothing, srcc=1.0, plcc=1.0, maps_max=None, leading_flips=0, sets={}
    )
    assert perfect.headroom("fp32") is None
