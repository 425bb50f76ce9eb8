"""Synthetic distortions: 25 types at five levels, as pure functions on image tensors.

An image is a float32 tensor [3, H, W], RGB in [0, 1], with H and W of at least 16. `distort`
returns a new tensor of that kind, on the same device, and does not change its input. Randomness
comes only from the `torch.Generator` argument, so a seed repeats a result.

The types and their strengths are those of KADID-10k / KADIS-700k (Lin, Hosu and Saupe, QoMEX 2019).
The formulas are textbook ones, stated in each docstring, so images differ from the published data
sets, most of all for `denoise` (a Wiener filter here, a network there), `jitter`, `pixelate`,
`quantisation`, the tone curves and the pasted patches.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

MIN_SIDE = 16

Group = Literal[
    "blur", "colour", "compression", "noise", "brightness", "spatial", "sharpness_contrast"
]
Function = Callable[[Tensor, float, Generator], Tensor]


@dataclass(frozen=True)
class Distortion:
    """One distortion type.

    `levels` holds the strengths of levels 1 to 5 for `function(image, strength, generator)`, whose
    result may exceed [0, 1]: `distort` clips it. If `monotone` is False a higher level is not a
    stronger distortion, so the level must not be used as severity.
    """

    name: str
    group: Group
    levels: tuple[float, float, float, float, float]
    function: Function
    monotone: bool = True


# Linear sRGB to CIE XYZ under D65 (IEC 61966-2-1 primaries). The rows sum to the white point.
_XYZ_FROM_RGB = torch.tensor(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ],
    dtype=torch.float64,
)
_RGB_FROM_XYZ = torch.linalg.inv(_XYZ_FROM_RGB)
_WHITE = _XYZ_FROM_RGB.sum(1)
# CIE Lab uses XYZ relative to white and the signed differences f(X) - f(Y), f(Y) - f(Z).
_LAB_FROM_F = torch.tensor(
    [[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]], dtype=torch.float64
)
_F_FROM_LAB = torch.linalg.inv(_LAB_FROM_F)
_LAB_OFFSET = 16.0
_LAB_KNEE = 6 / 29

# ITU-T T.871 (JFIF): full-range BT.601 YCbCr.
_RGB_FROM_YCBCR = torch.tensor([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]])


def _mix(matrix: Tensor, image: Tensor) -> Tensor:
    return torch.einsum("ij,jhw->ihw", matrix.to(image), image)


def lab_from_rgb(image: Tensor) -> Tensor:
    """CIE 1976 L*a*b* under D65 of an sRGB image.

    [3, H, W] float32 in [0, 1] -> [3, H, W] float32, L in [0, 100], a and b signed.
    Formulas: IEC 61966-2-1 (transfer curve), CIE 15 (Lab).
    """
    linear = torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    xyz = _mix(_XYZ_FROM_RGB / _WHITE[:, None], linear)
    toe = xyz / (3 * _LAB_KNEE**2) + 4 / 29
    f = torch.where(xyz > _LAB_KNEE**3, xyz ** (1 / 3), toe)
    lab = _mix(_LAB_FROM_F, f)
    return torch.stack([lab[0] - _LAB_OFFSET, lab[1], lab[2]])


def rgb_from_lab(lab: Tensor) -> Tensor:
    """Inverse of `lab_from_rgb`; colours outside sRGB are clipped per channel in linear light.

    [3, H, W] float32 -> [3, H, W] float32 in [0, 1].
    """
    f = _mix(_F_FROM_LAB, torch.stack([lab[0] + _LAB_OFFSET, lab[1], lab[2]]))
    xyz = torch.where(f > _LAB_KNEE, f**3, 3 * _LAB_KNEE**2 * (f - 4 / 29))
    linear = _mix(_RGB_FROM_XYZ * _WHITE, xyz).clamp(0, 1)
    power = 1.055 * linear ** (1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, 12.92 * linear, power).clamp(0, 1)


def _normal(image: Tensor, generator: Generator) -> Tensor:
    # Drawn on the generator's device, so that a CPU generator gives a CUDA image the same noise.
    noise = torch.randn(image.shape, generator=generator, device=generator.device)
    return noise.to(image.device)


def _uniform(count: int, generator: Generator) -> list[float]:
    values: list[float] = torch.rand(count, generator=generator, device=generator.device).tolist()
    return values


def _convolve(image: Tensor, kernel: Tensor) -> Tensor:
    """Filter each channel with an odd-sized kernel; the border pixels repeat outwards."""
    rows, columns = (side // 2 for side in kernel.shape)
    padded = F.pad(image[:, None], (columns, columns, rows, rows), mode="replicate")
    return F.conv2d(padded, kernel[None, None].to(image))[:, 0]


def _offsets(reach: int) -> tuple[Tensor, Tensor]:
    """Vertical and horizontal distance from the centre of a square kernel."""
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    return steps[:, None], steps[None, :]


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Convolve with exp(-d^2 / (2 sigma^2)), cut at three sigma and normalised."""
    reach = math.ceil(3 * sigma)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.softmax(-(steps**2) / (2 * sigma**2), dim=0)
    return _convolve(_convolve(image, kernel[:, None]), kernel[None, :])


