"""The nine layouts and a folder's table: what is read, and what is said of damage."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import openpyxl
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from support import miniature

from drexperts.data.dataset import Dataset
from drexperts.data.layouts import NAMES, open_dataset
from drexperts.data.recipes import RECIPES
from drexperts.runtime.errors import DataError
from drexperts.runtime.manifest import ScoreScale

SYNTHETIC = ("live", "csiq", "tid2013", "kadid10k")
# The label file that each test damages first, and a folder of images.
LABELS = {
    "livec": "Data/AllMOS_release.mat",
    "koniq10k": "koniq10k_scores_and_distributions.csv",
    "spaq": "Annotations/MOS and Image attribute scores.xlsx",
    "livefb": "labels_image.csv",
    "bid": "DatabaseGrades.xlsx",
    "live": "dmos_realigned.mat",
    "csiq": "csiq_label.txt",
    "tid2013": "mos_with_names.txt",
    "kadid10k": "dmos.csv",
}


@pytest.fixture(scope="session")
def _originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("miniatures")

    def original(name: str) -> Path:
        if not (folder / name).exists():
            miniature.write(name, folder / name, contents=2, side=(16, 16))
        return folder / name

    return original


@pytest.fixture
def miniatures(_originals: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A data set that a test may damage."""
    return lambda name: Path(shutil.copytree(_originals(name), tmp_path / name))


def table(folder: Path, text: str | bytes, images: Sequence[str] = ("a.png", "b.png")) -> Path:
    """A table of scores and its images."""
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(folder / image)
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def ratings(dataset: Dataset) -> dict[str, float]:
    return {sample.name: sample.label for sample in dataset.samples}


# What is read.


def test_every_data_set_has_a_recipe() -> None:
    assert {*NAMES, "folder"} == set(RECIPES)


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_is_read(name: str, miniatures: Callable[[str], Path]) -> None:
    root = miniatures(name)
    dataset = open_dataset(name, root)
    images = {"live": 20, "csiq": 18, "tid2013": 18, "kadid10k": 18}.get(name, 8)
    assert (dataset.name, dataset.root, dataset.skipped) == (name, root, ())
    assert len(dataset.samples) == images
    assert list(dataset.by_name) == sorted(dataset.by_name)
    assert all(dataset.path(sample).is_file() for sample in dataset.samples)
    assert len({s.group for s in dataset.samples}) == (2 if name in SYNTHETIC else images)
    assert all(dataset.scale.low <= s.label <= dataset.scale.high for s in dataset.samples)
    assert dataset.scale.higher_is_better == (name not in ("live", "csiq"))


@pytest.mark.parametrize("name", [*NAMES, "folder"])
def test_labels_and_groups_belong_to_their_images(name: str, tmp_path: Path) -> None:
    """Each image is drawn again from what its label says: a shifted list would not survive it."""
    side = (16, 16)
    scale = None if name != "folder" else ScoreScale(0, 10, higher_is_better=True)
    root = miniature.write(name, tmp_path / name, 2, side)
    dataset = open_dataset(name, root, scale=scale)
    scenes: dict[str, set[int]] = {}
    for sample in dataset.samples:
        share = (sample.label - dataset.scale.low) / dataset.scale.span
        strength = (0.95 - (share if dataset.scale.higher_is_better else 1 - share)) / 0.9
        alike = [s for s in miniature.shots(name, 2) if abs(s.strength - strength) < 0.002]
        pixels = np.asarray(Image.open(dataset.path(sample)), float)
        errors = [np.abs(pixels - np.asarray(miniature.picture(s, side))).mean() for s in alike]
        assert min(errors) < 3  # JPEG
        scenes.setdefault(sample.group, set()).add(alike[int(np.argmin(errors))].scene)
    assert all(len(same) == 1 for same in scenes.values())


