"""What a file is, by its first bytes, whatever its name says."""

import re

# The names of what is read. Other kinds have a name of their own, which messages show.
READ = ("JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF", "PNM", "JPEG 2000", "AVIF")

# Of several that fit, the first counts.
_BY_FIRST_BYTES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff\xf7", "JPEG-LS"),
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\x8aMNG\r\n\x1a\n", "MNG"),
    (b"\x8bJNG\r\n\x1a\n", "JNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II\x2a\0\x10\0\0\0CR", "a camera's raw file (CR2)"),
    (b"IIRO", "a camera's raw file (ORF)"),
    (b"IIRS", "a camera's raw file (ORF)"),
    (b"MMOR", "a camera's raw file (ORF)"),
    (b"IIU\0", "a camera's raw file (RW2)"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file (RAF)"),
    (b"FOVb", "a camera's raw file (X3F)"),
    (b"\0MRM", "a camera's raw file (MRW)"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"II\x2a\0", "TIFF"),
    (b"MM\0\x2a", "TIFF"),
    (b"II\x2b\0", "TIFF"),
    (b"MM\0\x2b", "TIFF"),
    # Pillow takes these for TIFF, too.
    (b"MM\x2a\0", "TIFF"),
    (b"II\0\x2a", "TIFF"),
    (b"8BPS", "PSD"),
    (b"gimp xcf", "XCF"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\2\0", "CUR"),
    (b"icns", "ICNS"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"PK\3\4", "a ZIP archive"),
    (b"PK\5\6", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"SIMPLE  =", "FITS"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"BPG\xfb", "BPG"),
    (b"FLIF", "FLIF"),
    (b"\x1aE\xdf\xa3", "a Matroska film"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
)

_NETPBM = re.compile(rb"P([1-7fF])[\s#]")

# The brands of ISO's container, ISO/IEC 14496-12.
_BY_BRAND: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b"avif", b"avis"), "AVIF"),
    ((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIF"),
    ((b"crx ",), "a camera's raw file (CR3)"),
    ((b"qt  ",), "a QuickTime film"),
)


def kind_of(data: bytes) -> str | None:
    """What these bytes are, such as "PNG" or "a ZIP archive"; None for the unknown."""
    for first, kind in _BY_FIRST_BYTES:
        if data.startswith(first):
            return kind
    if data[4:8] == b"ftyp":
        return _kind_of_container(data)
    if data.startswith(b"RIFF"):
        return "WebP" if data[8:12] == b"WEBP" else "a RIFF file of sound or film"
    if found := _NETPBM.match(data):
        return {b"7": "PAM", b"f": "PFM", b"F": "PFM"}.get(found[1], "PNM")
    if data.startswith(b"BM") and not any(data[16:18]):  # of its header's size
        return "BMP"
    if data[128:132] == b"DICM":
        return "DICOM"
    return _kind_of_text(data)


def _kind_of_container(data: bytes) -> str:
    """The major brand decides; `mif1` is also what AVIF may say, beside its own brand."""
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[i : i + 4] for i in range(16, size - 3, 4))]
    if brands[0] in (b"mif1", b"msf1") and {b"avif", b"avis"} & set(brands):
        return "AVIF"
    for names, kind in _BY_BRAND:
        if brands[0] in names:
            return kind
    return "a film (MP4)"


def _kind_of_text(data: bytes) -> str | None:
    start = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    if b"<svg" in start and start.startswith(b"<"):
        return "SVG"
    return "XML" if start.startswith(b"<?xml") else None
