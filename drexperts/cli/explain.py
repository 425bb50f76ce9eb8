"""`drx explain`: a picture of where the experts look in a photograph."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, Outcome, add_scale, add_verb, check_out, scale_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from drexperts.cli.arguments import Verbs
    from drexperts.runtime.manifest import ScoreScale
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    summary = "a picture of where the experts look in a photograph"
    verb = add_verb(verbs, "explain", run, summary, "train")
    verb.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint or a bundle")
    verb.add_argument("photo", type=Path)
    verb.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    verb.add_argument(
        "--compare", action="store_true", help="DA-CLIP's, the encoder's and refined attention"
    )
    add_scale(verb)


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.evaluation.predict import open_model
    from drexperts.runtime.errors import UserError, WeightsError
    from drexperts.runtime.explain import explanation
    from drexperts.runtime.files import written_whole
    from drexperts.runtime.preprocess import decode

    if arguments.out.suffix.lower() != ".png":
        raise UserError(f"{arguments.out}: the picture is a PNG, so let its name end in .png")
    check_out(arguments.out)
    scale = None if arguments.scale is None else scale_of(arguments.scale)
    photo = decode(arguments.photo)
    if arguments.compare:
        picture = _comparison(arguments, photo, scale)
    else:
        with open_model(arguments.model, "cpu", scale=scale) as scorer:
            (score,) = scorer.score([arguments.photo], maps=True)
        if score.error is not None:
            raise WeightsError(f"{arguments.model}: {score.error}, take another")
        picture = explanation(photo, score)
    with written_whole(arguments.out) as aside:
        picture.save(aside, "PNG")
    screen.tables.print(f"wrote {arguments.out}")
    return Outcome(DONE, {"out": str(arguments.out)})


def _comparison(
    arguments: argparse.Namespace, photo: "Image", scale: "ScoreScale | None"
) -> "Image":
    from drexperts.evaluation.attention_maps import comparison
    from drexperts.model.checkpoint import load_checkpoint
    from drexperts.runtime.errors import UserError

    if arguments.model.is_dir():
        raise UserError(
            "--compare takes a checkpoint: a bundle has the difference of the two attentions only"
        )
    checkpoint = load_checkpoint(arguments.model)
    checkpoint = checkpoint._replace(scale=checkpoint.scale or scale)
    return comparison(checkpoint, photo, arguments.photo.name)