def lens_blur(image: Tensor, radius: float) -> Tensor:
    """Convolve with a disc of this radius whose edge ramps over one pixel."""
    y, x = _offsets(math.ceil(radius))
    kernel = (radius + 0.5 - torch.hypot(x, y)).clamp(0, 1)
    return _convolve(image, kernel / kernel.sum())


def motion_blur(image: Tensor, length: float, generator: Generator) -> Tensor:
    """Average along a straight path of `length` pixels in a random direction.

    A kernel cell weighs 1 - (its distance to the path), at least 0.
    """
    (turn,) = _uniform(1, generator)
    cosine, sine = math.cos(math.pi * turn), math.sin(math.pi * turn)
    y, x = _offsets(math.ceil(length / 2) + 1)
    beyond_end = ((x * cosine + y * sine).abs() - length / 2).clamp(min=0)
    kernel = (1 - torch.hypot(beyond_end, y * cosine - x * sine)).clamp(min=0)
    return _convolve(image, kernel / kernel.sum())


def colour_diffusion(image: Tensor, amount: float) -> Tensor:
    """Blur the Lab chroma with sigma = 1.5 amount + 2 pixels and multiply it by `amount`."""
    lab = lab_from_rgb(image)
    chroma = amount * gaussian_blur(lab[1:], 1.5 * amount + 2)
    return rgb_from_lab(torch.cat([lab[:1], chroma]))


def colour_shift(image: Tensor, distance: float, generator: Generator) -> Tensor:
    """Move the green channel `distance` pixels (rounded per axis) in a random direction."""
    (turn,) = _uniform(1, generator)
    down = round(distance * math.sin(2 * math.pi * turn))
    right = round(distance * math.cos(2 * math.pi * turn))
    height, width = image.shape[1:]
    rows = (torch.arange(height, device=image.device) - down).clamp(0, height - 1)
    columns = (torch.arange(width, device=image.device) - right).clamp(0, width - 1)
    return torch.stack([image[0], image[1][rows][:, columns], image[2]])


def colour_quantisation(image: Tensor, colours: float) -> Tensor:
    """Median-cut palette of this many colours, applied with Floyd-Steinberg dither."""
    picture = _picture_from_image(image)
    # Pillow dithers only with a given palette, hence the two passes.
    palette = picture.quantize(int(colours), method=Image.Quantize.MEDIANCUT)
    dithered = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    return _image_from_picture(dithered, image)


def saturation_hsv(image: Tensor, factor: float) -> Tensor:
    """Multiply the HSV saturation by `factor`; a negative factor gives the opposite hue.

    With hue and value V fixed each channel is V - S V h(hue), so the product is V + factor (C - V)
    and no conversion is needed.
    """
    value = image.amax(0, keepdim=True)
    return value + factor * (image - value)


def saturation_lab(image: Tensor, factor: float) -> Tensor:
    """Multiply the Lab chroma by `factor`. The table's level 1 is factor 1: the image itself."""
    lab = lab_from_rgb(image)
    return rgb_from_lab(torch.cat([lab[:1], factor * lab[1:]]))


def _picture_from_image(image: Tensor) -> Image.Image:
    pixels = (image * 255).round().to(torch.uint8).cpu()
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _image_from_picture(picture: Image.Image, like: Tensor) -> Tensor:
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return pixels.permute(2, 0, 1).contiguous().to(like) / 255


