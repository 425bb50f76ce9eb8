"""What fewer crops per image cost: scores of several grids against labels.

    python benchmarks/crop_grids.py LABELS.csv --scale 0:100 --work DIR [--receipt FILE]

The models are the demo's, and one for each split of the rated images that `drx train --size tiny`
makes from nothing, which scores only the images that it was not trained on. A set that `drx synth`
makes is scored by the demo's, and by one that was trained from nothing on such a set of other
photographs. What `learn_from_scores.py` left in DIR is taken over, and what is finished in DIR is
not made again.
"""

import argparse
import importlib.util
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from drexperts.bench.json_files import write_json
from drexperts.bench.provenance import this_machine, this_source
from drexperts.benchmarks.learn_from_scores import SPLITS, Commands, demo_checkpoint
from drexperts.benchmarks.receipt_types.grid_receipt import (
    Case,
    GridReceipt,
    GridScores,
    ScoredPart,
    parts,
)
from drexperts.benchmarks.receipt_types.receipt import add_receipt_option, markdown
from drexperts.cli.arguments import scale_of
from drexperts.data.dataset import Dataset
from drexperts.data.layouts import open_dataset
from drexperts.data.recipes import RECIPES
from drexperts.data.splits import Splits, make_splits, write_splits
from drexperts.demo.training import HELD_OUT, TRAIN
from drexperts.evaluation.predict import open_model, predict
from drexperts.model.checkpoint import load_checkpoint
from drexperts.runtime.manifest import ScoreScale

PACKAGES = ("drexperts.runtime", "drexperts.evaluation", "drexperts.model")
GRIDS = (1, 2, 3, 4)
RATED, SYNTHETIC = "rated", "synthetic"
DEMO, LEARNT = "the demo's", "from nothing on such"
SYNTHETIC_SCALE = ScoreScale(0.0, 100.0, higher_is_better=True)
SIDE = 256  # px of the shorter side: two crops of a model that is trained here
# Photographs that come with packages: those that the demo was not trained on, and those that it
# was. Most of the first are wider than high: only such images have room for more than two crops of
# a usual model along an axis.
TESTED = (
    *(("skimage", f"data/{file}") for file in HELD_OUT.values()),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
LEARNT_FROM = tuple(("skimage", f"data/{file}") for file in TRAIN.values())


def main(given: list[str] | None = None) -> None:
    arguments = arguments_of(given)
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    rated = open_dataset("folder", arguments.labels, scale=scale_of(arguments.scale))
    splits = make_splits(rated, count=arguments.splits, validation=0.0)
    write_splits(splits, work / "splits.json")
    commands = Commands(
        work, ("--data", "folder", str(arguments.labels), "--scale", arguments.scale)
    )
    made = synthetic_set(commands, "tested", TESTED)
    receipt = GridReceipt(
        command=f"python benchmarks/crop_grids.py LABELS.csv --scale {arguments.scale} --work DIR",
        machine=this_machine(),
        source=this_source(*PACKAGES),
        data={RATED: arguments.about, SYNTHETIC: about(made, TESTED)},
        digests={RATED: rated.digest, SYNTHETIC: made.digest},
        cases=tuple(cases(commands, rated, splits, made)),
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
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="runs, kept")
    add_receipt_option(parser)
    return parser.parse_args(given)


def synthetic_set(
    commands: Commands, name: str, photographs: Sequence[tuple[str, str]], *options: str
) -> Dataset:
    """What `drx synth` makes of photographs, each a file of a package."""
    clean, made = commands.work / f"{name}-clean", commands.work / f"{name}-distorted"
    clean.mkdir(exist_ok=True)
    for package, file in photographs:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        shutil.copy(Path(spec.origin).parent / file, clean)
    given = (str(clean), "--out", str(made), "--side", str(SIDE), "--workers", "1", *options)
    commands.run(made, "synth", *given)
    return open_dataset("folder", made / "labels.csv", scale=SYNTHETIC_SCALE)


def about(made: Dataset, photographs: Sequence[tuple[str, str]]) -> str:
    """A sentence on a synthetic set."""
    return f"{len(made.samples)} images that `drx synth` makes of {len(photographs)} photographs."


def cases(commands: Commands, rated: Dataset, splits: Splits, made: Dataset) -> Iterator[Case]:
    """The demo's model and a trained one, on each set of images."""
    demo_checkpoint(commands.work)
    demo = commands.work / "demo.safetensors"
    trained = [model_of_split(commands, splits, number) for number in range(len(splits.splits))]
    every = [sample.name for sample in rated.samples]
    yield case(DEMO, RATED, [demo], [scored(demo, rated, every)])
    tests = [
        scored(path, rated, split.test, learnt_from=len(split.train))
        for path, split in zip(trained, splits.splits, strict=True)
    ]
    yield case(LEARNT, RATED, trained, tests)
    for name, path in ((DEMO, demo), (LEARNT, model_of_synthetic(commands))):
        versions = [scored(path, made, names) for names in by_photograph(made)]
        yield case(name, SYNTHETIC, [path], versions)


def by_photograph(made: Dataset) -> list[list[str]]:
    """The names of the images that were made of each photograph."""
    groups = sorted({sample.group for sample in made.samples})
    return [[each.name for each in made.samples if each.group == group] for group in groups]


def model_of_split(commands: Commands, splits: Splits, number: int) -> Path:
    """The checkpoint of a training from nothing on what a split trains on."""
    commands.learnt("nothing", splits.splits[number], number, ("--size", "tiny"))
    return commands.work / "nothing" / f"split-{number}" / "best.safetensors"


def model_of_synthetic(commands: Commands) -> Path:
    """The checkpoint of a training from nothing on a synthetic set of other photographs."""
    made = synthetic_set(commands, "learnt-from", LEARNT_FROM, "--levels", "2,4")
    out = commands.work / "of-synthetic"
    given = ("--data", "folder", str(made.root / "labels.csv"), "--scale", "0:100")
    commands.train(out, *given, "--size", "tiny")
    return out / "best.safetensors"


def case(model: str, images: str, paths: Sequence[Path], scores: Sequence[ScoredPart]) -> Case:
    """What the models, which crop alike, gave."""
    spec = load_checkpoint(paths[0]).preprocessing
    own = str(spec.crops_per_side)
    return Case(model=model, images=images, crop=spec.crop, own=own, parts=tuple(scores))


def scored(
    path: Path, dataset: Dataset, names: Sequence[str], *, learnt_from: int = 0
) -> ScoredPart:
    """A model's scores of some images with every grid."""
    grids = {}
    for grid in GRIDS:
        with open_model(path, "cpu", scale=dataset.scale, crops_per_side=grid) as scorer:
            found = predict(
                scorer,
                dataset,
                dataset.select(names),
                protocol="grid",
                recipe=RECIPES["folder"],
            )
        scores = tuple(row.score for row in found.rows)
        grids[str(grid)] = GridScores(scores=scores, crops=sum(row.crops for row in found.rows))
    labels = tuple(row.label for row in found.rows)
    return ScoredPart(labels=labels, learnt_from=learnt_from, grids=grids)


if __name__ == "__main__":
    main()
