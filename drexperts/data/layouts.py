"""Readers of nine data sets, in the layouts their authors distribute, and of a folder's own table.

Labels are kept as published. Their scales, and which end is better:

    set       label                        scale    better
    livec     AllMOS_release               0-100    higher
    koniq10k  MOS_zscore                   0-100    higher
    spaq      MOS                          0-100    higher
    livefb    mos                          0-100    higher
    bid       Average Subjective Grade     0-5      higher
    live      dmos_new (realigned DMOS)    0-100    lower
    csiq      DMOS                         0-1      lower
    tid2013   MOS                          0-9      higher
    kadid10k  "dmos", really a MOS         1-5      higher

Ranges and directions agree with IQA-PyTorch's `default_dataset_configs.yml`, which begins some of
the 0-100 scales at 1; BID's is that of its paper (Ciancio et al., IEEE TIP 2011). LIVE's realigned
scores leave their nominal scale, which is no error.

Reference images are not read: a missing folder of them is no error.
"""

import codecs
import csv
import io
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import pandas
from scipy.io import loadmat

from drexperts.data.dataset import Dataset, Sample
from drexperts.runtime.errors import DataError
from drexperts.runtime.manifest import ScoreScale

# LIVE's images, in the order of its labels.
_LIVE_COUNTS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
# What CSIQ's sheet calls the distortions, and its images' names.
_CSIQ_TYPES = {
    "noise": "AWGN",
    "blur": "BLUR",
    "contrast": "contrast",
    "fnoise": "fnoise",
    "jpeg": "JPEG",
    "jpeg 2000": "jpeg2000",
}
_LIVEC_PRACTICE = 7  # the first entries are pictures on which the observers were trained
_NAMED = 5  # faults in a message; the others are counted


class _Row(NamedTuple):
    """One rating as a label file has it, whatever is wrong with it.

    where: the file, and the line, row or entry in it
    name: the image's path below the data set's folder, "" if the file names none
    group: of the sample; None if the image stands for itself
    fault: what is wrong with the rating as a whole, "" for nothing
    """

    where: str
    name: str
    label: Any
    group: str | None = None
    fault: str = ""


@dataclass(frozen=True)
class _Layout:
    """How a data set lies on the disk.

    files: what must be there; folders end in a slash; " or " stands between what will do alone
    images: where the images are, for the reader of an error
    beyond: how far outside its scale a genuine label may lie
    """

    read: Callable[[Path], Iterator[_Row]]
    files: tuple[str, ...]
    images: str
    scale: ScoreScale
    beyond: float = 0.0


def open_dataset(
    name: str, root: Path, *, scale: ScoreScale | None = None, skip_bad: bool = False
) -> Dataset:
    """Read the labels of a data set and find its images, without opening any.

    name: one of NAMES, or "folder"
    root: the data set's folder; for "folder" a .csv or .parquet file with the columns path, score
        and perhaps group, whose paths are relative to that file's folder
    scale: for "folder" only; None takes the least and the largest score, higher is better
    skip_bad: leave out what is missing or cannot be used, as told in `Dataset.skipped`

    Raises DataError, which names the first missing file, bad rows or missing images.
    """
    if name == "folder":
        return _open_table(root, scale, skip_bad)
    if name not in _LAYOUTS:
        raise DataError(f"there is no data set {name!r}: choose {', '.join(NAMES)} or folder")
    if scale is not None:
        raise DataError(f"{name} has a scale of its own: leave --scale out")
    layout = _LAYOUTS[name]
    _check_files(name, layout, root)
    limits = (layout.scale.low - layout.beyond, layout.scale.high + layout.beyond)
    samples, skipped = _samples(name, root, layout.read(root), limits, skip_bad)
    return Dataset(name, root, samples, layout.scale, skipped)


def _open_table(table: Path, scale: ScoreScale | None, skip_bad: bool) -> Dataset:
    if not os.path.isfile(table) or table.suffix.lower() not in (".csv", ".parquet"):
        raise DataError(
            f"{table} is no .csv or .parquet file: give one with the columns path and score, "
            "and group where some images must stay together"
        )
    limits = (-math.inf, math.inf) if scale is None else (scale.low, scale.high)
    samples, skipped = _samples("folder", table.parent, _folder(table), limits, skip_bad)
    return Dataset("folder", table.parent, samples, scale or _range(samples), skipped)


