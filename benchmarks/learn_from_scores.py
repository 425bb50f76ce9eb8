"""Does DR.Experts learn from people's scores? Against regressions on BRISQUE's features.

    python benchmarks/learn_from_scores.py LABELS.csv --scale 0:100 --work DIR [--receipt FILE]

The network is that of `drx train --size tiny`, with its defaults: once from nothing, once from the
demo's weights, and once from a training on synthetic distortions of pictures that are in no test
part, without their scores. Each training is the command itself, in a process of its own, whose CPU
time is counted. What is finished in DIR is not computed again.
"""

import argparse
import csv
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drexperts.bench.json_files import write_json
from drexperts.bench.provenance import this_machine, this_source
from drexperts.benchmarks.natural_statistics import brisque_features, ridge, support_vectors
from drexperts.benchmarks.receipt_types.learning_receipt import (
    Contestant,
    LearningReceipt,
    Learnt,
    RatedPart,
    parts,
)
from drexperts.benchmarks.receipt_types.receipt import add_receipt_option, markdown
from drexperts.cli.arguments import scale_of
from drexperts.data.dataset import Dataset
from drexperts.data.layouts import open_dataset
from drexperts.data.recipes import RECIPES, preprocessing
from drexperts.data.splits import Split, Splits, make_splits, write_splits
from drexperts.demo.training import PREPROCESSING, SCALE, train_demo
from drexperts.model.checkpoint import Checkpoint, save_checkpoint
from drexperts.runtime.decoding import decode
from drexperts.runtime.preprocess import crops_from_image
from drexperts.training.from_nothing import EPOCHS

Array = NDArray[np.float64]

