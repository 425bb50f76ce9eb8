"""The nine layouts and a folder's table: their images, and ratings that are invalid."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from support import miniature
from support.label_files import (
    LABELS,
    change_matlab,
    change_text,
    change_workbook,
    ratings,
    write_table,
)
from support.old_excel import write_xls

from drexperts.data.layouts import NAMES, open_dataset
from drexperts.runtime.errors import DataError
from drexperts.runtime.manifest import ScoreScale

SYNTHETIC = ("live", "csiq", "tid2013", "kadid10k")
# What is read.


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
        change_text(root, LABELS["kadid10k"], ",I01.png,", f",{other},")
    assert {sample.group for sample in open_dataset("kadid10k", root).samples} == before
    root = miniatures("csiq")
    before = {sample.group for sample in open_dataset("csiq", root).samples}
    image = root / "dst_imgs" / "scene0.AWGN.1.png"
    image.rename(image.with_name("SCENE0.AWGN.1.PNG"))
    change_text(root, LABELS["csiq"], image.name, "SCENE0.AWGN.1.PNG")
    assert {sample.group for sample in open_dataset("csiq", root).samples} == before
    path = write_table(tmp_path, "path,score,group\na.png,1, r1 \nb.png,2,R1\n")
    assert {sample.group for sample in open_dataset("folder", path).samples} == {"r1"}


def test_an_exact_name_comes_before_one_of_another_case(tmp_path: Path) -> None:
    path = write_table(
        tmp_path, "path,score\nb.PNG,1\nB.png,2\nb.png,3\n", ("b.png", "B.png", "b.PNG")
    )
    assert ratings(open_dataset("folder", path)) == {"b.PNG": 1, "B.png": 2, "b.png": 3}
    path = write_table(tmp_path, "path,score\nb.png,1\nA.PNG,2\n", ("A.png", "a.PNG"))
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
    rows: list[tuple[object, ...]] = [head]
    for sample in before.samples:
        scene, kind, level, _ = sample.name.rpartition("/")[2].split(".")
        rows.append((scene, 1, kinds[kind], int(level), 0.05, sample.label))
    for at, row in enumerate(rows, 1 + blank):
        for column, cell in enumerate(row, 1 + blank):
            sheet.cell(at, column, cell)
    (root / "csiq_label.txt").unlink()
    with pytest.raises(DataError, match=r"csiq_label\.txt or csiq\.DMOS\.xlsx"):
        open_dataset("csiq", root)
    book.save(root / "csiq.beta.xlsx")  # as older downloads call it
    assert open_dataset("csiq", root).samples == before.samples
    (root / "csiq.beta.xlsx").rename(root / "csiq.DMOS.xlsx")
    assert open_dataset("csiq", root).samples == before.samples
    sheet.cell(2 + blank, 3 + blank, "jpeg 2000")
    book.save(root / "csiq.DMOS.xlsx")
    name, place = r"dst_imgs/scene0.jpeg2000.1.png", 2 + blank
    with pytest.raises(DataError, match=rf"1 of 18 .*{name}"):
        open_dataset("csiq", root)
    sheet.cell(2 + blank, 6 + blank, "high")
    book.save(root / "csiq.DMOS.xlsx")
    with pytest.raises(DataError, match=f"csiq.DMOS.xlsx row {place}: .*high"):
        open_dataset("csiq", root)


def test_bid_as_its_authors_have_it(miniatures: Callable[[str], Path]) -> None:
    """An .xls file whose numbers are floats, with a column per observer and empty cells."""
    root = miniatures("bid")
    before = open_dataset("bid", root)
    sheet = openpyxl.load_workbook(root / LABELS["bid"]).active
    rows: list[list[object]] = [list(row[:2]) for row in sheet.iter_rows(values_only=True)]
    rows[0] += ["Number of Grades", "Grade #1", "Grade #2"]
    rows[1:] = [[*row, 2.0, row[1], None] for row in rows[1:]]
    (root / LABELS["bid"]).unlink()
    write_xls(root / "DatabaseGrades.xls", "Plan1", rows)
    assert open_dataset("bid", root).samples == before.samples
    rows[2][1] = b"\x07"  # a division by zero, which would read as the grade 7
    write_xls(root / "DatabaseGrades.xls", "Plan1", rows)
    with pytest.raises(DataError, match=r"DatabaseGrades\.xls row 3: .*#DIV/0!"):
        open_dataset("bid", root)


def test_koniq10k_may_have_the_file_of_its_split(miniatures: Callable[[str], Path]) -> None:
    """Its scores are the z-scores of the other file, in the column MOS."""
    root = miniatures("koniq10k")
    before = open_dataset("koniq10k", root)
    lines = ["image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set"]
    for sample in before.samples:
        lines.append(f"{sample.name.split('/')[1]},0,0,0.25,0.7,0.05,105,{sample.label},0.5,test")
    (root / LABELS["koniq10k"]).unlink()
    (root / "koniq10k_distributions_sets.csv").write_text("\n".join(lines) + "\n")
    assert open_dataset("koniq10k", root).samples == before.samples


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
    change_matlab(root / "dmos_realigned.mat", "dmos_new", slice(2, 4), (111.8, -2.7))
    dataset = open_dataset("live", root)
    assert dataset.by_name["jp2k/img3.bmp"].label == 111.8
    assert dataset.by_name["jp2k/img4.bmp"].label == -2.7
    assert (dataset.scale.low, dataset.scale.high) == (0, 100)


def test_live_may_lack_the_last_image_of_a_folder(tmp_path: Path) -> None:
    """With all published labels, each still belongs to the image that was published with it."""
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
    with pytest.raises(DataError, match=r"1 of 982 .*wn/img174\.bmp"):
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
        change_workbook(root, LABELS["bid"], 1, name, place)
    assert open_dataset("bid", root).samples == before.samples


def test_a_row_of_bid_without_an_image_is_named(
    miniatures: Callable[[str], Path],
) -> None:
    root = miniatures("bid")
    before = open_dataset("bid", root)
    for place, cell in enumerate(("Mean", 2.5), 1):
        change_workbook(root, LABELS["bid"], 11, cell, place)
    with pytest.raises(DataError, match="row 11: 'Mean'"):
        open_dataset("bid", root)
    assert open_dataset("bid", root, skip_bad=True).samples == before.samples


# A folder's own table.


def test_a_table_takes_its_scale_from_its_labels(tmp_path: Path) -> None:
    dataset = open_dataset("folder", write_table(tmp_path, "path,score\nb.png,4.5\na.png,2\n"))
    assert ratings(dataset) == {"a.png": 2, "b.png": 4.5}
    assert [sample.group for sample in dataset.samples] == ["a.png", "b.png"]
    assert dataset.scale == ScoreScale(2, 4.5, higher_is_better=True)
    assert dataset.root == tmp_path


def test_a_table_is_given_its_scale(tmp_path: Path) -> None:
    scale = ScoreScale(0, 4, higher_is_better=False)
    path = write_table(tmp_path, "path,score\na.png,2\n\nb.png,4.5\n")
    with pytest.raises(DataError, match=r"labels\.csv row 4: b\.png .*4\.5.* 0 to 4"):
        open_dataset("folder", path, scale=scale)
    assert open_dataset("folder", path, scale=scale, skip_bad=True).scale == scale


def test_accents_may_be_composed_in_another_way(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,score\na\u0308.png,1\nb.png,2\n", ("\u00e4.png", "b.png"))
    assert set(ratings(open_dataset("folder", path))) == {"\u00e4.png", "b.png"}


def test_names_are_first_taken_as_they_stand_and_then_without_white_space(tmp_path: Path) -> None:
    text = "path,score\na.png ,1\nb.png ,2\n sub/ c.png,3\n"
    path = write_table(tmp_path, text, ("a.png", "b.png", "sub/c.png"))
    (tmp_path / "a.png").rename(tmp_path / "a.png ")
    assert ratings(open_dataset("folder", path)) == {"a.png ": 1, "b.png": 2, "sub/c.png": 3}
    shutil.copy(tmp_path / "a.png ", tmp_path / "a.png")
    assert set(ratings(open_dataset("folder", path))) == {"a.png ", "b.png", "sub/c.png"}


def test_a_path_may_begin_with_its_folder(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,score\n./a.png,1\n./sub/b.png,2\n", ("a.png", "sub/b.png"))
    assert ratings(open_dataset("folder", path)) == {"a.png": 1, "sub/b.png": 2}


@pytest.mark.parametrize(
    "path",
    [
        *("../a.png", " ../a.png", ".. /a.png", "/a.png", " /a.png", ".//a.png", "sub//a.png"),
        *("sub\\a.png", "C:/a.png", "sub/./a.png", "sub/../a.png"),
    ],
)
def test_a_path_stays_below_its_folder(path: str, tmp_path: Path) -> None:
    labels = write_table(
        tmp_path, f"path,score\nb.png,1\n{path},2\n", ("a.png", "b.png", "sub/a.png")
    )
    with pytest.raises(DataError, match="row 3: "):
        open_dataset("folder", labels)


# What is missing.


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_label_file_is_named(name: str, miniatures: Callable[[str], Path]) -> None:
    root = miniatures(name)
    (root / LABELS[name]).unlink()
    with pytest.raises(DataError) as caught:
        open_dataset(name, root)
    alternative = " or csiq.DMOS.xlsx" if name == "csiq" else ""
    assert f"{root / LABELS[name]}{alternative}" in str(caught.value)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bid"])
def test_a_missing_folder_is_named(name: str, miniatures: Callable[[str], Path]) -> None:
    root = miniatures(name)
    folders = {"livec": "Images", "koniq10k": "1024x768", "spaq": "TestImage", "livefb": "database"}
    folders |= {"live": "gblur", "csiq": "dst_imgs", "tid2013": "distorted_images"}
    folder = root / (folders | {"kadid10k": "images"})[name]
    shutil.rmtree(folder)
    with pytest.raises(DataError) as caught:
        open_dataset(name, root, skip_bad=True)
    assert str(folder) in str(caught.value)


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
    assert f"2 of {len(before.samples)} " in str(caught.value)
    assert str(before.path(lost[0])).casefold() in str(caught.value).casefold()
    after = open_dataset(name, opened, skip_bad=True)
    assert [s for s in before.samples if s not in lost] == list(after.samples)
    assert len(after.skipped) == 2


def test_live_needs_the_last_image_of_each_folder(miniatures: Callable[[str], Path]) -> None:
    root = miniatures("live")
    (root / "wn" / "img6.bmp").unlink()
    with pytest.raises(DataError, match=r"dmos_new 30; .*jpeg 6, wn 5, .* 29"):
        open_dataset("live", root, skip_bad=True)


def test_a_data_set_without_an_image_or_a_rating_is_refused(
    miniatures: Callable[[str], Path], tmp_path: Path
) -> None:
    root = miniatures("bid")
    for image in root.glob("*.JPG"):
        image.unlink()
    with pytest.raises(DataError, match="8 of 8 "):
        open_dataset("bid", root, skip_bad=True)
    with pytest.raises(DataError, match=str(tmp_path)):
        open_dataset("folder", write_table(tmp_path, "path,score\n"), skip_bad=True)


@pytest.mark.parametrize(
    ("name", "root"),
    [
        ("bid", "nowhere"),
        ("folder", "nowhere.csv"),
        ("folder", "labels.txt"),
        ("folder", "."),
        ("tid2008", "."),
    ],
)
def test_there_must_be_a_known_data_set(name: str, root: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("path,score\n")
    named = ", ".join(NAMES) if name == "tid2008" else str(tmp_path / root)
    with pytest.raises(DataError, match=named):
        open_dataset(name, tmp_path / root)


def test_only_a_table_is_given_a_scale(miniatures: Callable[[str], Path]) -> None:
    with pytest.raises(DataError, match="bid"):
        open_dataset("bid", miniatures("bid"), scale=ScoreScale(0, 1, higher_is_better=True))


@pytest.mark.parametrize("rows", ["a.png,3\nb.png,3\n", "a.png,3\n"])
def test_equal_scores_need_a_scale(rows: str, tmp_path: Path) -> None:
    path = write_table(tmp_path, f"path,score\n{rows}")
    with pytest.raises(DataError, match=r"3.* --scale LOW:HIGH"):
        open_dataset("folder", path)
    scale = ScoreScale(0, 10, higher_is_better=True)
    assert set(ratings(open_dataset("folder", path, scale=scale)).values()) == {3}


# Invalid ratings.


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("a.png,", "a.png"),
        ("a.png", "a.png"),
        ("a.png,nan", "'nan'"),
        ("a.png,-inf", "'-inf'"),
        ("a.png,good", "'good'"),
        ("a.png,1_5", "'1_5'"),
        ("a.png,3,5", "3 cells for 2 columns"),
        (",3", ""),
        ('"  ",3', ""),
        ("b.png,1", "b.png is at labels.csv row 2"),
        ("a.png,3,|group", "group"),
    ],
)
def test_a_bad_rating_is_named_and_may_be_skipped(row: str, named: str, tmp_path: Path) -> None:
    row, grouped, _ = row.partition("|group")
    header, group = ("path,score,group", ",g") if grouped else ("path,score", "")
    text = f"{header}\nb.png,1{group}\nc.png,2{group}\n{row}\n"
    path = write_table(tmp_path, text, ("a.png", "b.png", "c.png"))
    with pytest.raises(DataError, match=rf"^1 .*labels\.csv row 4: .*{named}"):
        open_dataset("folder", path)
    dataset = open_dataset("folder", path, skip_bad=True)
    assert ratings(dataset) == {"b.png": 1, "c.png": 2}
    (reason,) = dataset.skipped
    assert reason.startswith("labels.csv row 4: ")
    assert named in reason


def test_conflicting_ratings_are_all_left_out(tmp_path: Path) -> None:
    text = "path,score\na.png,1\nb.png,2\na.png,3\nc.png,4\n"
    path = write_table(tmp_path, text, ("a.png", "b.png", "c.png"))
    named = "1 at labels.csv row 2, 3 at labels.csv row 4"
    with pytest.raises(DataError, match=named):
        open_dataset("folder", path)
    dataset = open_dataset("folder", path, skip_bad=True)
    assert ratings(dataset) == {"b.png": 2, "c.png": 4}
    (reason,) = dataset.skipped
    assert named in reason


@pytest.mark.parametrize(
    "row",
    ["\x1b[31mred.png,2", "a\x00.png,2", f"{'a' * 5000},2", "b.png," + "9" * 5000, "b.png,1e999"],
)
def test_what_a_stranger_wrote_is_quoted_shortly_and_without_codes(
    row: str, tmp_path: Path
) -> None:
    path = write_table(tmp_path, f"path,score\na.png,1\n{row}\n")
    with pytest.raises(DataError, match=r"labels\.csv row 3") as caught:
        open_dataset("folder", path)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_an_image_rated_a_thousand_times_is_named_shortly(tmp_path: Path) -> None:
    rows = "".join(f"a.png,{i}\n" for i in range(1000))
    with pytest.raises(DataError, match=r"0 at .*row 2.* 995 more") as caught:
        open_dataset("folder", write_table(tmp_path, f"path,score\n{rows}"))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("group", ["g" * 5000])
def test_a_group_is_a_short_name(group: str, tmp_path: Path) -> None:
    path = write_table(tmp_path, f"path,score,group\na.png,1,{group}\nb.png,2,h\n")
    with pytest.raises(DataError, match=r"labels\.csv row 2: a\.png .*5000"):
        open_dataset("folder", path)


def test_a_path_with_a_long_part_is_missing(tmp_path: Path) -> None:
    path = write_table(tmp_path, f"path,score\na.png,1\nb.png,2\n{'d' * 300}/c.png,3\n")
    assert len(open_dataset("folder", path, skip_bad=True).samples) == 2


def test_many_bad_ratings_are_counted(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,x\n" for i in range(9))
    path = write_table(tmp_path, f"path,score\n{rows}")
    with pytest.raises(DataError, match=r"^9 .*row 2.*row 6.* 4 more"):
        open_dataset("folder", path)
