"""A labelled set from a folder of clean pictures: each with every distortion at every level.

Nobody judged these images. A score is 100 times the structural similarity to the clean picture
(`similarity`), so it says how much was changed, not what people think of the image.
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
from drexperts.data.distortions import MIN_SIDE, SYNTHETIC_TYPES, compose_blocks, distort
from drexperts.runtime.cpus import available_cpus
from drexperts.runtime.decoding import decode, decoder_version
from drexperts.runtime.errors import ConfigError, DataError, ImageError, UserError
from drexperts.runtime.files import written_whole
from drexperts.runtime.inputs.folders import count_passed_over, find_images
from drexperts.runtime.locks import LOCK_INSIDE, locked
from drexperts.runtime.preprocess import LONGEST_RATIO
from drexperts.runtime.progress import SILENT, Progress

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
_PART = ".part"  # ends the names of incomplete files

Blocks = list[list[tuple[str, int]]]


@dataclass(frozen=True)
class SynthConfig:
    """What is made from each picture besides its clean copy.

    types, levels: every type of `SYNTHETIC_TYPES` named here, at every level named here
    blocks: how many compositions with different distortions in different blocks
    seed: for everything random
    side: pixels to which the shorter side of a larger picture is reduced

    Raises ConfigError for invalid values.
    """

    types: tuple[str, ...] = tuple(SYNTHETIC_TYPES)
    levels: tuple[int, ...] = (1, 2, 3, 4, 5)
    blocks: int = 0
    seed: int = 0
    side: int = 512

    def __post_init__(self) -> None:
        unknown = [name for name in self.types if name not in SYNTHETIC_TYPES]
        if unknown or not self.types or len(set(self.types)) < len(self.types):
            raise ConfigError(
                f"invalid types {', '.join(unknown or self.types) or 'none'}: name some of these, "
                f"each once: {', '.join(SYNTHETIC_TYPES)}"
            )
        levels = set(self.levels)
        if not levels or not levels <= set(range(1, 6)) or len(levels) < len(self.levels):
            raise ConfigError(f"invalid levels {self.levels}: name some of 1 to 5, each once")
        if self.blocks < 0:
            raise ConfigError(f"blocks must be 0 or greater, got {self.blocks}")
        if self.side < MIN_SIDE:
            raise ConfigError(f"side must be at least {MIN_SIDE} pixels, got {self.side}")


@dataclass(frozen=True)
class SyntheticSet:
    """A set that `synthesise` made.

    labels: the label file, which the layout `folder` reads
    score: what a score means
    pictures, images: how many clean pictures were used, and how many images the set has
    made, already_there: how many of the images this call made, and how many an earlier one had
    skipped: why each unusable picture was left out, one line each
    """

    out: Path
    labels: Path
    score: str
    settings: SynthConfig
    pictures: int
    images: int
    made: int
    already_there: int
    skipped: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The document that `drx synth --json` prints."""
        return asdict(self) | {"out": str(self.out), "labels": str(self.labels)}


def synthesise(
    clean: str | Path,
    out: str | Path,
    config: SynthConfig | None = None,
    *,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> SyntheticSet:
    """Make a set that the layout `folder` reads, from all pictures in a folder and below it.

    `out` then holds `labels.csv` with the columns path, score, group, distortion and level, the
    images as PNG in `images/`, and `about.json`. A group is a clean picture, so that splits keep
    its images together. With compositions there is also `blocks.json`: the rows of (type, level) of
    each composition, whose level in `labels.csv` is empty.

    Randomness depends only on the seed, the picture's path below `clean` and the type (for a
    composition: its number, and the types and levels to choose from). A higher level of a type thus
    has the random draws of a lower one, only stronger, or more of them. After a kill the same call
    continues, and ends with the same bytes.

    Args:
        config: what to make; None makes every type at every level.
        workers: processes; None takes one per CPU that this process may use.

    Example:
        made = synthesise("photos", "set", SynthConfig(types=("jpeg",)))
        dataset = open_dataset("folder", made.labels)

    Raises:
        UserError: `out` holds something else, or images of other settings, or another process
            writes it; or there is no picture.
        OSError: a file cannot be written.
    """
    clean, out, config = Path(clean), Path(out), config or SynthConfig()
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    jobs = _jobs(clean, out, config, progress)
    about = _about(config)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, inside=True):
        _claim(out, about)
        done, made = list[_Written](), 0
        for written in _all_written(jobs, min(workers or available_cpus(), len(jobs))):
            done.append(written)
            made += written.made
            progress(f"{made} images made, pictures", len(done), len(jobs))
        return _finish(out, config, about, jobs, done)


