"""Whether an engine that is proven on some photographs also passes on others.

    python benchmarks/crossings.py FOLDER --model NAME[=CHECKPOINT] [--model ...] [--divisions 2]
        [--default] [--receipt FILE]

The default photographs and those of a folder are divided at random into two halves, several times;
with --default also once into the default ones and the others. In each half engines are made as
`drx export` makes them, calibrated, searched and proven inside the half, and then measured on the
other as `drx verify --images` does. Of each picture one crop in the middle is used, so that
hundreds of engines can be made; a score that is a mean over crops varies less. Two models need no
checkpoint: "gentle" and "violent", small ones with random weights, of which the second has sharp
softmaxes.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from drexperts.bench.json_files import write_json
from drexperts.bench.provenance import this_machine, this_source
from drexperts.benchmarks.random_weights import SCALE
from drexperts.benchmarks.receipt_types.crossings_receipt import (
    DEFAULT,
    Crossing,
    CrossingsReceipt,
    parts,
)
from drexperts.benchmarks.receipt_types.receipt import add_receipt_option, markdown
from drexperts.export.graph.calibration import block_linears
from drexperts.export.graph.fold import inference_model
from drexperts.export.graph.precision import (
    BATCH,
    Int8,
    PrecisionTest,
    draft_of,
    fewest_islands,
    folded_session,
)
from drexperts.export.proof.division import Photographs, divided, in_turn, photographs_of
from drexperts.export.proof.parity import Reference
from drexperts.model.checkpoint import Checkpoint, load_checkpoint
from drexperts.model.config import ControllerConfig, DRExpertsConfig, EncoderConfig
from drexperts.model.dr_experts import new_model
from drexperts.runtime.decoding import Source, decode
from drexperts.runtime.manifest import OUTPUTS, ScoreScale
from drexperts.runtime.preprocess import Preprocessing, crops_from_image
from drexperts.runtime.proof import LIMITS, LOWER_LIMITS, MIN_IMAGES, SEARCH_LIMITS, Parity
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.session import Session
from drexperts.ui.screen import Screen

PACKAGES = (
    "drexperts.export.graph.calibration",
    "drexperts.export.graph.compensation",
    "drexperts.export.graph.int8_products",
    "drexperts.export.graph.precision",
    "drexperts.export.graph.sensitivity",
    "drexperts.export.proof.division",
    "drexperts.export.proof.parity",
    "drexperts.export.proof.photographs",
    "drexperts.runtime.proof",
)
PLAIN = ("fp32", "fp16", "bf16")  # which nothing is chosen for
SPREADS = {"gentle": 0.05, "violent": 0.3}  # of what is added to the initial weights
SIDE = 64

Divisions = Mapping[int, tuple[Photographs, Photographs]]


def random_checkpoint(spread: float) -> Checkpoint:
    """A model of the demo's size whose weights are random."""
    encoder = EncoderConfig(image_size=SIDE, patch_size=8, width=64, depth=2, heads=2)
    controller = ControllerConfig(SIDE, 8, width=64, depth=2, heads=2, embedding=64)
    torch.manual_seed(0)
    model = new_model(DRExpertsConfig.paper().with_sizes(encoder, controller))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return Checkpoint(model, SCALE, Preprocessing(SIDE, SIDE, SIDE, 1))


def with_own_span(checkpoint: Checkpoint, photographs: Photographs) -> Checkpoint:
    """The checkpoint with the scale that its scores of some photographs span."""
    reference = Reference(checkpoint.model, in_turn(photographs), checkpoint.preprocessing)
    scores = reference.outputs.scores
    scale = ScoreScale(float(scores.min()), float(scores.max()), higher_is_better=True)
    return checkpoint._replace(scale=scale)


def model_named(text: str) -> tuple[str, Checkpoint]:
    """The model of "NAME=CHECKPOINT", or of one of `SPREADS`."""
    name, _, file = text.partition("=")
    if not file and name in SPREADS:
        return name, random_checkpoint(SPREADS[name])
    return name, load_checkpoint(Path(file))


def middles(photographs: Photographs, spec: Preprocessing) -> Photographs:
    """The crop in the middle of each picture, by photograph."""
    one = replace(spec, crops_per_side=1)

    def middle(source: Source) -> Image.Image:
        pixels = crops_from_image(decode(source), one).pixels[0]
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))

    return [[middle(source) for source in each] for each in photographs]


def divisions_of(
    default: Photographs, others: Photographs, count: int, with_default: bool
) -> Divisions:
    """The divisions by number: `DEFAULT` if asked for, and the random ones by their seeds."""
    found = {seed: halves([*default, *others], seed) for seed in range(count)}
    return {DEFAULT: (default, others), **found} if with_default else found


def halves(photographs: Photographs, seed: int) -> tuple[Photographs, Photographs]:
    """The photographs in two halves at random, the versions of each together."""
    order = np.random.default_rng(seed).permutation(len(photographs))
    first, second = ([photographs[i] for i in order[start::2]] for start in (0, 1))
    return first, second


def worst(parity: Parity) -> dict[str, float | None]:
    """Each measure that has a limit, the worst of all images and of every large enough set."""
    sets = [each.measured() for each in parity.sets.values() if each.images >= MIN_IMAGES]
    found: dict[str, float | None] = {}
    for name in {name: None for limits in LIMITS.values() for name in limits}:
        values = [v for each in (parity.measured(), *sets) if (v := each.get(name)) is not None]
        pick = min if name in LOWER_LIMITS else max
        found[name] = float(f"{pick(values):.7g}") if values else None
    return found


