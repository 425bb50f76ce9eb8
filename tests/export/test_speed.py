"""The short measurement of an engine."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from drexperts.export.speed import CALLS, crop_speed
from drexperts.runtime.errors import NotTakenError
from drexperts.runtime.manifest import Engine, read_manifest


@pytest.mark.parametrize("proven", [True, False])
def test_an_engine_is_timed_whether_or_not_it_is_proven(toy_bundle: Path, proven: bool) -> None:
    manifest = read_manifest(toy_bundle)
    (engine,) = manifest.engines
    parity = engine.parity if proven else None
    found = crop_speed(toy_bundle, manifest, dataclasses.replace(engine, parity=parity))
    assert found.ms > 0
    assert 3 <= found.calls <= CALLS
    assert found.session in str(found)
    assert "ms per crop" in str(found)


def test_an_engine_that_does_not_run_here_is_refused(
    toy_bundle: Path, planned: Callable[..., Engine]
) -> None:
    elsewhere = planned(capabilities=("1.0",))
    with pytest.raises(NotTakenError):
        crop_speed(toy_bundle, read_manifest(toy_bundle), elsewhere)
