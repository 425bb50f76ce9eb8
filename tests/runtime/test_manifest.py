import copy
import dataclasses
import hashlib
import json

import pytest

from drexperts.runtime.errors import BundleError, ConfigError
from drexperts.runtime.json_document import canonical
from drexperts.runtime.manifest import (
    BatchProfile,
    Manifest,
    ScoreScale,
    digest,
    read_manifest,
    sha256_of,
    write_manifest,
)
from drexperts.runtime.proof import ConfidenceInterval, Parity, SetParity

# The fields of parity that the first manifests had.
BEFORE = {
    *("images", "rows", "reference", "score_max", "score_mean", "score_p99", "srcc", "plcc"),
    *("order_flips", "pairs", "weights_max", "maps_max", "limits", "passed"),
}


@pytest.fixture
def document(toy_bundle):
    return json.loads((toy_bundle / "manifest.json").read_text())


@pytest.fixture
def engine(toy_bundle):
    (engine,) = read_manifest(toy_bundle).engines
    return engine


@pytest.fixture
def parity(engine):
    return engine.parity


def read(tmp_path, content):
    if not isinstance(content, (bytes, str)):
        content = json.dumps(content)
    if isinstance(content, str):
        content = content.encode()
    (tmp_path / "manifest.json").write_bytes(content)
    return read_manifest(tmp_path)


