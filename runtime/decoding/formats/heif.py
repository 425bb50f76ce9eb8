"""HEIC, the pictures of iPhones, with the extra `heif`: HEVC in one piece or in tiles.

The extra is pi-heif, whose wheels bundle libheif and libde265 (both LGPL) and no encoder; those of
pillow-heif bundle x265, too, which is under the GPL.
"""

import functools
import importlib.util
from typing import IO

from PIL import Image

from drexperts.runtime.decoding import convert
from drexperts.runtime.decoding.headers.heif_items import (
    Items,
    Step,
    check_picture,
    read_items,
    transforms,
)
from drexperts.runtime.decoding.headers.hevc import HevcFrame, read_frame
from drexperts.runtime.decoding.memory import bytes_held
from drexperts.runtime.decoding.stored import Layout, NotReadError, Stored
from drexperts.runtime.installing import install_command

_CONVERTED = "libheif's conversion to 8-bit RGB"
_GREY = Layout("HEIC", "grey, 8 bits", "expanded to RGB")
_COLOUR_8 = Layout("HEIC", "YCbCr, 8 bits, any subsampling", _CONVERTED)
_COLOUR_10 = Layout("HEIC", "YCbCr, 10 bits, any subsampling", _CONVERTED)
_ALPHA = {
    layout: Layout("HEIC", f"{layout.samples}, with alpha", f"{_CONVERTED}, composited over white")
    for layout in (_COLOUR_8, _COLOUR_10)
}
LAYOUTS = (_GREY, _COLOUR_8, _COLOUR_10, *_ALPHA.values())

# libheif holds a frame in several forms: decoded, put together from tiles, turned and converted.
_COPIES_OF_FRAMES = 2.5
_CONSTANT = 2**25


def available() -> bool:
    """Whether the extra `heif` is installed."""
    return importlib.util.find_spec("pi_heif") is not None


@functools.cache
def decoder() -> str | None:
    """What decodes HEIC, such as "libheif 1.23.0"; None without the extra `heif`."""
    if not available():
        return None
    import pi_heif

    return f"libheif {pi_heif.libheif_version()}, pi-heif {pi_heif.__version__}"


def inspect(data: bytes) -> Stored:
    if not available():
        raise NotReadError(f"it is HEIC: {install_command('heif')}, or convert it")
    items = read_items(data)
    picture = items.picture
    check_picture(items, "hvc1")
    alpha, premultiplied = items.alpha()
    frames = _frames(items)
    layout = _layout(frames[id(items.tiles(picture)[0])], alpha is not None)
    modes = (
        ("RGBa" if premultiplied else "RGBA",) if alpha else ("L",) if layout is _GREY else ("RGB",)
    )
    steps = transforms(picture)
    if alpha and transforms(alpha) != steps:
        raise NotReadError("a HEIC whose alpha is cropped or turned otherwise than its colours")
    width, height = picture.size
    return Stored(
        layout=layout,
        width=width,
        height=height,
        # libheif 1.23 moves the chroma of odd sizes when it crops or turns them.
        data=items.untransformed(),
        open=_open,
        modes=frozenset(modes),
        to_rgb=functools.partial(_to_rgb, steps=steps),
        memory=_memory(list(frames.values()), width * height, modes[0], bool(steps)),
    )


def _to_rgb(image: Image.Image, steps: list[Step]) -> Image.Image:
    image = convert.to_rgb(image)
    for step in steps:
        image = _cropped(image, step) if isinstance(step, tuple) else image.transpose(step)
    return image


def _cropped(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """What Pillow's `crop` gives, which has a limit of pixels of its own."""
    left, top, right, bottom = box
    part = Image.new("RGB", (right - left, bottom - top))
    part.paste(image, (-left, -top))
    return part


def _open(stream: IO[bytes]) -> Image.Image:
    from pi_heif.as_plugin import HeifImageFile

    return HeifImageFile(stream)


def _frames(items: Items) -> dict[int, HevcFrame]:
    """The frame of every item that a decoder may choose, by the item's identity."""
    frames = {}
    for item in items.items.values():
        if item.kind == b"hvc1":
            frames[id(item)] = frame = read_frame(item.what(b"hvcC") or b"", items.content(item))
            if frame.shown != item.size:
                raise NotReadError(f"a HEIC whose frame of {frame.shown} is said to be {item.size}")
    return frames


def _layout(frame: HevcFrame, alpha: bool) -> Layout:
    if frame.planes == 1 and frame.bits == 8 and not alpha:
        return _GREY
    if frame.planes == 1 or frame.bits not in (8, 10):
        with_alpha = " with alpha" if alpha else ""
        colours = "grey" if frame.planes == 1 else "YCbCr"
        raise NotReadError(f"a HEIC of {frame.bits}-bit {colours} samples{with_alpha}")
    layout = _COLOUR_8 if frame.bits == 8 else _COLOUR_10
    return _ALPHA[layout] if alpha else layout


def _memory(frames: list[HevcFrame], pixels: int, mode: str, transformed: bool) -> int:
    decoded = sum(
        frame.width * frame.height * frame.planes * (1 + (frame.bits > 8)) for frame in frames
    )
    in_pillow = "RGBA" if mode == "RGBa" else mode
    beside = int(_COPIES_OF_FRAMES * decoded) + 4 * pixels + _CONSTANT
    kept = beside + 4 * pixels * transformed
    return bytes_held(in_pillow, pixels, beside=beside, kept=kept)
