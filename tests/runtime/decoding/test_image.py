import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from support.png_files import chunk, png

from drexperts.runtime.decoding import decode, decoder_version, describe
from drexperts.runtime.decoding.limits import DecodingLimits
from drexperts.runtime.decoding.orientation import _METHODS
from drexperts.runtime.errors import ImageError


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image)


# Sources


def test_every_kind_of_source_gives_the_same_pixels(photo, encode, tmp_path):
    image = photo(40, 30)
    content = encode(image, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    for source in (path, str(path), content, image, np.asarray(image)):
        np.testing.assert_array_equal(pixels(decode(source)), np.asarray(image))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000"])
def test_allowed_formats(format, photo, encode):
    assert decode(encode(photo(40, 30), format)).size == (40, 30)


@pytest.mark.parametrize("size", [(1, 50_000_000), (50_000_000, 1)])
def test_rows_of_few_pixels_take_memory_by_themselves(size):
    content = png(np.zeros((1, 1, 1), int), 8, 0)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
    content = content[:8] + header + content[8 + len(header) :]
    with pytest.raises(ImageError, match="MiB of memory"):
        decode(content)


@pytest.mark.parametrize("format", ["ICO", "EPS", "TGA", "PDF", "DDS", "PCX", "SGI"])
def test_other_formats_are_refused(format, photo, encode):
    with pytest.raises(ImageError, match="is not read"):
        decode(encode(photo(40, 30), format))


def test_array_shapes():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(pixels(decode(grey)), expected)
    np.testing.assert_array_equal(pixels(decode(grey[:, :, None])), expected)
    color = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    np.testing.assert_array_equal(pixels(decode(color)), color)
    np.testing.assert_array_equal(pixels(decode(color[::-1, ::2])), color[::-1, ::2])
    rgba = np.dstack([color, np.full((3, 4), 255, np.uint8)])
    np.testing.assert_array_equal(pixels(decode(rgba)), color)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint16),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0), np.uint8),
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(ImageError, match="<array"):
        decode(array)


@pytest.mark.parametrize("source", [None, 3, object(), ["a.jpg"], {"a": 1}])
def test_other_sources_are_refused(source):
    with pytest.raises(ImageError, match="give a path, bytes"):
        decode(source)


def test_describe_and_decoder_version(photo, tmp_path):
    assert describe(tmp_path / "a.png") == str(tmp_path / "a.png")
    assert describe(b"abc") == "<3 bytes>"
    assert describe(photo(4, 3)) == "<RGB image 4x3>"
    assert describe(np.zeros((3, 4), np.uint8)) == "<array uint8 3x4>"
    assert decoder_version("a.jpg") == decoder_version(b"") != decoder_version(photo(4, 3))
    assert "Pillow " in decoder_version(b"")
    assert decoder_version(np.zeros((1, 1), np.uint8)) == "caller's pixels"


# Unreadable files


def test_missing_folder_and_hostile_paths(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path, "a\0b", ""):
        with pytest.raises(ImageError, match=r"no such file|it is no file"):
            decode(path)


def test_message_names_source_and_cause(tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"not an image at all")
    with pytest.raises(ImageError, match=r"broken\.jpg as an image: it is text"):
        decode(path)