def parse_levels(text: str) -> tuple[int, ...]:
    """Levels from a text such as "1-5", "3" or "1,3-4". Raises ConfigError."""
    levels: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d)(?:-(\d))?\s*", part)
        if ends is None:
            raise ConfigError(f"invalid levels {text!r}: write them like 1-5, 3 or 1,3-4")
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
    """What was made from one picture."""

    rows: list[_Row]
    blocks: dict[str, Blocks]
    made: int  # images that were not there yet
    skipped: str | None  # why the picture was left out


class _Version(NamedTuple):
    """One image to make from a picture."""

    stem: str
    distortion: str
    level: int | None
    make: Callable[[Tensor], Tensor]
    blocks: Blocks | None = None


def _jobs(clean: Path, out: Path, config: SynthConfig, progress: Progress) -> list[_Job]:
    if not clean.is_dir():
        raise UserError(f"{clean} is not a folder: name one with clean pictures")
    root, target = Path(os.path.abspath(clean)), Path(os.path.abspath(out))
    if root.is_relative_to(target):
        raise UserError(f"{out} holds the clean pictures: choose another --out")
    found, passed_over = find_images([str(clean)])
    if passed_over:
        progress.note(count_passed_over(passed_over))
    paths = [Path(os.path.abspath(path)) for path in found]
    # Images of an earlier call may lie below `clean`, but are not clean.
    names = [path.relative_to(root) for path in paths if not path.is_relative_to(target)]
    if not names:
        raise UserError(f"all pictures in {clean} are in {out}: name a folder with clean ones")
    return [
        _Job(clean / name, name.as_posix(), _group(name), out, config) for name in sorted(names)
    ]


def _group(name: Path) -> str:
    """The name of a picture's folder: unique per path, and valid on every file system."""
    digest = hashlib.sha256(os.fsencode(name.as_posix())).hexdigest()[:8]
    stem = name.stem.encode("ascii", "replace").decode()[:100]
    return f"{''.join(c if c.isalnum() or c in '-_.' else '_' for c in stem)}-{digest}"


def _about(config: SynthConfig) -> dict[str, Any]:
    """Everything but the pictures themselves that decides the bytes of the images."""
    software = {
        "drexperts": __version__,
        "torch": str(torch.__version__),
        "codecs": decoder_version(""),
    }
    about = {"format": _FORMAT, "score": SCORE, "scale": _SCALE, "settings": asdict(config)}
    return json.loads(json.dumps(about | {"software": software}))


def _claim(out: Path, about: dict[str, Any]) -> None:
    """Begin the set, or continue one of the same settings."""
    path = out / ABOUT
    if not path.exists():
        if {entry.name for entry in out.iterdir()} - {ABOUT + _PART, LOCK_INSIDE}:
            raise UserError(f"{out} is not empty and not a synthetic set: choose another --out")
        _write_whole(path, _json(about))
        return
    try:
        there = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as cause:
        raise UserError(f"{path} cannot be read: choose another --out") from cause
    for part, difference in _DIFFERENCES.items():
        if not isinstance(there, dict) or there.get(part) != about[part]:
            raise UserError(f"{out} was begun {difference}, see its {ABOUT}: choose another --out")


