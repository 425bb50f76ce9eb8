"""Frames of videos: which are taken, when they are shown, and what damage costs."""

import functools
import gc
import io
import os
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.videos import frames_of, grey_of, with_matrix, write_video

from drexperts.runtime.errors import ConfigError, ImageError, UserError
from drexperts.runtime.inputs import remote, video_reader
from drexperts.runtime.inputs.stream import Inputs
from drexperts.runtime.inputs.video_files import Videos, video_frames
from drexperts.runtime.inputs.video_pixels import objection_to, rgb_pixels

av = pytest.importorskip("av", reason="the extra video is not installed")

WHOLE = ""  # of a video with which nothing is wrong
EVEN = range(0, 3000, 250)  # ms; the last frame is shown until 3 s


def numbers(path: Path, every: float = 1.0, **options: Any) -> list[int | str]:
    return list(frames_of(path, every, **options).values())


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        *(("v.mp4", "mpeg4"), ("v.mov", "mpeg4"), ("v.avi", "mpeg4"), ("v.mkv", "mpeg4")),
        *(("v.mp4", "libx264"), ("v.ts", "libx264"), ("v.webm", "libvpx-vp9")),
    ],
)
def test_even_times(name: str, codec: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, EVEN, codec=codec)
    found = frames_of(path)
    times = [f"{name}/{second}.000" for second in range(3)]
    assert found == dict(zip(times, (0, 4, 8), strict=True)) | {name: WHOLE}
    assert list(found)[-1] == name
    assert list(frames_of(path, 0.75)) == [*(f"{name}/{t}" for t in LABELS), name]
    assert numbers(path, 0.75)[:-1] == [0, 3, 6, 9]


LABELS = ("0.000", "0.750", "1.500", "2.250")


