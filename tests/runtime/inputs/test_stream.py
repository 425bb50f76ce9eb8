"""All that arguments and lists name, as one stream."""

import io
import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.archives import png, write_parquet, write_tar

from drexperts.runtime.errors import ImageError, UserError
from drexperts.runtime.inputs.lists import _paths, paths_in
from drexperts.runtime.inputs.parquet_layout import Columns
from drexperts.runtime.inputs.shards import Shard
from drexperts.runtime.inputs.stream import Inputs


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photographs, two tar archives and a Parquet file."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/b.png", "photos/sub/a.png", "photos/z.txt", "c.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(png(1))
    for number in range(2):
        images = [(f"{i}.png", png(i)) for i in range(3)]
        write_tar(Path(f"shards/{number}.tar"), [*images, ("0.json", b"{}")])
    write_parquet(Path("shards/p.parquet"), {"image": [png(5), png(6)]})
    write_tar(Path("photos/backup.tar"), [("x.png", png(1))])
    return tmp_path


def sources(*named: str, **options: Any) -> list[str]:
    return [image.source for image in Inputs(named, **options)]


def test_arguments_in_order(place: Path) -> None:
    assert sources("shards/1.tar", "photos", "shards/p.parquet", "c.png") == [
        *("shards/1.tar/0.png", "shards/1.tar/1.png", "shards/1.tar/2.png"),
        *("photos/b.png", "photos/sub/a.png", "shards/p.parquet/0", "shards/p.parquet/1", "c.png"),
    ]


def test_archives_that_match_a_pattern_are_read_and_those_in_a_folder_are_not(place: Path) -> None:
    assert len(sources("shards/*")) == 8
    inputs = Inputs(["photos"])
    assert [image.source for image in inputs] == ["photos/b.png", "photos/sub/a.png"]
    assert inputs.passed_over_files() == {".tar": 1, ".txt": 1}


def test_two_archives_of_one_file_name(place: Path) -> None:
    write_tar(Path("other/0.tar"), [("0.png", png(1))])
    assert sources("shards/0.tar", "other/0.tar")[2:] == ["shards/0.tar/2.png", "other/0.tar/0.png"]
    assert len(sources("shards/0.tar", "./shards/0.tar", str(place / "shards/0.tar"))) == 3


@pytest.mark.parametrize("kind", ["x.tar", "x.parquet"])
def test_a_key_that_comes_again_is_an_error_of_its_archive(place: Path, kind: str) -> None:
    keys = ["a.png", "b.png", "a.png", "b.png"]
    if kind == "x.tar":
        write_tar(Path(kind), [(key, png(1)) for key in keys])
    else:
        write_parquet(Path(kind), {"image": [png(1)] * 4, "key": keys}, rows_per_group=3)
    inputs = Inputs([kind, kind, "c.png"], columns=Columns(key="key"))
    *images, last = inputs
    assert [image.source for image in images] == [f"{kind}/a.png", f"{kind}/b.png", kind]
    assert (inputs.repeated, last.source) == (2, "c.png")
    fetch = images[-1].content()
    assert callable(fetch)
    with pytest.raises(ImageError, match=f"{kind}/a.png' comes again, and only its first"):
        fetch()


def test_a_broken_archive_in_which_a_key_comes_again_is_one_error(place: Path) -> None:
    path = write_tar(Path("x.tar"), [("a.png", png(1)), ("a.png", png(2)), ("b.png", png(2))])
    path.write_bytes(path.read_bytes()[:2600])
    assert sources("x.tar") == ["x.tar/a.png", "x.tar/b.png", "x.tar"]


def test_keys_are_not_paths(place: Path) -> None:
    """Members of these names, and files, would be one file if they were unpacked."""
    keys = ["c.png", "./c.png", "../c.png", "a/../c.png", "a//c.png", "a/c.png", "https://x//c.png"]
    write_parquet(Path("x.parquet"), {"image": [png(1)] * 7, "key": keys})
    found = sources("x.parquet", "c.png", columns=Columns(key="key"))
    assert found == [*(f"x.parquet/{key}" for key in keys), "c.png"]
    write_tar(Path("x.tar"), [(key, png(1)) for key in keys if key != "./c.png"])
    assert len(sources("x.tar", "c.png")) == 7


