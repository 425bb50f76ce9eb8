"""Nine data sets in the folder layouts their authors distribute, and a folder with its own table.

Labels are kept as published. Their scales and directions:

    set       label                        scale    better
    livec     AllMOS_release               0-100    higher
    koniq10k  MOS_zscore, or MOS           0-100    higher
    spaq      MOS                          0-100    higher
    livefb    mos                          0-100    higher
    bid       Average Subjective Grade     0-5      higher
    live      dmos_new (realigned DMOS)    0-100    lower
    csiq      DMOS                         0-1      lower
    tid2013   MOS                          0-9      higher
    kadid10k  "dmos", really a MOS         1-5      higher

Ranges and directions agree with IQA-PyTorch's `default_dataset_configs.yml`, where some of the
0-100 scales begin at 1; BID's is from its paper (Ciancio et al., IEEE TIP 2011). LIVE's realigned
scores may lie outside their nominal scale.

Reference images are never read, so their folder may be missing.
"""

import errno
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from drexperts.data.dataset import Dataset, Sample
from drexperts.data.label_tables import (
    Row,
    below,
    check_lengths,
    column_place,
    lines_of,
    number_in,
    ratings_in,
)
from drexperts.data.matlab_files import read_matlab
from drexperts.data.table_files import Table, read_table, text_in
from drexperts.runtime.errors import DataError
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.quoting import printable, quoted

# LIVE's images, in the order of its labels.
_LIVE_COUNTS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
# The distortions' names in CSIQ's sheet, and in the names of its images.
_CSIQ_TYPES = {
    "noise": "AWGN",
    "blur": "BLUR",
    "contrast": "contrast",
    "fnoise": "fnoise",
    "jpeg": "JPEG",
    "jpeg 2000": "jpeg2000",
}
_LIVEC_PRACTICE = 7  # the first entries are pictures with which the observers practised
_NAMED = 5  # faults that a message names; the others are counted
_LONGEST = 1000  # characters of a path or a group
_BID = ("DatabaseGrades.xlsx", "DatabaseGrades.xls")
_KONIQ10K = {  # the scores' column by file; the second also says who trains on what
    "koniq10k_scores_and_distributions.csv": "MOS_zscore",
    "koniq10k_distributions_sets.csv": "MOS",
}
_CSIQ = ("csiq_label.txt", "csiq.DMOS.xlsx", "csiq.beta.xlsx")


@dataclass(frozen=True)
class _Layout:
    """How a data set lies on the disk.

    files: files and folders that must exist; folders end in a slash, " or " separates alternatives
    images: where the images are, for error messages
    beyond: how far outside its scale a genuine label may lie
    """

    read: Callable[[Path], Iterator[Row]]
    files: tuple[str, ...]
    images: str
    scale: ScoreScale
    beyond: float = 0.0


def open_dataset(
    name: str, root: str | Path, *, scale: ScoreScale | None = None, skip_bad: bool = False
) -> Dataset:
    """Read the labels of a data set and find its images, without opening any.

    name: one of NAMES, or "folder"
    root: the data set's folder; for "folder" a .csv or .parquet file with the columns path, score
        and optionally group, whose paths are relative to that file's folder
    scale: for "folder" only; None takes the lowest and the highest score, higher is better
    skip_bad: leave out missing images and bad ratings; `Dataset.skipped` then names them

    Raises DataError, which names a missing file, bad rows or missing images.
    """
    root = Path(root)
    if name == "folder":
        return _open_table(root, scale, skip_bad)
    if name not in _LAYOUTS:
        raise DataError(f"unknown data set {name!r}: choose {', '.join(NAMES)} or folder")
    if scale is not None:
        raise DataError(f"{name} has its own scale: leave --scale out")
    layout = _LAYOUTS[name]
    _check_files(name, layout, root)
    limits = (layout.scale.low - layout.beyond, layout.scale.high + layout.beyond)
    samples, skipped = _samples(name, root, layout.read(root), limits, skip_bad)
    return Dataset(name, root, samples, layout.scale, skipped)