def _range(samples: tuple[Sample, ...]) -> ScoreScale:
    labels = [sample.label for sample in samples]
    if min(labels) == max(labels):
        raise DataError(
            f"every score is {labels[0]:g}, which does not show the scale: give it with "
            "--scale LOW:HIGH"
        )
    return ScoreScale(min(labels), max(labels), higher_is_better=True)


def _check_files(name: str, layout: _Layout, root: Path) -> None:
    if not os.path.isdir(root):
        raise DataError(f"there is no folder {root}: give the one that holds {name}")
    for file in layout.files:
        present = os.path.isdir if file.endswith("/") else os.path.isfile
        if not any(present(root / each) for each in file.split(" or ")):
            raise DataError(
                f"{name} lacks {root / file}. Below its folder there must be "
                f"{', '.join(layout.files)} and the images {layout.images}: unpack the data set "
                "again, or give the folder that holds these"
            )


# From ratings to samples.


def _samples(
    name: str, root: Path, rows: Iterable[_Row], limits: tuple[float, float], skip_bad: bool
) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """The usable samples in the order of their names, and what was left out."""
    images = _Images(root)
    rated: dict[str, list[_Rated]] = {}
    faults, missing = [], []
    for row in rows:
        label = _label(row, limits)
        if isinstance(label, str):
            faults.append(f"{row.where}: {label}")
        elif (found := images.find(row.name)) is None:
            missing.append(row.name.strip())
        else:
            group = found if row.group is None else _folded(row.group.strip())
            rated.setdefault(found, []).append(_Rated(row.where, Sample(found, label, group)))
    samples = []
    for _, ratings in sorted(rated.items()):
        faults += _repeats(ratings)
        if _agree(ratings):
            samples.append(ratings[0].sample)
    if not (skip_bad and samples):
        _refuse(name, root, faults, missing, len(samples))
    return tuple(samples), (*faults, *(f"{image} is missing" for image in missing))


class _Rated(NamedTuple):
    where: str
    sample: Sample


def _agree(ratings: list[_Rated]) -> bool:
    return len({rating.sample for rating in ratings}) == 1


def _repeats(ratings: list[_Rated]) -> list[str]:
    """What to say of an image that is rated more than once."""
    first, *others = ratings
    if _agree(ratings):
        return [f"{where}: {sample.name} is at {first.where} already" for where, sample in others]
    labels = ", ".join(f"{sample.label:g} at {where}" for where, sample in ratings)
    return [f"{first.sample.name} has more than one rating or group: {labels}"]


def _refuse(name: str, root: Path, faults: list[str], missing: list[str], good: int) -> None:
    """Raise DataError if anything is wrong, or nothing is left."""
    remedy = "or leave them out with --skip-bad" if good else "or check the folder"
    if faults:
        more = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise DataError(
            f"{len(faults)} ratings of {name} cannot be used: {'; '.join(faults[:_NAMED])}{more}: "
            f"correct them, {remedy}"
        )
    if missing:
        raise DataError(
            f"{len(missing)} of {len(missing) + good} images of {name} are missing, first "
            f"{root / missing[0]}: restore them, {remedy}"
        )
    if not good:
        raise DataError(f"{name} at {root} rates no image: check the folder")


def _label(row: _Row, limits: tuple[float, float]) -> float | str:
    """The label, or why the rating cannot be used."""
    low, high = limits
    if row.fault:
        return row.fault
    if not row.name:
        return "no image is named"
    if not _is_plain(row.name):
        return f"{row.name!r} is not a path below the data set's folder with forward slashes"
    if row.group == "":
        return f"{row.name} is of no group"
    if not _text(row.label):
        return f"{row.name} has no label"
    label = _number(row.label)
    if label is None or not math.isfinite(label):
        return f"{row.name} has the label {row.label!r}, which is not a finite number"
    if not low <= label <= high:
        return f"{row.name} has the label {label:g}, outside {low:g} to {high:g}"
    return label


def _is_plain(name: str) -> bool:
    """Whether a path stays below its folder, and is written in one way only."""
    foreign = PureWindowsPath(name).drive or "\\" in name or "\0" in name
    return not foreign and not {"", ".", ".."} & {part.strip() for part in name.split("/")}


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool) or "_" in str(cell):  # Python takes 1_5 for 15
        return None
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return None


def _text(cell: Any) -> str:
    """A cell's content, "" for an empty one."""
    text = "" if cell is None else str(cell)
    return text if text.strip() else ""