def test_round_trip(toy_bundle, tmp_path):
    manifest = read_manifest(toy_bundle)
    assert isinstance(manifest, Manifest)
    write_manifest(manifest, tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert (tmp_path / "manifest.json").read_bytes() == (toy_bundle / "manifest.json").read_bytes()


def test_file_is_sorted_and_indented(toy_bundle, document):
    text = (toy_bundle / "manifest.json").read_text()
    assert text == json.dumps(document, indent=2, sort_keys=True) + "\n"


def test_failed_write_keeps_the_old_file(toy_bundle, tmp_path, monkeypatch):
    manifest = read_manifest(toy_bundle)
    write_manifest(manifest, tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_manifest(dataclasses.replace(manifest, preset="official"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert (tmp_path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("name", ["parity", "invariance"])
def test_proven_needs_both_proofs_passed(engine, name):
    failed = dataclasses.replace(getattr(engine, name), passed=False)
    assert engine.proven
    assert not dataclasses.replace(engine, **{name: failed}).proven
    assert not dataclasses.replace(engine, **{name: None}).proven


def test_a_plan_goes_round(toy_bundle, planned, tmp_path):
    manifest = read_manifest(toy_bundle)
    both = dataclasses.replace(manifest, engines=(*manifest.engines, planned()))
    write_manifest(both, tmp_path)
    assert read_manifest(tmp_path) == both


def test_a_manifest_from_before_plans_is_read(document, tmp_path):
    del document["engines"][0]["plan"]
    assert read(tmp_path, document).engines[0].plan is None


def test_a_manifest_from_before_intervals_and_sets_is_read(document, tmp_path):
    later = {field.name for field in dataclasses.fields(Parity) if field.name not in BEFORE}
    assert later <= document["engines"][0]["parity"].keys()
    for name in later:
        del document["engines"][0]["parity"][name]
    document["engines"][0]["parity"]["limits"] = {"score_max": 1e-4}
    (old,) = read(tmp_path, document).engines
    assert not old.proven  # an interval is asked for
    assert not old.refuted
    assert old.parity is not None
    assert (old.parity.srcc_interval, old.parity.sets) == (None, {})


def test_a_set_of_enough_images_fails_a_proof(toy_bundle, engine, parity, tmp_path):
    off = SetParity(images=100, score_max=0.5, srcc=1.0, plcc=1.0, order_flips=0, pairs=4950)
    few = dataclasses.replace(off, images=99, pairs=4851)
    with pytest.raises(ConfigError, match="passed"):
        dataclasses.replace(parity, sets={"synthetic": off})
    passed = dataclasses.replace(parity, sets={"synthetic": few})
    engines = (dataclasses.replace(engine, parity=passed),)
    write_manifest(dataclasses.replace(read_manifest(toy_bundle), engines=engines), tmp_path)
    assert read_manifest(tmp_path).engines == engines


def test_limits_are_on_shares_and_on_the_low_end(parity):
    changes = {"order_flips": 2475, "clear_flips": 1, "clear_pairs": 4, "leading_flips": 50}
    interval = ConfidenceInterval(0.9, 1.0)
    failed = dataclasses.replace(parity, passed=False, plcc_interval=None)
    got = dataclasses.replace(failed, **changes, srcc_interval=interval).measured()
    assert (got["order_flips"], got["clear_flips"], got["leading_flips"]) == (0.5, 0.25, 0.5)
    assert (got["srcc"], got["srcc_low"], got["plcc_low"]) == (1.0, 0.9, None)
    no_pairs = dataclasses.replace(failed, clear_flips=0, clear_pairs=0)
    assert no_pairs.measured()["clear_flips"] is None


def test_a_plan_belongs_to_tensorrt_alone(engine, planned):
    for wrong in ({"backend": "tensorrt"}, {"plan": planned().plan}):
        with pytest.raises(ConfigError, match="plan"):
            dataclasses.replace(engine, **wrong)


def test_evidence_is_built_inspected_or_executed(engine, parity, planned):
    assert planned(inspected=False).evidence == "built"
    assert planned().evidence == "inspected"
    assert engine.evidence == "executed"
    assert dataclasses.replace(engine, invariance=None).evidence == "executed"
    assert not planned().refuted
    assert not engine.refuted
    failed = dataclasses.replace(parity, passed=False)
    assert dataclasses.replace(engine, parity=failed).refuted


@pytest.fixture
def openvino_engine(engine):
    return dataclasses.replace(
        engine,
        backend="openvino",
        versions={"openvino": "2026.4.1"},
        proven_on="x86_64-amx",
        products={"bf16": 144, "fp32": 16},
    )


def test_an_openvino_engine_goes_round(toy_bundle, openvino_engine, tmp_path):
    manifest = read_manifest(toy_bundle)
    both = dataclasses.replace(manifest, engines=(*manifest.engines, openvino_engine))
    write_manifest(both, tmp_path)
    assert read_manifest(tmp_path) == both


def test_products_that_were_read_back_are_evidence(openvino_engine):
    assert openvino_engine.evidence == "executed"
    built = dataclasses.replace(openvino_engine, parity=None, invariance=None)
    assert built.evidence == "inspected"
    assert dataclasses.replace(built, products={}).evidence == "built"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"products": {"fp8": 1}}, "fp8"),
        ({"products": {"bf16": 0}}, "0 products"),
        ({"proven_on": "8.9"}, "a CPU"),
        ({"proven_on": "x86_64-abacus"}, "a CPU"),
        ({"proven_on": "X86"}, "a CPU"),
        ({"versions": {}}, "needs the version of openvino"),
        ({"backend": "onnx", "proven_on": None}, "has no products"),
        ({"backend": "onnx", "products": {}}, "a compute capability"),
    ],
)
def test_bad_openvino_engines(changes, said, openvino_engine):
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(openvino_engine, **changes)


@pytest.mark.parametrize("products", [{"bf16": True}, {"bf16": 1.0}, {"bf16": "1"}, ["bf16"], None])
def test_products_of_other_types(products, document, tmp_path):
    document["engines"][0] |= {
        **{"backend": "openvino", "versions": {"openvino": "2026.4.1"}, "products": products}
    }
    with pytest.raises(BundleError, match="products"):
        read(tmp_path, document)


def test_a_manifest_from_before_products_keeps_its_digest(document, tmp_path):
    before = digest(read(tmp_path, document))
    assert document["engines"][0].pop("products") == {}
    assert digest(read(tmp_path, document)) == before
    assert "products" not in json.dumps(canonical(read(tmp_path, document)))


def test_batches_are_certified_as_far_as_they_were_measured(engine, planned):
    assert engine.certified_batch == 16
    less = dataclasses.replace(engine.invariance, batches=(1, 8))
    assert dataclasses.replace(engine, invariance=less).certified_batch == 8
    assert planned().certified_batch == 16


def test_profiles():
    assert str(BatchProfile(1, 8, 64)) == "1:8:64"
    included = [size for size in range(1, 10) if BatchProfile(2, 4, 6).includes(size)]
    assert included == [2, 3, 4, 5, 6]


BAD_PLANS = [
    {"capabilities": ()},
    {"capabilities": ("89",)},
    {"profiles": ()},
    {"hardware_compatibility": "all"},
    {"platform": "linux"},
    {"platform": "linux-x86_64\n"},
    {"version": "1.7; rm"},
    {"plugin_layers": -1},
    {"onnx_sha256": "0"},
]


@pytest.mark.parametrize("changes", BAD_PLANS)
def test_bad_plans(changes, planned):
    with pytest.raises(ConfigError):
        dataclasses.replace(planned().plan, **changes)


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 3), (1, 4, 3), (1, 1, 10**6)])
def test_bad_profiles(sizes):
    with pytest.raises(ConfigError, match="profile"):
        BatchProfile(*sizes)


