"""The reported numbers: spot checks against the paper's text, and what every table must satisfy."""

from itertools import pairwise

import pytest

from drexperts.paper.reported import (
    OURS,
    PERCENTS,
    TABLES,
    Correlations,
    reduced_column,
    transfer_column,
)


def test_cells_are_found_by_row_and_column() -> None:
    assert TABLES["table1"].cell(OURS, "livefb") == Correlations(0.585, 0.690)
    assert TABLES["table1"].cell("QPT*", "bid") == Correlations(0.888, 0.911)
    column = transfer_column("koniq10k", "livec")
    assert TABLES["table2"].cell(OURS, column) == Correlations(0.841, None)
    assert TABLES["table3"].cell("LoDa", reduced_column("livec", 60)) == (0.869, 0.891)
    assert TABLES["table4"].cell("DA-CLIP", "livec") == (0.587, 0.635)
    assert TABLES["table5"].cell("w/o Bri", "koniq10k") == (0.939, 0.950)


def test_dashes_and_what_is_not_there_are_none() -> None:
    table = TABLES["table1"]
    assert table.cell("MUSIQ", "livefb") is None
    assert table.cell("TReS", "spaq") is None
    assert table.cell("MUSIQ", "kadid10k") is None
    assert table.cell("NIMA", "bid") is None


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_whole_and_every_number_a_correlation(name: str) -> None:
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


def test_more_data_is_better_for_everybody() -> None:
    table = TABLES["table3"]
    for row in table.rows:
        for name in ("koniq10k", "livec"):
            cells = [table.cell(row, reduced_column(name, percent)) for percent in PERCENTS]
            assert all(a is not None and b is not None and a < b for a, b in pairwise(cells))


def test_the_full_model_is_the_same_in_three_tables() -> None:
    for name in ("koniq10k", "livec"):
        expected = TABLES["table1"].cell(OURS, name)
        assert (
            TABLES["table4"].cell("Full", name) == TABLES["table5"].cell("Full", name) == expected
        )
