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
        source = image.content()
        found[image.source] = source() if callable(source) else source
    return found


def test_files_folders_and_patterns(memory: Any) -> None:
    photos = {"memory://bucket/photos/b.png": png(1), "memory://bucket/photos/sub/a.png": png(2)}
    assert read("memory://bucket/photos") == photos
    assert read("memory://bucket/photos/*.png") == dict(list(photos.items())[:1])
    assert read("memory://bucket/photos/b.png") == {"memory://bucket/photos/b.png": png(1)}
    inputs = Inputs(["memory://bucket/photos", "memory://bucket/photos/b.png"])
    assert len(list(inputs)) == 2
    assert inputs.passed_over_files() == {".txt": 1}


def test_archives(memory: Any) -> None:
    url = "memory://bucket/x.tar"
    assert read(url) == {f"{url}/{i}.png": png(i) for i in range(3)}
    expected = {f"memory://bucket/x.parquet/{i}": png(5 + i) for i in range(2)}
    assert read("memory://bucket/x.parquet") == expected
    assert read("memory://bucket/x.par*") == expected


def test_lists(memory: Any) -> None:
    found = read(listed=["memory://bucket/photos/b.png", "memory://bucket/x.tar"])
    assert list(found)[:2] == ["memory://bucket/photos/b.png", "memory://bucket/x.tar/0.png"]


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
    assert image.source == "memory://bucket/none.tar"


def test_a_folder_that_matches_a_pattern_stands_for_what_is_below_it(memory: Any) -> None:
    url = "memory://bucket"
    assert set(read(f"{url}/p*")) == {f"{url}/photos/b.png", f"{url}/photos/sub/a.png"}
    assert len(read(f"{url}/*")) == 2 + 3 + 2
    assert list(read(f"{url}/photos/.hid*")) == [f"{url}/photos/.hidden/c.png"]


def test_what_is_above_a_pattern_may_be_hidden(memory: Any) -> None:
    url = "memory://bucket/photos/.hidden"
    assert read(f"{url}/*.png") == read(url) == {f"{url}/c.png": png(3)}


def test_links_without_an_address(tmp_path: Path, memory: Any) -> None:
    (tmp_path / "x.tar").write_bytes(memory.cat("/bucket/x.tar"))
    for name in ("x.tar", "*.tar"):
        found = read(f"simplecache::file://{tmp_path}/{name}")
        assert found == {f"simplecache::file://{tmp_path}/x.tar/{i}.png": png(i) for i in range(3)}


def test_two_objects_whose_names_are_one_path_are_two_images(memory: Any) -> None:
    """Of an object store: in a file system these are one."""
    names = ["s3://bucket/a/b.png", "s3://bucket/a//b.png", "s3://bucket/c/../a/b.png"]
    assert [image.source for image in Inputs([], names)] == names


def test_a_package_that_fsspec_needs_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would cost every image."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for name in ("s3://bucket/a.png", "s3://bucket/x.tar"):
        with pytest.raises(MissingDependencyError, match="Install s3fs"):
            read(listed=[name])
        with pytest.raises(MissingDependencyError, match="Install s3fs"):
            read(name)


@pytest.mark.parametrize("url", ["memory://bucket/*.gif", "unknown://x/*.png"])
def test_addresses_that_name_nothing(memory: Any, url: str) -> None:
    with pytest.raises(UserError, match="check the address"):
        read(url)


def test_without_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingDependencyError, match="remote"):
        read("s3://bucket/photos")
