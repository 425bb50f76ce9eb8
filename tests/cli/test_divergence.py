"""The table of the tensors around a divergence."""

import io

import pytest
from rich.console import Console

from drexperts.cli.divergence import divergence_table
from drexperts.export.engines.debug_layers import Divergence, LayerReport, TensorError


@pytest.mark.parametrize("place", [0, 14, 29])
def test_the_table_shows_the_neighbours(place):
    profile = tuple(TensorError(f"tensor{i}.", "Add", 1e-3, 1.0, {}) for i in range(30))
    first = Divergence(f"tensor{place}.", "Add", 0.5, 0.1, {}, hidden=False)
    console = Console(file=io.StringIO(), width=120)
    console.print(divergence_table(LayerReport(first, profile)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [line for line in text.splitlines() if "│" in line]
    assert len(rows) == 10
    (marked,) = [row for row in rows if "▶" in row]
    assert f"tensor{place}." in marked


def test_the_table_without_a_divergence():
    profile = tuple(TensorError(f"tensor{i}.", "Add", i * 1e-3, 1.0, {}) for i in range(3))
    table = divergence_table(LayerReport(None, profile))
    assert "no tensor diverges" in str(table.title)
    assert table.row_count == 3
