"""Images at URLs, with the file systems that fsspec brings."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.archives import png, write_parquet, write_tar
from support.memory_bucket import memory_bucket

from drexperts.runtime.errors import ImageError, MissingDependencyError, UserError
from drexperts.runtime.inputs.remote import is_remote
from drexperts.runtime.inputs.stream import Inputs


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Any]:
    """A bucket in memory with photographs, an archive and a Parquet file."""
    archive = write_tar(tmp_path / "x.tar", [(f"{i}.png", png(i)) for i in range(3)])
    table = write_parquet(tmp_path / "x.parquet", {"image": [png(5), png(6)]})
    files = {
        "photos/b.png": png(1),
        "photos/sub/a.png": png(2),
        "photos/notes.txt": b"",
        "photos/.hidden/c.png": png(3),
        "x.tar": archive.read_bytes(),
        "x.parquet": table.read_bytes(),
    }
    with memory_bucket() as system:
        for name, data in files.items():
            system.pipe(f"/bucket/{name}", data)
        yield system


def read(*named: str, **options: Any) -> dict[str, Any]:
    found = dict[str, Any]()
    for image in Inputs(named, **options):
        _, source = image.item()
        found[image.source] = source() if callable(source) else source
    return found


def test_files_folders_and_patterns(memory: Any) -> None:
    photos = {"memory:///bucket/photos/b.png": png(1), "memory:///bucket/photos/sub/a.png": png(2)}
    assert read("memory://bucket/photos") == photos
    assert read("memory://bucket/photos/*.png") == dict(list(photos.items())[:1])
    assert read("memory://bucket/photos/b.png") == {"memory://bucket/photos/b.png": png(1)}
    inputs = Inputs(["memory://bucket/photos", "memory://bucket/photos/b.png"])
    assert len(list(inputs)) == 2
    assert inputs.passed_over_files() == {".txt": 1}


def test_archives(memory: Any) -> None:
    assert read("memory://bucket/x.tar") == {f"x.tar/{i}.png": png(i) for i in range(3)}
    expected = {"x.parquet/0": png(5), "x.parquet/1": png(6)}
    assert read("memory://bucket/x.parquet") == expected
    assert read("memory://bucket/x.par*") == expected


def test_lists(memory: Any) -> None:
    found = read(listed=["memory://bucket/photos/b.png", "memory://bucket/x.tar"])
    assert list(found)[:2] == ["memory://bucket/photos/b.png", "x.tar/0.png"]


def test_chained_addresses(memory: Any) -> None:
    url = "tar://1.png::memory://bucket/x.tar"
    assert read(url) == {url: png(1)}
    pattern = "tar://*.png::memory://bucket/x.tar"
    assert list(read(pattern).values()) == [png(i) for i in range(3)]


def test_local_files(tmp_path: Path, memory: Any) -> None:
    (tmp_path / "a.png").write_bytes(png(4))
    url = f"file://{tmp_path}/a.png"
    assert read(url) == {url: png(4)}
    assert not is_remote(str(tmp_path / "a.png"))
    (tmp_path / "x:").mkdir()
    (tmp_path / "x:" / "b.png").write_bytes(png(4))
    assert not is_remote(f"{tmp_path}/x://b.png")


def test_images_that_cannot_be_fetched_cost_themselves(memory: Any) -> None:
    with pytest.raises(ImageError, match=r"cannot read memory://bucket/none\.png: FileNotFound"):
        read("memory://bucket/none.png")
    with pytest.raises(ImageError, match="more than 10 bytes"):
        read("memory://bucket/photos/b.png", largest=10)
    (image,) = Inputs(["memory://bucket/none.tar"])
    assert image.source == "none.tar"


@pytest.mark.parametrize("url", ["memory://bucket/*.gif", "unknown://x/*.png"])
def test_addresses_that_name_nothing(memory: Any, url: str) -> None:
    with pytest.raises(UserError, match="check the address"):
        read(url)


def test_without_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingDependencyError, match="remote"):
        read("s3://bucket/photos")
