import collections
import csv
import dataclasses
import errno
import json
import math
import os
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.waiting import HOLD, holding

from drexperts.cli.main import main
from drexperts.runtime.decoding.formats import heif
from drexperts.runtime.decoding.layouts import FORMATS
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.results import SUFFIXES, ResultFile, count_passed_over, find_images
from drexperts.runtime.score import Score

NAMES = tuple(f"distortion {i}" for i in range(10))
AWKWARD = [
    "plain.jpg",
    'quo"te,comma.jpg',
    "two\nlines\r.jpg",
    "照片.jpg",
    os.fsdecode(b"\xff.jpg"),
]


def scored(source, error=None, fingerprint="f" * 16):
    failed = error is not None
    return Score(
        source=source,
        value=math.nan if failed else 0.1 + 0.2,
        std=math.nan if failed else 1.5,
        raw=() if failed else (0.1, 0.2 + 0.3),
        distortions={} if failed else {name: i / 7 for i, name in enumerate(NAMES)},
        scale=ScoreScale(0.0, 100.0, higher_is_better=True),
        fingerprint=fingerprint,
        error=error,
    )


def opened(path, **options):
    return ResultFile(path, **{"fingerprint": "f" * 16, "distortions": NAMES} | options)


def write(path, scores, **options):
    with opened(path, **options) as results:
        for score in scores:
            results.append(score)
        return results.done


def rows_of(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as stream:
        return list(csv.DictReader(stream))


def sources_of(path):
    return [row["source"] for row in rows_of(path)]


@pytest.fixture(params=["r.jsonl", "r.csv", "r.CSV"])
def path(request, tmp_path):
    return tmp_path / "new folder" / request.param


# find_images


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


# ResultFile


def test_rows_hold_everything(path):
    first = dataclasses.replace(scored("a.jpg"), enlarged=2.5, crops_per_side=2)
    write(path, [first, scored("b.jpg", error='a "bad"\nfile')])
    good, bad = rows_of(path)
    if path.suffix == ".jsonl":
        assert good == first.as_row()
        assert bad["value"] is None
    else:
        assert float(good["value"]) == 0.1 + 0.2
        assert [float(x) for x in good["raw"].split()] == [0.1, 0.2 + 0.3]
        assert [float(good[name]) for name in NAMES] == [i / 7 for i in range(10)]
        assert (good["scale_low"], good["scale_high"]) == ("0.0", "100.0")
        assert good["higher_is_better"] == "True"
        assert good["fingerprint"] == "f" * 16
        assert good["error"] == ""
        assert bad["value"] == bad["raw"] == bad[NAMES[0]] == ""
    assert bad["error"] == 'a "bad"\nfile'
    assert good["enlarged"] in (2.5, "2.5")
    assert bad["enlarged"] in (None, "")
    assert good["crops_per_side"] in (2, "2")
    assert bad["crops_per_side"] in (None, "")


def test_a_row_is_in_the_file_when_append_returns(path):
    with opened(path) as results:
        for count, source in enumerate(AWKWARD, 1):
            results.append(scored(source))
            assert sources_of(path) == AWKWARD[:count]


def test_a_later_run_goes_on(path):
    assert write(path, map(scored, AWKWARD)) == {}
    done = write(path, [scored("more.jpg", error="no")])
    assert done == dict.fromkeys(AWKWARD, True)
    assert write(path, []) == dict.fromkeys(AWKWARD, True) | {"more.jpg": False}
    assert sources_of(path) == [*AWKWARD, "more.jpg"]


LATER = ("enlarged", "crops_per_side")


@pytest.mark.parametrize("count", range(len(LATER)))
def test_a_csv_file_of_an_earlier_version_goes_on_with_its_columns(count, tmp_path):
    path = tmp_path / "r.csv"
    write(path, map(scored, AWKWARD))
    known = "".join(f",{name}" for name in LATER[:count]).encode()
    header, rest = path.read_bytes().split(b",enlarged,crops_per_side\r\n")
    rest = rest.replace(b"0.5,,\r\n", b"0.5" + b"," * count + b"\r\n")
    earlier = header + known + b"\r\n" + rest
    path.write_bytes(earlier[:-4])  # torn
    row = dataclasses.replace(scored("small.jpg"), enlarged=2.5, crops_per_side=2)
    assert list(write(path, [scored(AWKWARD[-1]), row])) == AWKWARD[:-1]
    assert sources_of(path) == [*AWKWARD, "small.jpg"]
    columns = tuple(rows_of(path)[0])
    assert {tuple(row) for row in rows_of(path)} == {columns}
    assert path.read_bytes().startswith(earlier)  # the torn row was written again
    assert tuple(name for name in columns if name in LATER) == LATER[:count]
    assert write(path, [scored("e", error="no")])["small.jpg"]
    assert write(path, [], retry_errors=True) == dict.fromkeys([*AWKWARD, "small.jpg"], True)
    assert write(path, [row], overwrite=True) == {}
    assert [rows_of(path)[0][name] for name in LATER] == ["2.5", "2"]


def test_every_torn_end_is_mended(path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # hundreds take seconds
    write(path, map(scored, AWKWARD))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):  # 7 meets every part of a row
        path.write_bytes(whole[:length])
        with opened(path) as results:
            kept = list(results.done)
            assert kept == AWKWARD[: len(kept)]
            for source in AWKWARD[len(kept) :]:
                results.append(scored(source))
        assert path.read_bytes() == whole


def test_retrying_errors_drops_their_rows(path):
    write(path, [scored("a.jpg"), scored("b.jpg", error="no"), scored("c.jpg")])
    assert write(path, [scored("b.jpg")], retry_errors=True) == {"a.jpg": True, "c.jpg": True}
    assert sources_of(path) == ["a.jpg", "c.jpg", "b.jpg"]
    assert len(write(path, [], retry_errors=True)) == 3
    assert os.listdir(path.parent) == [path.name]


def test_overwrite_starts_over(path):
    path.parent.mkdir()
    path.write_text("something else")
    assert write(path, [scored("a.jpg")], overwrite=True) == {}
    assert write(path, [scored("b.jpg", fingerprint="0")], overwrite=True, fingerprint="0") == {}
    assert sources_of(path) == ["b.jpg"]


def test_rows_of_another_fingerprint_are_refused_and_kept(path):
    write(path, [scored("a.jpg")])
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"ffff, this run makes 0000: .*overwrite=True"):
        opened(path, fingerprint="0000")
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["x", "a,b\n1,2\n", '{"a": 1}', '{"a": 1}\n', "[]\n", "\0\0"])
def test_a_file_of_something_else_is_refused_and_kept(path, content):
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(UserError, match="overwrite=True"):
        opened(path)
    assert path.read_text() == content