def test_the_published_label_is_kept(miniatures: Callable[[str], Path]) -> None:
    root = miniatures("kadid10k")
    line = (root / "dmos.csv").read_text().splitlines()[1].split(",")
    sample = open_dataset("kadid10k", root).by_name[f"images/{line[0]}"]
    assert (sample.label, sample.group) == (float(line[2]), line[1].lower())


def test_cases_of_names_may_differ(miniatures: Callable[[str], Path]) -> None:
    dataset = open_dataset("tid2013", miniatures("tid2013"))
    assert {"distorted_images/I01_01_1.BMP", "distorted_images/i02_01_1.bmp"} <= set(
        dataset.by_name
    )
    assert {sample.group for sample in dataset.samples} == {"i01.bmp", "i02.bmp"}


def test_a_group_is_one_whatever_its_case_and_white_space(
    miniatures: Callable[[str], Path], tmp_path: Path
) -> None:
    root = miniatures("kadid10k")
    before = {sample.group for sample in open_dataset("kadid10k", root).samples}
    for other in ("i01.PNG", "I01.png ", " I01.png"):
        _damaged_text(root, LABELS["kadid10k"], ",I01.png,", f",{other},")
    assert {sample.group for sample in open_dataset("kadid10k", root).samples} == before
    root = miniatures("csiq")
    before = {sample.group for sample in open_dataset("csiq", root).samples}
    image = root / "dst_imgs" / "scene0.AWGN.1.png"
    image.rename(image.with_name("SCENE0.AWGN.1.PNG"))
    _damaged_text(root, LABELS["csiq"], image.name, "SCENE0.AWGN.1.PNG")
    assert {sample.group for sample in open_dataset("csiq", root).samples} == before
    path = table(tmp_path, "path,score,group\na.png,1, r1 \nb.png,2,R1\n")
    assert {sample.group for sample in open_dataset("folder", path).samples} == {"r1"}


def test_an_exact_name_comes_before_one_of_another_case(tmp_path: Path) -> None:
    path = table(tmp_path, "path,score\nb.PNG,1\nB.png,2\nb.png,3\n", ("b.png", "B.png", "b.PNG"))
    assert ratings(open_dataset("folder", path)) == {"b.PNG": 1, "B.png": 2, "b.png": 3}
    path = table(tmp_path, "path,score\nb.png,1\nA.PNG,2\n", ("A.png", "a.PNG"))
    assert set(ratings(open_dataset("folder", path))) == {"A.png", "b.png"}


def test_csiq_may_keep_a_folder_for_each_distortion(miniatures: Callable[[str], Path]) -> None:
    root = miniatures("csiq")
    before = open_dataset("csiq", root)
    for image in list((root / "dst_imgs").iterdir()):
        folder = root / "dst_imgs" / image.name.split(".")[1].lower()
        folder.mkdir(exist_ok=True)
        image.rename(folder / image.name)
    after = open_dataset("csiq", root)
    assert after.by_name.keys() & {"dst_imgs/awgn/scene0.AWGN.1.png"}
    assert sorted(s.label for s in after.samples) == sorted(s.label for s in before.samples)
    assert {s.group for s in after.samples} == {s.group for s in before.samples}
    labels = (root / "csiq_label.txt").read_text()
    for kind in miniature.CSIQ_TYPES:
        labels = re.sub(rf"(scene[0-9]\.{kind})", rf"{kind.lower()}/\1", labels)
    (root / "csiq_label.txt").write_text(labels)
    assert open_dataset("csiq", root).samples == after.samples


