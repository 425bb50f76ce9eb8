"""A labelled set from a folder of clean pictures: each under every distortion at every level.

Nobody judged these images. A score is computed, 100 times the structural similarity to the clean
picture (`similarity`), so it says how much was changed, not what people think of it.
"""

import csv
import hashlib
import io
import json
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from drexperts import __version__
from drexperts.data.distortions import DISTORTIONS, MIN_SIDE, compose_blocks, distort
from drexperts.runtime.errors import ConfigError, DataError, ImageError, UserError
from drexperts.runtime.files import written_whole
from drexperts.runtime.preprocess import LONGEST_RATIO, decode, decoder_version
from drexperts.runtime.results import find_images

LABELS, ABOUT, BLOCKS = "labels.csv", "about.json", "blocks.json"
COLUMNS = ("path", "score", "group", "distortion", "level")
SCORE = (
    "100 times the mean structural similarity (SSIM) to the clean picture at two scales: "
    "computed, nobody judged these images"
)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

_FORMAT = "drexperts-synth-1"
_SCALE = {"low": 0.0, "high": 100.0, "higher_is_better": True}
_GRIDS = (2, 3, 4)  # blocks along each side of a composition
_DIFFERENCES = {
    "format": "in another format",
    "settings": "with other settings",
    "software": "with other versions of the software",
}
_PART = ".part"  # ends the name of a file that is not whole yet

Blocks = list[list[tuple[str, int]]]


@dataclass(frozen=True)
class SynthConfig:
    """What is made of each picture, besides its clean copy.

    types, levels: every type of `synthetic.DISTORTIONS` named here at every level named here
    blocks: how many compositions of different distortions in different blocks
    seed: of all that is random
    side: the most pixels that the shorter side of a picture keeps

    Raises ConfigError for what cannot be.
    """

    types: tuple[str, ...] = tuple(DISTORTIONS)
    levels: tuple[int, ...] = (1, 2, 3, 4, 5)
    blocks: int = 0
    seed: int = 0
    side: int = 512

    def __post_init__(self) -> None:
        unknown = [name for name in self.types if name not in DISTORTIONS]
        if unknown or not self.types or len(set(self.types)) < len(self.types):
            raise ConfigError(
                f"types: {', '.join(unknown or self.types) or 'none'}; name some of these, each "
                f"once: {', '.join(DISTORTIONS)}"
            )
        levels = set(self.levels)
        if not levels or not levels <= set(range(1, 6)) or len(levels) < len(self.levels):
            raise ConfigError(f"levels: {self.levels}; name some of 1 to 5, each once")
        if self.blocks < 0:
            raise ConfigError(f"blocks: {self.blocks}; give a number of compositions, 0 for none")
        if self.side < MIN_SIDE:
            raise ConfigError(f"side: {self.side}; give {MIN_SIDE} pixels at least")


