"""The images in a column of a Parquet file."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from drexperts.runtime.digests import SourceSet
from drexperts.runtime.errors import DrexpertsError
from drexperts.runtime.inputs.listed import ListedImage, Opener, failing
from drexperts.runtime.inputs.parquet_layout import Columns, Layout, layout_of
from drexperts.runtime.parquet_library import import_parquet

_ROWS = 16  # read at once; rows hold images
_MOST_ROWS = 2**22  # of a row group; a file of strangers may claim any number
_BUFFER = 2**20  # bytes read at once of a column


def parquet_images(
    name: str, opened: Opener, columns: Columns, is_done: Callable[[str], bool]
) -> Iterator[ListedImage]:
    """The images in a Parquet file, and one that fails if it is broken.

    Memory holds about twice the largest page, which PyArrow writes of up to 1024 rows. Of row
    groups whose images all have a row of results already, only the keys are read.

    name: the file's path, with which the source of each image begins
    opened: opens the file, which must be seekable; what it returns closes it
    is_done: whether the image with this source is to be passed

    Raises UserError for columns that are not there, or among which there are several of images.
    """
    read = 0
    parquet = import_parquet()
    try:
        with opened() as stream:
            file = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER)
            layout = layout_of(name, file.schema_arrow, columns)
            for image in _images(name, file, layout, is_done):
                yield image
                read += 1
    except DrexpertsError:
        raise
    except Exception as cause:  # on hostile bytes nearly anything
        reason = " ".join(str(cause).split()) or type(cause).__name__
        yield failing(name, f"{reason}; {read} images before the damage were read: replace it")


def _images(
    name: str, file: Any, layout: Layout, is_done: Callable[[str], bool]
) -> Iterator[ListedImage]:
    first, seen = 0, SourceSet()
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if rows > _MOST_ROWS:
            raise ValueError(f"a row group of {rows} rows")
        keys = _keys(file, group, layout, range(first, first + rows), seen)
        sources = [f"{name}/{key}" for key in keys]
        if all(map(is_done, sources)):
            yield from _unread(sources, file, group, layout)
        else:
            for source, image in zip(sources, _cells(file, group, layout), strict=True):
                yield _image(source, image)
        first += rows


def _cells(file: Any, group: int, layout: Layout) -> Iterator[Any]:
    """The images of a row group, of which a few are in memory at a time."""
    for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[layout.image]):
        yield from _leaf(batch, layout.image)


def _unread(sources: list[str], file: Any, group: int, layout: Layout) -> Iterator[ListedImage]:
    """Images that are done. One of them may still be read, to share its batch with later ones."""

    def read(place: int) -> bytes:
        (cell,) = itertools.islice(_cells(file, group, layout), place, place + 1)
        return cell.as_py() or b""

    for place, source in enumerate(sources):
        yield ListedImage(source, functools.partial(read, place), passing=True)


def _keys(file: Any, group: int, layout: Layout, numbers: range, seen: SourceSet) -> Iterator[str]:
    """What names each row: its key, or its number where that names no row, or several."""
    if layout.key is None:
        yield from map(str, numbers)
        return
    table = file.read_row_group(group, columns=[layout.key])
    given = _leaf(table, layout.key).to_pylist()
    for number, key in zip(numbers, given, strict=True):
        text = "" if key is None else _text(key)
        is_name = text and (layout.key_was_chosen or seen.add(text))
        yield text if is_name else str(number)


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