@pytest.mark.parametrize("blank", [0, 3])
def test_csiq_as_its_authors_have_it(miniatures: Callable[[str], Path], blank: int) -> None:
    """Their sheet has its columns below and right of empty cells, and no names of files."""
    root = miniatures("csiq")
    before = open_dataset("csiq", root)
    kinds = {"AWGN": "noise", "BLUR": "blur", "contrast": "contrast"}
    book = openpyxl.Workbook()
    sheet = book.create_sheet("all_by_image")
    head = ("image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos")
    rows = [head]
    for sample in before.samples:
        scene, kind, level, _ = sample.name.rpartition("/")[2].split(".")
        rows.append((scene, 1, kinds[kind], int(level), 0.05, sample.label))
    for at, row in enumerate(rows, 1 + blank):
        for column, cell in enumerate(row, 1 + blank):
            sheet.cell(at, column, cell)
    (root / "csiq_label.txt").unlink()
    with pytest.raises(DataError, match=r"lacks \S+/csiq_label.txt or csiq.DMOS.xlsx"):
        open_dataset("csiq", root)
    book.save(root / "csiq.DMOS.xlsx")
    assert open_dataset("csiq", root).samples == before.samples
    sheet.cell(2 + blank, 3 + blank, "jpeg 2000")
    book.save(root / "csiq.DMOS.xlsx")
    name, row = r"dst_imgs/scene0.jpeg2000.1.png", 2 + blank
    with pytest.raises(DataError, match=rf"1 of 18 images of csiq are missing, .*{name}"):
        open_dataset("csiq", root)
    sheet.cell(2 + blank, 6 + blank, "high")
    book.save(root / "csiq.DMOS.xlsx")
    with pytest.raises(DataError, match=f"csiq.DMOS.xlsx row {row}: .*high"):
        open_dataset("csiq", root)


def test_csiq_numbers_that_name_scenes_are_whole(miniatures: Callable[[str], Path]) -> None:
    root = miniatures("csiq")
    for image in (root / "dst_imgs").glob("scene0.*"):
        image.rename(image.with_name(image.name.replace("scene0", "1600")))
    book = openpyxl.Workbook()
    sheet = book.create_sheet("all_by_image")
    for row in (("image", "dst_type", "dst_lev", "dmos"), (1600.0, "noise", 1.0, 0.5)):
        sheet.append(row)
    (root / "csiq_label.txt").unlink()
    book.save(root / "csiq.DMOS.xlsx")
    (sample,) = open_dataset("csiq", root).samples
    assert (sample.name, sample.label) == ("dst_imgs/1600.AWGN.1.png", 0.5)


def test_folders_of_references_are_not_needed(miniatures: Callable[[str], Path]) -> None:
    folders = {"live": "refimgs", "csiq": "src_imgs", "tid2013": "reference_images"}
    for name, folder in (folders | {"kadid10k": "ref_images"}).items():
        root = miniatures(name)
        shutil.rmtree(root / folder)
        assert open_dataset(name, root).samples


def test_practice_images_of_livec_are_left_out(miniatures: Callable[[str], Path]) -> None:
    names = open_dataset("livec", miniatures("livec")).by_name
    assert set(names) == {f"Images/{i}.{'bmp' if i % 2 == 0 else 'JPG'}" for i in range(3, 11)}


def test_live_may_leave_its_nominal_scale(miniatures: Callable[[str], Path]) -> None:
    root = miniatures("live")
    # After the two originals of the first folder.
    _change(root / "dmos_realigned.mat", "dmos_new", slice(2, 4), (111.8, -2.7))
    dataset = open_dataset("live", root)
    assert dataset.by_name["jp2k/img3.bmp"].label == 111.8
    assert dataset.by_name["jp2k/img4.bmp"].label == -2.7
    assert (dataset.scale.low, dataset.scale.high) == (0, 100)


