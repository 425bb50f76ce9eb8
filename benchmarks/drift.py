"""Measure how far scores move when another library decodes or resizes.

    python benchmarks/drift.py BUNDLE --weights random|demo|trained [--images FOLDER ...]
        [--receipt FILE]

The same pictures, encoded in several ways, are decoded by every library that is installed, and
those that the bundle's contract resizes are resized in several ways. All are scored and compared
with what the runtime itself makes of the file. A library that is not installed is named (OpenCV
comes with opencv-python-headless). Without --images the pictures come with scikit-image. Exit
status 1 if the runtime scores its own pixels differently, or its fingerprint does not tell a file
from pixels; 2 for a mistake in what was given.
"""

import argparse
import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from drexperts import runtime
from drexperts.bench.json_files import write_json
from drexperts.bench.provenance import this_machine, this_source
from drexperts.benchmarks.drift_readers import (
    JPEG,
    PNG,
    Decoder,
    Resize,
    decoders,
    resizes,
    upright,
)
from drexperts.benchmarks.receipt_types.drift_receipt import DriftReceipt, FileSet, Read, parts
from drexperts.benchmarks.receipt_types.receipt import WEIGHTS, add_receipt_option, markdown
from drexperts.export.proof.photographs import verification_images
from drexperts.runtime.decoding import Source, decode, decoder_version
from drexperts.runtime.errors import UserError
from drexperts.runtime.inputs.folders import find_images
from drexperts.runtime.preprocess import LONGEST_RATIO, resized
from drexperts.runtime.progress import Progress
from drexperts.runtime.scorer import Scorer
from drexperts.ui.screen import Screen

# From a file's bytes and the runtime's pixels of it to other pixels, upright.
Reader = Callable[[bytes, Image.Image], Image.Image]

PACKAGES = ("drexperts.runtime", "drexperts.export.proof.agreement")
RUNTIME = "the runtime"
STORED = "JPEG as stored"
CONTROL = "PNG"
WRONG = 2  # exit status; 1 is that of a failed check
# What Pillow is told: a control without loss, the settings of cameras, and those of the web.
ENCODINGS: dict[str, dict[str, Any]] = {
    CONTROL: {"format": PNG},
    "JPEG q95 4:4:4": {"format": JPEG, "quality": 95, "subsampling": "4:4:4"},
    "JPEG q90 4:2:2": {"format": JPEG, "quality": 90, "subsampling": "4:2:2"},
    "JPEG q75 4:2:0": {"format": JPEG, "quality": 75, "subsampling": "4:2:0"},
    "JPEG q40 4:2:0": {"format": JPEG, "quality": 40, "subsampling": "4:2:0"},
}
TO_RESIZE: dict[str, Any] = {"format": JPEG, "quality": 95, "subsampling": "4:2:0"}


