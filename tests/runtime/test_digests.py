"""A set of sources in 16 bytes each."""

import os
import tracemalloc
from pathlib import Path

import pytest

from drexperts.runtime import digests
from drexperts.runtime.digests import SourceSet, digest_of


def test_sources_are_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_RECENT", 8)  # so that blocks are merged many times
    known = SourceSet()
    for i in range(1000):
        assert len(known) == i
        assert f"{i}.jpg" not in known
        assert known.add(f"{i}.jpg")
        assert not known.add(f"{i // 2}.jpg")
    assert all(f"{i}.jpg" in known for i in range(1000))
    assert "1000.jpg" not in known


def test_digests_that_end_in_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_RECENT", 4)
    fixed = {f"/{i}": i.to_bytes(2, "big") + bytes(14) for i in range(300)}
    monkeypatch.setattr(digests, "digest_of", fixed.__getitem__)
    known = SourceSet()
    assert all(known.add(name) for name in fixed)
    assert not any(known.add(name) for name in fixed)


def test_one_file_is_one_source_however_it_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    known = SourceSet()
    assert known.add("a.jpg")
    for name in ("./a.jpg", "x/../a.jpg", str(tmp_path / "a.jpg")):
        assert name in known


def test_any_file_name_has_a_digest_which_never_changes() -> None:
    assert digest_of(os.fsdecode(b"\xff.jpg")) != digest_of("?.jpg")
    assert digest_of("photos/a.jpg").hex() == "eea2c680d629b11d02e48cf37b1213a4"


def test_what_a_source_takes() -> None:
    known = SourceSet()
    tracemalloc.start()
    for i in range(2**15):
        known.add(f"/photos/{i}.jpg")
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 2**15 * 16 + 2**14
