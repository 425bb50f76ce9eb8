"""The memory that a layout may take is more than what a process is seen to take for it."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import heif_files, png_files

from drexperts.runtime.decoding.formats import heif

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="Linux counts the peak of a process"),
]

SIDE = 3000
FIXTURES = Path(__file__).parents[2] / "fixtures" / "heic"
# Prints how much the peak rose while a file was decoded, and what its layout's bound is.
_SCRIPT = """
import gc, json, sys
from pathlib import Path
from drexperts.runtime.decoding import decode
from drexperts.runtime.decoding.layouts import inspect

def bytes_of(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])

content = Path(sys.argv[1]).read_bytes()
stored = inspect(content)
bound = stored.memory + len(stored.data)
del stored
decode(Path(sys.argv[2]).read_bytes())  # whatever the first image loads
gc.collect()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = bytes_of("VmRSS")
image = decode(content)
print(json.dumps([bytes_of("VmHWM") - before, bound]))
"""


def pictures(side, encode):
    """Files of every way to convert, by name."""
    ramp = np.arange(side, dtype=np.uint16)
    colours = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], ramp[::-1]), axis=2) % 256
    colour = Image.fromarray(colours.astype(np.uint8))
    alpha, grey = colour.copy(), colour.convert("L")
    alpha.putalpha(grey)
    turned = Image.Exif()
    turned[0x0112] = 6
    key = [(b"tRNS", b"\0\1\0\2\0\3")]
    small = {"compress_level": 1}
    rows = b"\xff\1" * (side // 255) + bytes([side % 255, 1, 0, 0])
    return {
        "PNG, turned": encode(colour, "PNG", exif=turned, **small),
        "PNG, palette": encode(colour.quantize(50), "PNG", exif=turned, **small),
        "PNG, 16 bits": encode(Image.fromarray(ramp[:, None] + ramp), "PNG", **small),
        "PNG, alpha": encode(alpha, "PNG", exif=turned, **small),
        "PNG, key": png_files.png(colours[:, :64], 8, 2, chunks=key, filters=(0,)),
        "JPEG, progressive": encode(colour, "JPEG", progressive=True, subsampling=0),
        "JPEG, CMYK": encode(colour.convert("CMYK"), "JPEG", exif=turned),
        "JPEG, grey": encode(grey, "JPEG"),
        "GIF": encode(colour.quantize(50), "GIF"),
        "BMP": encode(colour, "BMP"),
        "BMP, alpha": encode(alpha, "BMP"),
        "BMP, runs": _bmp(side, rows * side + b"\0\1"),
        "PNM": encode(colour, "PPM"),
        "PNM, 16 bits": b"P6 %d %d 999\n" % (side, side) + bytes(6 * side * side),
        "PNM, plain": b"P2 %d %d 9\n" % (side, side) + b"7 " * (side * side),
        "WebP": encode(colour, "WEBP", method=0, exif=turned),
        "WebP, alpha": encode(alpha, "WEBP", method=0, lossless=True, quality=0),
        "TIFF": encode(colour, "TIFF", exif=turned),
        "TIFF, one strip": encode(colour, "TIFF", compression="tiff_lzw", strip_size=2**30),
        "TIFF, JPEG": encode(colour, "TIFF", compression="jpeg", strip_size=2**30),
        "TIFF, alpha": encode(alpha, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF, 16 bits": encode(Image.fromarray(ramp[:, None] + ramp), "TIFF"),
        "TIFF, CMYK": encode(colour.convert("CMYK"), "TIFF", exif=turned),
        "JPEG 2000": encode(colour, "JPEG2000"),
        "JPEG 2000, alpha": encode(alpha, "JPEG2000"),
        "JPEG 2000, 16 bits": encode(Image.fromarray(ramp[:, None] + ramp), "JPEG2000"),
        "JPEG 2000, small blocks": encode(grey, "JPEG2000", codeblock_size=(4, 4)),
        "JPEG 2000, tiles": encode(grey, "JPEG2000", tile_size=(16, 16), num_resolutions=1),
        "AVIF": encode(colour, "AVIF", speed=10, exif=turned),
        "AVIF, 4:4:4": encode(colour, "AVIF", speed=10, subsampling="4:4:4"),
        "AVIF, grey": encode(grey, "AVIF", speed=10, subsampling="4:0:0"),
        "AVIF, alpha": encode(alpha, "AVIF", speed=10),
        **(
            {"HEIC": _heic(side, "gradient"), "HEIC, 10 bits": _heic(side, "gradient-10-bit")}
            if heif.available()
            else {}
        ),
    }


def _heic(side, name):
    """A picture of many tiles, which is cropped and turned."""
    tile = heif_files.parts((FIXTURES / f"{name}.heic").read_bytes())
    count = min(-(-side // 64), 31)  # libheif reads at most 1000 items
    numbers = range(2, 2 + count * count)
    items = dict.fromkeys(numbers, tile)
    items[1] = heif_files.grid(count, count, 64 * count, 64 * count)
    kind, properties, content = items[1]
    crop = heif_files.clap_property(64 * count - 1, 64 * count, 0, 0, whole=(64 * count,) * 2)
    items[1] = kind, [*properties, crop, (b"irot", b"\1")], content
    return heif_files.container(b"heic", items, [(b"dimg", 1, tuple(numbers))])


def _bmp(side, rows):
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + header + bytes(1024) + rows


def test_the_bound_of_memory_holds(encode, tmp_path):
    small = pictures(64, encode)
    beyond = {}
    for name, content in pictures(SIDE, encode).items():
        (tmp_path / "large").write_bytes(content)
        (tmp_path / "small").write_bytes(small[name])
        command = [sys.executable, "-c", _SCRIPT, tmp_path / "large", tmp_path / "small"]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        taken, bound = json.loads(run.stdout)
        if not taken <= bound:
            beyond[name] = taken, bound
    assert not beyond
