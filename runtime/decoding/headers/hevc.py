"""HEVC's own headers: how large the picture of an item is, whatever its container says."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from drexperts.runtime.decoding.headers.bits import Bits
from drexperts.runtime.decoding.stored import NotReadError

_SPS = 33
_MOST_UNITS = 10_000
_PICTURES = range(32)
# By chroma_format_idc: samples per pixel, and by how much chroma is narrower and lower.
_CHROMA = {0: (1.0, 1, 1), 1: (1.5, 2, 2), 2: (2.0, 2, 1), 3: (3.0, 1, 1)}


@dataclass(frozen=True)
class HevcFrame:
    """The picture of an item.

    width, height: as coded, before the margins are cut off
    shown: width and height without the margins
    planes: samples per pixel
    """

    width: int
    height: int
    shown: tuple[int, int]
    bits: int
    planes: float


def read_frame(configuration: bytes, data: bytes) -> HevcFrame:
    """What an item's hvcC property says. Raises NotReadError for several parameters or pictures."""
    parameters = [unit for unit in _of_configuration(configuration) if _kind(unit) == _SPS]
    if len(parameters) != 1:
        raise NotReadError("HEVC data without one set of parameters")
    size = (configuration[21] & 3) + 1
    pictures = 0
    for start, end in _units(data, size):
        kind = data[start] >> 1 & 63
        if kind == _SPS:
            raise NotReadError("HEVC data whose parameters change")
        # The first bit behind the two bytes of a unit's header: whether a picture begins here.
        pictures += kind in _PICTURES and end - start > 2 and data[start + 2] >> 7
    if pictures != 1:
        raise NotReadError("HEVC data of several pictures, or of none")
    return _frame(Bits(parameters[0][2:].replace(b"\0\0\3", b"\0\0")))


def _kind(unit: bytes) -> int:
    return unit[0] >> 1 & 63 if unit else -1


def _of_configuration(body: bytes) -> Iterator[bytes]:
    place = 23
    for _ in range(body[22] if len(body) > 22 else 0):
        (count,) = struct.unpack_from(">H", body, place + 1)
        place += 3
        for _ in range(count):
            (length,) = struct.unpack_from(">H", body, place)
            yield body[place + 2 : place + 2 + length]
            place += 2 + length


def _units(data: bytes, size: int) -> Iterator[tuple[int, int]]:
    """Where each unit (NAL) starts and ends; `size` bytes before it give its length."""
    place = 0
    for _ in range(_MOST_UNITS):
        if place >= len(data):
            return
        start = place + size
        place = start + int.from_bytes(data[place:start], "big")
        if start >= len(data) or place > len(data):
            raise NotReadError("HEVC data that are truncated")
        yield start, place
    raise NotReadError(f"HEVC data of more than {_MOST_UNITS} units")


def _frame(read: Bits) -> HevcFrame:
    """seq_parameter_set_rbsp() of the standard, 7.3.2.2, in its order."""
    read(4)
    layers = read(3)
    read(1)
    read(96)
    present = [(read(), read()) for _ in range(layers)]
    if layers:
        read(2 * (8 - layers))
    for profile, level in present:
        read(88 * profile + 8 * level)
    read.exponential_golomb()
    chroma = read.exponential_golomb()
    if chroma not in _CHROMA or (chroma == 3 and read()):
        raise NotReadError("HEVC data of an unknown subsampling")
    width, height = read.exponential_golomb(), read.exponential_golomb()
    margins = [read.exponential_golomb() for _ in range(4)] if read() else [0, 0, 0, 0]
    bits = 8 + max(read.exponential_golomb(), read.exponential_golomb())
    planes, across, down = _CHROMA[chroma]
    shown = width - across * sum(margins[:2]), height - down * sum(margins[2:])
    return HevcFrame(width, height, shown, bits, planes)
