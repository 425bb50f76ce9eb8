"""What a file is, by its first bytes, whatever its name says."""

import codecs
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
    (b"\n\5\1", "PCX"),
    (b"\1\xda\0\1", "SGI"),
    (b"\1\xda\1\1", "SGI"),
    (b"\x59\xa6\x6a\x95", "a Sun raster"),
    (b"BLP1", "BLP"),
    (b"BLP2", "BLP"),
    (b"\xabKTX ", "KTX"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"AT&TFORM", "DjVu"),
    (b"/* XPM */", "XPM"),
    (b"icns", "ICNS"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"PK\3\4", "a ZIP archive"),
    (b"PK\5\6", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zst (Zstandard) archive"),
    (b"SIMPLE  =", "FITS"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"BPG\xfb", "BPG"),
    (b"FLIF", "FLIF"),
    (b"\x1aE\xdf\xa3", "a Matroska film"),
    (b"\0\0\1\xba", "an MPEG film"),
    (b"\0\0\1\xb3", "an MPEG film"),
    (b"FLV\1", "a Flash video (FLV)"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a film or sound (ASF)"),
    (b"OggS", "sound or film (Ogg)"),
    (b"fLaC", "sound (FLAC)"),
    (b"ID3", "sound (MP3)"),
    (b"\xff\xfb", "sound (MP3)"),
    (b"\x7fELF", "a program (ELF)"),
    (b"MZ\x90\0", "a program (PE)"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x93NUMPY", "a NumPy array (npy)"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"MATLAB 5.0", "a MATLAB file"),
    (b"\x80\4\x95", "a Python pickle"),
    (b"\xff\xfe", "text (UTF-16)"),
    (b"\xfe\xff", "text (UTF-16)"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
)

_WITHIN: tuple[tuple[int, bytes, str], ...] = (
    (40, b" EMF", "EMF"),
    (128, b"DICM", "DICOM"),
    (257, b"ustar", "a tar archive"),
)

_OF_HTML = (b"<!doctype html", b"<html", b"<head", b"<body")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")
_NETPBM = re.compile(rb"P([1-7fF])[\s#]")

# The brands of ISO's container, ISO/IEC 14496-12.
_BY_BRAND: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b"avif", b"avis"), "AVIF"),
    ((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    ((b"crx ",), "a camera's raw file (CR3)"),
    ((b"qt  ",), "a QuickTime film"),
)


def with_article(kind: str) -> str:
    """Such as "a PNG" or "an AVIF"."""
    return f"{'an' if kind == 'AVIF' else 'a'} {kind}"


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
    if data[:4] in (b"\0\0\1\0", b"\0\0\2\0") and _lists_icons(data):
        return "ICO" if data[2] == 1 else "CUR"
    if data.endswith(b"TRUEVISION-XFILE.\0"):
        return "TGA"
    for start, part, kind in _WITHIN:
        if data.startswith(part, start):
            return kind
    return _kind_of_text(data)


def _lists_icons(data: bytes) -> bool:
    """Whether there is a first icon behind the list of icons; TGA begins like an empty list."""
    count, start = int.from_bytes(data[4:6], "little"), int.from_bytes(data[18:22], "little")
    return count > 0 and 6 + 16 * count <= start < len(data)


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
    if start.startswith(b"<"):
        if start.startswith(_OF_HTML) or b"<html" in start:
            return "HTML"
        if b"<svg" in start:
            return "SVG"
        if start.startswith(b"<?xml"):
            return "XML"
    return "text" if start and not _CONTROL.search(start) and _begins_utf_8(start) else None


def _begins_utf_8(start: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return True
