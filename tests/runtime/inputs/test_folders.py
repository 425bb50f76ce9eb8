"""Which images paths, folders and patterns name."""

import os
from pathlib import Path

import pytest
from PIL import Image

from drexperts.runtime.decoding.formats import heif
from drexperts.runtime.decoding.layouts import FORMATS
from drexperts.runtime.errors import UserError
from drexperts.runtime.inputs.folders import (
    SUFFIXES,
    count_passed_over,
    files_named_by,
    find_images,
)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["b.JPG", "a.png", "notes.txt", "sub/a.png", "sub/deep/c.tiff", ".hidden/d.jpg"]
    for name in [*names, "sub/._b.jpg", "empty/readme.md"]:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return tmp_path


def found(*arguments):
    return [path.as_posix() for path in find_images(arguments).paths]


def test_folders_are_searched_to_the_bottom(tree):
    assert found(".") == ["a.png", "b.JPG", "sub/a.png", "sub/deep/c.tiff"]
    assert found("sub", "sub/deep") == ["sub/a.png", "sub/deep/c.tiff"]


def test_a_named_file_is_taken_whatever_its_suffix(tree):
    assert found("notes.txt", ".hidden/d.jpg") == [".hidden/d.jpg", "notes.txt"]


def test_patterns(tree):
    assert found("*.png") == ["a.png"]
    assert found("**/*.png") == ["a.png", "sub/a.png"]
    assert found("*") == found(".")  # hidden ones and text files are left out, folders searched
    Path("[x].jpg").touch()
    assert found("[x].jpg") == ["[x].jpg"]  # a file of that name comes before the pattern


def test_each_file_once_however_it_is_named(tree):
    assert found("a.png", "./a.png", "sub/../a.png", str(tree / "a.png"), "*.png") == ["a.png"]


def test_nothing_found_says_what_was_looked_for(tree):
    with pytest.raises(UserError, match=r"no image in 'empty'.*\.jpg"):
        find_images(["empty"])
    for argument in ("none.jpg", "none/*.jpg"):
        with pytest.raises(UserError, match="check the path"):
            find_images(["a.png", argument])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may list any folder")
def test_a_folder_that_cannot_be_listed(tree):
    Path("sub").chmod(0)
    with pytest.raises(UserError, match="cannot list"):
        find_images(["."])


def test_other_files_are_counted_by_suffix(tree):
    for name in ["x.CR2", "sub/y.cr2", "sub/deep/z.jxl", "sub/noSuffix", ".hidden/d.raw"]:
        Path(name).touch()
    expected = {".cr2": 2, ".jxl": 1, ".md": 1, ".txt": 1, "": 1}
    assert find_images(["."]).passed_over == expected
    assert list(expected.values()) == list(find_images(["."]).passed_over.values())
    assert find_images(["**", "."]).passed_over == expected  # each once, however it is named
    assert find_images(["*.png", "*.txt"]).passed_over == {".txt": 1}
    named = find_images([".", "sub/noSuffix"])  # a file that is named itself is not passed over
    del expected[""]
    assert (named.passed_over, len(named.paths)) == (expected, 5)


def test_what_is_passed_over_is_said_in_one_line():
    assert count_passed_over({".heic": 2, "": 1}) == "3 files passed over (.heic 2, no suffix 1)"
    assert count_passed_over({".a": 1}) == "1 file passed over (.a 1)"
    many = {f".{n}": 9 - n for n in range(7)}
    assert count_passed_over(many) == "42 files passed over (.0 9, .1 8, .2 7, .3 6, .4 5, …)"
    assert "\x1b" not in count_passed_over({".\x1b[31m": 1})


def test_a_circle_of_links_ends(tree):
    Path("sub/loop").symlink_to(tree)
    assert found("sub") == ["sub/a.png", "sub/deep/c.tiff"]


def test_suffixes_are_those_of_the_formats_that_are_decoded():
    registered = Image.registered_extensions()
    names = {name.upper().replace(" ", "").replace("PNM", "PPM") for name in FORMATS}
    decoded = {suffix for suffix, name in registered.items() if name in names | {"MPO"}}
    # PFM holds floating point, which preprocessing refuses.
    heic = {".heic", ".heif", ".hif"} if heif.available() else set[str]()
    assert decoded - {".pfm"} | heic == SUFFIXES


def test_a_walk_gives_the_order_of_sorted_paths(tree):
    """Which result files of earlier versions have, so that they go on as they began."""
    for name in ("sub-a/x.png", "sub.b/x.png", "sub/a/z.png", "sub/a.jpg", "A.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    walked = [Path(file.path) for file in files_named_by(".") if file.is_image]
    assert walked == find_images(["."]).paths == sorted(walked)


def test_a_folder_is_listed_when_it_is_reached(tree, monkeypatch):
    listed = list[Path]()
    scandir = os.scandir

    def watched(path):
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", watched)
    walk = files_named_by(".")
    assert next(walk).path == "a.png"
    assert listed == [Path()]
    assert len(list(walk)) == 5
    assert listed[1:] == [Path("empty"), Path("sub"), Path("sub/deep")]


def test_paths_are_spelled_in_one_way(tree):
    for argument in (".", "./", "*.png", "./*.png", "./a.png", ".//a.png"):
        assert next(file.path for file in files_named_by(argument)) == "a.png"


def test_links_that_lead_nowhere_are_images_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, target in (("a.png", "a.png"), ("b.png", "none"), ("c", "c")):
        Path(name).symlink_to(target)
    assert [file.path for file in files_named_by(".")] == ["a.png", "b.png", "c"]
