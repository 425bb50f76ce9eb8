"""The frames of a video at even times, as images, and what stands for the video after them."""

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from typing import IO

from drexperts.runtime.decoding import Source
from drexperts.runtime.errors import ConfigError, DrexpertsError, ImageError
from drexperts.runtime.inputs.listed import ListedImage, Opener, failure
from drexperts.runtime.inputs.video_pixels import rgb_pixels
from drexperts.runtime.inputs.video_reader import VideoError, VideoReader
from drexperts.runtime.wording import remedy
from drexperts.runtime.work import Fetch

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts"}
    | {".mpg", ".mpeg", ".vob", ".flv", ".wmv", ".asf", ".ogv", ".mxf"}
)
_LONGEST = 86_400  # seconds


@dataclass(frozen=True)
class Videos:
    """Which frames of videos are scored.

    every: seconds between the frames that are scored, in whole milliseconds, up to a day
    largest: pixels of the largest frame

    Raises ConfigError for another `every`.
    """

    every: float = 1.0
    largest: int = 100_000_000

    def __post_init__(self) -> None:
        if not (0.001 <= self.every <= _LONGEST and (1000 * self.step).denominator == 1):
            option = remedy("--every takes a time such as 1s, 0.5s or 500ms", "every takes seconds")
            raise ConfigError(
                f"{option}, in whole milliseconds and up to {_LONGEST} s, not {self.every} s"
            )

    @property
    def step(self) -> Fraction:
        """`every`, exactly."""
        return Fraction(self.every).limit_denominator(1_000_000)


def video_frames(
    name: str, opened: Opener, videos: Videos, is_done: Callable[[str], bool]
) -> Iterator[ListedImage]:
    """The frames that are shown at 0, `every`, twice `every`... and last what stands for the video.

    Their sources are the video's path, a slash and the time in seconds, such as clip.mp4/12.000;
    that of the last one is the path, see `ListedImage.is_video`. A video with a row is not opened.

    name: the video's path
    opened: opens the video, which must be seekable; what it returns closes it
    is_done: whether the image with this source is to be passed
    """
    reader, count = VideoReader(functools.partial(_opened, name, opened), videos.largest), 0
    try:
        for count in itertools.count():
            time = count * videos.step
            source = f"{name}/{_label(time)}"
            if is_done(source):
                again = functools.partial(_read_again, source, reader, time)
                yield ListedImage(source, again, passing=True)
            elif is_done(name) or (frame := reader.frame_at(time)) is None:
                break
            else:
                yield ListedImage(source, functools.partial(_pixels_later, source, frame))
        yield _video(name)
    except DrexpertsError:
        raise
    except Exception as cause:  # on hostile bytes nearly anything
        found = f"{count} frames before the damage were read" if count else "no frame was read"
        yield _video(name, f"cannot read {name}: {_reason(cause)}; {found}: replace it")
    finally:
        reader.close()


def _opened(name: str, opened: Opener) -> AbstractContextManager[IO[bytes]]:
    if os.path.exists(name) and not os.path.isfile(name):  # a pipe would wait for its writer
        raise VideoError("it is no file")
    return opened()


def _label(time: Fraction) -> str:
    """Seconds with three decimals, exactly."""
    seconds, thousandths = divmod(int(1000 * time), 1000)
    return f"{seconds}.{thousandths:03}"


def _pixels_later(source: str, frame: object) -> Fetch:
    def fetch() -> Source:
        try:
            return rgb_pixels(frame)
        except ImageError:
            raise
        except Exception as cause:
            raise ImageError(f"cannot read {source}: {_reason(cause)}") from cause

    return fetch


def _read_again(source: str, reader: VideoReader, time: Fraction) -> Fetch:
    """A frame that has a row, and shares its batch with one that has none."""
    try:
        frame = reader.frame_at(time)
    except Exception as cause:
        return failure(source, _reason(cause))
    return failure(source, "it is gone") if frame is None else _pixels_later(source, frame)


def _video(name: str, damage: str = "") -> ListedImage:
    def fetch() -> bytes:
        raise ImageError(damage)

    return ListedImage(name, lambda: fetch, is_video=True)


def _reason(cause: Exception) -> str:
    said = getattr(cause, "strerror", None)
    text = " ".join(str(said or cause).split())
    if said or isinstance(cause, VideoError):
        return text
    # Such as FileNotFoundError of fsspec, which says the address alone.
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