def test_span(toy_bundle):
    assert read_manifest(toy_bundle).scale.span == 255.0


def test_sha256_of(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_missing_folder_or_file(tmp_path):
    for folder in (tmp_path / "none", tmp_path, "a\0b"):
        with pytest.raises(BundleError, match="drx export"):
            read_manifest(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"1e999",
        b'{"schema": NaN}',
        b'{"schema": 1, "schema": 1}',
        b'{"schema": 1' + b"0" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"schema": 1, "config": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b" " * (5 * 2**20),
    ],
)
def test_broken_documents(content, tmp_path):
    with pytest.raises(BundleError, match="drx export"):
        read(tmp_path, content)


@pytest.mark.parametrize("schema", [0, 2, "1", True, None, 1.0, [1], "\ud800"])
def test_unknown_schema(schema, document, tmp_path):
    with pytest.raises(BundleError, match="schema"):
        read(tmp_path, document | {"schema": schema})


def test_a_bundle_of_too_many_engines(document, tmp_path):
    engine = document["engines"][0] | {"parity": None, "invariance": None}
    assert len(read(tmp_path, document | {"engines": [engine] * 100}).engines) == 100
    with pytest.raises(BundleError, match="engines"):
        read(tmp_path, document | {"engines": [engine] * 101})


BAD_VALUES = [
    ("preset", 3),
    ("preset", "mine"),
    ("distortions", ["=cmd()"]),
    ("distortions", ["blur\x1b[31m"]),
    ("created_with", {"torch": "2\n"}),
    ("created_with", {"<b>": "2"}),
    ("config", {"name": "a\u202eb"}),
    ("config", {"a\nb": 1}),
    ("engines.0.backend", "abacus"),
    ("engines.0.backend", "torch"),
    ("engines.0.precision", "fp99"),
    ("engines.0.precision", 'fp32\n}\nmodel_operations { op_library_filename: "x.so" }'),
    ("engines.0.versions", {"onnx": "1 | 2"}),
    ("engines.0.islands", ["a`b"]),
    ("engines.0.proven_on", "8.9\n"),
    ("engines.0.parity.reference", "[link](http://a)"),
    ("engines.0.parity.limits", {"beauty": 1}),
    ("engines.0.parity.pictures", "0123456789ab"),
    ("engines.0.parity.seen", -1),
    ("engines.0.parity.undetermined", 50),
    ("engines.0.calibrated_on", ["0123456789ab", "picture.png"]),
    ("engines.0.searched_on", ["0123456789AB"]),
    ("engines.0.invariance.cases", ["<script>"]),
    ("engines.0.file", "manifest.json"),
    ("scale.high", 1.8e308),
    ("preset", None),
    ("config", []),
    ("distortions", "blur"),
    ("distortions", [1]),
    ("distortions", []),
    ("distortions", ["blur", "blur"]),
    ("outputs", ["score"]),
    ("outputs", ["score", "weights", "shell"]),
    ("engines", {}),
    ("engines", [None]),
    ("created_with", {"torch": 2}),
    ("preprocessing.crop", True),
    ("preprocessing.crop", 32.0),
    ("preprocessing.crop", 0),
    ("preprocessing.short_side_max", 10**9),
    ("scale.low", True),
    ("scale.low", "0"),
    ("scale.low", float("nan")),
    ("scale.low", float("-inf")),
    ("scale.low", 255.0),
    ("scale.high", 2**70),
    ("scale.higher_is_better", 1),
    ("engines.0.file", "../model.onnx"),
    ("engines.0.file", "/etc/passwd"),
    ("engines.0.file", "a/b.onnx"),
    ("engines.0.file", "a\\b.onnx"),
    ("engines.0.file", ".."),
    ("engines.0.file", ""),
    ("engines.0.file", "a\0b"),
    ("engines.0.file", "model.onnx\n"),
    ("engines.0.file", "C:model.onnx"),
    ("engines.0.sha256", "0"),
    ("engines.0.max_batch", 0),
    ("engines.0.max_batch", -1),
    ("engines.0.parity", []),
    ("engines.0.parity.images", 0),
    ("engines.0.parity.srcc", 2.0),
    ("engines.0.parity.score_max", -1.0),
    ("engines.0.parity.maps_max", -1.0),
    ("engines.0.parity.order_flips", 7),
    ("engines.0.parity.passed", "yes"),
    ("engines.0.parity.limits", {"score_max": "x"}),
    ("engines.0.parity.leading_flips", 5),
    ("engines.0.parity.clear_flips", 1),
    ("engines.0.parity.srcc_interval", {"low": 0.9, "high": 0.8}),
    ("engines.0.parity.sets", {"photographs": {"images": 4}}),
    ("engines.0.invariance.batches", [0]),
    ("engines.0.invariance.batches", []),
    ("engines.0.invariance.tolerance", -1e-6),
]


