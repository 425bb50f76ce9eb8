import io
import struct

import pytest
from PIL import Image

from drexperts.runtime.decoding import decode
from drexperts.runtime.decoding.kinds import READ, kind_of
from drexperts.runtime.errors import ImageError


def ftyp(*brands):
    content = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (4 + len(content)).to_bytes(4, "big") + content


def icons(type):
    """A file of one icon or cursor."""
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, 40, 22)
    return struct.pack("<HHH", 0, type, 1) + entry + bytes(40)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF87a", "GIF"),
        (b"GIF89a", "GIF"),
        (b"BM", "BMP"),
        *((b"P%d\n" % type, "PNM") for type in range(1, 7)),
        (b"P7\n", "PAM"),
        (b"Pf\n", "PFM"),
        (b"PF\n", "PFM"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WebP"),
        (b"RIFF\0\0\0\0WAVEfmt ", "a RIFF file of sound or film"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"II+\0\x08\0\0\0", "TIFF"),
        (b"MM\0+\0\x08\0\0", "TIFF"),
        (b"II*\0\x10\0\0\0CR\2\0", "a camera's raw file (CR2)"),
        (b"IIRO\x08\0\0\0", "a camera's raw file (ORF)"),
        (b"IIU\0\x18\0\0\0", "a camera's raw file (RW2)"),
        (b"FUJIFILMCCD-RAW 0201", "a camera's raw file (RAF)"),
        (ftyp(b"crx ", b"isom"), "a camera's raw file (CR3)"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51\0", "JPEG 2000"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xff\x0a\xfa", "JPEG XL"),
        (b"\xff\xd8\xff\xf7", "JPEG-LS"),
        (b"II\xbc\1", "JPEG XR"),
        (ftyp(b"avif", b"mif1"), "AVIF"),
        (ftyp(b"avis", b"avif"), "AVIF"),
        (ftyp(b"mif1", b"avif", b"miaf"), "AVIF"),
        (ftyp(b"heic", b"mif1"), "HEIC"),
        (ftyp(b"mif1", b"heic"), "HEIC"),
        (ftyp(b"heix"), "HEIC"),
        (ftyp(b"isom", b"mp42"), "a film (MP4)"),
        (ftyp(b"qt  "), "a QuickTime film"),
        (b"8BPS\0\1", "PSD"),
        (icons(1), "ICO"),
        (icons(2), "CUR"),
        (icons(1)[:10], None),
        # Uncompressed TGA of 48x40 pixels.
        (b"\0\0\2" + bytes(9) + b"\x30\0\x28\0\x18\0" + bytes(100), None),
        (b"\0\0\2" + bytes(99) + bytes(8) + b"TRUEVISION-XFILE.\0", "TGA"),
        (b"%PDF-1.7", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
        (b"\xc5\xd0\xd3\xc6", "EPS"),
        (b"PK\3\4", "a ZIP archive"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"\x76\x2f\x31\1", "OpenEXR"),
        (b"#?RADIANCE\n", "Radiance HDR"),
        (b"DDS |", "DDS"),
        (b"qoif", "QOI"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\n <HTML><body>", "HTML"),
        (b'<?xml version="1.0"?>\n<svg xmlns="">', "SVG"),
        (b"<svg/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><a/>", "XML"),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "a pointer of Git LFS, not the file itself",
        ),
        (b"", None),
        (b"P", "text"),
        (b"P8\n", "text"),
        (b"P5th Avenue", "text"),
        (b"Pfad", "text"),
        (b"BMW is not a picture", "text"),
        (b"no image", "text"),
        (b"PyP 1 1", "text"),
        (b"P0CMYK", "text"),
        ("ein schönes Bild ".encode() * 100, "text"),
        ("ö".encode() * 600, "text"),
        ("x".encode("utf-16"), "text (UTF-16)"),
        (b'{"layers": []}', "text"),
        (b"<!-- cached --><html></html>", "HTML"),
        (b"<head><meta charset=utf-8>", "HTML"),
        (b"\xe9t\xe9", None),
        (b"text\x1b[31m", None),
        (b"BZh91AY", "a bzip2 archive"),
        (bytes(257) + b"ustar\0", "a tar archive"),
        (b"\1\0\0\0" + bytes(36) + b" EMF", "EMF"),
        (bytes(200), None),
    ],
)
def test_first_bytes_decide(content, kind):
    assert kind_of(content) == kind
    with pytest.raises(ImageError):
        decode(content)


def test_what_pillow_writes():
    names = {"WEBP": "WebP", "PPM": "PNM", "JPEG2000": "JPEG 2000"}
    for format in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "MPO"):
        stream = io.BytesIO()
        Image.new("RGB", (8, 8)).save(stream, format)
        kind = kind_of(stream.getvalue())
        assert kind == names.get(format, "JPEG" if format == "MPO" else format)
        assert kind in READ


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\x0a\xfa", "it is JPEG XL, which is not read"),
        (b"%!PS-Adobe", "it is PostScript, which is not read"),
        (b"\x80 no image", "it is of an unknown format, not JPEG or PNG"),
        (b"not an image", "it is text, which is not read"),
        (b"", "it is empty"),
    ],
)
def test_reasons(content, reason):
    with pytest.raises(ImageError, match=reason):
        decode(content)


@pytest.mark.parametrize("kind", READ)
def test_nothing_is_denied_to_be_what_it_is(kind):
    firsts = {
        "JPEG": b"\xff\xd8\xff",
        "PNG": b"\x89PNG\r\n\x1a\n",
        "WebP": b"RIFF\4\0\0\0WEBP",
        "BMP": b"BM",
        "GIF": b"GIF89a",
        "TIFF": b"II*\0",
        "PNM": b"P6\n",
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
        "AVIF": ftyp(b"avif"),
    }
    with pytest.raises(ImageError) as caught:
        decode(firsts[kind] + b"no more")
    assert "which is not read" not in str(caught.value)
    assert "unknown format" not in str(caught.value)
