"""Miniatures of the nine data sets, in the layouts their authors distribute, and of a folder.

The pictures are smooth random colours with fine texture, damaged more or less; the labels follow
the damage, so that a model can learn them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openpyxl
from PIL import Image, ImageFilter
from scipy.io import savemat

LIVE_FOLDERS = ("jp2k", "jpeg", "wn", "gblur", "fastfading")
CSIQ_TYPES = ("AWGN", "BLUR", "contrast")
# Damages per scene and levels per damage, for the sets with several images per scene.
SYNTHETIC = {"live": (5, 2)} | dict.fromkeys(("csiq", "tid2013", "kadid10k", "folder"), (3, 3))


class Shot(NamedTuple):
    """One picture: which scene, which damage, and how strong that is, 0 to 1."""

    scene: int
    damage: int
    level: int
    strength: float


def write(name: str, root: Path, contents: int = 6, side: tuple[int, int] = (96, 72)) -> Path:
    """Write a data set, and return the root that `open_dataset` takes.

    contents: reference images of a synthetic set, each with nine damaged versions (LIVE: ten); any
        other set has four images per content
    side: (width, height) of every image
    """
    root.mkdir(parents=True, exist_ok=True)
    return _WRITERS[name](root, shots(name, contents), side)


def shots(name: str, contents: int = 6) -> list[Shot]:
    """The content of each rated image of a data set."""
    if name not in SYNTHETIC:
        draw = np.random.default_rng(0)
        return [Shot(scene, scene, 1, float(draw.uniform())) for scene in range(4 * contents)]
    damages, levels = SYNTHETIC[name]
    return [
        Shot(scene, damage, level, level / levels)
        for scene in range(contents)
        for damage in range(damages)
        for level in range(1, levels + 1)
    ]


def picture(shot: Shot, side: tuple[int, int]) -> Image.Image:
    """A scene, blurred, made noisy or faded."""
    noise = np.random.default_rng(shot.scene)
    layers = np.zeros((side[1], side[0], 3))
    for cells, weight in ((3, 0.5), (9, 0.25), (40, 0.25)):
        coarse = noise.integers(0, 256, (cells, cells, 3), np.uint8)
        layers += weight * np.asarray(
            Image.fromarray(coarse).resize(side, Image.Resampling.BICUBIC)
        )
    clean = Image.fromarray(layers.astype(np.uint8))
    if shot.damage % 3 == 0:
        return clean.filter(ImageFilter.GaussianBlur(4 * shot.strength))
    if shot.damage % 3 == 1:
        grain = noise.normal(0, 60 * shot.strength, layers.shape)
        return Image.fromarray(np.clip(layers + grain, 0, 255).astype(np.uint8))
    return Image.blend(clean, Image.new("RGB", side, (128, 128, 128)), 0.8 * shot.strength)


def _save(shot: Shot, side: tuple[int, int], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without subsampling and at full quality, JPEG adds little damage of its own.
    if path.suffix.lower() == ".jpg":
        picture(shot, side).save(path, quality=98, subsampling=0)
    else:
        picture(shot, side).save(path)


def _scenes(shots: list[Shot]) -> list[int]:
    return sorted({shot.scene for shot in shots})


def _quality(shot: Shot, low: float, high: float) -> float:
    """A label: higher is better."""
    return round(low + (high - low) * (0.95 - 0.9 * shot.strength), 5)


def _cells(names: Sequence[str]) -> np.ndarray:
    """A row of strings as MATLAB's cell array."""
    cells = np.empty((1, len(names)), object)
    cells[0] = names
    return cells