@pytest.mark.parametrize(("place", "value"), BAD_VALUES)
def test_bad_values(place, value, document, tmp_path):
    *parents, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    target = document
    for part in parents:
        target = target[part]
    target[last] = value
    with pytest.raises(BundleError, match="cannot be used"):
        read(tmp_path, document)


def test_missing_and_unknown_fields(document, tmp_path):
    for change in (lambda d: d.pop("scale"), lambda d: d["scale"].pop("low")):
        changed = copy.deepcopy(document)
        change(changed)
        with pytest.raises(BundleError, match="lacks"):
            read(tmp_path, changed)
    with pytest.raises(BundleError, match=r"unknown fields \['extra'\]"):
        read(tmp_path, document | {"extra": 1})


def test_message_names_the_place(document, tmp_path):
    document["engines"][0]["parity"]["srcc"] = [1]
    with pytest.raises(BundleError, match=r"manifest\.engines\[0\]\.parity\.srcc "):
        read(tmp_path, document)


def test_an_integer_may_stand_for_a_float(document, tmp_path):
    document["scale"]["high"] = 100
    assert type(read(tmp_path, document).scale.high) is float


def test_impossible_manifests_cannot_be_made(engine):
    with pytest.raises(ConfigError, match=r"'\.\./x'"):
        dataclasses.replace(engine, file="../x")


@pytest.mark.parametrize(
    ("proof", "changes"),
    [
        ("parity", {"score_max": 0.9}),
        ("parity", {"limits": {}}),
        ("parity", {"limits": {"srcc": 0.999}, "srcc": 0.5}),
        ("parity", {"limits": {"srcc_low": 0.999}, "srcc_interval": ConfidenceInterval(0.99, 1.0)}),
        ("parity", {"limits": {"weights_srcc_low": 0.999}}),  # never measured
        ("invariance", {"score_max": 0.9}),
    ],
)
def test_a_proof_is_not_passed_against_its_own_numbers(engine, proof, changes):
    with pytest.raises(ConfigError, match="passed"):
        dataclasses.replace(getattr(engine, proof), **changes)


@pytest.mark.parametrize(
    ("low", "high", "decimals"), [(0, 100, 3), (1, 5, 5), (0, 1, 5), (-1, 1, 5), (0, 1e7, 0)]
)
def test_decimals_show_what_the_strictest_proof_tells_apart(low, high, decimals):
    assert ScoreScale(low, high, higher_is_better=True).decimals == decimals
