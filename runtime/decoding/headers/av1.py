"""AV1's own headers: how large the frame of a still picture is, whatever its container says."""

from collections.abc import Iterator
from dataclasses import dataclass

from drexperts.runtime.decoding.headers.bits import Bits
from drexperts.runtime.decoding.stored import NotReadError

_SEQUENCE, _FRAME_HEADER, _FRAME = 1, 3, 6
_CHOSEN_PER_FRAME = 2
_MOST_UNITS = 10_000
_SRGB_AND_IDENTITY = (1, 13, 0)


@dataclass(frozen=True)
class Av1Frame:
    """The only frame of a still picture. bits: of each sample; planes: samples per pixel."""

    width: int
    height: int
    bits: int
    monochrome: bool
    planes: float


@dataclass
class _Sequence:
    frame: Av1Frame
    reduced: bool
    decoder_model: bool
    equal_intervals: bool
    ids: bool
    screen_content: int
    integer_motion: int
    time_bits: int


def read_frame(data: bytes) -> Av1Frame:
    """The frame in the content of an item. Raises NotReadError for several, and for odd ones."""
    sequence = None
    frames = 0
    for kind, start, end in _units(data):
        if kind == _SEQUENCE:
            if sequence:
                raise NotReadError("AV1 data of several sequences")
            sequence = _sequence(Bits(data[start : min(end, start + 256)]))
        elif kind in (_FRAME_HEADER, _FRAME):
            frames += 1
            if sequence is None or frames > 1:
                raise NotReadError("AV1 data of several frames, or layers")
            _check_frame(Bits(data[start : min(end, start + 64)]), sequence)
    if sequence is None or not frames:
        raise NotReadError("AV1 data without a frame")
    return sequence.frame


def _units(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The type of each unit (OBU), and where its content starts and ends."""
    start = 0
    for _ in range(_MOST_UNITS):
        if start >= len(data):
            return
        header = data[start]
        start += 2 if header & 4 else 1
        end = len(data)
        if header & 2:
            size, start = _leb128(data, start)
            end = start + size
        if header & 0x80 or start > end or end > len(data):
            raise NotReadError("AV1 data that are truncated or damaged")
        yield header >> 3 & 15, start, end
        start = end
    raise NotReadError(f"AV1 data of more than {_MOST_UNITS} units")


def _leb128(data: bytes, start: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(data[start : start + 8]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, start + i + 1
    raise NotReadError("AV1 data that are truncated or damaged")


def _sequence(read: Bits) -> _Sequence:
    """sequence_header_obu() of the standard, 5.5.1, in its order."""
    profile, _, reduced = read(3), read(), bool(read())
    decoder_model = equal_intervals = False
    time_bits = 0
    if reduced:
        read(5)
    else:
        decoder_model, equal_intervals, time_bits = _operating_points(read)
    width_bits, height_bits = read(4) + 1, read(4) + 1
    width, height = read(width_bits) + 1, read(height_bits) + 1
    ids = not reduced and bool(read())
    if ids:
        read(7)
    read(3)
    screen_content, integer_motion = (2, 2) if reduced else _tools(read)
    read(3)
    bits, monochrome, planes = _colours(read, profile)
    frame = Av1Frame(width, height, bits, monochrome, planes)
    return _Sequence(
        *(frame, reduced, decoder_model, equal_intervals, ids, screen_content, integer_motion),
        time_bits,
    )


def _operating_points(read: Bits) -> tuple[bool, bool, int]:
    """Whether there is a decoder model, whether intervals are equal, and the bits of its times."""
    decoder_model = equal_intervals = False
    delay_bits = time_bits = 0
    if read():
        read(64)
        equal_intervals = bool(read())
        if equal_intervals:
            raise NotReadError("AV1 data of equal intervals, which no still picture has")
        decoder_model = bool(read())
        if decoder_model:
            delay_bits = read(5) + 1
            read(32)
            read(5)
            time_bits = read(5) + 1
    has_delays = read()
    for _ in range(read(5) + 1):
        read(12)
        if read(5) > 7:
            read()
        if decoder_model and read():
            read(2 * delay_bits + 1)
        if has_delays and read():
            read(4)
    return decoder_model, equal_intervals, time_bits


def _tools(read: Bits) -> tuple[int, int]:
    """Whether screen content tools and integer motion are forced, or chosen per frame (2)."""
    read(4)
    order_hints = read()
    if order_hints:
        read(2)
    screen_content = _CHOSEN_PER_FRAME if read() else read()
    integer_motion = _CHOSEN_PER_FRAME
    if screen_content and not read():
        integer_motion = read()
    if order_hints:
        read(3)
    return screen_content, integer_motion


def _colours(read: Bits, profile: int) -> tuple[int, bool, float]:
    """color_config(), 5.5.2: bits, whether there is only luma, and samples per pixel."""
    high = read()
    bits = (12 if read() else 10) if profile == 2 and high else (10 if high else 8)
    monochrome = profile != 1 and bool(read())
    described = (read(8), read(8), read(8)) if read() else ()
    if monochrome:
        return bits, True, 1
    if described == _SRGB_AND_IDENTITY:
        return bits, False, 3
    read()
    if profile == 0:
        return bits, False, 1.5
    if profile == 1:
        return bits, False, 3
    if bits < 12:
        return bits, False, 2
    return bits, False, (1.5 if read() else 2) if read() else 3


def _check_frame(read: Bits, sequence: _Sequence) -> None:
    """It is a key frame that is shown, of the sequence's size (uncompressed_header(), 5.9.2)."""
    if sequence.reduced:
        return
    if read() or read(2) or not read():
        raise NotReadError("AV1 data that do not begin with a picture")
    if sequence.decoder_model:
        read(sequence.time_bits)
    read()
    screen_content = sequence.screen_content
    if screen_content == _CHOSEN_PER_FRAME:
        screen_content = read()
    if screen_content and sequence.integer_motion == _CHOSEN_PER_FRAME:
        read()
    if sequence.ids:
        raise NotReadError("AV1 data of numbered frames, which no still picture has")
    if read():
        raise NotReadError("AV1 data whose frame is of another size than its sequence")
