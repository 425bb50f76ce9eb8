"""Hostile bytes give an image or ImageError, a manifest or BundleError, and nothing else."""

import io
import json
import struct
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import jpeg_files, png_files

from drexperts.runtime.decoding import decode
from drexperts.runtime.decoding.limits import DecodingLimits
from drexperts.runtime.errors import BundleError, ImageError
from drexperts.runtime.manifest import Manifest, read_manifest
from drexperts.runtime.preprocess import Preprocessing, crops_from_image

# Truncated files and broken documents are also in the fast tests of both modules.
pytestmark = pytest.mark.slow

# A small bound keeps forged sizes quick.
LIMITS = DecodingLimits(max_pixels=1_000_000)
SPEC = Preprocessing(crop=16, short_side_min=16, short_side_max=32, crops_per_side=2)


def fuzz(examples):
    return settings(max_examples=examples, suppress_health_check=list(HealthCheck))


def seeds():
    rng = np.random.default_rng(0)
    color = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    variants: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (color, "PNG", {"exif": exif}),
        (color.convert("RGBA"), "PNG", {}),
        (color.convert("P"), "PNG", {"transparency": 3}),
        (color.convert("L").convert("I;16"), "PNG", {}),
        (color, "JPEG", {"exif": exif}),
        (color, "JPEG", {"progressive": True}),
        (color.convert("CMYK"), "JPEG", {}),
        (color, "GIF", {"save_all": True, "append_images": [color.rotate(90)]}),
        (color.convert("P"), "GIF", {"transparency": 3}),
        (color, "WEBP", {"lossless": True, "exif": exif}),
        (color.convert("RGBA"), "WEBP", {}),
        (color, "TIFF", {"exif": exif}),
        (color, "TIFF", {"compression": "tiff_lzw"}),
        (color.convert("L").convert("I;16"), "TIFF", {}),
        (color, "BMP", {}),
        (color.convert("P"), "BMP", {}),
        (color, "PPM", {}),
        (color.convert("1"), "PPM", {}),
        (color.convert("L").convert("I;16"), "PPM", {}),
        (color, "PNG", {"save_all": True, "append_images": [color.rotate(90)]}),
        (color, "JPEG", {"subsampling": 0, "restart_marker_blocks": 1}),
        (color, "MPO", {"save_all": True, "append_images": [color.rotate(90)]}),
        (color, "WEBP", {"save_all": True, "append_images": [color.rotate(90)], "lossless": True}),
        (color.convert("RGBA"), "WEBP", {"lossless": True}),
        (color.convert("RGBA"), "BMP", {}),
        (color.convert("1"), "BMP", {}),
    ]
    for image, format, options in variants:
        stream = io.BytesIO()
        image.save(stream, format, **options)
        yield stream.getvalue()
    yield from written_by_hand(rng)


def written_by_hand(rng):
    """Layouts that Pillow does not write."""
    for bits, type in ((1, 0), (2, 0), (4, 3), (16, 2), (16, 4), (16, 6)):
        values = rng.integers(0, 1 << bits, (9, 13, png_files.CHANNELS[type]))
        chunks = [(b"PLTE", rng.bytes(3 << bits)), (b"tRNS", b"\0\1")] if type == 3 else []
        chunks += [(b"tRNS", b"\0\1")] if type == 0 else []
        yield png_files.png(values, bits, type, chunks=chunks, interlaced=type == 3)
    yield b"P3 2 2 9 # plain\n" + b"1 2 3 " * 4
    yield b"P1 4 2 01 01 0101\n"
    components = [(1, 2, 2), (2, 1, 1), (3, 1, 1), (4, 2, 2)]
    blocks = [rng.integers(0, 256, (2 * down, 2 * down)) for _, _, down in components]
    yield jpeg_files.jpeg((13, 9), components, blocks, segments=jpeg_files.adobe(2), restart=1)
    runs = b"\4\1\0\0\0\4\1\2\3\4\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, 8, 1, 0, 0, 0, 0, 0)
    yield b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + header + rng.bytes(1024) + runs


SEEDS = list(seeds())


@st.composite
def mutated(draw):
    """A seed with overwritten bytes, and a piece cut out or repeated, or the end cut off."""
    content = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 8))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(start + 16, len(content))))
    how = draw(st.sampled_from(("keep", "keep", "cut", "repeat", "truncate")))
    if how == "cut":
        del content[start:end]
    elif how == "repeat":
        content[start:start] = content[start:end] * 3
    elif how == "truncate":
        del content[start:]
    return bytes(content)


@pytest.fixture(autouse=True)
def quiet():
    # Pillow's warnings about damaged files are expected.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_decode(content):
    try:
        image = decode(content, LIMITS)
    except ImageError:
        return
    assert image.mode == "RGB"
    assert min(image.size) >= 1
    assert np.asarray(image).shape == (image.height, image.width, 3)
    crops = crops_from_image(image, SPEC)
    assert 1 <= len(crops.pixels) <= 4


@fuzz(1200)
@given(mutated())
def test_mutated_images(content):
    check_decode(content)


@fuzz(300)
@given(st.sampled_from([b"", *(seed[:12] for seed in SEEDS)]), st.binary(max_size=200))
def test_random_bytes_behind_a_magic_number(magic, content):
    check_decode(magic + content)


def check_manifest(folder, content):
    (folder / "manifest.json").write_bytes(content)
    try:
        assert isinstance(read_manifest(folder), Manifest)
    except BundleError as error:
        str(error).encode()


def json_values():
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters(exclude_categories=()), max_size=8)
        | st.sampled_from([10**400, -1, 2**63, "../x", "model.onnx"])
    )
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        ),
        max_leaves=12,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@fuzz(300)
@given(json_values(), st.booleans())
def test_random_documents(folder, value, with_schema):
    if with_schema and isinstance(value, dict):
        value = value | {"schema": 1}
    check_manifest(folder, json.dumps(value).encode())


@fuzz(200)
@given(st.data())
def test_mutated_manifest_bytes(folder, toy_bundle, data):
    content = bytearray((toy_bundle / "manifest.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    check_manifest(folder, bytes(content))


def places(document, path=()):
    """The path of every value inside a document."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


@fuzz(500)
@given(st.data())
def test_manifest_with_a_value_replaced(folder, toy_bundle, data):
    document = json.loads((toy_bundle / "manifest.json").read_text())
    *parents, last = data.draw(st.sampled_from(list(places(document))))
    target = document
    for key in parents:
        target = target[key]
    target[last] = data.draw(json_values())
    check_manifest(folder, json.dumps(document).encode())
