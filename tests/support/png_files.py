"""PNG files written byte by byte, at every depth, colour type, filter and interlacing."""

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Of Adam7: first column and row, and their steps.
_PASSES = [
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
]


def chunk(name, body, checksum=None):
    checksum = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def png(samples, bits, type, *, chunks=(), interlaced=False, filters=(0, 1, 2, 3, 4), after=()):
    """A PNG of samples HxWxC, whose rows have these filters in turn.

    chunks: (name, body) of what stands between the header and the pixels
    after: the same for what follows the pixels
    """
    height, width, channels = samples.shape
    assert channels == CHANNELS[type]
    header = struct.pack(">IIBBBBB", width, height, bits, type, 0, 0, interlaced)
    parts = [samples]
    if interlaced:
        parts = [samples[top::down, left::across] for left, top, across, down in _PASSES]
    rows = b"".join(_filtered(part, bits, filters) for part in parts if part.size)
    content = zlib.compress(rows)
    middle = len(content) // 2
    return SIGNATURE + b"".join(
        [
            chunk(b"IHDR", header),
            *(chunk(name, body) for name, body in chunks),
            chunk(b"IDAT", content[:middle]),
            chunk(b"IDAT", content[middle:]),
            *(chunk(name, body) for name, body in after),
            chunk(b"IEND", b""),
        ]
    )


def _filtered(samples, bits, filters):
    distance = max(1, bits * samples.shape[2] // 8)
    above = None
    rows = []
    for y, row in enumerate(samples):
        values = _packed(row.reshape(-1), bits)
        above = np.zeros_like(values) if above is None else above
        kind = filters[y % len(filters)]
        rows.append(bytes([kind]) + _filtered_row(values, above, distance, kind))
        above = values
    return b"".join(rows)


def _packed(values, bits):
    """The bytes of a row of samples."""
    if bits == 16:
        return np.frombuffer(values.astype(">u2").tobytes(), np.uint8)
    digits = np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
    return np.packbits(digits)


def _filtered_row(values, above, distance, kind):
    left = np.concatenate([np.zeros(distance, np.uint8), values])[: len(values)].astype(int)
    corner = np.concatenate([np.zeros(distance, np.uint8), above])[: len(above)].astype(int)
    above = above.astype(int)
    guess = left + above - corner
    nearest = np.stack([abs(guess - left), abs(guess - above), abs(guess - corner)]).argmin(axis=0)
    paeth = np.choose(nearest, [left, above, corner])
    predicted = [0 * left, left, above, (left + above) // 2, paeth][kind]
    return ((values.astype(int) - predicted) % 256).astype(np.uint8).tobytes()