def test_images_that_come_again(place: Path) -> None:
    inputs = Inputs(["photos", "photos/b.png", "./photos"], ["./photos/b.png"])
    assert [image.source for image in inputs] == ["photos/b.png", "photos/sub/a.png"]
    assert inputs.repeated == 0
    assert inputs.passed_over_files() == {".tar": 1, ".txt": 1}


def test_a_file_that_is_named_is_not_passed_over(place: Path) -> None:
    inputs = Inputs(["photos", "photos/z.txt"])
    assert len(list(inputs)) == 3
    assert inputs.passed_over_files() == {".tar": 1}


def test_arguments_must_name_something_before_any_work(place: Path) -> None:
    for name in ("none.png", "none/*.png"):
        with pytest.raises(UserError, match="check the path"):
            Inputs(["c.png", name])


def test_listed_paths_are_taken_as_they_are(place: Path) -> None:
    listed = ["none.png", "photos/*.png", "photos", "shards/0.tar", "c.png", "c.png"]
    assert sources(listed=listed) == [
        *("none.png", "photos/*.png", "photos"),
        *("shards/0.tar/0.png", "shards/0.tar/1.png", "shards/0.tar/2.png", "c.png"),
    ]


def test_a_list_is_read_as_it_is_needed(place: Path) -> None:
    def endless() -> Iterator[str]:
        yield "a.png"
        raise AssertionError("nobody asked for it")

    assert next(iter(Inputs([], endless()))).source == "a.png"


NAMES = [b"a.png", b"\xff\xfe.png", b" spaced .png ", b"cr\r.png", "照片.png".encode(), b"#x", b"-"]


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n"])
@pytest.mark.parametrize("line", [b"\n", b"\r\n"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_lists_hold_any_name(tmp_path: Path, start: bytes, line: bytes, end: bytes) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(start + (line + line).join(NAMES) + end)
    assert [os.fsencode(path) for path in paths_in(file)] == NAMES


def test_a_list_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the list .*check the path"):
        paths_in(tmp_path / "none.txt")
    for url in ("file:///none.txt", "unknown://x"):
        with pytest.raises(UserError, match="cannot read the list"):
            paths_in(url)


def test_a_list_that_ends_early() -> None:
    class Broken(io.BytesIO):
        def __next__(self) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(UserError, match="cannot read the list 'x': Input/output error"):
        list(_paths("x", Broken(), ExitStack()))


def test_shards_share_everything(place: Path) -> None:
    named = ("photos", "shards/*", "c.png")
    whole = Inputs(named)
    everything = [image.source for image in whole]
    for count in (1, 2, 5):
        parts = [Inputs(named, shard=Shard(i, count)) for i in range(1, count + 1)]
        found = [[image.source for image in part] for part in parts]
        assert sorted(itertools.chain(*found)) == sorted(everything)
        assert {(part.count, part.digest) for part in parts} == {(whole.count, whole.digest)}
        for archive in ("0.tar", "1.tar", "p.parquet"):
            assert sum(any(archive in source for source in part) for part in found) == 1


def test_the_digest_tells_inputs_apart_and_not_their_order(place: Path) -> None:
    def digest(*named: str) -> tuple[int, str]:
        inputs = Inputs(named)
        list(inputs)
        return inputs.count, inputs.digest

    assert digest("photos", "c.png") == digest("c.png", "photos")
    assert digest("photos") != digest("photos", "c.png")
    assert digest("c.png", "c.png") != digest("photos/b.png", "photos/b.png")


def test_many_suffixes_are_counted_together(place: Path) -> None:
    write_tar(Path("x.tar"), [(f"x.{i}", b"") for i in range(3000)])
    inputs = Inputs(["x.tar"])
    assert list(inputs) == []
    assert len(inputs.passed_over_files()) == 1001
    assert sum(inputs.passed_over_files().values()) == 3000


def test_a_folder_of_archives_says_how_to_read_them(place: Path) -> None:
    inputs = Inputs(["shards"])
    assert list(inputs) == []
    assert "name archives themselves" in str(inputs.nothing_found())
    assert "archives" not in str(Inputs(["photos"]).nothing_found())