def test_live_may_lack_the_last_image_of_a_folder(tmp_path: Path) -> None:
    """Of as many labels as were published, each belongs to an image as published."""
    counts = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
    for folder, count in counts.items():
        (tmp_path / folder).mkdir()
        for i in range(1, count + 1):
            (tmp_path / folder / f"img{i}.bmp").touch()
    labels = np.arange(982.0)[None] / 10
    rated = {"dmos_new": labels, "orgs": np.zeros((1, 982))}
    savemat(tmp_path / "dmos_realigned.mat", rated)
    savemat(tmp_path / "refnames_all.mat", {"refnames_all": ["a.bmp", "house.bmp"] * 491})
    before = open_dataset("live", tmp_path)
    assert before.by_name["gblur/img1.bmp"].label == labels[0, 227 + 233 + 174]
    assert {sample.group for sample in before.samples} == {"a.bmp", "house.bmp"}
    (tmp_path / "wn" / "img174.bmp").unlink()
    with pytest.raises(DataError, match=r"1 of 982 images of live are missing, .*wn/img174.bmp"):
        open_dataset("live", tmp_path)
    after = open_dataset("live", tmp_path, skip_bad=True)
    assert after.samples == tuple(s for s in before.samples if s.name != "wn/img174.bmp")
    assert after.skipped == ("wn/img174.bmp is missing",)


def test_names_may_be_padded_with_blanks(miniatures: Callable[[str], Path]) -> None:
    """MATLAB's matrices of characters are."""
    root = miniatures("livec")
    before = open_dataset("livec", root)
    path = root / "Data" / "AllImages_release.mat"
    names = [str(name[0]) for name in loadmat(path)["AllImages_release"][:, 0]]
    savemat(path, {"AllImages_release": names})
    assert loadmat(path)["AllImages_release"][-2].endswith(" ")
    assert open_dataset("livec", root).samples == before.samples


@pytest.mark.parametrize("columns", [("Image", "Grade"), (1, None)])
def test_bid_is_read_by_place_where_its_columns_have_other_names(
    columns: tuple[object, object], miniatures: Callable[[str], Path]
) -> None:
    root = miniatures("bid")
    before = open_dataset("bid", root)
    for place, name in enumerate(columns, 1):
        _damaged_workbook(root, LABELS["bid"], 1, name, place)
    assert open_dataset("bid", root).samples == before.samples


def test_a_row_of_bid_without_an_image_shows_what_it_has(
    miniatures: Callable[[str], Path],
) -> None:
    root = miniatures("bid")
    before = open_dataset("bid", root)
    for place, cell in enumerate(("Mean", 2.5), 1):
        _damaged_workbook(root, LABELS["bid"], 11, cell, place)
    with pytest.raises(DataError, match="row 11: 'Mean' is not the number of an image"):
        open_dataset("bid", root)
    assert open_dataset("bid", root, skip_bad=True).samples == before.samples


# A folder's own table.


def test_a_table_takes_its_scale_from_its_labels(tmp_path: Path) -> None:
    dataset = open_dataset("folder", table(tmp_path, "path,score\nb.png,4.5\na.png,2\n"))
    assert ratings(dataset) == {"a.png": 2, "b.png": 4.5}
    assert [sample.group for sample in dataset.samples] == ["a.png", "b.png"]
    assert dataset.scale == ScoreScale(2, 4.5, higher_is_better=True)
    assert dataset.root == tmp_path


def test_a_table_is_given_its_scale(tmp_path: Path) -> None:
    scale = ScoreScale(0, 4, higher_is_better=False)
    path = table(tmp_path, "path,score\na.png,2\n\nb.png,4.5\n")
    with pytest.raises(
        DataError, match=r"labels.csv row 4: b.png has the label 4.5, outside 0 to 4"
    ):
        open_dataset("folder", path, scale=scale)
    assert open_dataset("folder", path, scale=scale, skip_bad=True).scale == scale


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
    path = table(tmp_path, text.encode(encoding), ("ä b.png", "c,d.png"))
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


def test_accents_may_be_composed_in_another_way(tmp_path: Path) -> None:
    path = table(tmp_path, "path,score\na\u0308.png,1\nb.png,2\n", ("\u00e4.png", "b.png"))
    assert set(ratings(open_dataset("folder", path))) == {"\u00e4.png", "b.png"}


