"""The reported numbers: spot checks against the paper's text, and what every table must satisfy."""

from itertools import pairwise

import pytest

from drexperts.paper.reported import OURS, PERCENTS, TABLES, reduced_column, transfer_column


@pytest.mark.parametrize(
    ("table", "row", "column", "cell"),
    [
        ("table1", OURS, "livefb", (0.585, 0.690)),
        ("table1", "QPT*", "bid", (0.888, 0.911)),
        ("table2", OURS, transfer_column("koniq10k", "livec"), (0.841, None)),
        ("table3", "LoDa", reduced_column("livec", 60), (0.869, 0.891)),
        ("table4", "DA-CLIP", "livec", (0.587, 0.635)),
        ("table5", "w/o Bri", "koniq10k", (0.939, 0.950)),
        # Dashes, then a column and a row that do not exist.
        ("table1", "MUSIQ", "livefb", None),
        ("table1", "TReS", "spaq", None),
        ("table1", "MUSIQ", "kadid10k", None),
        ("table1", "NIMA", "bid", None),
    ],
)
def test_cells_are_found_by_row_and_column(
    table: str, row: str, column: str, cell: tuple[float, float | None] | None
) -> None:
    assert TABLES[table].cell(row, column) == cell


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_complete_and_every_number_a_correlation(name: str) -> None:
    table = TABLES[name]
    for row, cells in table.rows.items():
        assert len(cells) == len(table.columns), row
        for cell in filter(None, cells):
            assert all(0.2 < value < 1 for value in cell if value is not None), row
            assert (cell.plcc is None) == (name == "table2"), row


@pytest.mark.parametrize("name", ["table1", "table2", "table3"])
def test_the_authors_lead_each_column_as_the_text_says(name: str) -> None:
    table = TABLES[name]
    for column in table.columns:
        found = [cell.srcc for row in table.rows if (cell := table.cell(row, column))]
        assert found[-1] == max(found), column


def test_more_data_is_better_in_every_row() -> None:
    table = TABLES["table3"]
    for row in table.rows:
        for name in ("koniq10k", "livec"):
            cells = [table.cell(row, reduced_column(name, percent)) for percent in PERCENTS]
            assert all(a is not None and b is not None and a < b for a, b in pairwise(cells))


def test_the_full_model_is_the_same_in_three_tables() -> None:
    for name in ("koniq10k", "livec"):
        cells = {TABLES[table].cell("Full", name) for table in ("table4", "table5")}
        assert cells == {TABLES["table1"].cell(OURS, name)}
