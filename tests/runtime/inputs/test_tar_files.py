"""Images in tar archives: which members are read, and what damage costs."""

import bz2
import gzip
import io
import lzma
import random
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
from support.archives import member, png, write_tar

from drexperts.runtime.errors import ImageError
from drexperts.runtime.inputs.listed import ListedImage
from drexperts.runtime.inputs.remote import opened
from drexperts.runtime.inputs.tar_files import tar_images

PNG = png(7)
FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def read(image: ListedImage) -> bytes | str:
    """An image's bytes, or why it has none."""
    assert image.read is not None
    found = image.read()
    if isinstance(found, bytes):
        return found
    with pytest.raises(ImageError) as raised:
        found()
    return str(raised.value)


def images_in(path: Path, largest: int = 10**6) -> tuple[dict[str, bytes | str], Counter[str]]:
    others = Counter[str]()
    images = tar_images(
        path.name, partial(opened, str(path)), largest, lambda s: others.update([s])
    )
    return {image.source: read(image) for image in images}, others


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"])
def test_members_in_order(tmp_path: Path, format: str, suffix: str) -> None:
    names = ["b.png", "a.PNG", "folder/c.jpg", f"{'long/' * 30}{'name' * 20}.png"]
    if format == "ustar":
        names[-1] = f"{'long/' * 15}{'name' * 20}.png"
    path = write_tar(tmp_path / f"x{suffix}", [(name, PNG) for name in names], FORMATS[format])
    found, others = images_in(path)
    assert list(found) == [f"x{suffix}/{name}" for name in names]
    assert set(found.values()) == {PNG}
    assert not others


def test_names_that_are_not_utf_8_are_kept(tmp_path: Path) -> None:
    name = b"\xff caf\xe9.png".decode("utf-8", "surrogateescape")
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        tar.addfile(member(name, len(PNG)), io.BytesIO(PNG))
    assert list(images_in(path)[0]) == [f"x.tar/{name}"]


def test_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "x.tar",
        [
            (member("folder.png", type=tarfile.DIRTYPE), b""),
            (member("soft", type=tarfile.SYMTYPE, linkname="a.png"), b""),
            ("a.png", PNG),
            (member("null", type=tarfile.CHRTYPE), b""),
            ("a.json", b"{}"),
            ("a.cls", b"1"),
            ("b.json", b"{}"),
            ("._a.png", b"resource"),
            (".hidden/b.png", PNG),
            ("./b.png", PNG),
            ("./.c.png", PNG),
        ],
    )
    found, others = images_in(path)
    assert list(found) == ["x.tar/a.png", "x.tar/b.png"]
    assert others == {".json": 2, ".cls": 1, "": 2}


def test_a_link_that_is_named_like_an_image_costs_its_own_row(tmp_path: Path) -> None:
    """`tar` stores the second of two hard links as one, and nobody would miss it."""
    links = {"hard": tarfile.LNKTYPE, "soft": tarfile.SYMTYPE, "pipe": tarfile.FIFOTYPE}
    members = [(member(f"{n}.png", type=kind, linkname="a.png"), b"") for n, kind in links.items()]
    found, others = images_in(write_tar(tmp_path / "x.tar", [("a.png", PNG), *members]))
    assert list(found) == [f"x.tar/{name}.png" for name in ("a", *links)]
    assert all("--hard-dereference" in str(found[f"x.tar/{name}.png"]) for name in links)
    assert not others


@pytest.mark.parametrize("between", [0, 5 * 512, 2**20])
def test_archives_that_were_joined(tmp_path: Path, between: int) -> None:
    parts = [write_tar(tmp_path / n, [(f"{n}.png", PNG)]).read_bytes() for n in ("a.tar", "b.tar")]
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(between).join(parts))
    assert images_in(path)[0] == {"x.tar/a.tar.png": PNG, "x.tar/b.tar.png": PNG}
    path.write_bytes(path.read_bytes()[: len(parts[0]) + between + 1024])
    assert "cut off; 2 images" in str(images_in(path)[0]["x.tar"])


def test_zeros_in_the_middle_are_not_the_end(tmp_path: Path) -> None:
    """As a disk leaves where it lost what was written."""
    path = write_tar(tmp_path / "x.tar", [(f"{i}.png", b"x" * 3000) for i in range(1, 5)])
    data = bytearray(path.read_bytes())
    start = data.index(b"2.png")
    data[start : start + 4096] = bytes(4096)
    path.write_bytes(data)
    found, _ = images_in(path)
    assert list(found) == ["x.tar/1.png", "x.tar"]


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".tar.gz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_in_pieces(tmp_path: Path, suffix: str) -> None:
    data = write_tar(tmp_path / "w.tar", [(f"{i}.png", PNG) for i in range(9)]).read_bytes()
    path = tmp_path / f"x{suffix}"
    pieces = [data[i : i + 700] for i in range(0, len(data), 700)]
    path.write_bytes(b"".join(map(COMPRESS[suffix], pieces)))
    assert images_in(path)[0] == {f"x{suffix}/{i}.png": PNG for i in range(9)}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_bit_that_flipped_is_noticed(tmp_path: Path, suffix: str) -> None:
    images = [(f"{i}.png", random.Random(i).randbytes(300_000)) for i in range(3)]
    path = write_tar(tmp_path / f"x{suffix}", images)
    data = bytearray(path.read_bytes())
    data[len(data) * 5 // 6] ^= 1
    path.write_bytes(data)
    found, _ = images_in(path)
    assert suffix == ".tar.bz2" or found[f"x{suffix}/0.png"] == images[0][1]
    assert "images before the damage were read" in str(found[f"x{suffix}"])


def sparse_tar(path: Path, size: int, data: bytes) -> Path:
    """A member of GNU's sparse form: `data` at its beginning, and a hole up to `size`."""
    info = member("hole.png", len(data), type=tarfile.GNUTYPE_SPARSE)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, len(data))
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    padding = bytes(-len(data) % 512)
    path.write_bytes(bytes(header) + data + padding + bytes(1024))
    return path


