import collections
import csv
import dataclasses
import errno
import json
import os
import sys

import pytest
from support.result_rows import AWKWARD, NAMES, scored
from support.waiting import HOLD, holding

from drexperts.cli.main import main
from drexperts.runtime.errors import UserError
from drexperts.runtime.results import ResultFile


def opened(path, **options):
    return ResultFile(path, **{"fingerprint": "f" * 16, "distortions": NAMES} | options)


def write(path, scores, **options):
    with opened(path, **options) as results:
        for score in scores:
            results.append(score)
        return results.done


def known(done, *sources):
    """Whether each source has a row with a score; None if it has no row."""
    return [done.is_scored(source) if source in done else None for source in sources]


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
    assert len(write(path, map(scored, AWKWARD))) == 0
    done = write(path, [scored("more.jpg", error="no")])
    assert known(done, *AWKWARD, "more.jpg") == [True] * len(AWKWARD) + [None]
    assert known(write(path, []), *AWKWARD, "more.jpg") == [True] * len(AWKWARD) + [False]
    assert sources_of(path) == [*AWKWARD, "more.jpg"]


LATER = ("enlarged", "crops_per_side", "frames")


@pytest.mark.parametrize("count", range(len(LATER)))
def test_a_csv_file_of_an_earlier_version_goes_on_with_its_columns(count, tmp_path):
    path = tmp_path / "r.csv"
    write(path, map(scored, AWKWARD))
    columns = "".join(f",{name}" for name in LATER[:count]).encode()
    header, rest = path.read_bytes().split(b",enlarged,crops_per_side,frames\r\n")
    rest = rest.replace(b"0.5,,,\r\n", b"0.5" + b"," * count + b"\r\n")
    earlier = header + columns + b"\r\n" + rest
    path.write_bytes(earlier[:-4])  # torn
    row = dataclasses.replace(scored("small.jpg"), enlarged=2.5, crops_per_side=2, frames=3)
    assert known(write(path, [scored(AWKWARD[-1]), row]), *AWKWARD) == [True] * 4 + [None]
    assert sources_of(path) == [*AWKWARD, "small.jpg"]
    names = tuple(rows_of(path)[0])
    assert {tuple(row) for row in rows_of(path)} == {names}
    assert path.read_bytes().startswith(earlier)  # the torn row was written again
    assert tuple(name for name in names if name in LATER) == LATER[:count]
    assert write(path, [scored("e", error="no")]).is_scored("small.jpg")
    assert known(write(path, [], retry_errors=True), "small.jpg", "e") == [True, None]
    assert len(write(path, [row], overwrite=True)) == 0
    assert [rows_of(path)[0][name] for name in LATER] == ["2.5", "2", "3"]


def test_every_torn_end_is_mended(path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # hundreds take seconds
    write(path, map(scored, AWKWARD))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):  # 7 meets every part of a row
        path.write_bytes(whole[:length])
        with opened(path) as results:
            count = len(results.done)
            assert known(results.done, *AWKWARD[:count]) == [True] * count
            for source in AWKWARD[count:]:
                results.append(scored(source))
        assert path.read_bytes() == whole


def test_retrying_errors_drops_their_rows(path):
    write(path, [scored("a.jpg"), scored("b.jpg", error="no"), scored("c.jpg")])
    done = write(path, [scored("b.jpg")], retry_errors=True)
    assert known(done, "a.jpg", "b.jpg", "c.jpg") == [True, None, True]
    assert sources_of(path) == ["a.jpg", "c.jpg", "b.jpg"]
    assert len(write(path, [], retry_errors=True)) == 3
    assert os.listdir(path.parent) == [path.name]


def test_overwrite_starts_over(path):
    path.parent.mkdir()
    path.write_text("something else")
    assert len(write(path, [scored("a.jpg")], overwrite=True)) == 0
    row = scored("b.jpg", fingerprint="0")
    assert len(write(path, [row], overwrite=True, fingerprint="0")) == 0
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


@pytest.mark.parametrize("name", ["r", "r.json", ".csv"])
def test_other_suffixes(tmp_path, name):
    with pytest.raises(UserError, match=r"\.jsonl, \.csv or \.parquet"):
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
    assert known(write(path, [scored("b.jpg")]), "a.jpg", "b.jpg") == [True, None]
    assert sources_of(path) == ["a.jpg", "b.jpg"]


# A killed `drx score`

# Writes each row in two halves, and stops between them after LINES rows.
TORN = """
import sys
from pathlib import Path
from drexperts.runtime.results import ResultFile

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

initialise = ResultFile.__init__
def torn(self, *args, **kwargs):
    initialise(self, *args, **kwargs)
    self._stream = Torn(self._stream)
ResultFile.__init__ = torn

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