class _Images:
    """The files below a folder, listed once for each folder of them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, dict[str, str]] = {}

    def find(self, name: str) -> str | None:
        """The path as it is on the disk.

        Case, the form of accents and white space around names may differ there.
        """
        bare = "/".join(part.strip() for part in name.split("/"))
        return self._find(name) or self._find(bare)

    def _find(self, name: str) -> str | None:
        folder, slash, leaf = name.rpartition("/")
        if folder not in self._folders:
            leaves = sorted(_listed(self._root / folder), reverse=True)
            self._folders[folder] = {_folded(x): x for x in leaves} | {x: x for x in leaves}
        listed = self._folders[folder]
        found = listed.get(leaf) or listed.get(_folded(leaf))
        return None if found is None else f"{folder}{slash}{found}"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _listed(folder: Path, folders: bool = False) -> list[str]:
    """The names of the files in a folder, or of the folders in it; none if there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir() == folders]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as cause:
        raise DataError(f"cannot list {folder}: {cause.strerror}") from cause


# Files of labels.


def _parsed(path: Path, parse: Callable[[Path], Any]) -> Any:
    try:
        return parse(path)
    except Exception as cause:  # the parsers raise what they please, by the damage done
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise DataError(f"{path} cannot be read: {reason}; mend it, or fetch it again") from cause


