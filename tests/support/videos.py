"""Tiny videos, written with PyAV: each frame has one grey value, by which it is known."""

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

STEP = 8  # between the grey values of frames that follow each other


def grey_of(number: int) -> int:
    """The grey value of a frame."""
    return 16 + STEP * number % 224


def write_video(
    path: Path,
    times: Sequence[int],
    *,
    codec: str = "mpeg4",
    size: tuple[int, int] = (64, 48),
    gop: int = 12,
    rate: int = 1000,
    image: NDArray[np.uint8] | None = None,
    sound: bool = False,
    picture: bool = True,
    faststart: bool = False,
    **colours: int,
) -> Path:
    """A video whose frames are shown from these milliseconds on.

    rate: frames per second that the file states; times are whole multiples of theirs
    gop: frames from one key frame to the next
    image: of each frame, instead of a grey value
    sound, picture: which streams it has
    faststart: with its index before its pictures
    colours: attributes of the encoder, such as color_trc
    """
    av = pytest.importorskip("av", reason="the extra video is not installed")
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(path, "w", options=options) as file:
        if sound:
            _add_sound(av, file)
        if not picture:
            return path
        stream = file.add_stream(codec, rate=rate, options={"qscale": "1"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        stream.codec_context.gop_size = gop
        for name, value in colours.items():
            setattr(stream.codec_context, name, value)
        for number, time in enumerate(times):
            pixels = np.full((size[1], size[0], 3), grey_of(number), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels if image is None else image, format="rgb24")
            frame.pts, frame.time_base = time * rate // 1000, Fraction(1, rate)
            for packet in stream.encode(frame):
                file.mux(packet)
        if not times:
            file.start_encoding()
        for packet in stream.encode():
            file.mux(packet)
    return path


def _add_sound(av: Any, file: Any) -> None:
    """Half a minute of silence, longer than the pictures."""
    stream = file.add_stream("aac", rate=8000)
    for number in range(240):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 8000, 1000 * number
        for packet in stream.encode(frame):
            file.mux(packet)
    for packet in stream.encode():
        file.mux(packet)


def frames_of(path: Path, every: float = 1.0, **options: Any) -> dict[str, int | str]:
    """What a video holds: of each frame the number that it was written with, or an error.

    The names are the sources without the folder.
    """
    from drexperts.runtime.errors import ImageError
    from drexperts.runtime.inputs.stream import Inputs
    from drexperts.runtime.inputs.video_files import Videos

    found = dict[str, int | str]()
    for image in Inputs([str(path)], videos=Videos(every, **options)):
        name = os.path.relpath(image.source, path.parent)
        fetch = image.content()
        try:
            pixels: Any = fetch() if callable(fetch) else fetch
            found[name] = round((float(pixels.mean()) - 16) / STEP)
        except ImageError as error:
            found[name] = str(error).replace(str(path), path.name)
    return found


def with_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Change an .mp4 so that it is shown turned or mirrored: x' = ax + cy, y' = bx + dy."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (65536 * value for value in matrix)
    numbers = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    data[place : place + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in numbers)
    path.write_bytes(data)
    return path
