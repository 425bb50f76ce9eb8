"""When two sources name the same image."""

import os
from pathlib import Path

import pytest

from drexperts.runtime.sources import canonical


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_spellings_of_one_path(here: Path) -> None:
    for name in (
        "a.jpg",
        "clips/c.mp4/12.000",
        "x.tar",
        "x.tar.gz/a//b.png",
        "y.PARQUET/k",
        "sub/x.tar/../a.png",
    ):
        spellings = [f"./{name}", f".//{name}", f"none/../{name}", f"{here}/{name}"]
        assert {canonical(spelling) for spelling in spellings} == {canonical(name)}
    assert canonical("x.tar/a.png") == f"{here}/x.tar/a.png"


def test_keys_and_addresses_are_not_paths(here: Path) -> None:
    names = ["x.tar/b", "x.tar/../b", "x.tar/a/../b", "x.tar/a//b", "x.tar/a/b", "x.tar/./b", "b"]
    names += ["y.parquet/http://x//b", "y.parquet/http://x/b", "x.tar/y.tar/b", "x.tar/y.tar/./b"]
    names += ["s3://x/a//b", "s3://x/a/b", "s3://x/./b", "s3://x/b", "s3://x/a.tar/../b"]
    assert len({canonical(name) for name in names}) == len(names)


def test_what_is_above_a_link(here: Path) -> None:
    """Nobody knows it by the link's name alone."""
    os.makedirs("other/folder")
    Path("link").symlink_to("other/folder")
    assert canonical("link/../a.jpg") == canonical("other/a.jpg") != canonical("a.jpg")
    assert canonical("link/../c.mp4/1.000") == canonical("other/c.mp4/1.000")
    assert canonical("link/../x.tar/k") == canonical("other/x.tar/k")
    assert canonical("link\0/../a.jpg") == canonical("a.jpg")
    assert canonical("other/folder/../a.jpg") == canonical("other/a.jpg")