def _coded(image: Tensor, file_format: str, **options: object) -> Tensor:
    buffer = BytesIO()
    _picture_from_image(image).save(buffer, format=file_format, **options)
    return _image_from_picture(Image.open(buffer), image)


def jpeg2000(image: Tensor, ratio: float) -> Tensor:
    """JPEG 2000 with the irreversible wavelet at a compression ratio of `ratio` to 1."""
    rate = {"quality_mode": "rates", "quality_layers": [ratio]}
    return _coded(image, "JPEG2000", irreversible=True, no_jp2=True, **rate)


def jpeg(image: Tensor, quality: float) -> Tensor:
    """Baseline JPEG at this libjpeg quality, chroma halved in both directions."""
    return _coded(image, "JPEG", quality=int(quality), subsampling="4:2:0")


def white_noise(image: Tensor, variance: float, generator: Generator) -> Tensor:
    """Add independent Gaussian noise to every value."""
    return image + math.sqrt(variance) * _normal(image, generator)


def ycbcr_noise(image: Tensor, variance: float, generator: Generator) -> Tensor:
    """Add independent Gaussian noise to Y, Cb and Cr.

    The conversion is linear, so the noise alone is converted.
    """
    noise = _mix(_RGB_FROM_YCBCR, _normal(image, generator))
    return image + math.sqrt(variance) * noise


def impulse_noise(image: Tensor, density: float, generator: Generator) -> Tensor:
    """Replace this fraction of all values, half by 0 and half by 1."""
    draw = torch.rand(image.shape, generator=generator, device=generator.device).to(image.device)
    salted = torch.where(draw > 1 - density / 2, 1.0, image)
    return torch.where(draw < density / 2, 0.0, salted)


def multiplicative_noise(image: Tensor, variance: float, generator: Generator) -> Tensor:
    """Speckle: image (1 + n) with Gaussian n of this variance."""
    return image * (1 + math.sqrt(variance) * _normal(image, generator))


def denoise(image: Tensor, variance: float, generator: Generator) -> Tensor:
    """Add white noise, clip, then remove it with a local Wiener filter over 5 x 5 pixels.

    x^ = m + max(s - v, 0) / max(s, v) (x - m), with local mean m and variance s and the noise
    variance v (Lim, Two-Dimensional Signal and Image Processing, 1990). It stands in for a learned
    denoiser such as DnCNN: what remains is smoothing and blotches, not a network's artefacts.
    """
    noisy = white_noise(image, variance, generator).clamp(0, 1)
    window = torch.full((5, 5), 1 / 25)
    mean = _convolve(noisy, window)
    spread = _convolve(noisy**2, window) - mean**2
    gain = (spread - variance).clamp(min=0) / spread.clamp(min=variance)
    return mean + gain * (noisy - mean)


