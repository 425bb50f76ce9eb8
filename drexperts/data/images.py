"""A data set's images as pixels: decoded, upright and resized, from disk or from a cache.

The cache holds one .npy file per image, named after everything its pixels depend on: the file's
path, size and modification time, the resizing, and the decoder. An outdated entry is never found
again, and a damaged one is replaced.
"""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drexperts.data.dataset import Dataset, Sample
from drexperts.data.recipes import Protocol, Recipe, preprocessing, stretched
from drexperts.runtime.decoding import decode, decoder_version
from drexperts.runtime.errors import DataError, ImageError, InternalError, UserError
from drexperts.runtime.files import written_whole
from drexperts.runtime.places import cache_folder
from drexperts.runtime.preprocess import LONGEST_RATIO, Preprocessing, resized

# One patch of the encoder. Smaller images, such as the 1x1 files that failed downloads leave, would
# be enlarged into a flat colour and trained on.
MIN_SIDE = 16

_NAMED = 5  # bad images that a message names; the others are counted

Pixels: TypeAlias = NDArray[np.uint8]
# Called with the number of images done, and of all images.
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class GridSize:
    """Resizes for the protocol `grid`: to the size at which the runtime takes its crops."""

    spec: Preprocessing

    def __call__(self, image: Image.Image) -> Image.Image:
        return resized(image, self.spec)


@dataclass(frozen=True)
class ReleasedSize:
    """Resizes for the protocol `released`: to `stretched` (height, width), then to at least a crop.

    Interpolation is bilinear and antialiased, like torchvision's Resize of a PIL image. Raises
    DataError for an image that would be enlarged although it is LONGEST_RATIO times as long as it
    is wide.
    """

    crop: int
    stretched: tuple[int, int] | None

    def __call__(self, image: Image.Image) -> Image.Image:
        if self.stretched is not None:
            height, width = self.stretched
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        short = min(image.size)
        if short >= self.crop:
            return image
        if max(image.size) >= LONGEST_RATIO * short:  # the result might not fit into memory
            raise DataError(f"{image.width}x{image.height} pixels are too long to be enlarged")
        size = (round(image.width * self.crop / short), round(image.height * self.crop / short))
        return image.resize(size, Image.Resampling.BILINEAR)


Sizing: TypeAlias = GridSize | ReleasedSize


def sizing(protocol: Protocol, recipe: Recipe, crop: int) -> Sizing:
    """How a protocol resizes a data set's images, for square crops of `crop` pixels."""
    if protocol == "grid":
        return GridSize(preprocessing(recipe, crop))
    return ReleasedSize(crop, stretched(recipe, crop))


class Stamp(NamedTuple):
    """What shows, without reading a file, whether it was changed."""

    size: int  # bytes
    mtime_ns: int


class ImageStore:
    """The images of a data set at the size from which crops are taken.

    cache: a folder for decoded images, which processes and data sets may share; None decodes an
        image each time it is used
    stamps: those of the files that were checked, by the names of their samples

    Once `check` has seen an image, a change of its file is an error: a run that continued with
    other pixels could not be repeated. Raises UserError if the cache cannot be created.
    """

    def __init__(self, dataset: Dataset, bring: Sizing, cache: Path | None = None) -> None:
        self.dataset = dataset
        self._bring = bring
        self._cache = cache
        self.stamps: dict[str, Stamp] = {}
        if cache is not None:
            try:
                cache.mkdir(parents=True, exist_ok=True)
            except OSError as cause:
                raise _cannot_cache(cache, cause) from cause

    @property
    def digest(self) -> str:
        """16 hex digits of the names, sizes and modification times of all checked files."""
        return hashlib.sha256(repr(sorted(self.stamps.items())).encode()).hexdigest()[:16]

    def pixels(self, sample: Sample) -> Pixels:
        """The whole image, RGB uint8 [H, W, 3], read-only.

        Raises DataError if the image is unusable, UserError if it cannot be cached.
        """
        return np.asarray(self._picture(sample))

    def crop(self, sample: Sample, size: int, place: tuple[float, float]) -> Pixels:
        """A square of the image, uint8 [size, size, 3], read-only; a cache reads only its rows.

        place: how far right and how far down the square lies, each from 0 to below 1; all its
            positions have equal shares of that range.

        Raises the errors of `pixels`.
        """
        picture = self._picture(sample)
        if isinstance(picture, Image.Image):
            left, top = _corner(picture.size, size, place)
            return np.asarray(picture.crop((left, top, left + size, top + size)))
        left, top = _corner((picture.shape[1], picture.shape[0]), size, place)
        return np.asarray(picture[top : top + size, left : left + size])

    def check(self, sample: Sample, known: Stamp | None) -> Stamp:
        """Decode an image, into the cache if there is one, and remember the stamp of its file.

        known: the stamp with which the image was found good before; it need not be decoded again.

        Raises the errors of `pixels`.
        """
        stamp = _stamp(self.dataset.path(sample))
        self.stamps[sample.name] = stamp
        if self._cache is not None or stamp != known:
            self._picture(sample)
        else:
            _require_permission(self.dataset.path(sample))
        return stamp

    def _picture(self, sample: Sample) -> Image.Image | Pixels:
        path = self.dataset.path(sample)
        stamp = _stamp(path)
        if self.stamps.get(sample.name, stamp) != stamp:
            raise DataError(f"{path} was changed while it was in use")
        if self._cache is None:
            return self._decoded(path)
        facts = (os.path.abspath(path), stamp, self._bring, decoder_version(path))
        entry = self._cache / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.npy"
        pixels = _mapped(entry)
        if pixels is None:
            pixels = np.asarray(self._decoded(path))
            _write(entry, pixels)
        return pixels

    def _decoded(self, path: Path) -> Image.Image:
        try:
            image = decode(path)
        except ImageError as cause:
            raise DataError(str(cause)) from cause
        if min(image.size) < MIN_SIDE:
            raise DataError(
                f"{path} is {image.width}x{image.height}: each side needs {MIN_SIDE} pixels"
            )
        try:
            return self._bring(image)
        except DataError as cause:
            raise DataError(f"cannot use {path}: {cause}") from cause


