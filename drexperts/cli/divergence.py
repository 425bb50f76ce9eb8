"""The table of `drx verify --debug-layers`."""

from typing import TYPE_CHECKING

from rich.table import Column, Table

if TYPE_CHECKING:
    from drexperts.export.engines.debug_layers import Divergence, LayerReport

AROUND = 10  # tensors in the table


def divergence_table(report: "LayerReport") -> Table:
    """The tensors around the first divergence, or around the largest error if there is none."""
    profile, first = report.profile, report.first
    if first is None:
        title = "no tensor diverges; around the largest error"
        middle = max(range(len(profile)), key=lambda i: profile[i].error)
    else:
        title = _title(first)
        middle = [row.tensor for row in profile].index(first.tensor)
    table = Table("", Column("tensor", no_wrap=True), "operator", title=title)
    for column in ("error", "error of its inputs", "cosine"):
        table.add_column(column, justify="right")
    start = max(0, min(middle - AROUND // 2, len(profile) - AROUND))
    for row in profile[start : start + AROUND]:
        here = "▶" if row is profile[middle] else ""
        came_in = f"{max(row.inputs.values(), default=0.0):.1e}"
        table.add_row(here, row.tensor, row.op, f"{row.error:.1e}", came_in, f"{row.cosine:.6f}")
    return table


def _title(first: "Divergence") -> str:
    where = f"{first.op} {first.tensor}"
    if first.hidden:
        return (
            f"first divergence before {where}, in a fused kernel: it disappears when all is output"
        )
    return f"first divergence: {where}, {first.error:.1e} where rounding explains {first.limit:.1e}"