def test_sparse_members(tmp_path: Path) -> None:
    path = sparse_tar(tmp_path / "x.tar", len(PNG) + 100, PNG)
    assert images_in(path)[0] == {"x.tar/hole.png": PNG + bytes(100)}


def test_a_member_that_is_too_large_costs_its_own_row(tmp_path: Path) -> None:
    """A hole of a terabyte takes no bytes in the archive."""
    for path in (
        sparse_tar(tmp_path / "x.tar", 2**32, PNG),
        write_tar(tmp_path / "y.tar", [("a.png", bytes(5000)), ("b.png", PNG)]),
    ):
        found, _ = images_in(path, largest=4999)
        first, *rest = found.values()
        assert "4999 may be read" in str(first)
        assert rest in ([], [PNG])


def test_the_same_name_twice_comes_twice(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.png", PNG), ("./a.png", png(9))])
    images = tar_images("x.tar", partial(opened, str(path)), 10**6, lambda suffix: None)
    assert [image.source for image in images] == ["x.tar/a.png"] * 2


def test_members_are_not_read_unless_asked_for(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [(f"{i}.png", png(i)) for i in range(5)])
    images = tar_images("x.tar", partial(opened, str(path)), 10**6, lambda suffix: None)
    assert [read(image) for i, image in enumerate(images) if i % 2] == [png(1), png(3)]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_an_archive_that_was_cut_off(tmp_path: Path, suffix: str) -> None:
    """At every length: what is complete is read, and the archive is a row with an error."""
    names = [f"{'deep/' * 25}{'name' * 20}{i}.png" for i in range(3)]
    whole = write_tar(tmp_path / f"whole{suffix}", [(name, PNG) for name in names]).read_bytes()
    path = tmp_path / f"x{suffix}"
    step = 97 if suffix == ".tar" else 5
    last = -1024 if suffix == ".tar" else -12  # what follows is padding, or a checksum
    counts = set()
    for length in range(0, len(whole.rstrip(b"\0") if suffix == ".tar" else whole[:last]), step):
        path.write_bytes(whole[:length])
        found, _ = images_in(path)
        good = [name for name, data in found.items() if data == PNG]
        assert good == [f"x{suffix}/{name}" for name in names[: len(good)]]
        # The end of a compressed archive holds zeros: all may be there without it.
        assert f"x{suffix}" in found or (suffix == ".tar.gz" and len(good) == 3), length
        assert len(found) <= len(good) + 2
        counts.add(len(good))
    assert counts >= {0, 1, 2}


def test_an_archive_without_its_end_mark_was_cut_off(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.png", PNG)])
    path.write_bytes(path.read_bytes()[: 512 + 512 * (-(-len(PNG) // 512))])
    found, _ = images_in(path)
    assert found["x.tar/a.png"] == PNG
    assert "it was cut off; 1 images before the damage were read" in str(found["x.tar"])


@pytest.mark.parametrize("content", [b"", b"junk", b"junk" * 1000, b"\x1f\x8b junk" * 99])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    found, _ = images_in(path)
    assert list(found) == ["x.tar"]


def test_an_empty_archive(tmp_path: Path) -> None:
    assert images_in(write_tar(tmp_path / "x.tar", [])) == ({}, Counter())


def test_a_missing_archive(tmp_path: Path) -> None:
    assert "No such file" in str(images_in(tmp_path / "x.tar")[0]["x.tar"])


def test_a_header_in_the_middle_that_is_damaged(tmp_path: Path) -> None:
    """`tarfile` takes it for the end, and would pass over everything behind it."""
    path = write_tar(tmp_path / "x.tar", [(f"{i}.png", PNG) for i in range(3)], tarfile.GNU_FORMAT)
    data = bytearray(path.read_bytes())
    place = data.index(b"1.png")
    data[place] ^= 1
    path.write_bytes(data)
    found, _ = images_in(path)
    assert list(found) == ["x.tar/0.png", "x.tar"]
    assert "1 images before the damage were read" in str(found["x.tar"])


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_header_that_would_fill_the_memory(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "x.tar"
    info = member("long", 2**33, type=kind)
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**21))
    found, _ = images_in(path)
    assert "a header of 8589934592 bytes" in str(found["x.tar"])


def test_flipped_bytes_never_raise(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "w.tar", [(f"{'x' * 120}{i}.png", PNG) for i in range(4)])
    draw, path = random.Random(0), tmp_path / "x.tar"
    for _ in range(300):
        data = bytearray(whole.read_bytes())
        for place in draw.sample(range(len(data)), 20):
            data[place] = draw.randrange(256)
        path.write_bytes(data)
        images_in(path)


def many_members(count: int) -> Iterable[tuple[str, bytes]]:
    return ((f"{'folder' * 10}/{i:09}.png", PNG) for i in range(count))


def test_memory_does_not_grow_with_the_archive(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", many_members(10_000), tarfile.GNU_FORMAT)
    images = tar_images("x.tar", partial(opened, str(path)), 10**6, lambda suffix: None)
    for _, image in zip(range(500), images, strict=False):
        read(image)
    tracemalloc.start()
    assert sum(1 for image in images if read(image) == PNG) == 9_500
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**21


def test_a_member_of_negative_size(tmp_path: Path) -> None:
    """Which some versions of `tarfile` read for ever."""
    header = bytearray(member("a.png", 0).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 11 + b"\x00"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(header) + bytes(1024))
    assert "negative" in str(images_in(path)[0]["x.tar"])