def write_synthetic_set(
    clean: Path,
    out: Path,
    config: SynthConfig | None = None,
    *,
    workers: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Make a set that the layout `folder` reads, from all pictures in a folder and below it.

    Writes `labels.csv` with the columns path, score, group, distortion and level, the images as PNG
    in `images/`, and `about.json`. A group is a clean picture, so that splits can go by it. With
    compositions also `blocks.json`: the rows of (type, level) of each; their level is left empty.

    What is random depends on the seed, the picture's path below `clean` and the type alone (for a
    composition: its number, and the types and levels to choose from), so that a higher level of a
    type has the random draws of a lower one, only stronger, or more of them. Killed at any moment,
    the same call goes on, and ends with the same bytes.

    Args:
        workers: processes; None takes one a core.
        progress: called with a line after each picture.

    Returns:
        A JSON-ready report. `skipped` has a line for each picture that could not be used.

    Raises:
        UserError: `out` holds something else, or images of other settings; there is no picture.
        OSError: the file system refuses.
    """
    config = config or SynthConfig()
    if workers is not None and workers < 1:
        raise ConfigError(f"workers: {workers}; give one process at least")
    jobs = _jobs(clean, out, config)
    about = _about(config)
    _claim(out, about)
    done, made = list[_Written](), 0
    for written in _all_written(jobs, min(workers or os.cpu_count() or 1, len(jobs))):
        done.append(written)
        made += written.made
        progress(f"{len(done)} of {len(jobs)} pictures, {made} images made")
    return _finish(out, about, jobs, done)


def parse_levels(text: str) -> tuple[int, ...]:
    """Levels from such as "1-5", "3" or "1,3-4". Raises ConfigError."""
    levels: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d)(?:-(\d))?\s*", part)
        if ends is None:
            raise ConfigError(f"levels: {text!r}; write them like 1-5, 3 or 1,3-4")
        first, last = ends.groups()
        levels += range(int(first), int(last or first) + 1)
    return tuple(levels)


class _Job(NamedTuple):
    """One clean picture."""

    path: Path
    name: str  # the path below the clean folder, with forward slashes
    group: str  # the folder of its images, unique in the set
    out: Path
    config: SynthConfig


class _Row(NamedTuple):
    path: str
    score: str
    group: str
    distortion: str
    level: int | None


class _Written(NamedTuple):
    """What became of one picture."""

    rows: list[_Row]
    blocks: dict[str, Blocks]
    made: int  # images that were not there yet
    skipped: str | None  # why there are none


class _Version(NamedTuple):
    """One image to make of a picture."""

    stem: str
    distortion: str
    level: int | None
    make: Callable[[Tensor], Tensor]
    blocks: Blocks | None = None


def _jobs(clean: Path, out: Path, config: SynthConfig) -> list[_Job]:
    if not clean.is_dir():
        raise UserError(f"{clean} is no folder: name one with clean pictures")
    root, target = Path(os.path.abspath(clean)), Path(os.path.abspath(out))
    if root.is_relative_to(target):
        raise UserError(f"{out} holds the clean pictures: choose another --out")
    paths = [Path(os.path.abspath(path)) for path in find_images([str(clean)])]
    # The images of an earlier call are no clean pictures, if they lie among them.
    names = [path.relative_to(root) for path in paths if not path.is_relative_to(target)]
    if not names:
        raise UserError(f"all pictures in {clean} are in {out}: name a folder with clean ones")
    return [
        _Job(clean / name, name.as_posix(), _group(name), out, config) for name in sorted(names)
    ]


def _group(name: Path) -> str:
    """A folder's name for a picture: of any path another one, on every file system."""
    digest = hashlib.sha256(os.fsencode(name.as_posix())).hexdigest()[:8]
    stem = name.stem.encode("ascii", "replace").decode()[:100]
    return f"{''.join(c if c.isalnum() or c in '-_.' else '_' for c in stem)}-{digest}"


def _about(config: SynthConfig) -> dict[str, Any]:
    """What decides every byte of the images but the pictures themselves."""
    software = {
        "drexperts": __version__,
        "torch": str(torch.__version__),
        "codecs": decoder_version(""),
    }
    about = {"format": _FORMAT, "score": SCORE, "scale": _SCALE, "settings": asdict(config)}
    return json.loads(json.dumps(about | {"software": software}))


def _claim(out: Path, about: dict[str, Any]) -> None:
    """Begin the set, or go on with one of the same settings."""
    path = out / ABOUT
    out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if any(entry.name != ABOUT + _PART for entry in out.iterdir()):
            raise UserError(f"{out} is not empty and holds no synthetic set: choose another --out")
        _write_whole(path, _json(about))
        return
    try:
        there = json.loads(path.read_bytes())
    except ValueError as cause:
        raise UserError(f"{path} cannot be read: choose another --out") from cause
    for part, difference in _DIFFERENCES.items():
        if not isinstance(there, dict) or there.get(part) != about[part]:
            raise UserError(f"{out} was begun {difference}, see its {ABOUT}: choose another --out")


