"""The same images as a folder, a list, a tar archive and a Parquet file."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
from PIL import Image

FOLDER, LIST, TAR, PARQUET = "folder", "list", "tar", "Parquet"
_ROWS = 100  # per row group, as Hugging Face writes images


def write_all(image: bytes, count: int, folder: Path) -> dict[str, Path]:
    """Write an image so many times in each form; returns the path of each form."""
    paths = {name: folder / file for name, file in _FILES.items()}
    for name, write in _WRITERS.items():
        write(image, count, paths[name])
    write_list(paths[LIST], paths[FOLDER], count)
    return paths


def write_tar(image: bytes, count: int, path: Path) -> None:
    """Write a tar archive of an image so many times."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in _names(count):
            member = tarfile.TarInfo(name)
            member.size = len(image)
            tar.addfile(member, io.BytesIO(image))


def write_list(path: Path, folder: Path, count: int) -> None:
    """Write a list of the images of a folder, which need not be there."""
    with path.open("w") as lines:
        lines.writelines(f"{folder / name}\n" for name in _names(count))


def tiny_image() -> bytes:
    """A PNG of 32 x 32 pixels."""
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _names(count: int) -> "map[str]":
    return map("{:09}.jpg".format, range(count))


def _write_folder(image: bytes, count: int, path: Path) -> None:
    path.mkdir()
    for name in _names(count):
        (path / name).write_bytes(image)


def _write_parquet(image: bytes, count: int, path: Path) -> None:
    rows = [{"bytes": image, "path": name} for name in _names(count)]
    pyarrow.parquet.write_table(pyarrow.table({"image": rows}), path, row_group_size=_ROWS)


_FILES = {FOLDER: "folder", LIST: "list.txt", TAR: "images.tar", PARQUET: "images.parquet"}
_WRITERS: dict[str, Callable[[bytes, int, Path], None]] = {
    FOLDER: _write_folder,
    TAR: write_tar,
    PARQUET: _write_parquet,
}
