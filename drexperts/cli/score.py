"""`drx score`: scores of images, in tables or in a file that a later run continues."""

import argparse
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import (
    DONE,
    GATE_FAILED,
    Outcome,
    add_bundle,
    add_crops_per_side,
    add_decoding,
    add_digest,
    add_engine,
    add_trust,
    add_verb,
    limits_of,
    seconds,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from drexperts.cli.arguments import Parser, Verbs
    from drexperts.runtime.scorer import Scorer
    from drexperts.scale.ray import RayScorer
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "score", run, "score images with a bundle")
    add_bundle(verb)
    _add_inputs(verb)
    verb.add_argument(
        "--out",
        metavar="FILE",
        help="write the scores to this .jsonl, .csv or .parquet file, or continue it; with "
        "--shard, into this folder (default: show a table)",
    )
    verb.add_argument(
        "--explain",
        type=Path,
        metavar="DIR",
        help="write a picture that explains each score into this folder (default: none)",
    )
    verb.add_argument(
        "--device",
        default="auto",
        help="where the engine runs: auto, cpu, cuda, or a GPU such as cuda:1 (default: auto)",
    )
    add_engine(verb)
    add_trust(verb)
    add_digest(verb)
    verb.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads of the engine (default: one per core that may be used); with --ray, CPUs "
        "of each engine (default: 4, or fewer)",
    )
    verb.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="score with engines on all machines of the Ray cluster at this address, such as auto; "
        "without one, at RAY_ADDRESS, or on this machine alone (default: without Ray)",
    )
    verb.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="largest number of crops per call of the engine (default: 8, or fewer if the engine "
        "takes fewer)",
    )
    add_crops_per_side(verb)
    add_decoding(verb)
    verb.add_argument(
        "--overwrite", action="store_true", help="start --out anew instead of continuing it"
    )
    verb.add_argument(
        "--retry-errors", action="store_true", help="score again the images that failed before"
    )


def _add_inputs(verb: "Parser") -> None:
    verb.add_argument(
        "paths",
        nargs="*",
        metavar="path",
        help="an image, a folder of images, a tar archive or a Parquet file of them, a glob "
        "pattern, or a URL such as s3://bucket/folder",
    )
    verb.add_argument(
        "--from",
        dest="lists",
        action="append",
        metavar="FILE",
        help="also score the images and archives that this file names, one per line; - is "
        "standard input; may be repeated (default: none)",
    )
    verb.add_argument(
        "--video",
        action="append",
        default=[],
        metavar="FILE",
        help="instead of images, score frames of this video, or of those in a folder, a glob "
        "pattern or a URL; may be repeated (default: none)",
    )
    verb.add_argument(
        "--every",
        type=seconds,
        metavar="TIME",
        help="time between these frames, such as 1s, 0.5s or 500ms (default: 1s)",
    )
    verb.add_argument(
        "--shard",
        metavar="I/N",
        help="score only part I of N, 1 to N, into the folder --out; auto or auto/N asks the "
        "Slurm array or the Kubernetes job (default: everything)",
    )
    verb.add_argument(
        "--image-column",
        metavar="NAME",
        help="column of Parquet files with the bytes of images (default: the only one)",
    )
    verb.add_argument(
        "--key-column",
        metavar="NAME",
        help="column of Parquet files that names each image (default: the paths beside the "
        "images, or the numbers of the rows)",
    )


def _listed(arguments: argparse.Namespace) -> "Iterable[str]":
    from drexperts.runtime import UserError, paths_in

    if arguments.every is not None and not arguments.video:
        raise UserError("--every is the time between frames of videos: name them by --video FILE")
    if arguments.lists:
        return itertools.chain(*map(paths_in, arguments.lists))
    if not arguments.paths and not arguments.video:
        raise UserError("there is nothing to score: name images, or a list of them by --from FILE")
    return ()


def _loaded(arguments: argparse.Namespace) -> "Scorer | RayScorer":
    """An engine in this process, or engines on Ray."""
    options = {
        "engine": arguments.engine,
        "batch": arguments.batch,
        "crops_per_side": arguments.crops_per_side,
        "trust": arguments.trust,
        "digest": arguments.digest,
        "isolated": not arguments.decode_in_process,
        "limits": limits_of(arguments),
    }
    bundle, device, threads = arguments.bundle, arguments.device, arguments.threads
    if arguments.ray is None:
        from drexperts import runtime

        return runtime.load(bundle, device, threads=threads, **options)
    from drexperts.scale.ray import RayScorer

    address = arguments.ray or None
    return RayScorer(bundle, address=address, device=device, cpus=threads, **options)


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts import runtime
    from drexperts.cli.shards import parse_shard
    from drexperts.ui.tables import Tally, print_scores

    listed = _listed(arguments)
    shard = None if arguments.shard is None else parse_shard(arguments.shard)
    with _loaded(arguments) as scorer, screen.progress() as progress:
        for file, backend, reason in scorer.passed_over:
            screen.note(f"{file} ({backend}) is not used: {reason}")
        screen.note(f"scoring with {scorer.engine.file} on {scorer.description}")
        if (chosen := scorer.other_crops_per_side) is not None:
            own = scorer.manifest.preprocessing.crops_per_side
            screen.note(f"crops per side: at most {chosen} (the bundle was proven with {own})")
        tally = Tally(scorer.manifest.scale)
        summary = runtime.score_files(
            scorer,
            arguments.paths,
            arguments.out,
            listed=listed,
            shard=shard,
            image_column=arguments.image_column,
            key_column=arguments.key_column,
            videos=arguments.video,
            every=1.0 if arguments.every is None else arguments.every,
            explain=arguments.explain,
            overwrite=arguments.overwrite,
            retry_errors=arguments.retry_errors,
            progress=progress,
            on_score=tally.add,
        )
    print_scores(tally, summary.already_there, screen)
    document = {
        "bundle": str(arguments.bundle),
        "engine": scorer.engine.file,
        "session": scorer.description,
        "passed_over": [passed._asdict() for passed in scorer.passed_over],
        "crops_per_side": scorer.other_crops_per_side,
    }
    if shard is not None:
        document["shard"] = str(shard)
    # A shard may have no part of few inputs.
    is_empty = shard is not None and summary.images + summary.videos == 0
    status = DONE if summary.any_scored or is_empty else GATE_FAILED
    return Outcome(status, document | summary.as_json())
