"""The images in a column of a Parquet file."""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from drexperts.runtime.errors import DrexpertsError, UserError
from drexperts.runtime.inputs.listed import ListedImage, Opener, failing
from drexperts.runtime.parquet_library import import_parquet
from drexperts.runtime.wording import remedy

PARQUET_SUFFIXES = (".parquet",)

_ROWS = 16  # read at once; rows hold images
_BUFFER = 2**20  # bytes read at once of a column


@dataclass(frozen=True)
class Columns:
    """Which columns of a Parquet file hold the images and their keys.

    image: bytes, or a struct of `bytes` and `path` as Hugging Face writes it; None is the only such
        column
    key: what names an image, beside its file's name; None is the struct's `path`, or where that is
        null the number of the row, from 0
    """

    image: str | None = None
    key: str | None = None


def parquet_images(
    name: str, opened: Opener, columns: Columns, is_done: Callable[[str], bool]
) -> Iterator[ListedImage]:
    """The images in a Parquet file, and one that fails if it is broken.

    A few rows are in memory at a time. Of row groups whose images all have a row of results
    already, only the keys are read.

    name: the file's name, with which the source of each image begins
    opened: opens the file, which must be seekable; what it returns closes it
    is_done: whether the image with this source is to be passed

    Raises UserError for columns that are not there, or among which there are several of images.
    """
    read = 0
    parquet = import_parquet()
    try:
        with opened() as stream:
            file = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER)
            layout = _layout(name, file.schema_arrow, columns)
            for image in _images(name, file, layout, is_done):
                yield image
                read += 1
    except DrexpertsError:
        raise
    except Exception as cause:  # on hostile bytes nearly anything
        reason = " ".join(str(cause).split()) or type(cause).__name__
        yield failing(name, f"{reason}; {read} images before the damage were read: replace it")


@dataclass(frozen=True)
class _Layout:
    """The paths of the columns; `key` is None where rows are numbered."""

    image: str
    key: str | None


def _layout(name: str, schema: Any, columns: Columns) -> _Layout:
    types = {field.name: field.type for field in schema}
    for option, column in (("image", columns.image), ("key", columns.key)):
        if column is not None and column not in types:
            raise UserError(
                f"{name} has no column {column!r}, but {', '.join(map(repr, types))}: choose one "
                f"of them by {_option(option)}"
            )
    image = columns.image or _only_image_column(name, types)
    is_struct = "bytes" in _fields(types[image])
    if not is_struct and not _is_binary(types[image]):
        raise UserError(
            f"the column {image!r} of {name} holds {types[image]}, and not the bytes of image "
            f"files: choose another by {_option('image')}"
        )
    path = f"{image}.path" if "path" in _fields(types[image]) else None
    return _Layout(f"{image}.bytes" if is_struct else image, columns.key or path)


def _only_image_column(name: str, types: dict[str, Any]) -> str:
    structs = [column for column in types if {"bytes", "path"} <= _fields(types[column])]
    found = structs or [column for column in types if _is_binary(types[column])]
    if len(found) != 1:
        several = f"the columns {', '.join(map(repr, found))}" if found else "no column"
        raise UserError(
            f"{name} has {several} of image bytes among {', '.join(map(repr, types))}: choose one "
            f"by {_option('image')}"
        )
    return found[0]


def _fields(kind: Any) -> set[str]:
    from pyarrow import types

    if not types.is_struct(kind):
        return set()
    return {kind.field(index).name for index in range(kind.num_fields)}


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _option(column: str) -> str:
    return remedy(f"--{column}-column", f"{column}_column=")


def _images(
    name: str, file: Any, layout: _Layout, is_done: Callable[[str], bool]
) -> Iterator[ListedImage]:
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        keys = _keys(file, group, layout, range(first, first + rows))
        sources = [f"{name}/{key}" for key in keys]
        if all(map(is_done, sources)):
            yield from _unread(sources, file, group, layout)
        else:
            for source, image in zip(sources, _cells(file, group, layout), strict=True):
                yield _image(source, image)
        first += rows


def _cells(file: Any, group: int, layout: _Layout) -> Iterator[Any]:
    """The images of a row group, of which a few are in memory at a time."""
    for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[layout.image]):
        yield from _leaf(batch, layout.image)


def _unread(sources: list[str], file: Any, group: int, layout: _Layout) -> Iterator[ListedImage]:
    """Images that are done. One of them may still be read, to share its batch with later ones."""

    def read(place: int) -> bytes:
        (cell,) = itertools.islice(_cells(file, group, layout), place, place + 1)
        return cell.as_py() or b""

    for place, source in enumerate(sources):
        yield ListedImage(source, functools.partial(read, place), passing=True)


def _keys(file: Any, group: int, layout: _Layout, numbers: range) -> list[str]:
    if layout.key is None:
        return [str(number) for number in numbers]
    table = file.read_row_group(group, columns=[layout.key])
    given = _leaf(table, layout.key).to_pylist()
    return [
        str(number) if key in (None, "") else _text(key)
        for number, key in zip(numbers, given, strict=True)
    ]


def _leaf(table: Any, path: str) -> Any:
    """A column, or a field of a struct."""
    name, _, field = path.rpartition(".")
    if path in table.column_names:
        return table.column(path)
    import pyarrow.compute

    return pyarrow.compute.struct_field(table.column(name), field)


def _text(key: object) -> str:
    return key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else str(key)


def _image(source: str, image: Any) -> ListedImage:
    data = image.as_py()
    if data is None:
        return failing(source, "its row holds no image")
    return ListedImage(source, lambda: data)