def _finish(
    out: Path,
    config: SynthConfig,
    about: dict[str, Any],
    jobs: Sequence[_Job],
    done: Sequence[_Written],
) -> SyntheticSet:
    """Write the files that describe the images."""
    rows = [row for picture in done for row in picture.rows]
    skipped = [picture.skipped for picture in done if picture.skipped is not None]
    if not rows:
        raise DataError(f"none of {len(skipped)} pictures could be used; first: {skipped[0]}")
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([COLUMNS, *rows])
    if config.blocks:
        blocks = {path: pairs for picture in done for path, pairs in picture.blocks.items()}
        _write_whole(out / BLOCKS, _json(blocks))
    used = zip(jobs, done, strict=True)
    pictures = {job.group: job.name for job, picture in used if picture.skipped is None}
    _write_whole(out / ABOUT, _json(about | {"pictures": pictures, "skipped": skipped}))
    _write_whole(out / LABELS, table.getvalue().encode())
    made = sum(picture.made for picture in done)
    return SyntheticSet(
        out=out,
        labels=out / LABELS,
        score=SCORE,
        settings=config,
        pictures=len(pictures),
        images=len(rows),
        made=made,
        already_there=len(rows) - made,
        skipped=tuple(skipped),
    )


def _all_written(jobs: Sequence[_Job], workers: int) -> Iterator[_Written]:
    """What was made from each picture, in the order of the jobs."""
    if workers == 1:
        yield from map(_write_picture, jobs)
        return
    # Spawned, because PyTorch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, context, _start_worker) as pool:
            yield from pool.map(_write_picture, jobs)
    except BrokenProcessPool as cause:
        raise UserError(
            "a worker process was killed, usually because memory ran out: run the same command "
            "again to continue, with fewer --workers"
        ) from cause


def _start_worker() -> None:
    """Make a worker end with the main process, however that ends, and silently on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _write_picture(job: _Job) -> _Written:
    """Make all missing images of one picture, and return the rows of all of them."""
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
            # The similarity of an image that is unlike any photograph can be below zero.
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
        raise DataError(f"{job.path} is smaller than {MIN_SIDE} pixels on a side")
    if max(image.size) > LONGEST_RATIO * min(image.size):
        raise DataError(f"{job.path} is more than {LONGEST_RATIO} times as long as wide: crop it")
    return image if min(image.size) <= job.config.side else reduced(image, job.config.side)


def _check_unchanged(job: _Job, clean: Image.Image, copy: Image.Image | None) -> None:
    if copy is not None and copy.tobytes() != clean.tobytes():
        raise DataError(f"{job.path} has changed since {job.out} was begun: choose another --out")


def _versions(job: _Job) -> Iterator[_Version]:
    yield _Version("clean", "none", 0, lambda image: image)
    for name in job.config.types:
        for level in job.config.levels:
            # The same for every level, see `synthesise`.
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
    """A grid of (type, level). A type is repeated only after all others were used."""

    def below(end: int) -> int:
        return int(torch.randint(end, (), generator=generator))

    grid = _GRIDS[below(len(_GRIDS))]
    order = torch.randperm(len(config.types), generator=generator).tolist()
    names = [config.types[order[i % len(order)]] for i in range(grid * grid)]
    pairs = [(name, config.levels[below(len(config.levels))]) for name in names]
    return [pairs[row * grid : (row + 1) * grid] for row in range(grid)]


def _image_at(file: Path, size: tuple[int, int]) -> Image.Image | None:
    """The image in a file, None if the file is missing, damaged or of another size."""
    try:
        image = decode(file)
    except ImageError:
        return None
    return image if image.size == size else None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread, so that sums do not depend on the number of cores."""
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
    """Write a file atomically. Raises OSError."""
    # Under a fixed name, so that the next call overwrites what a kill left.
    with written_whole(path, aside=path.with_name(path.name + _PART)) as part:
        part.write_bytes(content)


def similarity(first: Tensor, second: Tensor) -> float:
    """Mean SSIM of two images [3, H, W] in [0, 1] over 7x7 windows of luma, at two scales.

    The formula is that of Wang et al. (2004) with uniform windows; the second scale is half the
    first.
    """
    # In float32 the variances of flat areas would be below zero, and the similarity above one.
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
    """The image, resized so that its shorter side has this many pixels."""
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