def _open_table(table: Path, scale: ScoreScale | None, skip_bad: bool) -> Dataset:
    if not os.path.isfile(table) or table.suffix.lower() not in (".csv", ".parquet"):
        raise DataError(
            f"{table} is not a .csv or .parquet file: give one with the columns path and score, "
            "and group if some images must stay together"
        )
    limits = (-math.inf, math.inf) if scale is None else (scale.low, scale.high)
    samples, skipped = _samples("folder", table.parent, _folder(table), limits, skip_bad)
    return Dataset("folder", table.parent, samples, scale or _range(samples), skipped)


def _range(samples: tuple[Sample, ...]) -> ScoreScale:
    labels = [sample.label for sample in samples]
    if min(labels) == max(labels):
        raise DataError(
            f"every score is {labels[0]:g}, which does not show the scale: pass it with "
            "--scale LOW:HIGH"
        )
    return ScoreScale(min(labels), max(labels), higher_is_better=True)


def _check_files(name: str, layout: _Layout, root: Path) -> None:
    if not os.path.isdir(root):
        raise DataError(f"the folder {root} does not exist: give the one that holds {name}")
    for file in layout.files:
        present = os.path.isdir if file.endswith("/") else os.path.isfile
        if not any(present(root / each) for each in file.split(" or ")):
            raise DataError(
                f"{name} lacks {root / file}. Its folder must hold {', '.join(layout.files)} and "
                f"the images {layout.images}: unpack the data set again, or give another folder"
            )


# From ratings to samples.


def _samples(
    name: str, root: Path, rows: Iterable[Row], limits: tuple[float, float], skip_bad: bool
) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """The usable samples, sorted by name, and what was left out."""
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
    """The faults of an image that is rated more than once."""
    first, *others = ratings
    if _agree(ratings):
        return [f"{where}: {sample.name} is at {first.where} already" for where, sample in others]
    labels = ", ".join(f"{sample.label:g} at {where}" for where, sample in ratings[:_NAMED])
    labels += f" and {len(ratings) - _NAMED} more" if len(ratings) > _NAMED else ""
    return [f"{first.sample.name} has more than one rating or group: {labels}"]


def _refuse(name: str, root: Path, faults: list[str], missing: list[str], good: int) -> None:
    """Raise DataError if anything is wrong or no sample is left."""
    remedy = "or leave them out with --skip-bad" if good else "or check the folder"
    if faults:
        more = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise DataError(
            f"{len(faults)} ratings of {name} are invalid: {'; '.join(faults[:_NAMED])}{more}: "
            f"correct them, {remedy}"
        )
    if missing:
        raise DataError(
            f"{len(missing)} of {len(missing) + good} images of {name} are missing, first "
            f"{root / missing[0]}: restore them, {remedy}"
        )
    if not good:
        raise DataError(f"{name} at {root} rates no image: check the folder")


def _label(row: Row, limits: tuple[float, float]) -> float | str:
    """The label, or why the rating is invalid."""
    low, high = limits
    if row.fault:
        return row.fault
    if not row.name:
        return "no image is named"
    if not _is_plain(row.name):
        return f"{quoted(row.name)} is not a path below the data set's folder with forward slashes"
    if row.group == "":
        return f"{row.name} has no group"
    if len(row.group or "") > _LONGEST:
        return f"{row.name} has a group of {len(row.group or '')} characters"
    if not text_in(row.label):
        return f"{row.name} has no label"
    label = number_in(row.label)
    if label is None or not math.isfinite(label):
        return f"{row.name} has the label {quoted(row.label)}, which is not a finite number"
    if not low <= label <= high:
        return f"{row.name} has the label {label:g}, outside {low:g} to {high:g}"
    return label


def _is_plain(name: str) -> bool:
    """Whether a path stays below its folder and has only one spelling."""
    if len(name) > _LONGEST or printable(name) != name:
        return False
    foreign = PureWindowsPath(name).drive or "\\" in name
    return not foreign and not {"", ".", ".."} & {part.strip() for part in name.split("/")}