def _decoded(path: Path) -> str:
    """A text in UTF-8 or UTF-16; what is neither is taken for Windows' western encoding."""
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Where each line is, and its text; empty lines are left out."""
    for number, line in enumerate(_parsed(path, _decoded).splitlines(), 1):
        if line.strip():
            yield f"{path.name} line {number}", line.strip()


class _Table(NamedTuple):
    """A table: its names of columns, and each other row that is not empty with its number.

    Rows are counted from the top of the file; those of a .parquet, without one of names, from 1.
    """

    names: list[str]
    rows: list[tuple[int, Sequence[Any]]]


def _csv(path: Path) -> list[list[str]]:
    """Rows of text, without the empty cells at their ends."""
    # Without `strict`, a quotation mark that is never closed swallows the rest of the file.
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), strict=True)
    rows = list(reader)
    for row in rows:
        while row and not _text(row[-1]):
            row.pop()
    return rows


def _xlsx(path: Path, sheet: int | str = 0) -> list[Sequence[Any]]:
    # Without a header, for pandas gives the second of two equal names another.
    cells = pandas.read_excel(
        path, sheet, header=None, dtype=object, keep_default_na=False, engine="openpyxl"
    )
    return list(cells.itertuples(index=False, name=None))


def _parquet(path: Path) -> list[Sequence[Any]]:
    frame = pandas.read_parquet(path)
    cells = frame.astype(object).where(frame.notna(), None)
    return [list(frame.columns), *cells.itertuples(index=False, name=None)]


def _table(path: Path) -> _Table:
    kind = path.suffix.lower()
    parsers: dict[str, Callable[[Path], Any]]
    parsers = {".csv": _csv, ".xlsx": _xlsx, ".parquet": _parquet}
    return _filled(path, _parsed(path, parsers[kind]), 0 if kind == ".parquet" else 1)


def _filled(path: Path, rows: Iterable[Sequence[Any]], first: int = 1) -> _Table:
    """Rows as a table, without those that are empty; first: what the first row counts as."""
    filled = [(number, row) for number, row in enumerate(rows, first) if any(map(_text, row))]
    if not filled:
        raise DataError(f"{path} is empty: write it again")
    return _Table([_text(name).strip() for name in filled[0][1]], filled[1:])


def _rated(
    path: Path, table: _Table, folder: str, image: str, label: str, group: str | None = None
) -> Iterator[_Row]:
    """The ratings in these columns; rows that are empty in all of them are left out.

    folder: where the images are, ending in a slash, "" for the data set's own
    """
    columns = [image, label, *([] if group is None else [group])]
    places = [_place(path, table.names, column) for column in columns]
    for number, row in table.rows:
        cells = [row[place] if place < len(row) else None for place in places]
        if any(map(_text, cells)):
            yield _Row(
                f"{path.name} row {number}",
                _below(folder, cells[0]),
                cells[1],
                None if group is None else _text(cells[2]),
                _surplus(table.names, row),
            )


def _place(path: Path, names: list[str], column: str) -> int:
    if names.count(column) != 1:
        commas = ", and separate them by commas" if path.suffix.lower() == ".csv" else ""
        raise DataError(
            f"{path} needs one column {column!r} and has {', '.join(names)}: correct the names of "
            f"its columns{commas}"
        )
    return names.index(column)


def _surplus(names: list[str], row: Sequence[Any]) -> str:
    """What to say of a row that has more cells than there are columns."""
    if len(row) <= len(names):
        return ""
    return (
        f"{len(row)} cells for {len(names)} columns, where a decimal comma must be a point, and a "
        "name with a comma stand in quotation marks"
    )


def _matlab(path: Path, variable: str) -> list[Any]:
    """The elements of a vector or cell array in a .mat file."""
    content = _parsed(path, partial(loadmat, squeeze_me=True))
    if variable not in content:
        raise DataError(f"{path} has no variable {variable}: fetch it again")
    return np.atleast_1d(content[variable]).ravel().tolist()


def _check_lengths(lengths: dict[str, int]) -> None:
    """Labels belong to images by their order alone, so all must be there."""
    if len(set(lengths.values())) > 1:
        told = "; ".join(f"{what} {length}" for what, length in lengths.items())
        raise DataError(f"these differ in number: {told}: unpack the data set again")


def _below(folder: str, leaf: Any) -> str:
    name = _text(leaf).removeprefix("./")
    return f"{folder}{name}" if name else ""


# The layouts. Each function yields the ratings in the order of the label file.


def _koniq10k(root: Path) -> Iterator[_Row]:
    path = root / "koniq10k_scores_and_distributions.csv"
    return _rated(path, _table(path), "1024x768/", "image_name", "MOS_zscore")


def _livec(root: Path) -> Iterator[_Row]:
    images = _matlab(root / "Data" / "AllImages_release.mat", "AllImages_release")
    labels = _matlab(root / "Data" / "AllMOS_release.mat", "AllMOS_release")
    _check_lengths({"AllImages_release": len(images), "AllMOS_release": len(labels)})
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        if i >= _LIVEC_PRACTICE:
            yield _Row(f"AllMOS_release.mat entry {i + 1}", _below("Images/", image), label)


def _spaq(root: Path) -> Iterator[_Row]:
    path = root / "Annotations" / "MOS and Image attribute scores.xlsx"
    return _rated(path, _table(path), "TestImage/", "Image name", "MOS")


def _livefb(root: Path) -> Iterator[_Row]:
    path = root / "labels_image.csv"
    return _rated(path, _table(path), "database/", "name", "mos")


def _bid(root: Path) -> Iterator[_Row]:
    path, known = root / "DatabaseGrades.xlsx", ["Image Number", "Average Subjective Grade"]
    table = _table(path)
    if not set(known) <= set(table.names):
        # The released code goes by place alone.
        table = _Table([*known, *table.names[2:]], table.rows)
    for row in _rated(path, table, "", *known):
        number = _number(row.name)
        if number is not None and number.is_integer():
            yield row._replace(name=f"DatabaseImage{int(number):04d}.JPG")
        else:
            fault = f"{row.name!r} is not the number of an image" if row.name else ""
            yield row._replace(fault=fault)


def _live(root: Path) -> Iterator[_Row]:
    labels = _matlab(root / "dmos_realigned.mat", "dmos_new")
    originals = _matlab(root / "dmos_realigned.mat", "orgs")
    references = _matlab(root / "refnames_all.mat", "refnames_all")
    counts = _LIVE_COUNTS
    if len(labels) != sum(counts.values()):
        counts = {folder: _highest(root / folder) for folder in counts}
    images = f"images in {', '.join(f'{folder} {n}' for folder, n in counts.items())}, together"
    lengths = {"dmos_new": len(labels), "orgs": len(originals), "refnames_all": len(references)}
    _check_lengths(lengths | {images: sum(counts.values())})
    names = (f"{folder}/img{i + 1}.bmp" for folder in counts for i in range(counts[folder]))
    ratings = zip(names, labels, originals, references, strict=True)
    for i, (name, label, original, reference) in enumerate(ratings, 1):
        if not original:
            yield _Row(f"dmos_realigned.mat entry {i}", name, label, _text(reference))


def _highest(folder: Path) -> int:
    """The highest number of an image in one of LIVE's folders, which is their count."""
    matches = (re.fullmatch(r"img([0-9]+)\.bmp", name, re.I) for name in _listed(folder))
    return max((int(match[1]) for match in matches if match), default=0)