def _finish(
    out: Path, about: dict[str, Any], jobs: Sequence[_Job], done: Sequence[_Written]
) -> dict[str, Any]:
    """Write what describes the images, and report."""
    rows = [row for picture in done for row in picture.rows]
    skipped = [picture.skipped for picture in done if picture.skipped is not None]
    if not rows:
        raise DataError(f"no picture could be used, {len(skipped)} tried; first: {skipped[0]}")
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([COLUMNS, *rows])
    if about["settings"]["blocks"]:
        blocks = {path: pairs for picture in done for path, pairs in picture.blocks.items()}
        _write_whole(out / BLOCKS, _json(blocks))
    used = zip(jobs, done, strict=True)
    pictures = {job.group: job.name for job, picture in used if picture.skipped is None}
    _write_whole(out / ABOUT, _json(about | {"pictures": pictures, "skipped": skipped}))
    _write_whole(out / LABELS, table.getvalue().encode())
    made = sum(picture.made for picture in done)
    return {
        "out": str(out),
        "labels": str(out / LABELS),
        "score": SCORE,
        "settings": about["settings"],
        "pictures": len(pictures),
        "images": len(rows),
        "made": made,
        "already_there": len(rows) - made,
        "skipped": skipped,
    }


def _all_written(jobs: Sequence[_Job], workers: int) -> Iterator[_Written]:
    """What became of each picture, in their order."""
    if workers == 1:
        yield from map(_write_picture, jobs)
        return
    # Not forked: PyTorch's threads do not survive that.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, context, _start_worker) as pool:
            yield from pool.map(_write_picture, jobs)
    except BrokenProcessPool as cause:
        raise UserError(
            "a process was ended from outside, most often for want of memory: run the same command "
            "again to go on, with fewer --workers"
        ) from cause


def _start_worker() -> None:
    """End with the main process, however that ends, and on Ctrl-C without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _write_picture(job: _Job) -> _Written:
    """All images of one picture that are not there yet, and the rows of all."""
    try:
        clean = _clean_picture(job)
    except (ImageError, DataError) as error:
        return _Written([], {}, 0, str(error))
    folder = job.out / "images" / job.group
    folder.mkdir(parents=True, exist_ok=True)
    _check_unchanged(job, clean, _image_at(folder / "clean.png", clean.size))
    rows, blocks, made = [], {}, 0
    with _one_thread():
        for version in _versions(job):
            file = folder / f"{version.stem}.png"
            image = _image_at(file, clean.size)
            if image is None:
                image = image_from_tensor(version.make(tensor_from_image(clean)))
                _write_whole(file, _png(image))
                made += 1
            score = 100 * similarity(tensor_from_image(clean), tensor_from_image(image))
            path = file.relative_to(job.out).as_posix()
            # An image unlike any photograph can have a similarity below zero.
            label = f"{min(max(score, 0), 100):.4f}"
            row = _Row(path, label, job.group, version.distortion, version.level)
            rows.append(row)
            if version.blocks is not None:
                blocks[path] = version.blocks
    return _Written(rows, blocks, made, None)


def _clean_picture(job: _Job) -> Image.Image:
    """The picture at its size in the set."""
    image = decode(job.path)
    if min(image.size) < MIN_SIDE:
        raise DataError(f"{job.path} has less than {MIN_SIDE} pixels on a side")
    if max(image.size) > LONGEST_RATIO * min(image.size):
        raise DataError(f"{job.path} is more than {LONGEST_RATIO} times as long as wide: cut it")
    return image if min(image.size) <= job.config.side else reduced(image, job.config.side)


def _check_unchanged(job: _Job, clean: Image.Image, copy: Image.Image | None) -> None:
    if copy is not None and copy.tobytes() != clean.tobytes():
        raise DataError(
            f"{job.path} is no longer what {job.out} was begun with: choose another --out"
        )


def _versions(job: _Job) -> Iterator[_Version]:
    yield _Version("clean", "none", 0, lambda image: image)
    for name in job.config.types:
        for level in job.config.levels:
            # Of every level the same: see `write_synthetic_set`.
            generator = _generator(job, name)
            make = partial(distort, name=name, level=level, generator=generator)
            yield _Version(f"{name}-{level}", name, level, make)
    for number in range(1, job.config.blocks + 1):
        generator = _generator(job, "blocks", number)
        blocks = _random_blocks(job.config, generator)
        make = partial(compose_blocks, assignments=blocks, generator=generator)
        yield _Version(f"blocks-{number}", "blocks", None, make, blocks)


def _generator(job: _Job, *kind: str | int) -> Generator:
    key = json.dumps([job.config.seed, job.name, *kind])
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big", signed=True)
    return Generator().manual_seed(seed)


def _random_blocks(config: SynthConfig, generator: Generator) -> Blocks:
    """A grid of (type, level); a type comes again only after all the others."""

    def below(end: int) -> int:
        return int(torch.randint(end, (), generator=generator))

    grid = _GRIDS[below(len(_GRIDS))]
    order = torch.randperm(len(config.types), generator=generator).tolist()
    names = [config.types[order[i % len(order)]] for i in range(grid * grid)]
    pairs = [(name, config.levels[below(len(config.levels))]) for name in names]
    return [pairs[row * grid : (row + 1) * grid] for row in range(grid)]


def _image_at(file: Path, size: tuple[int, int]) -> Image.Image | None:
    """An image that is there whole, or None."""
    try:
        image = decode(file)
    except ImageError:
        return None
    return image if image.size == size else None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums come out the same on every number of cores; the pictures are what runs in parallel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a kill leaves it whole or not at all. Raises OSError."""
    # Of a fixed name, so that what a kill leaves is overwritten by the next call.
    with written_whole(path, aside=path.with_name(path.name + _PART)) as part:
        part.write_bytes(content)


