"""The full-size benchmark's receipt names every proof that is missing."""

import dataclasses
import shutil
from pathlib import Path

from support.sample_reports import cpu

from drexperts.bench.json_files import read_json, write_json
from drexperts.benchmarks.bench_full_size import proofs
from drexperts.benchmarks.receipt_types.full_size_receipt import FullSizeReceipt
from drexperts.runtime.manifest import read_manifest, write_manifest


def test_a_missing_proof_is_a_failure(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(toy_bundle, tmp_path / "bundle")
    manifest = read_manifest(bundle)
    unproven = dataclasses.replace(manifest.engines[0], invariance=None)
    write_manifest(dataclasses.replace(manifest, engines=(unproven,)), bundle)
    found = {"engine": proofs(manifest.engines[0]), "engine-int8": proofs(unproven)}
    write_json(FullSizeReceipt(cpu(), found), tmp_path / "receipt.json")
    receipt = read_json(tmp_path / "receipt.json", FullSizeReceipt)
    assert receipt.proofs == found
    assert receipt.failures == ["batch invariance of engine-int8"]