def _csiq(root: Path) -> Iterator[_Row]:
    # The authors keep a folder for each distortion, others put all images into one.
    folders = ["dst_imgs", *(f"dst_imgs/{x}" for x in _listed(root / "dst_imgs", folders=True))]
    holders = {_folded(leaf): folder for folder in folders for leaf in _listed(root / folder)}
    for where, leaf, label in _csiq_ratings(root):
        parts = leaf.rpartition("/")[2].split(".")
        folder = holders.get(_folded(leaf), "dst_imgs")
        yield _Row(where, f"{folder}/{leaf}", label, f"{parts[0]}.{parts[-1]}")


def _csiq_ratings(root: Path) -> Iterator[tuple[str, str, Any]]:
    """Where a rating is, its image's name and its label: of hyperIQA's list, or the authors' sheet.

    The sheet has no names of files, but what they are made of.
    """
    listed, path = root / "csiq_label.txt", root / "csiq.DMOS.xlsx"
    if listed.is_file():
        for where, line in _lines(listed):
            leaf, *label = line.rsplit(maxsplit=1)
            yield where, leaf, "".join(label)
        return
    names, rows = _filled(path, _parsed(path, partial(_xlsx, sheet="all_by_image")))
    places = [_place(path, names, column) for column in ("image", "dst_type", "dst_lev", "dmos")]
    for number, row in rows:
        image, kind, level, label = (row[place] for place in places)
        if any(map(_text, (image, kind, level, label))):
            kind = _CSIQ_TYPES.get(_text(kind).strip(), _text(kind))
            leaf = f"{_whole(image)}.{kind}.{_whole(level)}.png"
            yield f"{path.name} row {number}", leaf, label


def _whole(cell: Any) -> str:
    """A cell's content, a whole number without its point."""
    return _text(cell).strip().removesuffix(".0")


def _tid2013(root: Path) -> Iterator[_Row]:
    for where, line in _lines(root / "mos_with_names.txt"):
        label, *leaf = line.split(maxsplit=1)
        name = "".join(leaf)
        yield _Row(where, _below("distorted_images/", name), label, f"I{name[1:3]}.BMP")


def _kadid10k(root: Path) -> Iterator[_Row]:
    path = root / "dmos.csv"
    return _rated(path, _table(path), "images/", "dist_img", "dmos", "ref_img")


def _folder(path: Path) -> Iterator[_Row]:
    table = _table(path)
    group = "group" if "group" in table.names else None
    return _rated(path, table, "", "path", "score", group)


_PERCENT = ScoreScale(0.0, 100.0, higher_is_better=True)

_LAYOUTS = {
    "livec": _Layout(
        _livec,
        ("Data/AllImages_release.mat", "Data/AllMOS_release.mat", "Images/"),
        "Images/<name>",
        _PERCENT,
    ),
    "koniq10k": _Layout(
        _koniq10k,
        ("koniq10k_scores_and_distributions.csv", "1024x768/"),
        "1024x768/<image_name>",
        _PERCENT,
    ),
    "spaq": _Layout(
        _spaq,
        ("Annotations/MOS and Image attribute scores.xlsx", "TestImage/"),
        "TestImage/<Image name>",
        _PERCENT,
    ),
    "livefb": _Layout(_livefb, ("labels_image.csv", "database/"), "database/<name>", _PERCENT),
    "bid": _Layout(
        _bid,
        ("DatabaseGrades.xlsx",),
        "DatabaseImage0001.JPG and so on",
        ScoreScale(0.0, 5.0, higher_is_better=True),
        beyond=0.5,  # other readers take the magnitude, as if some grades were below zero
    ),
    "live": _Layout(
        _live,
        (
            "dmos_realigned.mat",
            "refnames_all.mat",
            *(f"{folder}/" for folder in _LIVE_COUNTS),
        ),
        "<folder>/img1.bmp and so on",
        ScoreScale(0.0, 100.0, higher_is_better=False),
        beyond=50.0,
    ),
    "csiq": _Layout(
        _csiq,
        ("csiq_label.txt or csiq.DMOS.xlsx", "dst_imgs/"),
        "dst_imgs/<name>",
        ScoreScale(0.0, 1.0, higher_is_better=False),
    ),
    "tid2013": _Layout(
        _tid2013,
        ("mos_with_names.txt", "distorted_images/"),
        "distorted_images/<name>",
        ScoreScale(0.0, 9.0, higher_is_better=True),
    ),
    "kadid10k": _Layout(
        _kadid10k,
        ("dmos.csv", "images/"),
        "images/<dist_img>",
        ScoreScale(1.0, 5.0, higher_is_better=True),
    ),
}

NAMES = tuple(_LAYOUTS)
