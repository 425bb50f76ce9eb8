"""`drx score`: its options, what it prints, and how it ends."""

import dataclasses
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from PIL import Image
from support.archives import png, write_parquet, write_tar
from support.command_line import drx
from support.fake_ray import FakeRay
from support.videos import write_video

from drexperts.cli.main import main
from drexperts.runtime.compatibility import gpus
from drexperts.runtime.locks import locked
from drexperts.runtime.manifest import Engine, digest, read_manifest, write_manifest
from drexperts.runtime.scorer import Scorer

Call = Callable[..., tuple[int, Any, str]]
COUNTS = ("images", "already_there", "scored", "failed", "enlarged")


def counts(document: dict[str, Any]) -> list[int]:
    return [document[name] for name in COUNTS]


def test_the_document(toy_bundle: Path, photos: Path, call: Call) -> None:
    status, document, error = call("score", toy_bundle, photos, "--batch", "3", "--threads", "1")
    assert status == 0
    assert "1 failed" in error
    assert counts(document) == [4, 0, 3, 1, 0]
    assert list(document) == [
        *("bundle", "engine", "session", "passed_over", "crops_per_side"),
        *(*COUNTS, "repeated", "videos", "passed_over_files", "seconds", "out", "results"),
    ]
    rows = {row["source"]: row for row in document["results"]}
    assert rows[str(photos / "a.png")]["value"] > 0
    assert rows[str(photos / "broken.jpg")]["value"] is None


def test_another_grid_is_said_and_continues_no_file_of_the_bundles_own(
    toy_bundle: Path, photos: Path, tmp_path: Path, call: Call
) -> None:
    given = ("score", toy_bundle, photos)
    status, document, error = call(*given, "--crops-per-side", "1")
    assert (status, document["crops_per_side"]) == (0, 1)
    assert {row["crops_per_side"] for row in document["results"]} == {1}
    assert {len(row["raw"]) for row in document["results"] if not row["error"]} == {1}
    assert "crops per side: at most 1" in error
    out = ("--out", tmp_path / "scores.jsonl")
    _, document, error = call(*given, "--crops-per-side", "2", *out)
    assert document["crops_per_side"] is None
    assert "per side" not in error
    status, document, _ = call(*given, "--crops-per-side", "1", *out)
    assert status == 2
    assert "fingerprint" in document["error"]
    status, document, _ = call(*given, "--crops-per-side", "65")
    assert status == 2
    assert "--crops-per-side must be a whole number from 1 to 64" in document["error"]


def test_tables_go_to_stdout_without_json(
    toy_bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(toy_bundle), str(photos)]) == 0
    out, err = capsys.readouterr()
    assert "3 scored, 1 failed" in out
    assert "a.png" in out
    assert "onnxruntime" in err


