"""Which columns of a Parquet file hold images, and which their keys."""

from dataclasses import dataclass
from typing import Any

from drexperts.runtime.errors import UserError
from drexperts.runtime.wording import remedy


@dataclass(frozen=True)
class Columns:
    """Which columns of a Parquet file hold the images and their keys.

    image: bytes, or a struct of `bytes` and `path` as Hugging Face writes it; None is the only such
        column
    key: what names an image, beside its file's path; None is the struct's `path`, or where that is
        null or came before the number of the row, from 0
    """

    image: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Layout:
    """The paths of the columns, such as "image.bytes"; `key` is None where rows are numbered.

    key_was_chosen: whether the user said that its values are names
    """

    image: str
    key: str | None
    key_was_chosen: bool = False


def layout_of(name: str, schema: Any, columns: Columns) -> Layout:
    """Where the images and keys are in a file of this name and Arrow schema.

    Raises UserError for columns that are not there, or among which there are several of images.
    """
    types = {field.name: field.type for field in schema}
    for option, column in (("image", columns.image), ("key", columns.key)):
        if column is not None and column not in types:
            raise UserError(
                f"{name} has no column {column!r}, but {', '.join(map(repr, types))}: choose one "
                f"of them by {_option(option)}"
            )
    image = columns.image or _only_image_column(name, types)
    fields = _fields(types[image])
    is_struct = _is_binary(fields.get("bytes"), or_null=True)
    if not is_struct and not _is_binary(types[image]):
        raise UserError(
            f"the column {image!r} of {name} holds {types[image]}, and not the bytes of image "
            f"files: choose another by {_option('image')}"
        )
    path = f"{image}.path" if "path" in fields else None
    chosen = columns.key is not None
    return Layout(f"{image}.bytes" if is_struct else image, columns.key or path, chosen)


def _only_image_column(name: str, types: dict[str, Any]) -> str:
    structs = [column for column in types if {"bytes", "path"} <= _fields(types[column]).keys()]
    found = structs or [column for column in types if _is_binary(types[column])]
    if len(found) != 1:
        several = f"the columns {', '.join(map(repr, found))}" if found else "no column"
        raise UserError(
            f"{name} has {several} of image bytes among {', '.join(map(repr, types))}: choose one "
            f"by {_option('image')}"
        )
    return found[0]


def _fields(kind: Any) -> dict[str, Any]:
    from pyarrow import types

    if not types.is_struct(kind):
        return {}
    return {field.name: field.type for field in map(kind.field, range(kind.num_fields))}


def _is_binary(kind: Any, or_null: bool = False) -> bool:
    """Whether a type is of bytes. Strings are not: as a source they would be paths.

    or_null: or of nothing but nulls
    """
    from pyarrow import types

    if kind is None:
        return False
    if types.is_dictionary(kind):
        kind = kind.value_type
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return binary or (or_null and types.is_null(kind))


def _option(column: str) -> str:
    return remedy(f"--{column}-column", f"{column}_column=")