@pytest.mark.parametrize(
    "damage",
    [b"junk\n", b"\n", b'{"source": "a"}\n', b'"a,b"\n', b"[" * 100_000 + b"\n"],
)
def test_a_damaged_row_is_refused_by_its_number(path, damage):
    write(path, [scored("a.jpg")])
    before = path.read_bytes() + damage
    path.write_bytes(before)
    with pytest.raises(UserError, match=r"row [23] of .* is not a score"):
        opened(path)
    assert path.read_bytes() == before


def test_csv_of_other_distortions_is_refused(tmp_path):
    write(tmp_path / "r.csv", [])
    with pytest.raises(UserError, match="other columns"):
        opened(tmp_path / "r.csv", distortions=NAMES[:9])


@pytest.mark.parametrize("name", ["r.parquet", "r", "r.json", ".csv"])
def test_other_suffixes(tmp_path, name):
    with pytest.raises(UserError, match=r"\.jsonl or a \.csv"):
        opened(tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"retry_errors": True}])
def test_a_second_writer_is_refused_and_the_rows_are_kept(path, options):
    write(path, [scored("a.jpg"), scored("b.jpg", error="no")])
    with opened(path) as results:
        results.append(scored("c.jpg"))
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            opened(path, **options)
        results.append(scored("d.jpg"))
    assert sources_of(path) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert os.listdir(path.parent) == [path.name]


def test_a_file_that_was_refused_is_not_held(path):
    write(path, [scored("a.jpg")])
    with pytest.raises(UserError, match="overwrite=True"):
        opened(path, fingerprint="0000")
    assert len(write(path, [])) == 1


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder.csv", tmp_path / "file" / "r.csv"):
        with pytest.raises(UserError, match="cannot write"):
            opened(path)


def test_a_full_disk(path, monkeypatch):
    def half(record):
        real.write(record[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with opened(path) as results:
        results.append(scored("a.jpg"))
        real = results._stream
        monkeypatch.setattr(results, "_write", half)
        with pytest.raises(UserError, match="No space left"):
            results.append(scored("b.jpg"))
    assert write(path, [scored("b.jpg")]) == {"a.jpg": True}
    assert sources_of(path) == ["a.jpg", "b.jpg"]


# A killed `drx score`

# Writes each row in two halves, and stops between them after LINES rows.
TORN = """
import sys
from pathlib import Path
from drexperts.runtime import results

class Torn:
    def __init__(self, stream): self.stream = stream
    def __getattr__(self, name): return getattr(self.stream, name)
    def __enter__(self): return self
    def __exit__(self, *error): self.stream.close()
    def write(self, data):
        tear = Path(self.stream.name).read_bytes().count(b"\\n") >= LINES
        written = self.stream.write(bytes(data)[:max(1, len(data) // 2)])
        tear and HOLD
        return written

initialise = results.ResultFile.__init__
def torn(self, *args, **kwargs):
    initialise(self, *args, **kwargs)
    self._stream = Torn(self._stream)
results.ResultFile.__init__ = torn

from drexperts.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def scoring_torn(arguments, lines):
    """A process that has written so many lines and half of the next."""
    code = TORN.replace("LINES", str(lines)).replace("HOLD", HOLD)
    return holding([sys.executable, "-P", "-c", code, "score", *map(str, arguments)])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_killed_runs_are_completed_with_each_image_once(toy_bundle, tmp_path, photo, suffix):
    def score():
        return main(["score", str(toy_bundle), str(photos), "--out", str(out)])

    photos, out = tmp_path / "photos", tmp_path / f"r{suffix}"
    photos.mkdir()
    for seed in range(60):
        photo(40, 34, seed).save(photos / f"{seed:03}.png")
    (photos / "040.png").write_bytes(b"junk")
    for count in (5, 20, 45):
        process = scoring_torn([toy_bundle, photos, "--out", out], count)
        process.kill()
        process.communicate()
        left = out.read_bytes()
        assert left.count(b"\n") == count
        assert not left.endswith(b"\n")
    assert score() == 0
    counts = collections.Counter(sources_of(out))
    assert counts == {str(path): 1 for path in photos.iterdir()}
    failed = [row["source"] for row in rows_of(out) if row["error"]]
    assert failed == [str(photos / "040.png")]
    before = out.read_bytes()
    assert score() == 0
    assert out.read_bytes() == before
    whole = tmp_path / f"whole{suffix}"
    assert main(["score", str(toy_bundle), str(photos), "--out", str(whole)]) == 0
    assert before == whole.read_bytes()