def test_a_file_may_be_called_na(tmp_path: Path) -> None:
    path = table(tmp_path, "path,score\nsub/NA,1\nsub/null,2\n", ("a.png",))
    for name in ("NA", "null"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "a.png", tmp_path / "sub" / name)
    assert ratings(open_dataset("folder", path)) == {"sub/NA": 1, "sub/null": 2}


def test_names_are_first_taken_as_they_stand_and_then_without_white_space(tmp_path: Path) -> None:
    text = "path,score\na.png ,1\nb.png ,2\n sub/ c.png,3\n"
    path = table(tmp_path, text, ("a.png", "b.png", "sub/c.png"))
    (tmp_path / "a.png").rename(tmp_path / "a.png ")
    assert ratings(open_dataset("folder", path)) == {"a.png ": 1, "b.png": 2, "sub/c.png": 3}
    shutil.copy(tmp_path / "a.png ", tmp_path / "a.png")
    assert set(ratings(open_dataset("folder", path))) == {"a.png ", "b.png", "sub/c.png"}


def test_a_path_may_begin_with_its_folder(tmp_path: Path) -> None:
    path = table(tmp_path, "path,score\n./a.png,1\n./sub/b.png,2\n", ("a.png", "sub/b.png"))
    assert ratings(open_dataset("folder", path)) == {"a.png": 1, "sub/b.png": 2}


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
    with pytest.raises(DataError, match=r"labels.parquet row 4: pictures/003.png has no label"):
        open_dataset("folder", root / "labels.parquet")


@pytest.mark.parametrize(
    "path",
    [
        *("../a.png", " ../a.png", ".. /a.png", "/a.png", " /a.png", ".//a.png", "sub//a.png"),
        *("sub\\a.png", "C:/a.png", "sub/./a.png", "sub/../a.png"),
    ],
)
def test_a_path_stays_below_its_folder(path: str, tmp_path: Path) -> None:
    labels = table(tmp_path, f"path,score\nb.png,1\n{path},2\n", ("a.png", "b.png", "sub/a.png"))
    with pytest.raises(DataError, match=r"row 3: .* is not a path below .* forward slashes"):
        open_dataset("folder", labels)


# What is missing.


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_label_file_is_named(name: str, miniatures: Callable[[str], Path]) -> None:
    root = miniatures(name)
    (root / LABELS[name]).unlink()
    with pytest.raises(DataError) as caught:
        open_dataset(name, root)
    alternative = " or csiq.DMOS.xlsx" if name == "csiq" else ""
    told = f"{name} lacks {root / LABELS[name]}{alternative}. Below its folder there must be"
    assert told in str(caught.value)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bid"])
def test_a_missing_folder_is_named(name: str, miniatures: Callable[[str], Path]) -> None:
    root = miniatures(name)
    folders = {"livec": "Images", "koniq10k": "1024x768", "spaq": "TestImage", "livefb": "database"}
    folders |= {"live": "gblur", "csiq": "dst_imgs", "tid2013": "distorted_images"}
    folder = root / (folders | {"kadid10k": "images"})[name]
    shutil.rmtree(folder)
    with pytest.raises(DataError) as caught:
        open_dataset(name, root, skip_bad=True)
    assert f"{name} lacks {folder}" in str(caught.value)


@pytest.mark.parametrize("name", [*NAMES, "folder"])
def test_missing_images_are_counted_and_may_be_skipped(
    name: str, miniatures: Callable[[str], Path]
) -> None:
    root = miniatures(name)
    opened = root / "labels.csv" if name == "folder" else root
    before = open_dataset(name, opened)
    lost = [before.samples[1], before.samples[2]]
    for sample in lost:
        before.path(sample).unlink()
    with pytest.raises(DataError) as caught:
        open_dataset(name, opened)
    assert f"2 of {len(before.samples)} images of {name} are missing, first" in str(caught.value)
    after = open_dataset(name, opened, skip_bad=True)
    assert [s for s in before.samples if s not in lost] == list(after.samples)
    assert len(after.skipped) == 2
    assert all(line.endswith(" is missing") for line in after.skipped)


