"""A fresh process's start, in its own process."""

from pathlib import Path

import pytest

from drexperts.cold_start import cold_start
from drexperts.runtime.errors import UserError


def test_measured(toy_bundle: Path) -> None:
    found = cold_start(toy_bundle, 16, 1, None)
    cold, memory = found["cold_start"], found["memory"]
    assert min(cold["import_s"], cold["load_s"], cold["first_inference_s"]) > 0
    assert 1e6 < cold["resident_bytes"] <= cold["peak_bytes"] <= memory["host_peak_bytes"]
    assert memory["device_peak_bytes"] is None


def test_a_bundle_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a bundle"):
        cold_start(tmp_path, 1, None, None)