def test_uneven_times_are_those_at_which_frames_are_shown(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", [0, 100, 150, 1700, 2990, 3000, 5200])
    assert numbers(path, 0.5) == [0, 2, 2, 2, 3, 3, *[5] * 5, WHOLE]
    assert numbers(path, 0.05)[:5] == [0, 0, 1, 2, 2]
    assert numbers(path, 60) == [0, WHOLE]
    # Of the last frame nothing says how long it is shown: at its own time it is.
    assert numbers(path, 2.6) == [0, 3, 6, WHOLE]


@pytest.mark.parametrize("name", ["v.avi", "v.mkv"])
@pytest.mark.parametrize("frames", [1, 2, 3, 60])
def test_frames_that_are_decoded_in_another_order_than_shown(
    name: str, frames: int, tmp_path: Path
) -> None:
    times = range(0, 40 * frames, 40)
    options: dict[str, Any] = {"codec": "libx264", "gop": 12, "rate": 25, "max_b_frames": 2}
    path = write_video(tmp_path / name, times, **options)
    # STEP * number begins again after 28 frames.
    assert numbers(path, 0.04) == [*(number % 28 for number in range(frames)), WHOLE]


def test_times_count_from_the_first_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", [7300, 8200, 8400])
    assert frames_of(path) == {"v.mkv/0.000": 0, "v.mkv/1.000": 1, "v.mkv": WHOLE}


@pytest.mark.parametrize(("name", "codec"), [("v.mp4", "libx264"), ("v.mkv", "mpeg4")])
def test_seeking_finds_the_frames_that_decoding_finds(
    name: str, codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [100 * i + 37 * (i % 3 == 1) for i in range(620)]
    path = write_video(tmp_path / name, times, codec=codec, gop=24)
    decoded = list[object]()
    timed = video_reader.VideoReader._timed

    def counted(self: Any, frame: Any) -> Any:
        decoded.append(frame)
        return timed(self, frame)

    monkeypatch.setattr(video_reader.VideoReader, "_timed", counted)

    def read() -> tuple[list[NDArray[np.uint8]], int]:
        decoded.clear()
        images = Inputs([str(path)], videos=Videos(15.5))
        fetched: list[Any] = [image.content() for image in images]
        return [fetch() for fetch in fetched[:-1]], len(decoded)

    sought, few = read()
    monkeypatch.setattr(video_reader, "_FAR", 10**9)
    all_decoded, many = read()
    assert len(sought) == len(all_decoded) >= 4
    for one, other in zip(sought, all_decoded, strict=True):
        np.testing.assert_array_equal(one, other)
    assert few < many / 3
    monkeypatch.setattr(video_reader, "_FAR", 10)
    monkeypatch.setattr(video_reader.VideoReader, "_jump", begin_anew)
    assert all(map(np.array_equal, read()[0], sought))


def begin_anew(self: Any, time: Fraction) -> None:
    """What a jump does in a file whose index is wrong."""
    self._seekable = False
    self._begin()


@pytest.mark.parametrize("name", ["v.mkv", "v.avi"])
def test_a_video_that_was_cut_off_costs_its_own_row(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, range(0, 6000, 250), gop=4, rate=4)
    data = path.read_bytes()
    header = max(0, data.find(b"movi"))
    path.write_bytes(data[: header + int(0.6 * (len(data) - header))])
    *frames, error = numbers(path)
    assert frames == [4 * second for second in range(len(frames))]
    assert 2 <= len(frames) < 5
    assert f"; {len(frames)} frames before the damage were read: replace it" in str(error)
    assert str(error).startswith(f"cannot read {name}: it ")


def test_the_decoder_of_a_video_is_freed_with_it(tmp_path: Path) -> None:
    """Also after damage, and where its last frame was not reached."""
    path = write_video(tmp_path / "v.mkv", range(0, 6000, 250), gop=4)
    gc.collect()
    gc.disable()
    try:
        done = {"v/0.000"}.__contains__
        images = video_frames("v", functools.partial(remote.opened, str(path)), Videos(), done)
        next(images).content()
        del images
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        *_, error = numbers(path)
        assert "frames before the damage" in str(error)
        assert video_reader.VideoReader not in map(type, gc.get_objects())
    finally:
        gc.enable()


def test_an_mp4_that_was_cut_off(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", range(0, 8000, 250), gop=4)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    (message,) = numbers(path)
    assert str(message).endswith("; no frame was read: replace it")
    # With the index before the pictures, as files for the web have it.
    path = write_video(tmp_path / "w.mp4", range(0, 6000, 250), gop=4, faststart=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - (len(whole) - whole.index(b"mdat")) // 3])
    *frames, error = numbers(path)
    assert 3 <= len(frames) < 6
    assert frames == [4 * second for second in range(len(frames))]
    assert f"{len(frames)} frames before the damage were read" in str(error)


def test_a_frame_that_its_decoder_had_to_guess() -> None:
    with pytest.raises(ImageError, match="the data of this frame are damaged"):
        rgb_pixels(SimpleNamespace(is_corrupt=True))


def test_what_is_no_video(tmp_path: Path) -> None:
    sound = write_video(tmp_path / "s.mp4", [], sound=True, picture=False)
    assert numbers(sound) == [
        "cannot read s.mp4: it has no video stream; no frame was read: replace it"
    ]
    empty = write_video(tmp_path / "e.mkv", [])
    (message,) = numbers(empty)
    assert str(message).endswith("no frame was read: replace it")
    for name, content in {"junk.mp4": b"junk" * 100, "empty.mp4": b""}.items():
        (tmp_path / name).write_bytes(content)
        (message,) = numbers(tmp_path / name)
        assert str(message).startswith(f"cannot read {name}: ")


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "v.mp4")
    assert numbers(tmp_path / "v.mp4") == [
        "cannot read v.mp4: it is no file; no frame was read: replace it"
    ]


def test_a_cover_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as file:
        cover = file.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        for frame in (av.VideoFrame(64, 48, "rgb24"), None):
            for packet in cover.encode(frame):
                file.mux(packet)
    assert "it has no video stream" in str(numbers(path))


def test_playlists_are_not_followed(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "v.ts", EVEN, codec="libx264")
    path = tmp_path / "list.mp4"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{clip}\n#EXT-X-ENDLIST\n")
    with av.open(str(path), format="hls") as opened:  # FFmpeg would
        assert opened.format.name == "hls"
    (message,) = numbers(path)
    assert str(message).startswith("cannot read list.mp4: ")


def test_damaged_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", [0, 1000, 2000, 5_000_000])
    *frames, error = numbers(path)
    assert frames == [0, 1, 2]
    assert "its times jump from 2.000 to 5000.000 s; 3 frames before" in str(error)


def test_times_that_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "v.mkv", EVEN)
    timed = video_reader.VideoReader._timed
    back = {4: Fraction(1, 5), 9: Fraction(-2)}  # frames by their place

    def odd(self: Any, frame: Any) -> Any:
        found = timed(self, frame)
        shift = back.get(round(found.time * 4), 0)
        return found._replace(time=found.time - 1 if shift == Fraction(-2) else found.time - shift)

    monkeypatch.setattr(video_reader, "_JITTER", Fraction(1, 2))
    monkeypatch.setattr(video_reader.VideoReader, "_timed", odd)
    *frames, error = numbers(path, 0.25)
    assert frames == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert "its times go back from 2.000 to 1.250 s" in str(error)


def test_frames_that_are_too_large(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", EVEN)
    assert numbers(path, largest=64 * 48)[-1] == WHOLE
    (message,) = numbers(path, largest=64 * 48 - 1)
    assert "more than 3071 pixels" in str(message)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
        ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
    ],
)
def test_frames_are_upright(
    matrix: tuple[int, int, int, int],
    turn: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    tmp_path: Path,
) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:16, :16] = 255
    image[:16, 48:] = 128
    path = write_video(tmp_path / "v.mp4", [0, 40], image=image)
    (plain, _, _) = read_pixels(path)
    assert abs(plain.astype(int) - image).max() < 40
    (turned, _, _) = read_pixels(with_matrix(path, matrix))
    np.testing.assert_array_equal(turned, turn(plain))


