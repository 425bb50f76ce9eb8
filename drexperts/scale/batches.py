"""Batches of columns, in the forms in which frameworks hand them out."""

from collections.abc import Mapping, Sequence
from typing import Any

from drexperts.runtime.errors import UserError


def cells_in(batch: Any, column: str) -> list[Any]:
    """The cells of a column. Raises UserError if a batch lacks it or is no batch."""
    names = column_names(batch)
    if column not in names:
        raise UserError(
            f"the batch has no column {column!r}, but {', '.join(map(repr, names))}: say which "
            "one holds the images with image=, and their names with key="
        )
    cells = batch[column]
    return list(cells.to_pylist() if _is_arrow(batch) else cells)


def column_names(batch: Any) -> list[str]:
    """The names of a batch's columns. Raises UserError for what is no batch."""
    if isinstance(batch, Mapping):
        return list(batch)
    if _is_arrow(batch):
        return list(batch.column_names)
    if hasattr(batch, "columns"):
        return [str(name) for name in batch.columns]
    raise UserError(
        f"a batch is a dictionary of columns, a table of Arrow or a DataFrame, not {type(batch)}"
    )


def in_form_of(batch: Any, table: Any, keep: Sequence[str]) -> Any:
    """A table of Arrow in the form that a batch has, with some columns of the batch after it."""
    if isinstance(batch, Mapping):
        return table.to_pydict() | {name: list(batch[name]) for name in keep}
    if _is_arrow(batch):
        for name in keep:
            table = table.append_column(batch.schema.field(name), batch.column(name))
        return table
    frame = table.to_pandas()
    for name in keep:
        frame[name] = batch[name].to_numpy()
    return frame


def _is_arrow(batch: Any) -> bool:
    return hasattr(batch, "schema") and hasattr(batch, "append_column")