class Remembering:
    """A session that computes each crop once: an image's answer depends on no other image."""

    concurrency, max_batch = 1, BATCH

    def __init__(self, session: Session) -> None:
        self._session, self.description = session, session.description
        self._known: dict[bytes, dict[str, NDArray[np.float32]]] = {}

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        keys = [crop.tobytes() for crop in pixels]
        new = [i for i, key in enumerate(keys) if key not in self._known]
        if new:
            found = self._session.run(pixels[new])
            for row, i in enumerate(new):
                self._known[keys[i]] = {name: rows[row] for name, rows in found.items()}
        rows = [self._known[key] for key in keys]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def close(self) -> None:
        """Nothing: other halves are measured with it."""


@dataclass(frozen=True)
class Half:
    """One half of the photographs of a division, for one model."""

    checkpoint: Checkpoint
    photographs: Photographs

    @cached_property
    def parts(self) -> Mapping[str, Sequence[Source]]:
        return divided(self.photographs, "search", "calibration")

    @cached_property
    def proof(self) -> Reference:
        return self._reference(self.parts["proof"])

    @cached_property
    def whole(self) -> Reference:
        return self._reference(in_turn(self.photographs))

    def _reference(self, images: Sequence[Source]) -> Reference:
        return Reference(self.checkpoint.model, images, self.checkpoint.preprocessing)


def measured(
    half: Half, other: Half, precision: str, session: Session
) -> dict[str, dict[str, float | None]]:
    """What a session measures where it was made and on the other half."""
    manifest = draft_of(half.checkpoint, precision, OUTPUTS, BATCH)
    scorer = Scorer(manifest, manifest.engines[0], session)
    return {
        "made": worst(half.proof.parity(scorer)),
        "other": worst(other.whole.parity(scorer)),
    }


def crossings(name: str, checkpoint: Checkpoint, divisions: Divisions) -> Iterator[Crossing]:
    """Every engine of one model."""
    folded = {precision: inference_model(checkpoint.model, precision) for precision in PLAIN}
    sizes = {p: sum(t.nbytes for t in (*m.parameters(), *m.buffers())) for p, m in folded.items()}
    plain = {p: Remembering(folded_session(model)) for p, model in folded.items()}
    for seed, photographs in divisions.items():
        pair = [Half(checkpoint, each) for each in photographs]
        for at, half in enumerate(pair):
            other = pair[1 - at]
            for precision, session in plain.items():
                yield Crossing(
                    model=name,
                    division=seed,
                    half=at,
                    precision=precision,
                    islands=0,
                    weight_bytes=sizes[precision],
                    **measured(half, other, precision, session),
                )
            int8 = Int8(checkpoint, half.parts["calibration"], maps=True, max_batch=BATCH)
            test = PrecisionTest(
                checkpoint, half.parts["search"], "int8", True, limits=SEARCH_LIMITS
            )
            for precision, islands in (
                ("int8", ()),
                ("auto", fewest_islands(int8, test).islands),
            ):
                yield Crossing(
                    model=name,
                    division=seed,
                    half=at,
                    precision=precision,
                    islands=len(islands),
                    weight_bytes=int8.weight_bytes(islands),
                    **measured(half, other, "int8", int8.session(islands)),
                )


Crossings = Callable[[str, Checkpoint, Divisions], Iterator[Crossing]]


def receipt_of(
    script: str, arguments: argparse.Namespace, crossings: Crossings, packages: Sequence[str]
) -> CrossingsReceipt:
    """Measures the crossings of every model, and tells of each."""
    models = dict(map(model_named, arguments.model))
    default, others = photographs_of(None), photographs_of(arguments.photographs)
    found: list[Crossing] = []
    with Screen().progress() as tell:
        for name, loaded in models.items():
            spec, side = loaded.preprocessing, loaded.preprocessing.crop
            first, second = (middles(photographs, spec) for photographs in (default, others))
            divisions = divisions_of(first, second, arguments.divisions, arguments.default)
            one = loaded._replace(preprocessing=Preprocessing(side, side, side, 1))
            if name in SPREADS:  # whose scores are in no scale
                one = with_own_span(one, first)
            for each in crossings(name, one, divisions):
                found.append(each)
                tell(f"{name}, division {each.division}, half {each.half}: {each.precision}")
    return CrossingsReceipt(
        command=_command(script, arguments, list(models)),
        machine=this_machine(),
        source=this_source(*packages),
        photographs=len(default) + len(others),
        images=sum(map(len, (*default, *others))),
        parts=len(block_linears(inference_model(next(iter(models.values())).model))),
        crossings=tuple(found),
    )


def _command(script: str, arguments: argparse.Namespace, models: Sequence[str]) -> str:
    """The command that measures the same again, without paths."""
    words = [f"python benchmarks/{script} FOLDER"]
    words += [f"--model {name}" + "=FILE" * (name not in SPREADS) for name in models]
    words.append(f"--divisions {arguments.divisions}")
    return " ".join(words + ["--default"] * arguments.default)


def arguments_of(given: list[str] | None, about: str, divisions: int) -> argparse.Namespace:
    """The arguments of a script that measures crossings.

    about: its docstring
    divisions: how many it makes unless told otherwise
    """
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    parser.add_argument("photographs", type=Path, help="a folder of photographs")
    parser.add_argument("--model", action="append", required=True, metavar="NAME[=CHECKPOINT]")
    parser.add_argument(
        "--divisions", type=int, default=divisions, help=f"random ones (default: {divisions})"
    )
    parser.add_argument("--default", action="store_true", help="and the default ones alone")
    add_receipt_option(parser)
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    arguments = arguments_of(given, __doc__, divisions=2)
    receipt = receipt_of("crossings.py", arguments, crossings, PACKAGES)
    print(markdown(parts(receipt)))
    if arguments.receipt:
        write_json(receipt, arguments.receipt)


if __name__ == "__main__":
    main()
