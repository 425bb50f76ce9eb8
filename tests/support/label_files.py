"""Label files of the miniature data sets: where they are, and ways to change them."""

from collections.abc import Sequence
from pathlib import Path

import openpyxl
from PIL import Image
from scipy.io import loadmat, savemat

from drexperts.data.dataset import Dataset

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


def write_table(
    folder: Path, text: str | bytes, images: Sequence[str] = ("a.png", "b.png")
) -> Path:
    """A table of scores and its images."""
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(folder / image)
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def ratings(dataset: Dataset) -> dict[str, float]:
    return {sample.name: sample.label for sample in dataset.samples}


def change_matlab(path: Path, variable: str, entries: slice, values: object) -> None:
    content = {key: value for key, value in loadmat(path).items() if key[0] != "_"}
    content[variable][0, entries] = values
    savemat(path, content)


def change_workbook(root: Path, file: str, row: int, cell: object, column: int = 2) -> None:
    book = openpyxl.load_workbook(root / file)
    book.active.cell(row, column).value = cell
    book.save(root / file)


def change_text(root: Path, file: str, old: str, new: str) -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))