def _workbook(path: Path, title: str, rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    book.active.title = title
    for row in rows:
        book.active.append(row)
    book.save(path)


def _koniq10k(root: Path, shots: list[Shot], side: tuple[int, int]) -> Path:
    columns = ("image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "MOS_zscore")
    lines = [",".join(f'"{column}"' for column in columns)]
    for i, shot in enumerate(shots):
        name = f"{10004473376 + i}.jpg"
        _save(shot, side, root / "1024x768" / name)
        mos = _quality(shot, 1, 5)
        lines.append(f'"{name}",0,0,25,73,7,105,{mos},0.5,{_quality(shot, 0, 100)}')
    (root / "koniq10k_scores_and_distributions.csv").write_text("\n".join(lines) + "\n")
    return root


def _livec(root: Path, shots: list[Shot], side: tuple[int, int]) -> Path:
    # The first seven entries are the pictures on which the observers were trained.
    names = [f"t{i}.bmp" for i in range(1, 8)]
    mos = [50.0] * len(names)
    for name in names:
        _save(Shot(0, 0, 1, 0.5), side, root / "Images" / "trainingImages" / name)
    for i, shot in enumerate(shots):
        names.append(f"{i + 3}.bmp" if i % 2 else f"{i + 3}.JPG")
        mos.append(_quality(shot, 0, 100))
        _save(shot, side, root / "Images" / names[-1])
    (root / "Data").mkdir()
    savemat(root / "Data" / "AllImages_release.mat", {"AllImages_release": _cells(names).T})
    savemat(root / "Data" / "AllMOS_release.mat", {"AllMOS_release": np.array([mos])})
    return root


def _spaq(root: Path, shots: list[Shot], side: tuple[int, int]) -> Path:
    columns = ("Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness")
    rows: list[Sequence[object]] = [("Image name", "MOS", *columns)]
    for i, shot in enumerate(shots):
        rows.append((f"{i + 1:05d}.jpg", _quality(shot, 0, 100), *[50.0] * len(columns)))
        _save(shot, side, root / "TestImage" / f"{i + 1:05d}.jpg")
    _workbook(root / "Annotations" / "MOS and Image attribute scores.xlsx", "Sheet1", rows)
    return root


def _livefb(root: Path, shots: list[Shot], side: tuple[int, int]) -> Path:
    lines = ["name,mos"]
    for i, shot in enumerate(shots):
        folder = ("voc_emotic_ava", "blur_dataset")[i % 2]
        lines.append(f"{folder}/AVA__{i}.jpg,{_quality(shot, 0, 100)}")
        _save(shot, side, root / "database" / folder / f"AVA__{i}.jpg")
    (root / "labels_image.csv").write_text("\n".join(lines) + "\n")
    return root


def _bid(root: Path, shots: list[Shot], side: tuple[int, int]) -> Path:
    rows: list[Sequence[object]] = [("Image Number", "Average Subjective Grade", "std")]
    for i, shot in enumerate(shots):
        number = 2 * i + 1  # some numbers are not used
        rows.append((number, _quality(shot, 0, 5), 0.5))
        _save(shot, side, root / f"DatabaseImage{number:04d}.JPG")
    _workbook(root / "DatabaseGrades.xlsx", "Plan1", rows)
    return root


def _live(root: Path, shots: list[Shot], side: tuple[int, int]) -> Path:
    names: list[str] = []
    dmos: list[float] = []
    originals: list[bool] = []
    for damage, folder in enumerate(LIVE_FOLDERS):
        # The originals lie among the damaged images, with a DMOS of zero.
        clean = [Shot(scene, damage, 0, 0.0) for scene in _scenes(shots)]
        for i, shot in enumerate([*clean, *(shot for shot in shots if shot.damage == damage)]):
            _save(shot, side, root / folder / f"img{i + 1}.bmp")
            names.append(f"scene{shot.scene}.bmp")
            dmos.append(100 - _quality(shot, 0, 100) if shot.level else 0.0)
            originals.append(not shot.level)
    for scene in _scenes(shots):
        _save(Shot(scene, 0, 0, 0.0), side, root / "refimgs" / f"scene{scene}.bmp")
    rated = {"dmos_new": np.array([dmos]), "orgs": np.array([originals])}
    savemat(root / "dmos_realigned.mat", rated | {"dmos_std": np.ones((1, len(dmos)))})
    savemat(root / "refnames_all.mat", {"refnames_all": _cells(names)})
    return root


def _csiq(root: Path, shots: list[Shot], side: tuple[int, int]) -> Path:
    lines = []
    for shot in shots:
        name = f"scene{shot.scene}.{CSIQ_TYPES[shot.damage]}.{shot.level}.png"
        _save(shot, side, root / "dst_imgs" / name)
        lines.append(f"{name} {1 - _quality(shot, 0, 1):.3f}")
    for scene in _scenes(shots):
        _save(Shot(scene, 0, 0, 0.0), side, root / "src_imgs" / f"scene{scene}.png")
    (root / "csiq_label.txt").write_text("\n".join(lines) + "\n")
    return root


def _tid2013(root: Path, shots: list[Shot], side: tuple[int, int]) -> Path:
    lines = []
    for shot in shots:
        name = f"{shot.scene + 1:02d}_{shot.damage + 1:02d}_{shot.level}"
        # The names on the disk and in the list differ in case, each in its own way.
        on_disk = f"i{name}.bmp" if shot.scene else f"I{name}.BMP"
        _save(shot, side, root / "distorted_images" / on_disk)
        lines.append(f"{_quality(shot, 0, 9)} I{name}.bmp")
    for scene in _scenes(shots):
        _save(Shot(scene, 0, 0, 0.0), side, root / "reference_images" / f"I{scene + 1:02d}.BMP")
    (root / "mos_with_names.txt").write_bytes("\r\n".join([*lines, ""]).encode())
    return root


def _kadid10k(root: Path, shots: list[Shot], side: tuple[int, int]) -> Path:
    lines = ["dist_img,ref_img,dmos,var"]
    for shot in shots:
        reference = f"I{shot.scene + 1:02d}"
        name = f"{reference}_{shot.damage + 1:02d}_{shot.level:02d}.png"
        _save(shot, side, root / "images" / name)
        lines.append(f"{name},{reference}.png,{_quality(shot, 1, 5)},0.5")
    for scene in _scenes(shots):
        _save(Shot(scene, 0, 0, 0.0), side, root / "ref_images" / f"I{scene + 1:02d}.png")
    (root / "dmos.csv").write_text("\n".join(lines) + "\n")
    return root


def _folder(root: Path, shots: list[Shot], side: tuple[int, int]) -> Path:
    lines = ["path,score,group,camera"]
    for i, shot in enumerate(shots):
        lines.append(f"pictures/{i:03d}.png,{_quality(shot, 0, 10)},scene {shot.scene},none")
        _save(shot, side, root / "pictures" / f"{i:03d}.png")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root / "labels.csv"


_WRITERS: dict[str, Callable[[Path, list[Shot], tuple[int, int]], Path]] = {
    "koniq10k": _koniq10k,
    "livec": _livec,
    "spaq": _spaq,
    "livefb": _livefb,
    "bid": _bid,
    "live": _live,
    "csiq": _csiq,
    "tid2013": _tid2013,
    "kadid10k": _kadid10k,
    "folder": _folder,
}
