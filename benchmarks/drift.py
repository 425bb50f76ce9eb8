"""How far scores move when another library decodes or resizes: a receipt, and tables of it.

    python benchmarks/drift.py BUNDLE --weights random|demo|trained [--images FOLDER ...]
        [--receipt FILE]

The same pictures, encoded in several ways, are decoded by every library at hand; and those that the
bundle's contract resizes are resized in several ways. All are scored, and held against what the
runtime itself makes of the file. A library that is not installed is named (OpenCV comes with
opencv-python-headless). Without --images the pictures come with scikit-image. Exit status 1 where
the runtime's scores are not met again, or its fingerprint does not tell scores apart; 2 where there
is something to mend in what was given.
"""

import argparse
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from drexperts import runtime
from drexperts.bench.provenance import head

# PYTHONSAFEPATH, which this repository asks for, leaves a script's own folder out.
from drexperts.benchmarks import receipt_tables
from drexperts.benchmarks.drift_variants import (
    JPEG,
    PNG,
    Decoder,
    Resize,
    decoders,
    resizes,
    upright,
)
from drexperts.benchmarks.receipt_tables import WEIGHTS
from drexperts.export.proof.agreement import score_agreement
from drexperts.export.proof.photographs import verification_images
from drexperts.runtime.errors import UserError
from drexperts.runtime.files import written_whole
from drexperts.runtime.preprocess import LONGEST_RATIO, decode, decoder_version, resized
from drexperts.runtime.progress import Progress
from drexperts.runtime.results import find_images
from drexperts.runtime.scorer import Scorer
from drexperts.ui.screen import Screen

Report = dict[str, Any]
# From a file's bytes and the runtime's pixels of it to other pixels, upright.
Variant = Callable[[bytes, Image.Image], Image.Image]

RUNTIME = "the runtime"
STORED = "JPEG as stored"
CONTROL = "PNG"
WRONG = 2  # exit status; 1 is that of a gate
# What Pillow is told: a control without loss, cameras' settings, and the web's.
ENCODINGS: dict[str, dict[str, Any]] = {
    CONTROL: {"format": PNG},
    "JPEG q95 4:4:4": {"format": JPEG, "quality": 95, "subsampling": "4:4:4"},
    "JPEG q90 4:2:2": {"format": JPEG, "quality": 90, "subsampling": "4:2:2"},
    "JPEG q75 4:2:0": {"format": JPEG, "quality": 75, "subsampling": "4:2:0"},
    "JPEG q40 4:2:0": {"format": JPEG, "quality": 40, "subsampling": "4:2:0"},
}
TO_RESIZE: dict[str, Any] = {"format": JPEG, "quality": 95, "subsampling": "4:2:0"}


class Judge:
    """Scores pixels with a Scorer, the same ones once."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._known: dict[bytes, float] = {}

    def __call__(self, image: Image.Image) -> float:
        key = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        if key not in self._known:
            self._known[key] = self.scorer.score(image).value
        return self._known[key]


def drift(scorer: Scorer, pictures: dict[str, bytes], progress: Progress) -> Report:
    """Every set of files through every variant.

    Args:
        pictures: the bytes of a file by its name.

    Returns:
        decoders, resizes: versions by name; left_out; pictures: names; sets; fingerprints; gates.
    """
    judge = Judge(scorer)
    readers, no_readers = decoders()
    others, no_others = resizes()
    sets = [
        *_decoded(judge, pictures, readers, progress),
        *_resized(judge, pictures, others, progress),
    ]
    prints = _fingerprints(scorer, next(iter(pictures.values())))
    return {
        "decoders": {RUNTIME: decoder_version(b""), **{n: d.version for n, d in readers.items()}},
        "left_out": no_readers | no_others,
        "pictures": list(pictures),
        "sets": sets,
        "fingerprints": prints,
        "gates": {
            "runtime_met_again": all(each["met_again"] for each in sets),
            "fingerprints_apart": len(set(prints.values())) == len(prints),
        },
    }


def _decoded(
    judge: Judge, pictures: dict[str, bytes], readers: dict[str, Decoder], progress: Progress
) -> Iterator[Report]:
    stored = [content for content in pictures.values() if _format(content) == JPEG]
    sets: dict[str, Iterable[bytes]] = {STORED: stored} if stored else {}
    sets |= {name: _encoded(pictures, options) for name, options in ENCODINGS.items()}
    for name, files in sets.items():
        kind = PNG if name == CONTROL else JPEG
        variants = {n: partial(_read, d) for n, d in readers.items() if kind in d.formats}
        yield compared(judge, name, files, lambda image: image, variants, progress)


def _encoded(pictures: dict[str, bytes], options: dict[str, Any]) -> Iterator[bytes]:
    for content in pictures.values():
        yield encoded(decode(content), options)


def _resized(
    judge: Judge, pictures: dict[str, bytes], others: dict[str, Resize], progress: Progress
) -> Iterator[Report]:
    """Of the pictures that the contract makes smaller or larger."""
    spec = judge.scorer.manifest.preprocessing
    to_contract = partial(resized, spec=spec)
    files: dict[str, list[bytes]] = {"smaller": [], "larger": []}
    for content in pictures.values():
        image = decode(content)
        if not spec.short_side_min <= min(image.size) <= spec.short_side_max:
            smaller = min(image.size) > spec.short_side_max
            files["smaller" if smaller else "larger"].append(encoded(image, TO_RESIZE))
    for name, contents in files.items():
        variants = {n: partial(_brought_to_size, r, to_contract) for n, r in others.items()}
        if contents:
            yield compared(judge, f"made {name}", contents, to_contract, variants, progress)


def compared(
    judge: Judge,
    name: str,
    files: Iterable[bytes],
    pixels: Callable[[Image.Image], Image.Image],
    variants: Mapping[str, Variant],
    progress: Progress,
) -> Report:
    """Scores and pixels of files by each variant, against the runtime's.

    pixels: what of the runtime's decoded picture the variants' pixels are held against
    """
    scores: dict[str, list[float]] = {RUNTIME: [], **{variant: [] for variant in variants}}
    apart: dict[str, dict[str, list[float]]] = {v: {"max": [], "mean": []} for v in variants}
    met_again = True
    for i, content in enumerate(files, 1):
        progress(f"{name}, picture {i}")
        decoded = decode(content)
        expected = pixels(decoded)
        scores[RUNTIME].append(judge.scorer.score(content).value)
        met_again &= judge(expected) == scores[RUNTIME][-1]
        for variant, make in variants.items():
            image = _made(f"{name}, picture {i}: {variant}", make, content, decoded)
            scores[variant].append(judge(image))
            steps = np.abs(np.asarray(image, np.int16) - np.asarray(expected, np.int16))
            apart[variant]["max"].append(int(steps.max()))
            apart[variant]["mean"].append(float(steps.mean()))
    span = judge.scorer.manifest.scale.span
    found = {v: figures(scores[RUNTIME], scores[v], span) | _steps(apart[v]) for v in variants}
    return {
        "set": name,
        "images": len(scores[RUNTIME]),
        "span": span,
        "met_again": met_again,
        "reference": RUNTIME,
        "scores": scores,
        "pixels": apart,
        "drift": found,
    }


def _made(what: str, make: Variant, content: bytes, decoded: Image.Image) -> Image.Image:
    try:
        return make(content, decoded)
    except Exception as cause:  # decoders raise nearly anything
        raise UserError(f"{what} cannot read it, leave it out: {cause}") from cause


def figures(expected: Sequence[float], got: Sequence[float], span: float) -> Report:
    """`score_agreement` of scores [n], and score_mean, the mean |difference| over the span."""
    a, b = np.array(expected), np.array(got)
    mean = float(np.abs(a - b).mean() / span)
    return asdict(score_agreement(a, b, span)) | {"score_mean": mean}


def _steps(apart: dict[str, list[float]]) -> Report:
    """Over all pictures, of 255 steps: the largest, and the mean of the pictures' means."""
    return {"pixel_max": max(apart["max"]), "pixel_mean": float(np.mean(apart["mean"]))}


