"""`drx info`."""

import dataclasses
import shutil

import pytest
from PIL import Image
from support.command_line import change_engine
from support.memory_bucket import memory_bucket

from drexperts import runtime
from drexperts.runtime.compatibility import gpus
from drexperts.runtime.manifest import digest, read_manifest, sha256_of, write_manifest
from drexperts.runtime.training import Training


def test_info(toy_bundle, call):
    status, document, tables = call("info", toy_bundle)
    assert status == 0
    assert (document["proven"], document["intact"]) == (True, True)
    assert document["files"] == {"model.onnx": "intact"}
    assert document["manifest"]["preset"] == "paper"
    assert document["objections"] == [None]
    assert document["digest"] == digest(read_manifest(toy_bundle))
    assert document["digest"] in tables
    for text in ("alpha", "0 to 255, higher is better", "distortion 9", "batch invariance"):
        assert text in tables


def test_info_of_a_bundle_at_a_url(toy_bundle, call, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    url = "memory://bucket/bundle"
    with memory_bucket() as system:
        system.put(str(toy_bundle), "/bucket/", recursive=True)
        system.mv(f"/bucket/{toy_bundle.name}", "/bucket/bundle", recursive=True)
        status, document, tables = call("info", url)
        assert (status, document["bundle"], document["intact"]) == (0, url, True)
        assert document["files"] == {"model.onnx": "not downloaded"}
        assert document["digest"] == digest(read_manifest(toy_bundle))
        assert url in tables
        assert "missing" not in tables
        runtime.load(url)
        assert call("info", url)[1]["files"] == {"model.onnx": "intact"}
        photo = tmp_path / "photo.png"
        Image.new("RGB", (40, 40)).save(photo)
        status, document, _ = call("score", url, photo, "--digest", document["digest"])
        assert (status, document["bundle"], document["scored"]) == (0, url, 1)


def test_info_begins_with_what_a_person_asks_first(bundle, call):
    manifest = read_manifest(bundle)
    assert "trained not recorded" in call("info", bundle)[2]
    trained = Training(
        dataset="livec",
        data_digest="0123456789abcdef",
        split_digest="fedcba9876543210",
        images=(930, 116, 115),
        selected_on="validation",
        selected_by="srcc",
        epoch=7,
        when="2026-11-27T08:09:10Z",
        srcc=0.81234,
        plcc=0.82345,
    )
    known = dataclasses.replace(manifest, trained=trained, created="2026-11-28T20:00:00Z")
    write_manifest(known, bundle)
    _, document, shown = call("info", bundle)
    order = [
        *("livec", "930 trained on", "epoch 7", "SRCC 0.8123, PLCC 0.8235 on 115 images"),
        *("2026-11-27 08:09:10 UTC", "exported 2026-11-28 20:00:00 UTC", "on 100 pictures"),
        *(document["digest"], "rank correlation", "SHA-256", "configuration", "alpha 0.5"),
    ]
    places = [shown.index(text) for text in order]
    assert places == sorted(places)
    assert document["manifest"]["trained"]["srcc"] == 0.81234
    assert document["manifest"]["created"] == "2026-11-28T20:00:00Z"


def test_info_says_when_the_test_chose_the_epoch(bundle, call):
    trained = Training(
        dataset="koniq",
        data_digest="0123456789abcdef",
        split_digest="fedcba9876543210",
        images=(8, 0, 2),
        selected_on="test",
        selected_by="srcc",
        epoch=1,
        when="2026-11-27T08:09:10Z",
        srcc=0.9,
    )
    write_manifest(dataclasses.replace(read_manifest(bundle), trained=trained), bundle)
    shown = call("info", bundle)[2]
    assert "which also chose the epoch" in shown
    assert "0 validated" not in shown


def test_info_names_models_by_what_they_are(bundle, call, tiny):
    write_manifest(dataclasses.replace(read_manifest(bundle), config=tiny().as_dict()), bundle)
    _, document, shown = call("info", bundle)
    assert document["model"]["encoder"] in shown
    assert document["model"]["prior"] in shown
    assert "deit3" not in shown
    assert "DA-CLIP" not in shown


def test_info_of_a_changed_or_missing_file(bundle, call):
    (bundle / "model.onnx").write_bytes(b"other")
    status, document, tables = call("info", bundle)
    assert (status, document["intact"], document["proven"]) == (1, False, True)
    assert "CHANGED" in tables
    (bundle / "model.onnx").unlink()
    status, document, _ = call("info", bundle)
    assert (status, document["files"]) == (1, {"model.onnx": "MISSING"})


def test_info_of_an_unproven_bundle(bundle, call):
    parity = read_manifest(bundle).engines[0].parity
    assert parity is not None
    limits = {"score_max": 1e-3, "srcc": 0.99, "order_flips": 0.1, "plcc": 0.9}
    failed = dataclasses.replace(
        parity, score_max=0.5, srcc=0.1, order_flips=1000, passed=False, limits=limits
    )
    change_engine(bundle, parity=failed)
    status, document, tables = call("info", bundle)
    assert (status, document["proven"], document["intact"]) == (1, False, True)
    assert "NOT PROVEN" in tables
    assert tables.count("FAILS") == 3
    assert document["objections"] == ["it failed its proof"]
    change_engine(bundle, parity=None, invariance=None)
    assert call("info", bundle)[2].count("never measured") == 2


def test_info_of_a_proof_with_limits_of_its_own(bundle, call):
    parity = read_manifest(bundle).engines[0].parity
    assert parity is not None
    loose = dataclasses.replace(parity, limits=parity.limits | {"score_max": 1e300})
    change_engine(bundle, parity=loose)
    status, document, tables = call("info", bundle)
    assert (status, document["proven"]) == (1, False)
    assert "score_max" in document["objections"][0]
    assert "NOT PROVEN" in tables


def test_info_without_engines(bundle, call):
    write_manifest(dataclasses.replace(read_manifest(bundle), engines=()), bundle)
    status, document, _ = call("info", bundle)
    assert (status, document["proven"]) == (1, False)


def test_info_of_what_is_no_bundle(tmp_path, call):
    status, document, _ = call("info", tmp_path)
    assert status == 2
    assert "drx export" in document["error"]


def test_info_of_engines_that_do_not_run_here(bundle, call, planned):
    if gpus():
        pytest.skip("this machine has a GPU")
    engine = dataclasses.replace(planned(), sha256=sha256_of(bundle / "model.onnx"))
    shutil.copy(bundle / "model.onnx", bundle / engine.file)
    manifest = read_manifest(bundle)
    write_manifest(dataclasses.replace(manifest, engines=(*manifest.engines, engine)), bundle)
    status, document, tables = call("info", bundle)
    assert (status, document["proven"], document["intact"]) == (0, True, True)
    assert "runs here" in tables
    assert "no: tensorrt-rtx.engine needs" in " ".join(tables.split())