class PixelScorer:
    """Scores images with a Scorer, each only once."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._known: dict[bytes, float] = {}

    def __call__(self, image: Image.Image) -> float:
        key = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        if key not in self._known:
            self._known[key] = self.scorer.score(image).value
        return self._known[key]


def drift(
    scorer: Scorer, pictures: dict[str, bytes], weights: str, command: str, progress: Progress
) -> DriftReceipt:
    """Every set of files, by every reader.

    pictures: the bytes of the files by name
    weights: of the bundle, one of `WEIGHTS`
    """
    pixel_scorer, manifest = PixelScorer(scorer), scorer.manifest
    readers, no_readers = decoders()
    others, no_others = resizes()
    content = next(iter(pictures.values()))
    prints: dict[str, Source] = {RUNTIME: content, "caller's pixels": decode(content)}
    return DriftReceipt(
        command=command,
        machine=this_machine(),
        source=this_source(*PACKAGES),
        preset=manifest.preset,
        session=scorer.session.description,
        weights=weights,
        preprocessing=manifest.preprocessing,
        span=manifest.scale.span,
        decoders={RUNTIME: decoder_version(b""), **{n: d.version for n, d in readers.items()}},
        left_out=no_readers | no_others,
        pictures=tuple(pictures),
        sets=(
            *_decoded(pixel_scorer, pictures, readers, progress),
            *_resized(pixel_scorer, pictures, others, progress),
        ),
        fingerprints={name: scorer.fingerprint(source) for name, source in prints.items()},
    )


def _decoded(
    scorer: PixelScorer,
    pictures: dict[str, bytes],
    decoders: dict[str, Decoder],
    progress: Progress,
) -> Iterator[FileSet]:
    stored = [content for content in pictures.values() if _format(content) == JPEG]
    sets: dict[str, Iterable[bytes]] = {STORED: stored} if stored else {}
    sets |= {name: _encoded(pictures, options) for name, options in ENCODINGS.items()}
    for name, files in sets.items():
        kind = PNG if name == CONTROL else JPEG
        readers = {n: partial(_read, d) for n, d in decoders.items() if kind in d.formats}
        yield compared(scorer, name, files, lambda image: image, readers, progress)


def _encoded(pictures: dict[str, bytes], options: dict[str, Any]) -> Iterator[bytes]:
    for content in pictures.values():
        yield encoded(decode(content), options)


def _resized(
    scorer: PixelScorer, pictures: dict[str, bytes], others: dict[str, Resize], progress: Progress
) -> Iterator[FileSet]:
    """The sets of the pictures that the contract makes smaller, and larger."""
    spec = scorer.scorer.preprocessing
    to_contract = partial(resized, spec=spec)
    files: dict[str, list[bytes]] = {"smaller": [], "larger": []}
    for content in pictures.values():
        image = decode(content)
        if not spec.short_side_min <= min(image.size) <= spec.short_side_max:
            smaller = min(image.size) > spec.short_side_max
            files["smaller" if smaller else "larger"].append(encoded(image, TO_RESIZE))
    for name, contents in files.items():
        readers = {n: partial(_brought_to_size, r, to_contract) for n, r in others.items()}
        if contents:
            yield compared(scorer, f"made {name}", contents, to_contract, readers, progress)


def compared(
    scorer: PixelScorer,
    name: str,
    files: Iterable[bytes],
    pixels: Callable[[Image.Image], Image.Image],
    readers: Mapping[str, Reader],
    progress: Progress,
) -> FileSet:
    """Scores and pixels of files by each reader, beside the runtime's.

    pixels: from the runtime's decoded picture to what the readers' pixels are compared with
    """
    scores: list[float] = []
    found: dict[str, list[tuple[float, int, float]]] = {reader: [] for reader in readers}
    from_pixels = True
    for i, content in enumerate(files, 1):
        progress(f"{name}, picture {i}")
        decoded = decode(content)
        expected = pixels(decoded)
        scores.append(scorer.scorer.score(content).value)
        from_pixels &= scorer(expected) == scores[-1]
        for reader, make in readers.items():
            image = _made(f"{name}, picture {i}: {reader}", make, content, decoded)
            steps = np.abs(np.asarray(image, np.int16) - np.asarray(expected, np.int16))
            found[reader].append((scorer(image), int(steps.max()), float(steps.mean())))
    read = {reader: Read(*zip(*each, strict=True)) for reader, each in found.items()}
    return FileSet(name, tuple(scores), from_pixels, read)


def _made(what: str, make: Reader, content: bytes, decoded: Image.Image) -> Image.Image:
    try:
        return make(content, decoded)
    except Exception as cause:  # decoders raise nearly anything
        raise UserError(f"{what} cannot read it, leave it out: {cause}") from cause


def encoded(image: Image.Image, options: dict[str, Any]) -> bytes:
    """A file that Pillow writes of an image's pixels, without its metadata."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(stream, **options)
    return stream.getvalue()


def _read(decoder: Decoder, content: bytes, _: Image.Image) -> Image.Image:
    return upright(decoder.stored(content), content)


def _brought_to_size(
    resize: Resize,
    to_contract: Callable[[Image.Image], Image.Image],
    content: bytes,
    image: Image.Image,
) -> Image.Image:
    return resize(content, image, to_contract(image).size)


def _format(content: bytes) -> str | None:
    with Image.open(io.BytesIO(content)) as file:
        return JPEG if file.format == "MPO" else file.format


def pictures_of(sources: Sequence[str]) -> dict[str, bytes]:
    """The files in folders, or what comes with scikit-image, as PNG.

    Names are paths from the folder that holds them all, since two folders may have files of one
    name.
    """
    if not sources:
        given = verification_images()
        return {f"verification {i}": encoded(x, ENCODINGS[CONTROL]) for i, x in enumerate(given, 1)}
    paths = [path.absolute() for path in find_images(sources).paths]
    above = os.path.commonpath([path.parent for path in paths])
    return {path.relative_to(above).as_posix(): _photograph(path) for path in paths}


def _photograph(path: Path) -> bytes:
    """A file's bytes. Raises UserError, which names it, for a picture that is far too long."""
    size = decode(path).size
    if max(size) > LONGEST_RATIO * min(size):
        raise UserError(f"{str(path)!r} is {size[0]}x{size[1]}, not a photograph: leave it out")
    return path.read_bytes()


def arguments_of(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--weights", choices=WEIGHTS, required=True, help="of the bundle")
    parser.add_argument("--engine", help="a backend or a file of the bundle (default: the best)")
    parser.add_argument("--images", nargs="+", default=[], metavar="FOLDER")
    add_receipt_option(parser)
    return parser.parse_args(given)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and write; the exit status. Raises UserError."""
    command = f"python benchmarks/drift.py BUNDLE --weights {arguments.weights}"
    command += "" if arguments.engine is None else f" --engine {arguments.engine}"
    command += " --images FOLDER" * bool(arguments.images)
    scorer = runtime.load(arguments.bundle, engine=arguments.engine)
    with Screen().progress() as progress:
        pictures = pictures_of(arguments.images)
        receipt = drift(scorer, pictures, arguments.weights, command, progress)
    print(markdown(parts(receipt)))
    if arguments.receipt:
        write_json(receipt, arguments.receipt)
    return int(bool(receipt.failures))


def main(given: list[str] | None = None) -> int:
    try:
        return run(arguments_of(given))
    except UserError as error:
        print(error, file=sys.stderr)
        return WRONG


if __name__ == "__main__":
    sys.exit(main())
