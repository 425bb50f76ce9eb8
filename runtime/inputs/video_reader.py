"""The frames of a video by the time at which they are shown."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from typing import Any, NamedTuple

from drexperts.runtime.inputs.listed import Opener
from drexperts.runtime.inputs.video_pixels import objection_to
from drexperts.runtime.video_library import import_av

# Playlists, which open other files and addresses, are not among them.
_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf"
_FAR = 10  # seconds from which seeking costs less than decoding
_LONGEST = 3600  # seconds for which a frame is shown; damaged times would repeat it for ever
_JITTER = 1  # seconds that times may go back
_DURATION = re.compile(r"(\d{1,9}):(\d{1,9}):(\d{1,9}(?:\.\d{1,9})?)")
_TOLERANCE = 1  # seconds by which a video may end before the time that it states


class VideoError(Exception):
    """A video that is damaged or not read, with the reason."""


class _Timed(NamedTuple):
    """A frame; `end` is when it is gone if no other follows. In seconds after the first frame."""

    time: Fraction
    end: Fraction
    frame: Any


class VideoReader:
    """The frames of the first video stream that is no cover. Sound is not decoded.

    It is opened when the first frame is asked for. At most three frames are held, and those that
    FFmpeg's decoder holds.

    opened: opens the file, which must be seekable
    largest: pixels of the largest frame
    """

    def __init__(self, opened: Opener, largest: int) -> None:
        self._opened, self._largest = opened, largest
        self._stack = ExitStack()
        self._start: Fraction | None = None
        self._stamp: int | None = None  # of the last frame
        self._shown: _Timed | None = None
        self._next: _Timed | None = None
        self._frames: Iterator[_Timed] = iter(())
        self._damage: Exception | None = None
        self._seekable = True

    def close(self) -> None:
        """Close the file. Twice is fine."""
        # Both hold this reader, and so a decoder with its threads.
        self._frames, self._damage = iter(()), None
        self._stack.close()

    def frame_at(self, time: Fraction) -> Any | None:
        """The `av.VideoFrame` that is shown at a time, in seconds after the first one.

        None after the end. Times must not go back from call to call.

        Raises VideoError, and what PyAV and the file raise, where the video is damaged and no frame
        before that is shown at this time.
        """
        if self._start is None:
            self._begin()
        if self._seekable and self._next is not None and time - self._next.time > _FAR:
            self._jump(time)
        while self._next is not None and self._next.time <= time:
            self._shown, self._next = self._next, None
            self._next = self._following()
        shown = self._shown
        if shown is None or (self._next is None and time >= shown.end and time > shown.time):
            if self._damage is not None:
                raise self._damage
            return None
        self._check_size(shown.frame.width, shown.frame.height)
        if reason := objection_to(shown.frame):
            raise VideoError(reason)
        return shown.frame

    def _begin(self) -> None:
        av = import_av()
        self._stack.close()
        # FFmpeg counts the margins that its decoders add as well.
        limits = {"max_pixels": str(2 * self._largest + 2**20)}
        try:
            file = self._stack.enter_context(self._opened())
            options = {"format_whitelist": _FORMATS, "protocol_whitelist": "", **limits}
            self._container = self._stack.enter_context(av.open(file, options=options))
            cover = av.stream.Disposition.attached_pic
            streams = [s for s in self._container.streams.video if not s.disposition & cover]
            if not streams:
                raise VideoError("it has no video stream")
            self._stream = streams[0]
            self._check_decoder()
            self._stream.codec_context.options = limits
            self._stream.thread_type = "AUTO"
        except BaseException:
            self._stack.close()
            raise
        self._start = self._stamp = self._shown = self._damage = None
        self._frames = self._decoded()
        self._next = self._following()
        if self._next is None:
            raise self._damage or VideoError("it has no frame")

    def _check_decoder(self) -> None:
        context = self._stream.codec_context
        if context is None:
            raise VideoError("this FFmpeg has no decoder for it")
        self._check_size(context.width, context.height)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._largest:
            raise VideoError(f"its frames of {width}x{height} are more than {self._largest} pixels")

    def _following(self) -> _Timed | None:
        """The next frame that is shown later than the last one; None at the end and at damage."""
        try:
            return self._found()
        except Exception as damage:  # raised when a time is asked for that is not before it
            self._damage = damage
            return None

    def _found(self) -> _Timed | None:
        shown = self._shown
        for timed in self._frames:
            if shown is None or timed.time > shown.time:
                _check_gap(shown, timed)
                return timed
            if shown.time - timed.time > _JITTER:
                raise VideoError(
                    f"its times go back from {float(shown.time):.3f} to {float(timed.time):.3f} s"
                )
        self._check_whole()
        return None

    def _decoded(self) -> Iterator[_Timed]:
        """The frames from here on; at damage those that the decoder still holds, and the error."""
        decoder = self._stream.codec_context
        try:
            for packet in self._container.demux(self._stream):
                yield from map(self._timed, decoder.decode(packet))
        except import_av().FFmpegError as damage:
            yield from map(self._timed, decoder.decode(None))
            raise damage

    def _timed(self, frame: Any) -> _Timed:
        stamp = self._stamp_of(frame)
        if stamp is None:
            raise VideoError("its frames have no times")
        self._stamp = stamp
        unit = Fraction(frame.time_base or self._stream.time_base)
        time = stamp * unit
        if self._start is None:
            self._start = time
        return _Timed(
            time - self._start, time - self._start + max(0, frame.duration or 0) * unit, frame
        )

    def _stamp_of(self, frame: Any) -> int | None:
        """When a frame is shown, in units of its time base."""
        pts: int | None = frame.pts
        dts: int | None = frame.dts
        if self._container.format.name != "avi":
            return dts if pts is None else pts
        # AVI numbers its pictures in the order of decoding. FFmpeg gives each its number as `pts`,
        # which B-frames mix up, and the numbers in order as `dts`, but for the last pictures.
        following = pts if self._stamp is None else self._stamp + 1
        return following if dts is None else dts

    def _jump(self, time: Fraction) -> None:
        """Continue at the last key frame before a time, if the file finds it; else begin anew."""
        assert self._start is not None
        assert self._next is not None
        before, start = self._next, self._start
        try:
            target = int((start + time) / self._stream.time_base)
            self._container.seek(target, stream=self._stream, backward=True)
            self._frames, self._stamp = self._decoded(), None
            found = next((timed for timed in self._frames if timed.frame.key_frame), None)
        except Exception:  # without an index, for example
            found = None
        if found is not None and before.time <= found.time <= time:
            self._shown, self._next = None, found
            return
        self._seekable = False
        self._begin()

    def _check_whole(self) -> None:
        """Where they were cut off, most formats end without an error, but say what there was."""
        size, entries = self._container.size, self._stream.index_entries
        if size > 0 and any(entry.pos + entry.size > size for entry in entries):
            raise VideoError("it was cut off")
        stated, shown = self._stated(), self._shown
        if stated is None or shown is None or self._start is None:
            return
        end = shown.end + max(Fraction(0), self._start)
        if end + _TOLERANCE < stated:
            raise VideoError(f"it ends at {float(end):.3f} of {float(stated):.3f} s")

    def _stated(self) -> Fraction | None:
        """Seconds that Matroska, WebM and AVI files state."""
        file, stream = self._container, self._stream
        if file.format.name == "avi" and stream.average_rate:
            return Fraction(stream.frames) / Fraction(stream.average_rate)
        if "matroska" not in file.format.name or file.duration is None:
            return None
        whole = Fraction(file.duration, 1_000_000)
        tag = _DURATION.fullmatch(stream.metadata.get("DURATION", ""))
        if tag is None:
            return whole if len(file.streams) == 1 else None  # its sound may be longer
        hours, minutes, seconds = map(Fraction, tag.groups())
        return min(whole, 3600 * hours + 60 * minutes + seconds)


def _check_gap(shown: _Timed | None, timed: _Timed) -> None:
    if shown is not None and timed.time - shown.time > _LONGEST:
        raise VideoError(
            f"its times jump from {float(shown.time):.3f} to {float(timed.time):.3f} s"
        )
