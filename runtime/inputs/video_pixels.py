"""From a decoded frame of a video to the upright RGB array that people see."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.errors import ImageError
from drexperts.runtime.video_library import import_av

# FFmpeg's numbers, which are those of ITU-T H.273.
_RGB, _UNSPECIFIED = 0, (2, 3)
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}  # those that libswscale converts, by its numbers
_BT709, _BT601 = 1, 5
_HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics


def objection_to(frame: Any) -> str | None:
    """Why the pixels of a frame would not look as they are meant to; None if they would."""
    if (transfer := int(frame.color_trc)) in _HDR:
        return (
            f"it is HDR ({_HDR[transfer]}), and its frames would be too flat and too dark without "
            "tone mapping: convert it to SDR first"
        )
    matrix = int(frame.colorspace)
    if matrix not in (*_MATRICES, *_UNSPECIFIED) and not frame.format.is_rgb:
        return f"its colours are coded by the matrix {matrix} of H.273, which is not read"
    return None


def rgb_pixels(frame: Any) -> NDArray[np.uint8]:
    """The frame as uint8 [height, width, 3], or 4 with alpha, upright and in full range.

    Samples of more than 8 bits are rounded. Safe to call in another thread.

    Raises ImageError for a frame that its decoder had to guess.
    """
    if frame.is_corrupt:
        raise ImageError("the data of this frame are damaged")
    swscale = import_av().video.reformatter
    flags = swscale.Interpolation
    exact = flags.ACCURATE_RND | flags.BITEXACT
    chroma = flags.FULL_CHR_H_INT | flags.FULL_CHR_H_INP
    has_alpha = any(component.is_alpha for component in frame.format.components)
    matrix = _matrix_of(frame)
    rgb = swscale.VideoReformatter().reformat(
        frame,
        format="rgba" if has_alpha else "rgb24",
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=int(frame.color_range),
        dst_color_range=swscale.ColorRange.JPEG,
        interpolation=flags.BICUBIC | exact | chroma,
        threads=1,
    )
    return np.ascontiguousarray(_upright(rgb.to_ndarray(), _display_matrix(frame)))


def _matrix_of(frame: Any) -> int:
    """The matrix that a frame names. Without one that of its size, as players do."""
    named = _MATRICES.get(int(frame.colorspace))
    return named or (_BT709 if frame.width >= 1280 or frame.height > 576 else _BT601)


def _display_matrix(frame: Any) -> list[int] | None:
    """a, b, c and d of x' = ax + cy, y' = bx + dy, in steps of 2**-16; None if there are none."""
    # `frame.side_data` would be the same, but keep the frame for ever: each then holds the other.
    data = import_av().sidedata.sidedata.SideDataContainer(frame).get("DISPLAYMATRIX")
    if data is None:
        return None
    values = np.frombuffer(bytes(data), np.int32)
    return [int(values[place]) for place in (0, 1, 3, 4)]


def _upright(pixels: NDArray[np.uint8], matrix: list[int] | None) -> NDArray[np.uint8]:
    """Turned and mirrored by quarter turns, which is what cameras write."""
    if matrix is None:
        return pixels
    a, b, c, d = matrix
    if abs(b) > abs(a):
        pixels = pixels.swapaxes(0, 1)
        rows, columns = b, c
    else:
        rows, columns = d, a
    return pixels[:: -1 if rows < 0 else 1, :: -1 if columns < 0 else 1]