class _Images:
    """The files below a folder, each of whose subfolders is listed only once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, dict[str, str]] = {}

    def find(self, name: str) -> str | None:
        """The path as it is spelt on the disk, None if there is no such file.

        Case, the Unicode form of accents, and white space around names may differ.
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
    """The names of the files, or of the folders, in a folder; none if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir() == folders]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as cause:
        if cause.errno == errno.ENAMETOOLONG:  # no folder has such a name
            return []
        raise DataError(f"cannot list {folder}: {cause.strerror}") from cause


# One function per layout yields the ratings in the order of the label file.


def _livec(root: Path) -> Iterator[Row]:
    images = read_matlab(root / "Data" / "AllImages_release.mat", "AllImages_release")
    labels = read_matlab(root / "Data" / "AllMOS_release.mat", "AllMOS_release")
    check_lengths({"AllImages_release": len(images), "AllMOS_release": len(labels)})
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        if i >= _LIVEC_PRACTICE:
            yield Row(f"AllMOS_release.mat entry {i + 1}", below("Images/", image), label)


def _koniq10k(root: Path) -> Iterator[Row]:
    path = _present(root, tuple(_KONIQ10K))
    return ratings_in(path, read_table(path), "1024x768/", "image_name", _KONIQ10K[path.name])


def _bid(root: Path) -> Iterator[Row]:
    path, known = _present(root, _BID), ["Image Number", "Average Subjective Grade"]
    table = read_table(path)
    if not set(known) <= set(table.names):
        # The released code identifies the columns by their places alone.
        table = Table([*known, *table.names[2:]], table.rows)
    for row in ratings_in(path, table, "", *known):
        number = number_in(row.name)
        if number is not None and number.is_integer() and 0 <= number < 10**6:
            yield row._replace(name=f"DatabaseImage{int(number):04d}.JPG")
        else:
            fault = f"{quoted(row.name)} is not the number of an image" if row.name else ""
            yield row._replace(fault=fault)


def _live(root: Path) -> Iterator[Row]:
    labels = read_matlab(root / "dmos_realigned.mat", "dmos_new")
    originals = read_matlab(root / "dmos_realigned.mat", "orgs")
    references = read_matlab(root / "refnames_all.mat", "refnames_all")
    counts = _LIVE_COUNTS
    if len(labels) != sum(counts.values()):
        counts = {folder: _highest(root / folder) for folder in counts}
    images = f"images in {', '.join(f'{folder} {n}' for folder, n in counts.items())}, together"
    lengths = {"dmos_new": len(labels), "orgs": len(originals), "refnames_all": len(references)}
    check_lengths(lengths | {images: sum(counts.values())})
    names = (f"{folder}/img{i + 1}.bmp" for folder in counts for i in range(counts[folder]))
    ratings = zip(names, labels, originals, references, strict=True)
    for i, (name, label, original, reference) in enumerate(ratings, 1):
        if not original:
            yield Row(f"dmos_realigned.mat entry {i}", name, label, text_in(reference))


def _present(root: Path, names: Sequence[str]) -> Path:
    """The first of these files that is there, otherwise the first."""
    return next((root / name for name in names if (root / name).is_file()), root / names[0])


def _highest(folder: Path) -> int:
    """The highest image number in one of LIVE's folders, which is the number of its images."""
    matches = (re.fullmatch(r"img([0-9]+)\.bmp", name, re.I) for name in _listed(folder))
    return max((int(match[1]) for match in matches if match), default=0)


def _csiq(root: Path) -> Iterator[Row]:
    # The authors use one folder per distortion; others put all images into one.
    folders = ["dst_imgs", *(f"dst_imgs/{x}" for x in _listed(root / "dst_imgs", folders=True))]
    holders = {_folded(leaf): folder for folder in folders for leaf in _listed(root / folder)}
    for where, leaf, label in _csiq_ratings(root):
        parts = leaf.rpartition("/")[2].split(".")
        folder = holders.get(_folded(leaf), "dst_imgs")
        yield Row(where, f"{folder}/{leaf}", label, f"{parts[0]}.{parts[-1]}")


