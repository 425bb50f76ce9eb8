"""Tables that unpack to far more than they are, and workbooks in the old format."""

import io
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.old_excel import write_xls

from drexperts.data.table_files import MAX_BYTES, MAX_CELLS, read_table
from drexperts.runtime.errors import DataError

HEADER = b'<row r="1"><c r="A1" t="inlineStr"><is><t>name</t></is></c></row>'
ROWS: list[list[object]] = [["Image Number", "Grade", None, "note"], [1, 4.5, None, "a"], [3, 1.25]]


def workbook(**parts: bytes) -> bytes:
    """A workbook whose only sheet has HEADER and the rows of `sheet`, or with other parts changed.

    parts: contents by the stem of the file in the workbook
    """
    book, stream = openpyxl.Workbook(), io.BytesIO()
    book.save(stream)
    namespace = b'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    sheet = b"<worksheet %s><sheetData>%s%s</sheetData></worksheet>"
    parts["sheet1"] = parts.pop("before", b"") + sheet % (namespace, HEADER, parts.pop("rows", b""))
    made = io.BytesIO()
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            stem = Path(name).stem
            new.writestr(name, parts[stem] if stem in parts else old.read(name))
    return made.getvalue()


def read(folder: Path, suffix: str, content: bytes) -> Any:
    path = folder / f"labels{suffix}"
    path.write_bytes(content)
    return read_table(path)


WORKBOOKS = {
    "an address far below": {"rows": b'<row r="9999999999"><c r="A9999999999"><v>1</v></c></row>'},
    "an address far to the right": {"rows": b'<row><c r="XFD1"/></row>' * 400},
    "many rows": {"rows": b"<row><c><v>1</v></c></row>" * 400_000},
    "a long cell": {
        "rows": b'<row><c t="inlineStr"><is><t>%s</t></is></c></row>' % (b"z" * 70_000)
    },
    "many styles": {"styles": b"<styleSheet><cellXfs>" + b"<xf/>" * 60_000 + b"</cellXfs>"},
    "entities": {"before": b'<!DOCTYPE l [<!ENTITY a "xxxxxxxx"><!ENTITY b "&a;&a;&a;">]>'},
    "entities in UTF-16": {"styles": '<!DOCTYPE l [<!ENTITY a "x">]>'.encode("utf-16")},
}


@pytest.mark.slow
@pytest.mark.parametrize("parts", WORKBOOKS.values(), ids=WORKBOOKS)
def test_a_workbook_that_unpacks_to_much_more_is_refused(parts, tmp_path):
    content = workbook(**parts)
    assert len(content) < 40_000
    with pytest.raises(DataError, match=r"labels\.xlsx cannot be read"):
        read(tmp_path, ".xlsx", content)


@pytest.mark.slow
def test_a_cell_at_the_end_of_a_sheet_is_read(tmp_path):
    corner = b'<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'
    table = read(tmp_path, ".xlsx", workbook(rows=corner))
    ((number, row),) = table.rows
    assert (number, len(row), row[-1]) == (2**20, 2**14, 1)
    assert (table.names[0], len(table.names)) == ("name", 2**14)


def test_the_size_that_a_sheet_claims_is_not_believed(tmp_path):
    book = openpyxl.Workbook()
    for row in ROWS:
        book.active.append(row)
    stream = io.BytesIO()
    book.save(stream)
    made = io.BytesIO()
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'"A1:D3"', b'"A1:A1"'))
    assert read(tmp_path, ".xlsx", made.getvalue()).names == ["Image Number", "Grade", "", "note"]


def test_an_old_workbook_reads_like_a_new_one(tmp_path):
    book = openpyxl.Workbook()
    for row in ROWS:
        book.active.append(row)
    book.save(tmp_path / "labels.xlsx")
    write_xls(tmp_path / "labels.xls", "Plan1", ROWS)
    assert read_table(tmp_path / "labels.xls") == read_table(tmp_path / "labels.xlsx")
    assert read_table(tmp_path / "labels.xls", "Plan1").rows[1] == (3, [3.0, 1.25])


def test_errors_and_truth_values_of_an_old_workbook_are_no_numbers(tmp_path):
    write_xls(tmp_path / "labels.xls", "Plan1", [["a", "b"], [b"\x2a", True]])
    ((_, row),) = read_table(tmp_path / "labels.xls").rows
    assert row == ["#N/A", True]


@pytest.mark.parametrize("suffix", [".xls", ".xlsx"])
def test_a_sheet_that_is_missing_is_an_error(suffix, tmp_path):
    if suffix == ".xls":
        write_xls(tmp_path / "labels.xls", "Plan1", ROWS)
    else:
        (tmp_path / "labels.xlsx").write_bytes(workbook())
    with pytest.raises(DataError, match=r"labels\.xls"):
        read_table(tmp_path / f"labels{suffix}", "all_by_image")


def parquet(columns: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), stream)
    return stream.getvalue()


def repeated(text: str, times: int) -> pyarrow.Array:
    indices = pyarrow.array([0] * times, pyarrow.int32())
    return pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array([text]))


@pytest.mark.parametrize(
    "columns",
    [
        {"path": repeated("a.png", MAX_CELLS // 2 + 1), "score": repeated("1", MAX_CELLS // 2 + 1)},
        {"path": repeated("z" * 100_000, 1000)},
    ],
)
def test_a_parquet_table_that_unpacks_to_much_more_is_refused(columns, tmp_path):
    content = parquet(columns)
    assert len(content) < 200_000
    with pytest.raises(DataError, match=r"labels\.parquet cannot be read"):
        read(tmp_path, ".parquet", content)


def test_columns_of_a_parquet_table_that_are_no_values_are_left_out(tmp_path):
    columns = {
        "path": ["a.png", None],
        "boxes": [[1, 2], [3]],
        "score": [1.5, 2.0],
        "ok": [True, None],
    }
    table = read(tmp_path, ".parquet", parquet(columns))
    assert table.names == ["path", "score", "ok"]
    assert table.rows == [(1, ("a.png", 1.5, True)), (2, (None, 2.0))]


@pytest.mark.parametrize(
    "content",
    [
        b"a" * (MAX_BYTES + 1),
        b"," * (MAX_CELLS + 1),
        b'"' + b"a" * 200_000 + b'"',
        b"\n" * 2_000_000,
    ],
    ids=["large", "many cells", "a long cell", "many lines"],
)
def test_a_text_table_beyond_the_limits_is_refused(content, tmp_path):
    with pytest.raises(DataError, match=r"labels\.csv cannot be read") as caught:
        read(tmp_path, ".csv", content)
    assert len(str(caught.value)) < 1000


@pytest.mark.slow
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    suffix=st.sampled_from([".xls", ".xlsx", ".parquet", ".csv"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    end=st.floats(0.5, 1),
)
def test_a_damaged_table_is_read_or_refused(suffix, changes, end, tmp_path):
    if suffix == ".xls":
        write_xls(tmp_path / "labels.xls", "Plan1", ROWS)
        content = bytearray((tmp_path / "labels.xls").read_bytes())
    elif suffix == ".csv":
        content = bytearray(b'name,"grade"\r\n"a,b.png",1\r\n')
    else:
        content = bytearray(workbook() if suffix == ".xlsx" else parquet({"a": ["x"], "b": [1.0]}))
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    try:
        read(tmp_path, suffix, bytes(content[: int(end * len(content))]))
    except DataError as error:
        message = str(error)
        assert f"labels{suffix}" in message