def _with_lightness(image: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `change` to the Lab lightness [1, H, W], scaled to [0, 1]; chroma stays."""
    lab = lab_from_rgb(image)
    lightness = change(lab[:1] / 100).clamp(0, 1) * 100
    return rgb_from_lab(torch.cat([lightness, lab[1:]]))


def brighten(image: Tensor, amount: float) -> Tensor:
    """Bend the lightness curve: l + 2 amount l (1 - l), which lifts mid-grey by amount / 2.

    Black and white stay; the clipped curve never falls, whatever the amount.
    """
    return _with_lightness(image, lambda light: light + 2 * amount * light * (1 - light))


def darken(image: Tensor, amount: float) -> Tensor:
    """The curve of `brighten` mirrored: mid-grey falls by amount / 2."""
    return brighten(image, -amount)


def mean_shift(image: Tensor, shift: float) -> Tensor:
    """Add `shift` to every value."""
    return image + shift


def high_sharpen(image: Tensor, amount: float) -> Tensor:
    """Unsharp mask on the lightness: l + amount (l - blurred l), sigma 1 pixel."""
    return _with_lightness(image, lambda light: light + amount * (light - gaussian_blur(light, 1)))


def contrast(image: Tensor, change: float) -> Tensor:
    """Scale the distance to mid-grey by 1 + change."""
    return 0.5 + (1 + change) * (image - 0.5)


def jitter(image: Tensor, deviation: float, generator: Generator) -> Tensor:
    """Read each pixel bilinearly at its place plus a Gaussian offset of this many pixels per axis.

    The three channels move together.
    """
    height, width = image.shape[1:]
    y, x = deviation * _normal(image[:2], generator)
    y = y + torch.arange(height, device=image.device)[:, None]
    x = x + torch.arange(width, device=image.device)[None, :]
    # grid_sample counts from -1 at the centre of the first pixel to 1 at that of the last.
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    return F.grid_sample(image[None], grid[None], padding_mode="border", align_corners=True)[0]


def _square(image: Tensor, side: int, y: float, x: float) -> tuple[slice, slice, slice]:
    """Index of a square in [3, H, W]; y and x place it from 0 (top, left) to 1 (bottom, right)."""
    top, left = (
        round(min(max(place, 0.0), 1.0) * (size - side))
        for place, size in zip((y, x), image.shape[1:], strict=True)
    )
    return slice(None), slice(top, top + side), slice(left, left + side)


def non_eccentricity_patch(image: Tensor, count: float, generator: Generator) -> Tensor:
    """Paste `count` squares of the image, each about one side away from where it was read.

    The side is 16 pixels, or half the image where that is less. The count does not grow with the
    image, so a small image is covered more densely.
    """
    side = min(16, min(image.shape[1:]) // 2)
    height, width = (size - side for size in image.shape[1:])
    result = image.clone()
    # One draw per patch: a seed then gives a higher level the patches of a lower one, and more.
    for _ in range(int(count)):
        y, x, turn = _uniform(3, generator)
        source_y = y + side * math.sin(2 * math.pi * turn) / height
        source_x = x + side * math.cos(2 * math.pi * turn) / width
        result[_square(image, side, y, x)] = image[_square(image, side, source_y, source_x)]
    return result


def pixelate(image: Tensor, amount: float) -> Tensor:
    """Sample one pixel per cell of 1 + 10 amount pixels and show each cell flat.

    Averages instead of samples would blur at cells of 1.1 pixels more than at cells of 2, because
    such cells overlap: the levels would not be in order.
    """
    size = [max(1, round(side / (1 + 10 * amount))) for side in image.shape[1:]]
    cells = F.interpolate(image[None], size=size, mode="nearest-exact")
    return F.interpolate(cells, size=image.shape[1:], mode="nearest-exact")[0]


def quantisation(image: Tensor, values: float) -> Tensor:
    """Round every channel to this many evenly spaced values, without dither."""
    return (image * (values - 1)).round() / (values - 1)


def colour_block(image: Tensor, count: float, generator: Generator) -> Tensor:
    """Paste `count` flat squares of random colour at random places.

    The side is 32 pixels, or half the image where that is less.
    """
    side = min(32, min(image.shape[1:]) // 2)
    result = image.clone()
    for _ in range(int(count)):
        y, x, *colour = _uniform(5, generator)
        result[_square(image, side, y, x)] = image.new_tensor(colour)[:, None, None]
    return result


def _fixed(function: Callable[[Tensor, float], Tensor]) -> Function:
    """Give a distortion without randomness the common signature."""
    return lambda image, strength, _: function(image, strength)


_TABLE = (
    Distortion("gaussian_blur", "blur", (0.1, 0.5, 1, 2, 5), _fixed(gaussian_blur)),
    Distortion("lens_blur", "blur", (1, 2, 4, 6, 8), _fixed(lens_blur)),
    Distortion("motion_blur", "blur", (1, 2, 4, 6, 10), motion_blur),
    Distortion("colour_diffusion", "colour", (1, 3, 6, 8, 12), _fixed(colour_diffusion)),
    Distortion("colour_shift", "colour", (1, 3, 6, 8, 12), colour_shift),
    Distortion("colour_quantisation", "colour", (64, 48, 32, 16, 8), _fixed(colour_quantisation)),
    Distortion("saturation_hsv", "colour", (0.4, 0.2, 0.1, 0, -0.4), _fixed(saturation_hsv)),
    Distortion("saturation_lab", "colour", (1, 2, 3, 6, 9), _fixed(saturation_lab)),
    Distortion("jpeg2000", "compression", (16, 32, 45, 120, 400), _fixed(jpeg2000)),
    Distortion("jpeg", "compression", (43, 36, 24, 7, 4), _fixed(jpeg)),
    Distortion("white_noise", "noise", (0.001, 0.002, 0.003, 0.005, 0.01), white_noise),
    Distortion("ycbcr_noise", "noise", (0.0001, 0.0005, 0.001, 0.002, 0.003), ycbcr_noise),
    Distortion("impulse_noise", "noise", (0.001, 0.005, 0.01, 0.02, 0.03), impulse_noise),
    Distortion(
        "multiplicative_noise", "noise", (0.001, 0.005, 0.01, 0.02, 0.05), multiplicative_noise
    ),
    Distortion("denoise", "noise", (0.01, 0.03, 0.05, 0.1, 0.15), denoise),
    Distortion("brighten", "brightness", (0.1, 0.2, 0.4, 0.7, 1.1), _fixed(brighten)),
    Distortion("darken", "brightness", (0.05, 0.1, 0.2, 0.4, 0.8), _fixed(darken)),
    Distortion(
        "mean_shift", "brightness", (0.15, 0.08, 0, -0.08, -0.15), _fixed(mean_shift), False
    ),
    Distortion("jitter", "spatial", (0.05, 0.1, 0.2, 0.5, 1), jitter),
    Distortion("non_eccentricity_patch", "spatial", (20, 40, 60, 80, 100), non_eccentricity_patch),
    Distortion("pixelate", "spatial", (0.01, 0.05, 0.1, 0.2, 0.5), _fixed(pixelate)),
    Distortion("quantisation", "spatial", (20, 16, 13, 10, 7), _fixed(quantisation)),
    Distortion("colour_block", "spatial", (2, 4, 6, 8, 10), colour_block),
    Distortion("high_sharpen", "sharpness_contrast", (1, 2, 3, 6, 12), _fixed(high_sharpen)),
    Distortion(
        "contrast", "sharpness_contrast", (0.3, 0.15, 0, -0.4, -0.6), _fixed(contrast), False
    ),
)
SYNTHETIC_TYPES = {distortion.name: distortion for distortion in _TABLE}


def _check_image(image: Tensor) -> None:
    fits = image.ndim == 3 and image.shape[0] == 3 and min(image.shape[1:]) >= MIN_SIDE
    if not fits or image.dtype != torch.float32:
        raise ValueError(
            f"an image must be float32 [3, H, W] with H, W >= {MIN_SIDE}, "
            f"got {image.dtype} {list(image.shape)}"
        )


def distort(image: Tensor, name: str, level: int, generator: Generator) -> Tensor:
    """Apply one distortion of `SYNTHETIC_TYPES` at level 1 to 5; level 0 is the image itself.

    [3, H, W] float32 in [0, 1] -> the same. Level 0 returns `image`, not a copy, and draws nothing.
    """
    _check_image(image)
    if name not in SYNTHETIC_TYPES:
        raise ValueError(f"unknown distortion {name!r}; choose one of {', '.join(SYNTHETIC_TYPES)}")
    if level not in range(6):
        raise ValueError(f"unknown level {level!r}; choose 0 (no distortion) or 1 to 5")
    if level == 0:
        return image
    distortion = SYNTHETIC_TYPES[name]
    return distortion.function(image, distortion.levels[level - 1], generator).clamp(0, 1)


def compose_blocks(
    image: Tensor,
    assignments: Sequence[Sequence[tuple[str, int]]],
    generator: Generator,
) -> Tensor:
    """Give each block of a g x g grid its own distortion: sum over blocks of mask * D(image).

    [3, H, W] float32 in [0, 1] -> the same. `assignments` has g rows of g (name, level) pairs.
    Block (r, c) covers rows r H // g to (r + 1) H // g, and columns likewise. A distortion sees the
    WHOLE image and is masked afterwards, because blur kernels and codec grids do not fit into a
    block. Each distinct pair is computed once, in reading order, so blocks that share a pair share
    its random draws.
    """
    grid = len(assignments)
    if grid == 0 or any(len(row) != grid for row in assignments):
        raise ValueError(
            f"assignments must be a square grid, got rows of {[len(row) for row in assignments]}"
        )
    pairs = dict.fromkeys(pair for row in assignments for pair in row)
    whole = {(name, level): distort(image, name, level, generator) for name, level in pairs}
    result = torch.empty_like(image)
    height, width = image.shape[1:]
    for r, row in enumerate(assignments):
        for c, pair in enumerate(row):
            rows = slice(r * height // grid, (r + 1) * height // grid)
            columns = slice(c * width // grid, (c + 1) * width // grid)
            result[:, rows, columns] = whole[pair][:, rows, columns]
    return result