def _csiq_ratings(root: Path) -> Iterator[tuple[str, str, Any]]:
    """Where each rating is, its image's name and its label, from hyperIQA's list or the sheet.

    The authors' sheet has no file names, only the parts that they are made of.
    """
    path = _present(root, _CSIQ)
    if path.suffix == ".txt":
        for where, line in lines_of(path):
            leaf, *label = line.rsplit(maxsplit=1)
            yield where, leaf, "".join(label)
        return
    names, rows = read_table(path, sheet="all_by_image")
    columns = ("image", "dst_type", "dst_lev", "dmos")
    places = [column_place(path, names, column) for column in columns]
    for number, row in rows:
        image, kind, level, dmos = (row[i] if i < len(row) else None for i in places)
        if any(map(text_in, (image, kind, level, dmos))):
            kind = _CSIQ_TYPES.get(text_in(kind).strip(), text_in(kind))
            leaf = f"{_whole(image)}.{kind}.{_whole(level)}.png"
            yield f"{path.name} row {number}", leaf, dmos


def _whole(cell: Any) -> str:
    """A cell's content, without the ".0" of a whole number."""
    return text_in(cell).strip().removesuffix(".0")


def _tid2013(root: Path) -> Iterator[Row]:
    for where, line in lines_of(root / "mos_with_names.txt"):
        label, *leaf = line.split(maxsplit=1)
        name = "".join(leaf)
        yield Row(where, below("distorted_images/", name), label, f"I{name[1:3]}.BMP")


def _folder(path: Path) -> Iterator[Row]:
    table = read_table(path)
    group = "group" if "group" in table.names else None
    return ratings_in(path, table, "", "path", "score", group)


_PERCENT = ScoreScale(0.0, 100.0, higher_is_better=True)


def _tabular(
    file: str,
    folder: str,
    image: str,
    label: str,
    group: str | None = None,
    *,
    scale: ScoreScale = _PERCENT,
) -> _Layout:
    """A data set whose label file is a table with these columns."""

    def read(root: Path) -> Iterator[Row]:
        path = root / file
        return ratings_in(path, read_table(path), folder, image, label, group)

    return _Layout(read, (file, folder), f"{folder}<{image}>", scale)


_LAYOUTS = {
    "livec": _Layout(
        _livec,
        ("Data/AllImages_release.mat", "Data/AllMOS_release.mat", "Images/"),
        "Images/<name>",
        _PERCENT,
    ),
    "koniq10k": _Layout(
        _koniq10k,
        (" or ".join(_KONIQ10K), "1024x768/"),
        "1024x768/<image_name>",
        _PERCENT,
    ),
    "spaq": _tabular(
        "Annotations/MOS and Image attribute scores.xlsx", "TestImage/", "Image name", "MOS"
    ),
    "livefb": _tabular("labels_image.csv", "database/", "name", "mos"),
    "bid": _Layout(
        _bid,
        (" or ".join(_BID),),
        "DatabaseImage0001.JPG and so on",
        ScoreScale(0.0, 5.0, higher_is_better=True),
        beyond=0.5,  # other readers take the absolute value, so some grades may be negative
    ),
    "live": _Layout(
        _live,
        ("dmos_realigned.mat", "refnames_all.mat", *(f"{folder}/" for folder in _LIVE_COUNTS)),
        "<folder>/img1.bmp and so on",
        ScoreScale(0.0, 100.0, higher_is_better=False),
        beyond=50.0,
    ),
    "csiq": _Layout(
        _csiq,
        (" or ".join(_CSIQ), "dst_imgs/"),
        "dst_imgs/<name>",
        ScoreScale(0.0, 1.0, higher_is_better=False),
    ),
    "tid2013": _Layout(
        _tid2013,
        ("mos_with_names.txt", "distorted_images/"),
        "distorted_images/<name>",
        ScoreScale(0.0, 9.0, higher_is_better=True),
    ),
    "kadid10k": _tabular(
        "dmos.csv",
        "images/",
        "dist_img",
        "dmos",
        "ref_img",
        scale=ScoreScale(1.0, 5.0, higher_is_better=True),
    ),
}

NAMES = tuple(_LAYOUTS)