def test_live_needs_the_last_image_of_each_folder(miniatures: Callable[[str], Path]) -> None:
    root = miniatures("live")
    (root / "wn" / "img6.bmp").unlink()
    with pytest.raises(DataError, match=r"dmos_new 30; .*jpeg 6, wn 5, .*together 29: unpack"):
        open_dataset("live", root, skip_bad=True)


def test_a_data_set_without_any_image_is_refused(miniatures: Callable[[str], Path]) -> None:
    root = miniatures("bid")
    for image in root.glob("*.JPG"):
        image.unlink()
    with pytest.raises(DataError, match=r"8 of 8 images of bid are missing, .* check the folder"):
        open_dataset("bid", root, skip_bad=True)


def test_a_data_set_without_any_rating_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rates no image"):
        open_dataset("folder", table(tmp_path, "path,score\n"), skip_bad=True)


def test_there_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"there is no folder .*nowhere: give the one that holds bid"
    ):
        open_dataset("bid", tmp_path / "nowhere")


@pytest.mark.parametrize("root", ["nowhere.csv", "labels.txt", "."])
def test_there_must_be_a_table(root: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("path,score\n")
    with pytest.raises(DataError, match=r"is no \.csv or \.parquet file: give one with"):
        open_dataset("folder", tmp_path / root)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no data set 'tid2008': choose livec, .*kadid10k or folder"
    ):
        open_dataset("tid2008", tmp_path)


def test_only_a_table_is_given_a_scale(miniatures: Callable[[str], Path]) -> None:
    with pytest.raises(DataError, match="bid has a scale of its own"):
        open_dataset("bid", miniatures("bid"), scale=ScoreScale(0, 1, higher_is_better=True))


@pytest.mark.parametrize("rows", ["a.png,3\nb.png,3\n", "a.png,3\n"])
def test_equal_scores_need_a_scale(rows: str, tmp_path: Path) -> None:
    path = table(tmp_path, f"path,score\n{rows}")
    with pytest.raises(DataError, match=r"^every score is 3, .* give it with --scale LOW:HIGH$"):
        open_dataset("folder", path)
    scale = ScoreScale(0, 10, higher_is_better=True)
    assert set(ratings(open_dataset("folder", path, scale=scale)).values()) == {3}


# Ratings that cannot be used.


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("a.png,", "a.png has no label"),
        ("a.png", "a.png has no label"),
        ("a.png,nan", "label 'nan', which is not a finite number"),
        ("a.png,-inf", "label '-inf', which is not a finite number"),
        ("a.png,good", "label 'good', which is not a finite number"),
        ("a.png,1_5", "label '1_5', which is not a finite number"),
        ("a.png,3,5", "3 cells for 2 columns, where a decimal comma must be a point"),
        (",3", "no image is named"),
        ('"  ",3', "no image is named"),
        ("b.png,1", "b.png is at labels.csv row 2 already"),
        ("a.png,3,|group", "a.png is of no group"),
    ],
)
def test_a_bad_rating_is_named_and_may_be_skipped(row: str, told: str, tmp_path: Path) -> None:
    row, grouped, _ = row.partition("|group")
    header, group = ("path,score,group", ",g") if grouped else ("path,score", "")
    text = f"{header}\nb.png,1{group}\nc.png,2{group}\n{row}\n"
    path = table(tmp_path, text, ("a.png", "b.png", "c.png"))
    with pytest.raises(DataError) as caught:
        open_dataset("folder", path)
    message = str(caught.value)
    assert "1 ratings of folder cannot be used: labels.csv row 4: " in message
    assert told in message
    dataset = open_dataset("folder", path, skip_bad=True)
    assert ratings(dataset) == {"b.png": 1, "c.png": 2}
    assert len(dataset.skipped) == 1
    assert told in dataset.skipped[0]


