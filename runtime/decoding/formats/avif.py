"""AVIF: still pictures and the still picture of sequences, of AV1 in one piece or in tiles."""

from PIL.AvifImagePlugin import AvifImageFile

from drexperts.runtime.decoding import convert
from drexperts.runtime.decoding.headers.av1 import Av1Frame, read_frame
from drexperts.runtime.decoding.headers.heif_items import Items, check_picture, crop_box, read_items
from drexperts.runtime.decoding.memory import bytes_held
from drexperts.runtime.decoding.stored import Layout, NotReadError, Stored

_CONVERTED = "libavif's conversion to 8-bit RGB"
_GREY = Layout("AVIF", "grey, 8, 10 or 12 bits", _CONVERTED)
_COLOUR_8 = Layout("AVIF", "YCbCr or RGB, 8 bits, any subsampling", _CONVERTED)
_COLOUR_12 = Layout("AVIF", "YCbCr or RGB, 10 or 12 bits, any subsampling", _CONVERTED)
_ALPHA = {
    layout: Layout("AVIF", f"{layout.samples}, with alpha", f"{_CONVERTED}, composited over white")
    for layout in (_GREY, _COLOUR_8, _COLOUR_12)
}
LAYOUTS = (*_ALPHA, *_ALPHA.values())

# dav1d pads a frame, and holds it twice if it adds film grain; a grid is held beside its tiles.
_BORDER = 160
_COPIES_OF_FRAMES = 2.25
_CONSTANT = 2**25


def inspect(data: bytes) -> Stored:
    items = read_items(data)
    picture = items.picture
    alpha, _ = items.alpha()
    check_picture(items, "av01")
    _check_crop(items)
    frames = _frames(items)
    frame = frames[id(items.tiles(picture)[0])]
    layout = _GREY if frame.monochrome else _COLOUR_8 if frame.bits == 8 else _COLOUR_12
    width, height = picture.size
    mode = "RGBA" if alpha else "RGB"
    orientation = items.orientation()
    return Stored(
        layout=_ALPHA[layout] if alpha else layout,
        width=width,
        height=height,
        data=_as_still(data),
        open=AvifImageFile,
        # Pillow has given grey as RGB, and since version 13 as it is.
        modes=frozenset({mode, "L"} if layout is _GREY and not alpha else {mode}),
        to_rgb=convert.to_rgb,
        memory=_memory(list(frames.values()), width * height, mode, orientation),
        orientation=orientation,
    )


def _check_crop(items: Items) -> None:
    """Pillow shows the whole picture, whatever is to be cropped."""
    crop, size = items.picture.what(b"clap"), items.picture.size
    if crop and crop_box(crop, size) != (0, 0, *size):
        raise NotReadError("an AVIF that is to be cropped: save it cropped")


def _frames(items: Items) -> dict[int, Av1Frame]:
    """The frame of every item that a decoder may choose, by the item's identity."""
    frames = {}
    for item in items.items.values():
        if item.kind == b"av01":
            frames[id(item)] = frame = read_frame(items.content(item))
            if (frame.width, frame.height) != item.size:
                raise NotReadError(
                    f"an AVIF whose frame of {frame.width}x{frame.height} is said to be "
                    f"{item.size[0]}x{item.size[1]}"
                )
    return frames


def _as_still(data: bytes) -> bytes:
    """With the brand of a still picture, so that libavif does not take the sequence beside it."""
    return data[:8] + b"avif" + data[12:] if data[8:12] == b"avis" else data


def _memory(frames: list[Av1Frame], pixels: int, mode: str, orientation: int) -> int:
    decoded = sum(
        (frame.width + _BORDER) * (frame.height + _BORDER) * frame.planes * (1 + (frame.bits > 8))
        for frame in frames
    )
    # libavif's RGB is held with its copy or with Pillow's image, which is larger.
    beside = int(_COPIES_OF_FRAMES * decoded) + len(mode) * pixels + _CONSTANT
    return bytes_held(mode, pixels, orientation, beside=beside, kept=beside)