def similarity(first: Tensor, second: Tensor) -> float:
    """Mean SSIM of two images [3, H, W] in [0, 1] over 7x7 windows of luma, at two scales.

    The formula is that of Wang et al. (2004), with uniform windows; the second scale is half the
    first.
    """
    # In float32 the variances of flat areas come out below zero, and the similarity above one.
    luma = torch.tensor(LUMA, dtype=torch.float64)
    x, y = (
        torch.einsum("c,chw->hw", luma, image.double())[None, None] for image in (first, second)
    )
    half = [F.avg_pool2d(image, 2) for image in (x, y)]
    return (_ssim(x, y) + _ssim(*half)) / 2


def _ssim(x: Tensor, y: Tensor) -> float:
    def mean(image: Tensor) -> Tensor:
        return F.avg_pool2d(image, 7, 1)

    def variance(image: Tensor) -> Tensor:
        return (mean(image * image) - mean(image) ** 2).clamp(min=0)

    x_mean, y_mean = mean(x), mean(y)
    covariance = mean(x * y) - x_mean * y_mean
    light = (2 * x_mean * y_mean + 1e-4) / (x_mean**2 + y_mean**2 + 1e-4)
    structure = (2 * covariance + 9e-4) / (variance(x) + variance(y) + 9e-4)
    return float((light * structure).mean())


def reduced(image: Image.Image, short_side: int) -> Image.Image:
    """The image with its shorter side at this many pixels."""
    factor = short_side / min(image.size)
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC)


def tensor_from_image(image: Image.Image) -> Tensor:
    """RGB to float32 [3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().contiguous() / 255


def image_from_tensor(image: Tensor) -> Image.Image:
    """float32 [3, H, W] in [0, 1] to RGB."""
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).contiguous().numpy())


def to_uint8(image: Tensor) -> Tensor:
    """[0, 1] to 0..255, rounded."""
    return (image * 255).round().to(torch.uint8)
