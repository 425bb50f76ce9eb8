"""Label files of every kind, as they are distributed and damaged."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from scipy.io import savemat
from support.label_files import (
    LABELS,
    change_matlab,
    change_text,
    change_workbook,
    ratings,
    write_table,
)

from drexperts.data.layouts import NAMES, open_dataset
from drexperts.runtime.errors import DataError

TABLES = {
    "plain": 'path,score,group\nä b.png,1,x\n"c,d.png",2,y\n',
    "Windows": 'path,score,group\r\nä b.png,1,x\r\n"c,d.png",2,y\r\n\r\n',
    "more columns, blank lines": 'score,eye, path ,group\n1,,ä b.png,x\n\n2,z,"c,d.png",y\n\n\n',
    "blank lines before": '\n , \npath,score,group\nä b.png,1,x\n"c,d.png",2,y\n',
    "a comma at the end of all": 'path,score,group,\nä b.png,1,x,\n"c,d.png",2,y, ,\n',
    "a comma at the end of rows": 'path,score,group\nä b.png,1,x,\n"c,d.png",2,y,\n',
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_tables_of_any_make_are_read(text: str, encoding: str, tmp_path: Path) -> None:
    path = write_table(tmp_path, text.encode(encoding), ("ä b.png", "c,d.png"))
    dataset = open_dataset("folder", path)
    assert ratings(dataset) == {"ä b.png": 1, "c,d.png": 2}
    assert [sample.group for sample in dataset.samples] == ["y", "x"]


def test_lists_may_begin_with_a_byte_order_mark(miniatures: Callable[[str], Path]) -> None:
    for name in ("csiq", "tid2013"):
        root = miniatures(name)
        before = open_dataset(name, root)
        text = (root / LABELS[name]).read_text()
        (root / LABELS[name]).write_text(text, encoding="utf-8-sig")
        assert open_dataset(name, root).samples == before.samples


def test_a_file_may_be_called_na(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,score\nsub/NA,1\nsub/null,2\n", ("a.png",))
    for name in ("NA", "null"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "a.png", tmp_path / "sub" / name)
    assert ratings(open_dataset("folder", path)) == {"sub/NA": 1, "sub/null": 2}


def test_a_parquet_table_reads_like_a_csv(miniatures: Callable[[str], Path]) -> None:
    root = miniatures("folder")
    table = pandas.read_csv(root / "labels.csv")
    table.to_parquet(root / "labels.parquet")
    assert (
        open_dataset("folder", root / "labels.parquet").digest
        == open_dataset("folder", root / "labels.csv").digest
    )
    table.loc[3, "score"] = None
    table.to_parquet(root / "labels.parquet")
    with pytest.raises(DataError, match=r"labels\.parquet row 4: pictures/003\.png"):
        open_dataset("folder", root / "labels.parquet")


def test_bad_ratings_are_found_in_every_kind_of_file(miniatures: Callable[[str], Path]) -> None:
    damages: dict[str, tuple[Callable[[Path, str], None], str]] = {
        "livec": (
            lambda r, f: change_matlab(r / f, "AllMOS_release", slice(8, 9), np.nan),
            r"AllMOS_release.mat entry 9: Images/4.bmp .*nan",
        ),
        "live": (
            lambda r, f: change_matlab(r / f, "dmos_new", slice(2, 3), np.nan),
            r"dmos_realigned.mat entry 3: jp2k/img3.bmp .*nan",
        ),
        "spaq": (
            lambda r, f: change_workbook(r, f, 3, None),
            r"scores.xlsx row 3: TestImage/00002.jpg",
        ),
        "bid": (
            lambda r, f: change_workbook(r, f, 3, 50),
            r"row 3: DatabaseImage0003.JPG .* 50, .*-0.5 to 5.5",
        ),
        "koniq10k": (
            lambda r, f: change_text(r, f, '"10004473377.jpg"', ""),
            r"distributions.csv row 3: ",
        ),
        "csiq": (
            lambda r, f: change_text(r, f, "scene0.AWGN.2.png 0.", "scene0.AWGN.2.png 7."),
            r"csiq_label.txt line 2: dst_imgs/scene0.AWGN.2.png .* 7",
        ),
        "tid2013": (
            lambda r, f: change_text(r, f, " I01_01_1.bmp", ""),
            r"mos_with_names.txt line 1: ",
        ),
        "kadid10k": (
            lambda r, f: change_text(r, f, "I01.png", ""),
            r"dmos.csv row 2: images/I01_01_01.png .*group",
        ),
    }
    for name, (damage, named) in damages.items():
        root = miniatures(name)
        before = open_dataset(name, root)
        damage(root, LABELS[name])
        with pytest.raises(DataError, match=named):
            open_dataset(name, root)
        after = open_dataset(name, root, skip_bad=True)
        assert len(after.samples) == len(before.samples) - 1
        assert len(after.skipped) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 100], ids=["empty", "rubbish"])
def test_a_corrupt_label_file_is_named(
    name: str, content: bytes, miniatures: Callable[[str], Path]
) -> None:
    root = miniatures(name)
    (root / LABELS[name]).write_bytes(content)
    with pytest.raises(DataError):
        open_dataset(name, root, skip_bad=True)


@pytest.mark.parametrize("name", ["livec", "spaq", "bid", "live"])
def test_a_truncated_label_file_is_named(name: str, miniatures: Callable[[str], Path]) -> None:
    root = miniatures(name)
    path = root / LABELS[name]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=str(path)):
        open_dataset(name, root)


def test_a_corrupt_parquet_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"labels\.parquet"):
        open_dataset("folder", tmp_path / "labels.parquet")


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("path;score", "'path' .*path;score: .* commas"),
        ("path", "'score' .*path: "),
        ("path,score,score ", "'score' .*path, score, score: "),
    ],
)
def test_a_column_that_is_missing_or_double_is_named(
    header: str, named: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=named):
        open_dataset("folder", write_table(tmp_path, f"{header}\n"))


def test_a_double_column_of_a_published_set_is_refused(
    miniatures: Callable[[str], Path],
) -> None:
    root = miniatures("koniq10k")
    change_text(root, LABELS["koniq10k"], '"SD"', '"MOS_zscore"')
    with pytest.raises(DataError, match=r"'MOS_zscore' .*, MOS_zscore, MOS_zscore"):
        open_dataset("koniq10k", root)
    root = miniatures("spaq")
    change_workbook(root, LABELS["spaq"], 1, "MOS", 3)
    with pytest.raises(DataError, match=r"'MOS' .*Image name, MOS, MOS, Colorfulness"):
        open_dataset("spaq", root)


def test_a_double_column_of_a_parquet_table_is_refused(tmp_path: Path) -> None:
    columns = [pyarrow.array(["a.png"]), pyarrow.array([1.0]), pyarrow.array([2.0])]
    double = pyarrow.Table.from_arrays(columns, names=["path", "score", "score"])
    pyarrow.parquet.write_table(double, tmp_path / "labels.parquet")
    with pytest.raises(DataError, match=r"labels.parquet .*score"):
        open_dataset("folder", tmp_path / "labels.parquet")


def test_an_unclosed_quotation_mark_is_an_error(tmp_path: Path) -> None:
    path = write_table(tmp_path, 'path,score\na.png,1\n"b.png,2\nc.png,3\n')
    with pytest.raises(DataError, match=r"labels\.csv"):
        open_dataset("folder", path, skip_bad=True)


def test_a_table_without_a_row_is_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels\.csv"):
        open_dataset("folder", write_table(tmp_path, "\n,\n"))


def test_a_variable_that_is_missing_is_named(miniatures: Callable[[str], Path]) -> None:
    root = miniatures("live")
    savemat(root / "refnames_all.mat", {"names": 1})
    with pytest.raises(DataError, match=r"refnames_all\.mat .*variable refnames_all"):
        open_dataset("live", root)


def test_lists_of_different_length_are_refused(miniatures: Callable[[str], Path]) -> None:
    root = miniatures("livec")
    savemat(root / "Data" / "AllMOS_release.mat", {"AllMOS_release": np.ones((1, 9))})
    with pytest.raises(DataError, match="AllImages_release 15; AllMOS_release 9"):
        open_dataset("livec", root)
    root = miniatures("live")
    savemat(root / "refnames_all.mat", {"refnames_all": np.array([["a.bmp"]], object)})
    with pytest.raises(DataError, match=r"dmos_new 30; orgs 30; refnames_all 1; .* 30"):
        open_dataset("live", root)


@pytest.mark.parametrize("cell", [True, "3,5"])
def test_a_cell_that_is_not_a_number_is_named(
    cell: object, miniatures: Callable[[str], Path]
) -> None:
    root = miniatures("bid")
    change_workbook(root, LABELS["bid"], 3, cell)
    with pytest.raises(DataError, match=r"row 3: DatabaseImage0003\.JPG"):
        open_dataset("bid", root)