def check_images(
    store: ImageStore, samples: Sequence[Sample], *, skip_bad: bool, workers: int, tell: Tell
) -> tuple[list[Sample], tuple[str, ...]]:
    """Decode every image once, in threads, unless it was good before and has not changed since.

    Returns:
        The good samples, and why each of the others is left out, one line each.

    Raises DataError if there is a bad image and `skip_bad` is not set, or if there is no good one;
    UserError if the cache cannot be written.
    """
    note = _Note(store.dataset.root)
    good, reasons = [], []
    check = partial(_checked, store, note)
    # If this ends early, closing the results cancels what has not begun.
    with (
        ThreadPoolExecutor(max(workers, 1)) as pool,
        note,
        closing(pool.map(check, samples)) as results,  # type: ignore[type-var]
    ):
        for done, (sample, result) in enumerate(zip(samples, results, strict=True), 1):
            if isinstance(result, DataError):
                reasons.append(str(result))
            else:
                good.append(sample)
                note.add(sample, result)
            tell(done, len(samples))
    if reasons and not (skip_bad and good):
        raise _unusable(store.dataset, reasons, len(samples), bool(good))
    return good, tuple(reasons)


def _checked(store: ImageStore, note: "_Note", sample: Sample) -> Stamp | DataError:
    try:
        return store.check(sample, note.known.get(sample.name))
    except DataError as error:
        return error


def _unusable(dataset: Dataset, reasons: list[str], count: int, good: bool) -> DataError:
    named = "; ".join(reasons[:_NAMED])
    more = f"; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
    remedy = "restore them, or pass --skip-bad to leave them out" if good else "check the folder"
    return DataError(
        f"{len(reasons)} of {count} images of {dataset.name} at {dataset.root} cannot be used: "
        f"{remedy}. {named}{more}"
    )


class _Note:
    """Which files below a folder were found good, kept in the user's cache folder.

    It only saves work: a note that cannot be read counts as empty, and one that cannot be written
    is not. It is written at the end of its `with`, after an error too.
    """

    def __init__(self, root: Path) -> None:
        name = hashlib.sha256(os.path.abspath(root).encode(errors="surrogateescape")).hexdigest()
        self._name = f"{name[:32]}.json"
        self._made_by = f"{decoder_version(Path(self._name))}, {MIN_SIDE}"
        self.known = self._read()
        self._new: dict[str, Stamp] = {}

    @property
    def _path(self) -> Path:
        """Raises OSError if there is no such place."""
        return cache_folder() / "images-checked" / self._name

    def add(self, sample: Sample, stamp: Stamp) -> None:
        if self.known.get(sample.name) != stamp:
            self._new[sample.name] = stamp

    def __enter__(self) -> "_Note":
        return self

    def __exit__(self, *_: object) -> None:
        if self._new:
            document = {"made_by": self._made_by, "images": self.known | self._new}
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with written_whole(self._path) as aside:
                    aside.write_text(json.dumps(document), encoding="utf-8")

    def _read(self) -> dict[str, Stamp]:
        try:
            document = json.loads(self._path.read_bytes())
            if document["made_by"] != self._made_by:
                return {}
            return {name: Stamp(*stamp) for name, stamp in document["images"].items()}
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return {}


def _corner(image: tuple[int, int], size: int, place: tuple[float, float]) -> tuple[int, int]:
    """Left and top of a square in an image of (width, height)."""
    if min(image) < size:
        raise InternalError(f"a crop of {size} pixels from an image of {image[0]}x{image[1]}")
    return int(place[0] * (image[0] - size + 1)), int(place[1] * (image[1] - size + 1))


def _stamp(path: Path) -> Stamp:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as cause:
        raise _cannot_read(path, cause) from cause
    return Stamp(status.st_size, status.st_mtime_ns)


def _require_permission(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as cause:
        raise _cannot_read(path, cause) from cause


def _cannot_read(path: Path, cause: OSError | ValueError) -> DataError:
    return DataError(f"cannot read {path}: {getattr(cause, 'strerror', cause)}")


def _mapped(entry: Path) -> Pixels | None:
    """The memory-mapped pixels of a cache entry; None if it is missing or damaged."""
    try:
        pixels = np.load(entry, mmap_mode="r")
    except Exception:  # a damaged header makes NumPy raise almost anything, such as TokenError
        return None
    whole = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    return pixels if whole else None


def _write(entry: Path, pixels: Pixels) -> None:
    header = io.BytesIO()
    facts = np.lib.format.header_data_from_array_1_0(pixels)
    np.lib.format.write_array_header_1_0(header, facts)
    try:
        with written_whole(entry) as aside, open(aside, "wb") as stream:
            stream.write(header.getvalue())
            stream.write(pixels.data)
    except OSError as cause:
        raise _cannot_cache(entry.parent, cause) from cause


def _cannot_cache(cache: Path, cause: OSError) -> UserError:
    return UserError(
        f"cannot keep decoded images in {cache}: {cause.strerror or cause}; free some space, "
        "choose another --cache, or leave it out"
    )
