"""Other ways from a file to pixels than the runtime's: decoders and resizes of other libraries.

drexperts depends on none of these libraries: one that is missing is left out, with the reason.
"""

import io
import re
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from drexperts.runtime.decoding import decode
from drexperts.runtime.errors import MissingDependencyError

Pixels = NDArray[np.uint8]  # [height, width, 3], RGB
Size = tuple[int, int]  # width, height
# From a file's bytes, its decoded pixels and the size that the contract asks for.
Resize = Callable[[bytes, Image.Image, Size], Image.Image]

JPEG, PNG = "JPEG", "PNG"

_ORIENTATION_TAG = 0x0112


class Decoder(NamedTuple):
    """A library that decodes.

    version: of the library, and of its JPEG decoder if it tells
    formats: JPEG, PNG or both
    stored: from a file's bytes to its pixels as they are stored, not turned upright
    """

    version: str
    formats: tuple[str, ...]
    stored: Callable[[bytes], Pixels]


def decoders() -> tuple[dict[str, Decoder], dict[str, str]]:
    """The decoders that are installed, and why the others cannot be used."""
    found, left_out = {}, {}
    for name, make in DECODERS.items():
        try:
            found[name] = make()
        except (ImportError, MissingDependencyError) as reason:
            left_out[name] = str(reason)
    return found, left_out


def upright(pixels: Pixels, content: bytes) -> Image.Image:
    """Stored pixels, turned as the runtime turns its own of the same file."""
    image = Image.fromarray(pixels)
    with Image.open(io.BytesIO(content)) as file:
        image.getexif()[_ORIENTATION_TAG] = file.getexif().get(_ORIENTATION_TAG, 1)
    return decode(image)


def _simplejpeg() -> Decoder:
    import simplejpeg

    return Decoder(version("simplejpeg"), (JPEG,), lambda content: simplejpeg.decode_jpeg(content))


def _simplejpeg_fast() -> Decoder:
    """A coarser transform, and chroma repeated instead of interpolated, which saves 5 % of time."""
    import simplejpeg

    return Decoder(
        version("simplejpeg"),
        (JPEG,),
        lambda content: simplejpeg.decode_jpeg(content, fastdct=True, fastupsample=True),
    )


def _torchvision() -> Decoder:
    from torchvision.io import ImageReadMode, decode_image

    def stored(content: bytes) -> Pixels:
        return _from_planes(decode_image(_tensor(content), ImageReadMode.RGB))

    return Decoder(version("torchvision"), (JPEG, PNG), stored)


def _torchvision_cuda() -> Decoder:
    from torchvision.io import ImageReadMode, decode_jpeg

    _require_gpu()

    def stored(content: bytes) -> Pixels:
        return _from_planes(decode_jpeg(_tensor(content), ImageReadMode.RGB, device="cuda").cpu())

    return Decoder(f"{version('torchvision')}, CUDA {torch.version.cuda}", (JPEG,), stored)


def _opencv() -> Decoder:
    import cv2

    jpeg = re.search(r"JPEG:\s*(.*)", cv2.getBuildInformation())
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

    def stored(content: bytes) -> Pixels:
        return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), flags), np.uint8)

    library = jpeg.group(1).strip() if jpeg else "JPEG library unknown"
    return Decoder(f"{cv2.__version__}, {library}", (JPEG, PNG), stored)


def _nvimagecodec() -> Decoder:
    from nvidia import nvimgcodec

    _require_gpu()
    # By default it silently uses the CPU's decoder where the GPU's fails.
    kinds = (nvimgcodec.BackendKind.GPU_ONLY, nvimgcodec.BackendKind.HYBRID_CPU_GPU)
    decoder = nvimgcodec.Decoder(backends=[nvimgcodec.Backend(kind) for kind in kinds])
    as_stored = nvimgcodec.DecodeParams(apply_exif_orientation=False)

    def stored(content: bytes) -> Pixels:
        return np.asarray(decoder.decode(content, params=as_stored).cpu())

    return Decoder(nvimgcodec.__version__, (JPEG,), stored)


DECODERS: dict[str, Callable[[], Decoder]] = {
    "simplejpeg": _simplejpeg,
    "simplejpeg, fast": _simplejpeg_fast,
    "torchvision": _torchvision,
    "OpenCV": _opencv,
    "torchvision, nvJPEG": _torchvision_cuda,
    "nvImageCodec": _nvimagecodec,
}


def resizes() -> tuple[dict[str, Resize], dict[str, str]]:
    """The resizes that are installed, and why the others cannot be used."""
    found: dict[str, Resize] = {
        "Pillow bilinear": _pillow(Image.Resampling.BILINEAR),
        "Pillow Lanczos": _pillow(Image.Resampling.LANCZOS),
        "Pillow box": _pillow(Image.Resampling.BOX),
        "Pillow bicubic, reducing_gap=2": _pillow(Image.Resampling.BICUBIC, reducing_gap=2.0),
        "Pillow bicubic, draft": _pillow_draft,
        "torch bicubic, antialias": _torch(antialias=True),
        "torch bicubic": _torch(antialias=False),
    }
    try:
        import cv2
    except ImportError as reason:
        return found, {"OpenCV": str(reason)}
    for name in ("INTER_LINEAR", "INTER_CUBIC", "INTER_AREA"):
        found[f"OpenCV {name}"] = _opencv_resize(getattr(cv2, name))
    return found, {}


def _pillow(filter: Image.Resampling, reducing_gap: float | None = None) -> Resize:
    return lambda content, image, size: image.resize(size, filter, reducing_gap=reducing_gap)


def _pillow_draft(content: bytes, image: Image.Image, size: Size) -> Image.Image:
    """Resize as `Image.thumbnail` does: decode the JPEG at an eighth, a quarter or half of its size
    if that is at least twice the size asked for."""
    with Image.open(io.BytesIO(content)) as file:
        turned = file.getexif().get(_ORIENTATION_TAG, 1) >= 5
        width, height = reversed(size) if turned else size
        file.draft("RGB", (2 * width, 2 * height))
        return decode(file).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _torch(antialias: bool) -> Resize:
    def resize(content: bytes, image: Image.Image, size: Size) -> Image.Image:
        planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        resized = F.interpolate(planes, size[::-1], mode="bicubic", antialias=antialias)
        return Image.fromarray(_from_planes(resized[0].round().clamp(0, 255).to(torch.uint8)))

    return resize


def _opencv_resize(interpolation: int) -> Resize:
    import cv2

    return lambda content, image, size: Image.fromarray(
        cv2.resize(np.asarray(image), size, interpolation=interpolation)
    )


def _tensor(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _from_planes(planes: torch.Tensor) -> Pixels:
    """[3, height, width] to [height, width, 3]."""
    return np.ascontiguousarray(planes.permute(1, 2, 0).numpy())


def _require_gpu() -> None:
    if not torch.cuda.is_available():
        raise MissingDependencyError("there is no GPU")
