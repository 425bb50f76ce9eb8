"""JPEG files written byte by byte: every 8x8 block of a component has one value."""

import struct

import numpy as np

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
JFIF = b"JFIF\0\1\1\0\0\1\0\1\0\0"


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def adobe(transform):
    return segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def tables():
    """Quantization by 8, so that a step is a value; codes of 4 bits for DC, AC has only an end."""
    dc = bytes([0, 0, 0, 12, *[0] * 12, *range(12)])
    ac = bytes([1, *[0] * 15, 0])
    return segment(0xDB, b"\0" + b"\x08" * 64) + segment(0xC4, b"\0" + dc + b"\x10" + ac)


def frame(size, components, marker=0xC0, bits=8):
    """components: (name, horizontal sampling, vertical sampling) of each"""
    body = struct.pack(">BHHB", bits, size[1], size[0], len(components))
    parts = [bytes([name, across << 4 | down, 0]) for name, across, down in components]
    return segment(marker, body + b"".join(parts))


def scan_header(names, start=0, end=63, approximation=0):
    parts = b"".join(bytes([name, 0]) for name in names)
    return segment(0xDA, bytes([len(names)]) + parts + bytes([start, end, approximation]))


def jpeg(size, components, values, *, segments=b"", restart=0, marker=0xC0):
    """A JPEG of one scan.

    values: for each component the values of its blocks, as a 2-D array
    segments: what stands before the tables
    restart: MCUs between restart markers
    """
    interval = segment(0xDD, struct.pack(">H", restart)) if restart else b""
    header = SOI + segments + tables() + interval + frame(size, components, marker)
    names = [name for name, *_ in components]
    return header + scan_header(names) + scan(components, values, restart) + EOI


def scan(components, values, restart=0):
    """The entropy-coded data of an interleaved scan."""
    _, across, down = components[0]
    alone = len(components) == 1
    rows, columns = (
        values[0].shape if alone else (values[0].shape[0] // down, values[0].shape[1] // across)
    )
    pieces, bits, last = [], "", [0] * len(components)
    for mcu in range(rows * columns):
        if restart and mcu and mcu % restart == 0:
            pieces += [_stuffed(bits), bytes([0xFF, 0xD0 + (mcu // restart - 1) % 8])]
            bits, last = "", [0] * len(components)
        y, x = divmod(mcu, columns)
        for index, (_, across, down) in enumerate(components):
            across, down = (1, 1) if alone else (across, down)
            for value in values[index][
                y * down : (y + 1) * down, x * across : (x + 1) * across
            ].ravel():
                bits += _block(int(value) - 128 - last[index])
                last[index] = int(value) - 128
    return b"".join([*pieces, _stuffed(bits)])


def _block(difference):
    """The code of a DC difference and the end of the block."""
    size = abs(difference).bit_length()
    number = difference if difference > 0 else difference + (1 << size) - 1
    return f"{size:04b}" + (f"{number:0{size}b}" if size else "") + "0"


def _stuffed(bits):
    bits += "1" * (-len(bits) % 8)
    content = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    return content.replace(b"\xff", b"\xff\0")


def rgb_from_ycbcr(y, cb, cr):
    """The exact RGB of JFIF."""
    y, cb, cr = (np.asarray(values, float) for values in (y, cb, cr))
    red = y + 1.402 * (cr - 128)
    green = y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
    blue = y + 1.772 * (cb - 128)
    return np.clip(np.stack([red, green, blue], axis=-1), 0, 255)