def test_enlarged_images_are_counted(
    toy_bundle: Path,
    photos: Path,
    photo: Callable[..., Image.Image],
    call: Call,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The toy's images have at least 32 pixels a side."""
    photo(8, 40).save(photos / "small.png")
    _, document, _ = call("score", toy_bundle, photos)
    assert document["enlarged"] == 1
    enlarged = {Path(row["source"]).name: row["enlarged"] for row in document["results"]}
    assert [name for name, factor in enlarged.items() if factor] == ["small.png"]
    assert enlarged["small.png"] == 4.0
    assert main(["score", str(toy_bundle), str(photos)]) == 0
    assert "1 smaller" in capsys.readouterr().out


def test_many_scores_show_their_ends(
    toy_bundle: Path,
    tmp_path: Path,
    photo: Callable[..., Image.Image],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    for level in range(30):
        image = photo(34, 34).point(lambda value, level=level: level * 8)
        image.save(tmp_path / f"{level:02}.png")
    assert main(["score", str(toy_bundle), f"{tmp_path}/*.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = [
        float(line.split("│")[2]) for line in lines if line.startswith("│") and ".png" in line
    ]
    assert values == [level * 8 for level in (0, 1, 2, 3, 4, 25, 26, 27, 28, 29)]


def test_only_images_that_fail_are_a_failed_gate(
    toy_bundle: Path, photos: Path, call: Call
) -> None:
    status, document, _ = call("score", toy_bundle, photos / "broken.jpg")
    assert (status, document["failed"]) == (1, 1)


@pytest.mark.parametrize(
    "option",
    [
        ["--threads", "0"],
        ["--batch", "17"],
        ["--device", "tpu"],
        ["--engine", "abacus"],
        ["--overwrite"],
        ["--retry-errors"],
    ],
)
def test_options_that_are_refused(
    option: list[str], toy_bundle: Path, photos: Path, call: Call
) -> None:
    status, document, _ = call("score", toy_bundle, photos, *option)
    assert status == 2
    assert option[-1].strip("-") in document["error"] or "--out" in document["error"]


def test_a_result_file_is_continued(
    toy_bundle: Path, photos: Path, tmp_path: Path, call: Call
) -> None:
    out = tmp_path / "r.jsonl"
    arguments = ["score", toy_bundle, photos, "--out", out]
    document = call(*arguments)[1]
    assert (document["out"], document["results"]) == (str(out), None)
    shutil.copy(photos / "a.png", photos / "broken.jpg")
    assert counts(call(*arguments)[1]) == [4, 4, 0, 0, 0]
    assert counts(call(*arguments, "--retry-errors")[1]) == [4, 3, 1, 0, 0]
    assert counts(call(*arguments, "--overwrite")[1]) == [4, 0, 4, 0, 0]


def test_files_that_are_passed_over_are_counted(toy_bundle: Path, photos: Path, call: Call) -> None:
    for name in ("a.cr2", "sub/b.cr2", "c.jxl"):
        (photos / name).touch()
    _, document, notes = call("score", toy_bundle, photos)
    assert document["passed_over_files"] == {".cr2": 2, ".jxl": 1}
    assert "3 files passed over (.cr2 2, .jxl 1)" in notes


def test_a_second_run_on_one_file_is_refused(
    toy_bundle: Path, photos: Path, tmp_path: Path, call: Call
) -> None:
    out = tmp_path / "r.jsonl"
    with locked(out):
        for option in ([], ["--overwrite"], ["--retry-errors"]):
            status, document, _ = call("score", toy_bundle, photos, "--out", out, *option)
            assert (status, f"process {os.getpid()}" in document["error"]) == (2, True)
    assert not out.exists()
    assert call("score", toy_bundle, photos, "--out", out)[0] == 0


def test_explanations(toy_bundle: Path, photos: Path, call: Call) -> None:
    folder = photos / "explained"
    assert call("score", toy_bundle, photos, "--explain", folder)[0] == 0
    assert len(list(folder.iterdir())) == 3


@pytest.mark.slow
def test_names_that_no_encoding_can_print(
    toy_bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # or a table breaks the names
    for name in (b"\xff[red].png", b":smile: [bold].png", "照 片.png".encode()):
        shutil.copy(photos / "a.png", photos / os.fsdecode(name))
    result = drx("score", toy_bundle, photos)
    assert result.returncode == 0
    assert "6 scored" in result.stdout
    assert "[red]" in result.stdout


def test_interrupted_scoring_keeps_its_rows(
    toy_bundle: Path, photos: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Scorer.score_stream

    def interrupted(self: Scorer, sources: list[Path], *, maps: bool = False) -> Any:
        yield from list(stream(self, sources, maps=maps))[:2]
        raise KeyboardInterrupt

    monkeypatch.setattr(Scorer, "score_stream", interrupted)
    out = tmp_path / "r.jsonl"
    status, document, _ = call("score", toy_bundle, photos, "--out", out)
    assert status == 130
    assert str(out) in document["error"]
    assert len(out.read_text().splitlines()) == 2


@pytest.mark.slow
def test_ctrl_c(toy_bundle: Path) -> None:
    pressed = (
        "import os, signal\n"
        "from drexperts.runtime import scoring\n"
        "scoring.Inputs = lambda *paths, **options: os.kill(os.getpid(), signal.SIGINT)\n"
    )
    result = drx("score", toy_bundle, "x", before=pressed)
    assert result.returncode == 130
    assert result.stderr.endswith("drx: interrupted\n")
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(bool(gpus()), reason="this machine has a GPU")
def test_engines_that_are_not_used_are_named(
    bundle: Path, call: Call, planned: Callable[..., Engine], photos: Path
) -> None:
    manifest = read_manifest(bundle)
    engines = (*manifest.engines, planned())
    write_manifest(dataclasses.replace(manifest, engines=engines), bundle)
    status, document, notes = call("score", bundle, photos)
    assert (status, document["engine"]) == (0, "model.onnx")
    (passed,) = document["passed_over"]
    assert (passed["file"], passed["backend"]) == ("tensorrt-rtx.engine", "tensorrt-rtx")
    assert "tensorrt-rtx.engine (tensorrt-rtx)" in notes
    assert call("score", bundle, photos, "--device", "cuda")[0] == 2


def test_an_engine_is_chosen(bundle: Path, call: Call, photos: Path) -> None:
    for name in ("onnx", "model.onnx"):
        status, document, _ = call("score", bundle, photos, "--engine", name)
        assert (status, document["engine"], document["passed_over"]) == (0, "model.onnx", [])


HOSTILE = "a\x1b]0;owned\x07\u202e[red].png"


def test_file_names_do_not_reach_the_terminal_as_they_are(
    toy_bundle: Path,
    tmp_path: Path,
    photo: Callable[..., Image.Image],
    capsys: pytest.CaptureFixture[str],
) -> None:
    photo(40, 40).save(tmp_path / HOSTILE)
    (tmp_path / f"broken {HOSTILE}").write_bytes(b"no picture")
    assert main(["score", str(toy_bundle), str(tmp_path)]) == 0
    with pytest.raises(SystemExit):  # as a shell's pattern would put it there
        main(["score", f"--{HOSTILE}"])
    assert main(["score", str(tmp_path / HOSTILE), str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    for shown in (out, err):
        assert shown.replace("\n", "").isprintable()
        assert r"\x1b]0;" in shown


def test_only_the_pinned_bundle_scores(toy_bundle: Path, photos: Path, call: Call) -> None:
    pinned = digest(read_manifest(toy_bundle))
    assert call("score", toy_bundle, photos, "--digest", pinned)[0] == 0
    status, document, _ = call("score", toy_bundle, photos, "--digest", f"sha256:{'0' * 64}")
    assert status == 2
    assert pinned in document["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--max-pixels", "100"), "more than 100 pixels"),
        (("--decode-memory", "1K"), "MiB are allowed"),
        (("--max-pixels", "100", "--decode-in-process"), "more than 100 pixels"),
    ],
)
def test_limits_of_decoding(
    toy_bundle: Path, photos: Path, call: Call, options: tuple[str, ...], reason: str
) -> None:
    status, document, _ = call("score", toy_bundle, photos / "a.png", "--threads", "1", *options)
    assert status == 1
    assert reason in document["results"][0]["error"]


def test_where_images_are_decoded(
    toy_bundle: Path, photos: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    assert call("score", toy_bundle, photos, "--decode-in-process", "--threads", "1")[0] == 0


def test_a_limit_of_nothing(toy_bundle: Path, photos: Path, call: Call) -> None:
    status, _, error = call("score", toy_bundle, photos, "--decode-seconds", "0")
    assert status == 2
    assert "seconds must be a whole number of at least 1" in error


def test_a_list_in_a_file_and_on_standard_input(
    toy_bundle: Path, photos: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [photos / "b.png", photos / "none.png", photos / "sub" / "a.png"]
    data = b"\n\n".join(os.fsencode(name) for name in names)
    (tmp_path / "list.txt").write_bytes(data)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    for place in (tmp_path / "list.txt", "-"):
        status, document, _ = call("score", toy_bundle, "--from", place)
        assert (status, counts(document)) == (0, [3, 0, 2, 1, 0])
        assert [row["source"] for row in document["results"]] == list(map(str, names))
    status, document, _ = call("score", toy_bundle)
    assert status == 2
    assert "--from FILE" in document["error"]


def test_archives(toy_bundle: Path, tmp_path: Path, call: Call) -> None:
    tar = write_tar(tmp_path / "x.tar", [("a.png", png(50)), ("b.png", b"junk"), ("a.png", png(1))])
    table = write_parquet(tmp_path / "y.parquet", {"a": [png(1)], "b": [png(2)], "id": ["k"]})
    columns = ("--image-column", "b", "--key-column", "id")
    status, document, notes = call("score", toy_bundle, tar, table, *columns)
    assert (status, counts(document), document["repeated"]) == (0, [4, 0, 2, 2, 0], 1)
    values = {row["source"]: row["value"] for row in document["results"]}
    assert values == {f"{tar}/a.png": 50, f"{tar}/b.png": None, str(tar): None, f"{table}/k": 2}
    assert "1 images in archives have the key of an earlier one" in notes


def test_several_lists(toy_bundle: Path, photos: Path, tmp_path: Path, call: Call) -> None:
    lists = []
    for number, photo in enumerate(sorted(photos.glob("*.png"))):
        lists.append(tmp_path / f"{number}.txt")
        lists[-1].write_text(f"{photo}\n")
    options = [option for path in lists for option in ("--from", path)]
    status, document, _ = call("score", toy_bundle, *options)
    assert (status, document["images"]) == (0, len(lists))
    assert len(lists) > 1


def test_members_are_explained(toy_bundle: Path, tmp_path: Path, call: Call) -> None:
    tar = write_tar(tmp_path / "x.tar", [(f"{i}.png", png(i)) for i in range(3)])
    assert call("score", toy_bundle, tar, "--explain", tmp_path / "e")[0] == 0
    assert sorted(name[:5] for name in os.listdir(tmp_path / "e")) == ["0.png", "1.png", "2.png"]


def test_shards_and_their_merge(
    toy_bundle: Path, photos: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    scored = []
    for index in range(3):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
        status, document, _ = call("score", toy_bundle, photos, "--shard", "auto/3", "--out", out)
        assert (document["shard"], document["out"]) == (
            f"{index + 1}/3",
            str(out / f"shard-{index + 1}-of-3.jsonl"),
        )
        assert status == (0 if document["scored"] or not document["images"] else 1)
        scored.append(document["images"])
    assert sum(scored) == 4
    status, document, _ = call("merge", out)
    assert status == 0
    assert document == {
        "shards": 3,
        "images": 4,
        "videos": 0,
        "failed": 1,
        "fingerprint": document["fingerprint"],
        "out": str(out / "scores.jsonl"),
    }
    assert call("merge", out)[0] == 2
    assert call("merge", out, "--overwrite", "--out", tmp_path / "all.csv")[0] == 0
    status, document, _ = call("score", toy_bundle, photos, "--shard", "1/2", "--out", out)
    assert (status, "holds shard 1/3" in document["error"]) == (2, True)


def test_a_shard_of_which_no_video_can_be_read_fails_and_an_empty_one_does_not(
    toy_bundle: Path, tmp_path: Path, call: Call
) -> None:
    pytest.importorskip("av", reason="the extra video is not installed")
    video, out = tmp_path / "broken.mp4", tmp_path / "shards"
    video.write_bytes(b"junk")
    given = ("score", toy_bundle, "--video", video, "--out", out, "--shard")
    found = [call(*given, shard)[:2] for shard in ("1/2", "2/2")]
    statuses = {document["videos"]: status for status, document in found}
    assert statuses == {1: 1, 0: 0}


def test_results_in_parquet(toy_bundle: Path, photos: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "r.parquet"
    assert counts(call("score", toy_bundle, photos, "--out", out)[1]) == [4, 0, 3, 1, 0]
    assert counts(call("score", toy_bundle, photos, "--out", out)[1]) == [4, 4, 0, 0, 0]
    assert pyarrow.parquet.read_table(out).num_rows == 4


def test_urls(toy_bundle: Path, photos: Path, call: Call) -> None:
    status, document, _ = call("score", toy_bundle, f"file://{photos}")
    assert (status, counts(document)) == (0, [4, 0, 3, 1, 0])


def test_ray(
    toy_bundle: Path, photos: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for Ray; tests/scale/test_ray.py has Ray."""
    given = ("score", toy_bundle, photos, "--threads", "1", "--decode-in-process", "--out")
    assert call(*given, tmp_path / "one.csv")[0] == 0
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    status, document, error = call(*given, tmp_path / "ray.csv", "--ray")
    assert status == 0
    assert "model.onnx on Ray, 2 engines, each" in error
    assert document["session"].startswith("Ray, 2 engines, each onnxruntime")
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert call(*given, tmp_path / "ray.csv", "--ray", "auto")[1]["already_there"] == 4
    assert call("score", toy_bundle, "--video", photos, "--ray")[0] == 2


def test_videos(toy_bundle: Path, tmp_path: Path, call: Call) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, range(0, 2000, 250))
    clips = ("--video", tmp_path / "a.mp4", "--video", tmp_path / "b*.mp4")
    status, document, shown = call("score", toy_bundle, *clips, "--every", "500ms")
    assert (status, counts(document), document["videos"]) == (0, [8, 0, 8, 0, 0], 2)
    sources = [row["source"] for row in document["results"]]
    assert sources[2:5] == [f"{tmp_path}/a.mp4{time}" for time in ("/1.000", "/1.500", "")]
    assert document["results"][4]["frames"] == 4
    assert "videos" in shown
    assert "8 scored, 0 failed" in shown
    assert call("score", toy_bundle, *clips)[1]["images"] == 4


@pytest.mark.parametrize("time", ["1", "0s", "-1s", "1m", "0.0001s", "1e3s", "99999s", "", "s"])
def test_times_between_frames_that_are_refused(
    time: str, toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_video(tmp_path / "a.mp4", [0, 40])
    command = ["score", str(toy_bundle), "--video", str(clip), f"--every={time}"]
    try:
        status: object = main(command)
    except SystemExit as refused:
        status = refused.code
    assert status == 2
    assert "such as 1s, 0.5s or 500ms" in " ".join(capsys.readouterr().err.split())


def test_a_time_without_a_video(
    toy_bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(toy_bundle), str(photos), "--every", "1s"]) == 2
    assert "name them by --video FILE" in capsys.readouterr().err