def read_pixels(path: Path) -> list[NDArray[np.uint8]]:
    pixels = list[Any]()
    for image in Inputs([str(path)], videos=Videos(0.04)):
        fetch: Any = image.content()
        pixels.append(None if image.is_video else fetch())
    return pixels


# Of each the weights of red and blue in luma.
MATRICES = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
def test_colours(matrix: int, full: bool) -> None:
    frame = filled("yuv420p", (120, 90, 180))
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    check(frame, expected((120, 90, 180), *MATRICES[matrix], full))


def test_colours_without_a_matrix_are_those_of_the_size() -> None:
    check(filled("yuv420p", (120, 90, 180)), expected((120, 90, 180), *MATRICES[5], False))
    large = filled("yuv420p", (120, 90, 180), size=(1280, 720))
    check(large, expected((120, 90, 180), *MATRICES[1], False))
    old = filled("yuvj420p", (120, 90, 180))  # FFmpeg's name for full range
    check(old, expected((120, 90, 180), *MATRICES[5], True))


def test_other_samples() -> None:
    check(filled("gbrp", (10, 200, 90)), (90, 10, 200))
    check(filled("rgba", (10, 20, 30, 128)), (10, 20, 30, 128))
    assert rgb_pixels(filled("yuva420p", (120, 128, 128, 60)))[0, 0, 3] == 60
    ten = filled("yuv420p10le", (64 + 876 // 2, 512, 512), kind="<u2")
    check(ten, (128, 128, 128))


def filled(
    format: str, values: tuple[int, ...], size: tuple[int, int] = (64, 48), kind: str = "u1"
) -> Any:
    """A frame of one colour."""
    frame = av.VideoFrame(*size, format)
    planes = [values] if len(frame.planes) == 1 else [(value,) for value in values]
    for plane, samples in zip(frame.planes, planes, strict=True):
        row = np.array(samples, kind).tobytes()
        plane.update(row * (plane.buffer_size // len(row)))
    return frame


def expected(
    yuv: tuple[int, int, int], red: float, blue: float, full: bool
) -> tuple[int, int, int]:
    luma = yuv[0] / 255 if full else (yuv[0] - 16) / 219
    u, v = ((value - 128) / (255 if full else 224) for value in yuv[1:])
    r, b = luma + 2 * (1 - red) * v, luma + 2 * (1 - blue) * u
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return round(255 * r), round(255 * g), round(255 * b)


def check(frame: Any, colour: tuple[int, ...]) -> None:
    assert objection_to(frame) is None
    pixels = rgb_pixels(frame)
    assert pixels.shape == (frame.height, frame.width, len(colour))
    assert abs(pixels.astype(int) - colour).max() <= 1


def test_a_frame_is_freed_after_its_pixels_were_taken(tmp_path: Path) -> None:
    with av.open(str(with_matrix(write_video(tmp_path / "v.mp4", [0]), (0, 1, -1, 0)))) as file:
        frame = next(file.decode(video=0))
        before = sys.getrefcount(frame)
        assert rgb_pixels(frame).shape == (64, 48, 3)
        assert sys.getrefcount(frame) == before


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused(transfer: int, name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", EVEN, codec="libx264", color_trc=transfer)
    (message,) = numbers(path)
    assert f"it is HDR ({name})" in str(message)


def test_matrices_that_are_not_converted_are_refused() -> None:
    frame = filled("yuv420p", (120, 90, 180))
    frame.colorspace = 8
    assert (
        objection_to(frame) == "its colours are coded by the matrix 8 of H.273, which is not read"
    )
    frame = filled("gbrp", (1, 2, 3))
    frame.colorspace = 0
    assert objection_to(frame) is None


def test_a_video_that_is_done_is_not_opened(tmp_path: Path) -> None:
    def opened() -> io.BytesIO:
        raise AssertionError

    done = {"v.mp4/0.000", "v.mp4/1.000", "v.mp4"}
    found = video_frames("v.mp4", opened, Videos(), done.__contains__)
    assert [image.source for image in found] == ["v.mp4/0.000", "v.mp4/1.000", "v.mp4"]


def test_a_video_is_continued(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", EVEN)
    done = {"v.mp4/0.000", "v.mp4/1.000"}
    data = path.read_bytes()
    images = video_frames("v.mp4", lambda: io.BytesIO(data), Videos(), done.__contains__)
    read: list[Any] = [image.content() for image in images]
    _, second, third, _ = read
    assert second().mean() == pytest.approx(grey_of(4), abs=2)
    assert third().mean() == pytest.approx(grey_of(8), abs=2)


def test_folders_patterns_and_names(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.mp4", "a.mp4", "sub/c.mp4"):
        write_video(folder / name, [0, 40])
    for name in ("notes.txt", "photo.jpg", "photos.tar"):
        (folder / name).write_bytes(b"")
    inputs = Inputs([str(folder), str(folder / "*.mp4")], videos=Videos())
    found = list(inputs)
    videos = [str(folder / name) for name in ("a.mp4", "b.mp4", "sub/c.mp4")]
    assert [image.source for image in found if image.is_video] == videos
    assert [image.source for image in found if not image.is_video] == [f"{v}/0.000" for v in videos]
    assert inputs.passed_over_files() == {".txt": 1, ".jpg": 1, ".tar": 1}
    with pytest.raises(UserError, match="names no file or folder"):
        Inputs([str(tmp_path / "x.mp4")], videos=Videos())
    nothing = Inputs([str(tmp_path / "clips" / "*.txt")], videos=Videos())
    assert not list(nothing)
    assert str(nothing.nothing_found()).startswith("no video in ")


def test_videos_at_urls(tmp_path: Path) -> None:
    from support.memory_bucket import memory_bucket

    path = write_video(tmp_path / "v.mp4", EVEN)
    with memory_bucket() as system:
        system.pipe("/bucket/v.mp4", path.read_bytes())
        for url in ("memory://bucket/v.mp4", "memory://bucket"):
            _, *sources = [image.source for image in Inputs([url], videos=Videos())]
            assert sources == [f"memory://bucket/v.mp4{time}" for time in ("/1.000", "/2.000", "")]
        (gone,) = Inputs(["memory://bucket/w.mp4"], videos=Videos())
    fetch: Any = gone.content()
    with pytest.raises(ImageError, match=r"cannot read memory://.*/w\.mp4: FileNotFoundError: "):
        fetch()


@pytest.mark.parametrize("every", [0, -1, 0.0005, 1 / 3, float("nan"), float("inf"), 1e9])
def test_times_between_frames_that_are_refused(every: float) -> None:
    with pytest.raises(ConfigError, match="every takes seconds, in whole milliseconds"):
        Videos(every)
