"""The full-size benchmark's receipt hides no proof that is missing."""

import dataclasses
import json
import shutil
from pathlib import Path

from drexperts.benchmarks.bench_full_size import gates, proofs
from drexperts.runtime.manifest import read_manifest, write_manifest


def test_a_proof_that_is_missing_fails_its_gate(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(toy_bundle, tmp_path / "bundle")
    manifest = read_manifest(bundle)
    unproven = dataclasses.replace(manifest.engines[0], invariance=None)
    write_manifest(dataclasses.replace(manifest, engines=(unproven,)), bundle)
    found = proofs({"engine": toy_bundle, "engine-int8": bundle})
    json.dumps(found, allow_nan=False)
    assert found["engine-int8"]["invariance"] is None
    assert found["engine-int8"]["parity"] == found["engine"]["parity"]
    assert gates(found) == {
        "parity of engine": True,
        "invariance of engine": True,
        "parity of engine-int8": True,
        "invariance of engine-int8": False,
    }