@pytest.mark.parametrize("cell", [True, "3,5"])
def test_a_cell_that_is_no_number_is_named(cell: object, miniatures: Callable[[str], Path]) -> None:
    root = miniatures("bid")
    _damaged_workbook(root, LABELS["bid"], 3, cell)
    with pytest.raises(DataError, match=r"row 3: DatabaseImage0003.JPG .* is not a finite number"):
        open_dataset("bid", root)


def test_conflicting_ratings_are_all_left_out(tmp_path: Path) -> None:
    text = "path,score\na.png,1\nb.png,2\na.png,3\nc.png,4\n"
    path = table(tmp_path, text, ("a.png", "b.png", "c.png"))
    told = "a.png has more than one rating or group: 1 at labels.csv row 2, 3 at labels.csv row 4"
    with pytest.raises(DataError, match=told):
        open_dataset("folder", path)
    dataset = open_dataset("folder", path, skip_bad=True)
    assert ratings(dataset) == {"b.png": 2, "c.png": 4}
    assert dataset.skipped == (told,)


def test_many_bad_ratings_are_counted(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,x\n" for i in range(9))
    path = table(tmp_path, f"path,score\n{rows}")
    with pytest.raises(DataError, match=r"^9 ratings .*row 2.*row 6.*; and 4 more: correct them"):
        open_dataset("folder", path)


def _change(path: Path, variable: str, entries: slice, values: object) -> None:
    content = {key: value for key, value in loadmat(path).items() if key[0] != "_"}
    content[variable][0, entries] = values
    savemat(path, content)


def _damaged_workbook(root: Path, file: str, row: int, cell: object, column: int = 2) -> None:
    book = openpyxl.load_workbook(root / file)
    book.active.cell(row, column).value = cell
    book.save(root / file)


def _damaged_text(root: Path, file: str, old: str, new: str) -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))


def test_bad_ratings_are_found_in_every_kind_of_file(miniatures: Callable[[str], Path]) -> None:
    damages: dict[str, tuple[Callable[[Path, str], None], str]] = {
        "livec": (
            lambda r, f: _change(r / f, "AllMOS_release", slice(8, 9), np.nan),
            r"AllMOS_release.mat entry 9: Images/4.bmp has the label nan",
        ),
        "live": (
            lambda r, f: _change(r / f, "dmos_new", slice(2, 3), np.nan),
            r"dmos_realigned.mat entry 3: jp2k/img3.bmp has the label nan",
        ),
        "spaq": (
            lambda r, f: _damaged_workbook(r, f, 3, None),
            r"scores.xlsx row 3: TestImage/00002.jpg has no label",
        ),
        "bid": (
            lambda r, f: _damaged_workbook(r, f, 3, 50),
            r"row 3: DatabaseImage0003.JPG has the label 50, outside -0.5 to 5.5",
        ),
        "koniq10k": (
            lambda r, f: _damaged_text(r, f, '"10004473377.jpg"', ""),
            r"distributions.csv row 3: no image is named",
        ),
        "csiq": (
            lambda r, f: _damaged_text(r, f, "scene0.AWGN.2.png 0.", "scene0.AWGN.2.png 7."),
            r"csiq_label.txt line 2: dst_imgs/scene0.AWGN.2.png has the label 7",
        ),
        "tid2013": (
            lambda r, f: _damaged_text(r, f, " I01_01_1.bmp", ""),
            r"mos_with_names.txt line 1: no image is named",
        ),
        "kadid10k": (
            lambda r, f: _damaged_text(r, f, "I01.png", ""),
            r"dmos.csv row 2: images/I01_01_01.png is of no group",
        ),
    }
    for name, (damage, told) in damages.items():
        root = miniatures(name)
        before = open_dataset(name, root)
        damage(root, LABELS[name])
        with pytest.raises(DataError, match=told):
            open_dataset(name, root)
        after = open_dataset(name, root, skip_bad=True)
        assert len(after.samples) == len(before.samples) - 1
        assert len(after.skipped) == 1