def encoded(image: Image.Image, options: dict[str, Any]) -> bytes:
    """An image's pixels, without its metadata, as a file, by Pillow."""
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


def _fingerprints(scorer: Scorer, content: bytes) -> dict[str, str]:
    pixels = decode(content)
    return {RUNTIME: scorer.fingerprint(content), "caller's pixels": scorer.fingerprint(pixels)}


def _format(content: bytes) -> str | None:
    with Image.open(io.BytesIO(content)) as file:
        return JPEG if file.format == "MPO" else file.format


def pictures_of(sources: Sequence[str]) -> dict[str, bytes]:
    """Files below folders, or what comes with scikit-image, as PNG.

    By their paths from the folder that holds them all: two folders may have files of one name.
    """
    if not sources:
        given = verification_images()
        return {f"verification {i}": encoded(x, ENCODINGS[CONTROL]) for i, x in enumerate(given, 1)}
    paths = [path.absolute() for path in find_images(sources)]
    above = os.path.commonpath([path.parent for path in paths])
    return {path.relative_to(above).as_posix(): _photograph(path) for path in paths}


def _photograph(path: Path) -> bytes:
    """A file's bytes. Raises UserError, which names it, for what is no photograph."""
    size = decode(path).size
    if max(size) > LONGEST_RATIO * min(size):
        raise UserError(f"{str(path)!r} is {size[0]}x{size[1]}, no photograph: leave it out")
    return path.read_bytes()


def main(given: list[str] | None = None) -> int:
    try:
        return run(arguments_of(given))
    except UserError as error:
        print(error, file=sys.stderr)
        return WRONG


def arguments_of(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--weights", choices=WEIGHTS, required=True, help="what the bundle's are")
    parser.add_argument("--images", nargs="+", default=[], metavar="FOLDER")
    parser.add_argument("--receipt", type=Path)
    return parser.parse_args(given)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and write; the exit status. Raises UserError."""
    receipt: Path | None = arguments.receipt
    if receipt and not receipt.parent.is_dir():
        raise UserError(f"there is no folder {receipt.parent}: make it, or name another")
    command = f"python benchmarks/drift.py BUNDLE --weights {arguments.weights}"
    command += " --images FOLDER" * bool(arguments.images)
    modules = ("drexperts.runtime", "drexperts.export.proof.agreement")
    scorer = runtime.load(arguments.bundle)
    manifest = scorer.manifest
    with Screen().progress() as progress:
        found = drift(scorer, pictures_of(arguments.images), progress)
    report = head("drift", command, modules, None) | {
        "bundle": {"preset": manifest.preset, "session": scorer.session.description},
        "weights": arguments.weights,
        "preprocessing": asdict(manifest.preprocessing),
        **found,
    }
    print(receipt_tables.markdown(receipt_tables.drift(report)))
    for gate, holds in report["gates"].items():
        print(f"{gate}: {'yes' if holds else 'NO'}")
    if receipt:
        with written_whole(receipt) as aside:
            aside.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return int(not all(report["gates"].values()))


if __name__ == "__main__":
    sys.exit(main())