def test_empty_file():
    with pytest.raises(ImageError, match="<0 bytes> as an image: it is empty"):
        decode(b"")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_truncated_files(format, photo, encode):
    content = encode(photo(40, 30), format)
    with pytest.raises(ImageError):
        decode(content[: len(content) // 2])


def test_image_without_pixels():
    with pytest.raises(ImageError, match="no pixels"):
        decode(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("side", [10_001, 20_000])
def test_bound_is_checked_before_decoding(side, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    content = png(np.zeros((1, 1, 3), int), 8, 2)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    forged = content[:8] + chunk(b"IHDR", header) + content[33:]
    with pytest.raises(ImageError, match=f"{side}x{side} is more than 100000000 pixels"):
        decode(forged)


def test_bound_holds_for_images_and_arrays(photo):
    for source in (photo(11, 10), np.zeros((10, 11), np.uint8)):
        with pytest.raises(ImageError, match="more than 100 pixels"):
            decode(source, DecodingLimits(max_pixels=100))


@pytest.mark.slow
def test_bomb_warning_does_not_print():
    # In another process, because pytest replaces the warning filters of this one.
    code = (
        "import io; from PIL import Image; from drexperts.runtime.decoding import decode\n"
        "stream = io.BytesIO(); Image.new('1', (9500, 9500)).save(stream, 'TIFF')\n"
        "print(decode(stream.getvalue()).size)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "(9500, 9500)"
    assert result.stderr == ""


# Colours


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(orientation, format, photo, encode):
    image = photo(40, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    options |= {"lossless": True} if format == "WEBP" else {}
    decoded = decode(encode(image, format, exif=exif, **options))
    method = _METHODS.get(orientation)
    expected = image if method is None else image.transpose(method)
    assert np.abs(pixels(decoded).astype(int) - np.asarray(expected)).mean() < 3
    np.testing.assert_array_equal(pixels(decode(decoded)), pixels(decoded))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM"])
def test_unreadable_exif_is_ignored(exif, photo, encode):
    assert decode(encode(photo(40, 24), "JPEG", exif=exif)).size == (40, 24)


@pytest.mark.parametrize("error", [struct.error, KeyError, SyntaxError, OverflowError])
def test_whatever_exif_raises_is_ignored(error, photo, monkeypatch):
    image = photo(40, 24)
    monkeypatch.setattr(image, "getexif", lambda: (_ for _ in ()).throw(error("damaged")))
    assert decode(image).size == (40, 24)


def test_orientation_beside_damaged_tags_is_applied(photo, encode):
    # Orientation 6, then a tag whose value lies beyond the end of the block.
    tags = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x8769, 4, 1, 2**31)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + struct.pack("<I", 0)
    assert decode(encode(photo(40, 24), "JPEG", exif=exif)).size == (24, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_alpha_is_composited_over_white(mode):
    source = {"RGBa": "RGBA", "La": "LA", "PA": "P"}.get(mode, mode)
    if mode == "PA":
        image = Image.new("P", (2, 1), 0)
        image.putpalette([0, 0, 0])
        image = image.convert("PA")
        image.putalpha(Image.frombytes("L", (2, 1), b"\0\x80"))
    else:
        fill = (0, 0, 0, 0) if source == "RGBA" else (0, 0)
        image = Image.new(source, (2, 1), fill)
        image.putpixel((1, 0), (*fill[:-1], 128))
        image = image.convert(mode)
    np.testing.assert_array_equal(pixels(decode(image))[0], [[255] * 3, [127] * 3])


@pytest.mark.parametrize(
    ("mode", "key", "opaque"),
    [
        ("P", 0, (9, 9, 9)),
        ("P", b"\0\xff", (9, 9, 9)),
        ("L", 0, (9, 9, 9)),
        ("RGB", (0, 0, 0), (9, 9, 9)),
        ("I;16", 0, (9, 9, 9)),
    ],
)
def test_transparency_key_becomes_white(mode, key, opaque, encode):
    image = Image.new(mode, (2, 1), 0)
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9])
    values: dict[str, int | tuple[int, ...]] = {"P": 1, "L": 9, "RGB": (9, 9, 9), "I;16": 9 * 257}
    image.putpixel((1, 0), values[mode])
    expected = [(255, 255, 255), opaque]
    image.info["transparency"] = key
    np.testing.assert_array_equal(pixels(decode(image))[0], expected)
    if mode != "I;16":  # Pillow writes no transparent colour for 16 bits
        np.testing.assert_array_equal(
            pixels(decode(encode(image, "PNG", transparency=key)))[0], expected
        )


def test_transparent_gif(encode):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 9, 9, 9])
    image.putpixel((1, 0), 1)
    decoded = decode(encode(image, "GIF", transparency=0))
    np.testing.assert_array_equal(pixels(decoded)[0], [[255] * 3, [9] * 3])


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bit_grey_is_scaled_not_clipped(mode):
    values = np.array([[0, 128, 129, 256, 257, 32768, 65406, 65535]])
    stored = values.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode])
    image = Image.frombytes(mode, (8, 1), stored.tobytes())
    expected = np.round(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(pixels(decode(image))[:, :, 1], expected)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_files(format, encode):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    decoded = decode(encode(Image.fromarray(values), format))
    np.testing.assert_array_equal(pixels(decoded)[0, :, 0], [0, 1, 128, 255])


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bit_integers_are_refused(value):
    with pytest.raises(ImageError, match=r"outside 0\.\.65535"):
        decode(Image.new("I", (2, 2), value))


def test_floating_point_is_refused(encode):
    image = Image.new("F", (2, 2), 0.5)
    for source in (image, encode(image, "TIFF")):
        with pytest.raises(ImageError, match="floating-point"):
            decode(source)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"])
def test_other_modes_come_through_pillow(mode, photo):
    image = photo(20, 10)
    image = image.convert("LAB" if mode == "LAB" else mode)
    np.testing.assert_array_equal(pixels(decode(image)), np.asarray(image.convert("RGB")))


def test_adobe_cmyk_jpeg_is_not_inverted(encode):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    assert np.abs(pixels(decode(encode(image, "JPEG"))).astype(int) - (255, 0, 0)).max() < 4


def test_animation_gives_its_first_frame(encode):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    for format, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        content = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(pixels(decode(content))[0, 0], [255, 0, 0])


def test_icc_profile_is_ignored(photo, encode):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = photo(16, 16)
    np.testing.assert_array_equal(
        pixels(decode(encode(image, "PNG", icc_profile=profile))), np.asarray(image)
    )


# The application's Pillow

# What an application may do to Pillow, and what becomes of reading: nothing, or a refusal.
_APPLICATIONS = {
    "nothing": "",
    "replaced openers": (
        "for name in list(Image.OPEN):\n"
        "    Image.register_open(name, lambda *_: Image.new('RGB', (1, 1)), lambda prefix: True)\n"
        "Image.preinit = Image.init = lambda *_: None\n"
    ),
    "no openers": "Image.ID.clear(); Image.OPEN.clear()\n",
    "no limit": "Image.MAX_IMAGE_PIXELS = None\n",
    "a small limit": "Image.MAX_IMAGE_PIXELS = 4\n",
    "truncated images": "ImageFile.LOAD_TRUNCATED_IMAGES = True\n",
    "raw alpha": "BmpImagePlugin.USE_RAW_ALPHA = True\n",
    "another block": "ImageFile.MAXBLOCK = 7\n",
    "GIF as RGB": "GifImagePlugin.LOADING_STRATEGY = GifImagePlugin.LoadingStrategy.RGB_ALWAYS\n",
}
_SCRIPT = """
import hashlib, sys, warnings
from pathlib import Path
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile
{application}
from drexperts.runtime.decoding import decode
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, hashlib.sha256(decode(path).tobytes()).hexdigest())
    except Exception as cause:
        print(path.name, type(cause).__name__)
"""
_MIGRATED = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("pictures")
    values = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    for format in _MIGRATED:
        Image.fromarray(values).save(folder / f"picture.{format}", format)
    return folder


def read_by(application, folder, *options):
    """What each picture becomes in a process of this application."""
    script = _SCRIPT.format(application=_APPLICATIONS[application])
    command = [sys.executable, *options, "-c", script, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return dict(line.split() for line in result.stdout.splitlines())


@pytest.fixture(scope="module")
def expected(pictures):
    """What the pictures become where nobody touched Pillow."""
    found = read_by("nothing", pictures)
    assert len(found) == len(_MIGRATED)
    assert "ImageError" not in found.values()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("application", _APPLICATIONS)
def test_an_application_changes_no_pixels(application, pictures, expected):
    found = read_by(application, pictures, "-W", "error")
    if application == "truncated images":
        assert set(found.values()) == {"ImageError"}
    for name, became in found.items():
        assert became in (expected[name], "ImageError")
    if application in ("nothing", "replaced openers", "no openers", "no limit", "raw alpha"):
        assert found == expected


def test_truncated_images_are_refused_while_the_application_allows_them(photo, encode, monkeypatch):
    content = encode(photo(40, 30), "PNG")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="LOAD_TRUNCATED_IMAGES"):
        decode(content)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    assert decode(content).size == (40, 30)