# Files that are damaged as a whole.


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
    path = miniatures(name) / LABELS[name]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError) as caught:
        open_dataset(name, path.parent if name in ("bid", "live") else path.parent.parent)
    assert f"{path} cannot be read: " in str(caught.value)


def test_a_corrupt_parquet_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"labels.parquet cannot be read: "):
        open_dataset("folder", tmp_path / "labels.parquet")


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("path;score", "needs one column 'path' and has path;score: "),
        ("path", "needs one column 'score' and has path: "),
        ("path,score,score ", "needs one column 'score' and has path, score, score: "),
        ("path,score,score", "has path, score, score: correct the names of its columns, and sep"),
    ],
)
def test_a_column_that_is_missing_or_double_is_named(
    header: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        open_dataset("folder", table(tmp_path, f"{header}\n"))
    assert told in str(caught.value)


def test_a_double_column_of_a_published_set_is_refused(
    miniatures: Callable[[str], Path],
) -> None:
    root = miniatures("koniq10k")
    _damaged_text(root, LABELS["koniq10k"], '"SD"', '"MOS_zscore"')
    with pytest.raises(DataError, match=r"column 'MOS_zscore' and has .*, MOS_zscore, MOS_zscore"):
        open_dataset("koniq10k", root)
    root = miniatures("spaq")
    _damaged_workbook(root, LABELS["spaq"], 1, "MOS", 3)
    with pytest.raises(DataError) as caught:
        open_dataset("spaq", root)
    assert "needs one column 'MOS' and has Image name, MOS, MOS, Colorfulness" in str(caught.value)
    assert str(caught.value).endswith("correct the names of its columns")


def test_a_double_column_of_a_parquet_table_is_refused(tmp_path: Path) -> None:
    columns = [pyarrow.array(["a.png"]), pyarrow.array([1.0]), pyarrow.array([2.0])]
    double = pyarrow.Table.from_arrays(columns, names=["path", "score", "score"])
    pyarrow.parquet.write_table(double, tmp_path / "labels.parquet")
    with pytest.raises(DataError, match=r"labels.parquet .*score"):
        open_dataset("folder", tmp_path / "labels.parquet")


def test_a_quotation_mark_that_is_not_closed_is_no_name(tmp_path: Path) -> None:
    path = table(tmp_path, 'path,score\na.png,1\n"b.png,2\nc.png,3\n')
    with pytest.raises(DataError, match=r"labels.csv cannot be read: unexpected end of data"):
        open_dataset("folder", path, skip_bad=True)


def test_a_table_without_a_row_is_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels.csv is empty"):
        open_dataset("folder", table(tmp_path, "\n,\n"))


def test_a_variable_that_is_missing_is_named(miniatures: Callable[[str], Path]) -> None:
    root = miniatures("live")
    savemat(root / "refnames_all.mat", {"names": 1})
    with pytest.raises(DataError, match=r"refnames_all.mat has no variable refnames_all"):
        open_dataset("live", root)


def test_lists_of_different_length_are_refused(miniatures: Callable[[str], Path]) -> None:
    root = miniatures("livec")
    savemat(root / "Data" / "AllMOS_release.mat", {"AllMOS_release": np.ones((1, 9))})
    with pytest.raises(DataError, match=r"AllImages_release 15; AllMOS_release 9: unpack"):
        open_dataset("livec", root)
    root = miniatures("live")
    savemat(root / "refnames_all.mat", {"refnames_all": np.array([["a.bmp"]], object)})
    with pytest.raises(DataError, match=r"dmos_new 30; orgs 30; refnames_all 1; .* together 30"):
        open_dataset("live", root)