PACKAGES = ("drexperts.model", "drexperts.training", "drexperts.data", "drexperts.evaluation")
CROP, SPLITS = 128, 5
STARTS = {
    "nothing": "DR.Experts from nothing",
    "demo": "DR.Experts from the demo",
    "pretrained": "DR.Experts pre-trained",
}
HALF = ("--epochs", str(EPOCHS // 2))
BASELINE = "SVR"
# A small part of what `drx synth` makes, so that this start costs about as much as a training.
TYPES, LEVELS, SYNTHETIC_SIDE = "gaussian_blur,white_noise,jpeg,darken", "2,4", 256


def main(given: list[str] | None = None) -> None:
    arguments = arguments_of(given)
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    dataset = open_dataset("folder", arguments.labels, scale=scale_of(arguments.scale))
    # A tenth of so few images would choose the epoch by chance; without it the last one is taken.
    splits = make_splits(dataset, count=arguments.splits, validation=0.0)
    write_splits(splits, work / "splits.json")
    rated = ("--data", "folder", str(arguments.labels), "--scale", arguments.scale)
    networks = trainings(Commands(work, rated), dataset, splits, arguments.starts)
    receipt = LearningReceipt(
        command=f"python benchmarks/learn_from_scores.py LABELS.csv --scale {arguments.scale} "
        f"--starts {' '.join(arguments.starts)} --work DIR",
        machine=this_machine(),
        source=this_source(*PACKAGES),
        data=arguments.about,
        data_digest=dataset.digest,
        baseline=BASELINE,
        splits=tuple(rated_part(dataset, split) for split in splits.splits),
        contestants=baselines(dataset, splits) | networks,
    )
    print(markdown(parts(receipt)))
    if arguments.receipt:
        write_json(receipt, arguments.receipt)


def arguments_of(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("labels", type=Path, help="a table with the columns path and score")
    parser.add_argument("--scale", required=True, metavar="LOW:HIGH")
    parser.add_argument("--about", default="Rated images.", help="a sentence on the data")
    parser.add_argument("--splits", type=int, default=SPLITS, metavar="N")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="runs, kept")
    add_receipt_option(parser)
    return parser.parse_args(given)


def rated_part(dataset: Dataset, split: Split) -> RatedPart:
    """What a receipt keeps of a split."""
    return RatedPart(
        labels=tuple(sample.label for sample in dataset.select(split.test)),
        learnt_from=len(split.train),
    )


def baselines(dataset: Dataset, splits: Splits) -> dict[str, Contestant]:
    """Both regressions, on the crops that DR.Experts sees and on whole images."""
    views = {
        f"crops of {CROP} px": ("", crop_features),
        "whole images": (" at full size", lambda image: brisque_features(np.asarray(image))),
    }
    found = {}
    for seen, (suffix, features_of) in views.items():
        features, seconds = all_features(dataset, features_of)
        for name, regression in (("ridge", ridge), (BASELINE, support_vectors)):
            learnt = [regressed(dataset, split, features, regression) for split in splits.splits]
            found[name + suffix] = Contestant(seen=seen, before=seconds, learnt=tuple(learnt))
    return found


def crop_features(image: Image.Image) -> Array:
    """The features of an image [36]: the mean over its crops."""
    crops = crops_from_image(image, preprocessing(RECIPES["folder"], CROP)).pixels
    return np.mean([brisque_features(crop.transpose(1, 2, 0)) for crop in crops], axis=0)


def all_features(
    dataset: Dataset, features_of: Callable[[Image.Image], Array]
) -> tuple[dict[str, Array], float]:
    """The features of every image by name, and the CPU seconds that they took."""
    started = time.process_time()
    features = {s.name: features_of(decode(dataset.path(s))) for s in dataset.samples}
    return features, time.process_time() - started


def regressed(
    dataset: Dataset, split: Split, features: dict[str, Array], regression: Callable[[], Any]
) -> Learnt:
    """A regression's scores of the test images."""
    started = time.process_time()
    known = dataset.select(split.train)
    model = regression().fit([features[s.name] for s in known], [s.label for s in known])
    scores = model.predict([features[name] for name in split.test])
    return Learnt(scores=tuple(scores.tolist()), cpu_seconds=time.process_time() - started)


@dataclass(frozen=True)
class Commands:
    """Trainings by `drx train`, each in a folder below `work`.

    rated: the options that name the rated images
    """

    work: Path
    rated: tuple[str, ...]

    def contestant(
        self, start: str, seen: str, splits: Splits, options: Sequence[str], before: float
    ) -> Contestant:
        """One training per split, with the options that its start needs."""
        learnt = [self.learnt(start, split, n, options) for n, split in enumerate(splits.splits)]
        return Contestant(seen=seen, before=before, learnt=tuple(learnt))

    def learnt(self, start: str, split: Split, number: int, options: Sequence[str]) -> Learnt:
        """One training and its scores of the test images."""
        out = self.work / start / f"split-{number}"
        where = ("--splits", str(self.work / "splits.json"), "--split", str(number))
        seconds = self.train(out, *self.rated, *where, *options)
        with open(out / "predictions.csv", encoding="utf-8", newline="") as stream:
            scores = {row["path"]: float(row["score"]) for row in csv.DictReader(stream)}
        return Learnt(scores=tuple(scores[n] for n in split.test), cpu_seconds=seconds)

    def train(self, out: Path, *options: str) -> float:
        """`drx train` in this process's threads; returns its CPU seconds."""
        return self.run(
            out, "train", *options, "--out", str(out), "--workers", "0", "--cache", self.cache
        )

    @property
    def cache(self) -> str:
        return str(self.work / "cache")

    def run(self, out: Path, *words: str) -> float:
        """A command of `drx`, unless it is done; returns the CPU seconds that it took."""
        note = out.with_name(out.name + ".seconds")
        if not note.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-m", "drexperts.cli.main", *words], check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            note.write_text(f"{spent:.1f}")
        return float(note.read_text())


def trainings(
    commands: Commands, dataset: Dataset, splits: Splits, starts: Sequence[str]
) -> dict[str, Contestant]:
    """DR.Experts from each of some starts."""
    same, small = (f"crops of {side} px" for side in (CROP, PREPROCESSING.crop))
    makers: dict[str, Callable[[], tuple[str, Sequence[str], float]]] = {
        "nothing": lambda: (same, ("--size", "tiny"), 0.0),
        "demo": lambda: (small, *demo_checkpoint(commands.work)),
        "pretrained": lambda: (same, *pretrained(commands, unrated(dataset, splits))),
    }
    found = {}
    for start in starts:
        seen, options, before = makers[start]()
        found[STARTS[start]] = commands.contestant(start, seen, splits, options, before)
    return found


def demo_checkpoint(work: Path) -> tuple[tuple[str, ...], float]:
    """The options that start from the demo's model, and the CPU seconds of its training."""
    path, started = work / "demo.safetensors", time.process_time()
    if not path.exists():
        trained = train_demo(lambda what, step: None)
        save_checkpoint(Checkpoint(trained.model, SCALE, PREPROCESSING), path)
        path.with_suffix(".seconds").write_text(f"{time.process_time() - started:.1f}")
    return ("--init", str(path)), float(path.with_suffix(".seconds").read_text())


def unrated(dataset: Dataset, splits: Splits) -> list[Path]:
    """The pictures that no split tests on."""
    tested = {name for split in splits.splits for name in split.test}
    return [dataset.path(sample) for sample in dataset.samples if sample.name not in tested]


def pretrained(commands: Commands, pictures: Sequence[Path]) -> tuple[tuple[str, ...], float]:
    """The options that start from a model which learnt synthetic distortions of pictures, for half
    as many epochs as usual, as do the trainings from it; and the CPU seconds that it took.
    """
    clean, made = commands.work / "unrated", commands.work / "synthetic"
    clean.mkdir(exist_ok=True)
    for picture in pictures:
        (clean / picture.name).unlink(missing_ok=True)
        (clean / picture.name).symlink_to(picture.resolve())
    kinds = ("--types", TYPES, "--levels", LEVELS, "--side", str(SYNTHETIC_SIDE), "--workers", "1")
    seconds = commands.run(made, "synth", str(clean), "--out", str(made), *kinds)
    out = commands.work / "pretraining"
    synthetic = ("--data", "folder", str(made / "labels.csv"), "--scale", "0:100")
    seconds += commands.train(out, *synthetic, "--size", "tiny", "--crops", "1", *HALF)
    return ("--init", str(out / "best.safetensors"), *HALF), seconds


if __name__ == "__main__":
    main()
