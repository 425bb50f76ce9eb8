"""`drx score`: scores of images, resumable."""

import argparse
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drexperts.cli.arguments import DONE, GATE_FAILED, Outcome, add_trust, add_verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from drexperts.cli.arguments import Verbs
    from drexperts.runtime import Score, Scorer
    from drexperts.runtime.results import ResultFile
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "score", run, "scores of images, and what they come from")
    verb.add_argument("bundle", type=Path)
    verb.add_argument("paths", nargs="+", metavar="path", help="a file, a folder or a pattern")
    verb.add_argument(
        "--out", type=Path, metavar="FILE", help=".jsonl or .csv; a file of an earlier run goes on"
    )
    verb.add_argument(
        "--explain", type=Path, metavar="DIR", help="a picture of each image that is scored"
    )
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda or such as cuda:1")
    add_trust(verb)
    verb.add_argument("--threads", type=int, metavar="N", help="of the engine")
    verb.add_argument("--batch", type=int, metavar="N", help="most crops at a time")
    verb.add_argument("--overwrite", action="store_true", help="start --out over")
    verb.add_argument("--retry-errors", action="store_true", help="score failed images again")


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.runtime.errors import UserError
    from drexperts.runtime.results import find_images
    from drexperts.ui.screen import tracked
    from drexperts.ui.tables import Tally, print_scores

    if arguments.out is None and (arguments.overwrite or arguments.retry_errors):
        raise UserError(
            "--overwrite and --retry-errors are about a result file: name it with --out"
        )
    paths = _outside(arguments.explain, find_images(arguments.paths))
    scorer = _scorer(arguments)
    for file, backend, reason in scorer.passed_over:
        screen.note(f"not {file} ({backend}): {reason}")
    screen.note(f"{scorer.engine.file} on {scorer.session.description}")
    tally, rows, done = Tally(scorer.manifest.scale), list[dict[str, Any]](), dict[Path, bool]()
    sinks: list[Callable[[Score], None]] = [tally.add]
    start = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(scorer)
        if arguments.out is not None:
            results = stack.enter_context(_result_file(arguments, scorer))
            sinks.append(results.append)
            there = {os.path.abspath(source): scored for source, scored in results.done.items()}
            done = {p: there[q] for p in paths if (q := os.path.abspath(p)) in there}
            if done and arguments.explain is not None:
                screen.note(f"{len(done)} images have a row already and get no picture again")
        elif arguments.json:
            sinks.append(lambda score: rows.append(score.as_row()))
        if arguments.explain is not None:
            # Before the row: an image whose row is there is not scored again.
            sinks.insert(0, _picture_writer(arguments.explain))
        todo = [path for path in paths if path not in done]
        stream = scorer.score_stream(todo, maps=arguments.explain is not None)
        for score in tracked(stream, len(todo), screen):
            for sink in sinks:
                sink(score)
    print_scores(tally, len(done), screen)
    document = {
        "bundle": str(arguments.bundle),
        "engine": scorer.engine.file,
        "session": scorer.session.description,
        "passed_over": [passed._asdict() for passed in scorer.passed_over],
        "images": len(paths),
        "already_there": len(done),
        "scored": tally.scored,
        "failed": tally.failed,
        "seconds": time.monotonic() - start,
        "out": None if arguments.out is None else str(arguments.out),
        "results": rows if arguments.out is None else None,
    }
    return Outcome(DONE if tally.scored or any(done.values()) else GATE_FAILED, document)


def _outside(folder: Path | None, paths: list[Path]) -> list[Path]:
    """Without the pictures that an earlier run wrote among the photographs."""
    if folder is None:
        return paths
    from drexperts.runtime.explain import is_picture

    inside = Path(os.path.abspath(folder))
    return [
        path
        for path in paths
        if not (is_picture(path) and Path(os.path.abspath(path)).parent == inside)
    ]


def _scorer(arguments: argparse.Namespace) -> "Scorer":
    from drexperts import runtime

    bundle, device, threads = arguments.bundle, arguments.device, arguments.threads
    scorer = runtime.load(bundle, device, threads=threads, trust=arguments.trust)
    if arguments.batch is None:
        return scorer
    manifest, engine, passed_over = scorer.manifest, scorer.engine, scorer.passed_over
    scorer = runtime.Scorer(manifest, engine, scorer.session, batch=arguments.batch)
    scorer.passed_over = passed_over
    return scorer


def _result_file(arguments: argparse.Namespace, scorer: "Scorer") -> "ResultFile":
    from drexperts.runtime.results import ResultFile

    return ResultFile(
        arguments.out,
        fingerprint=scorer.fingerprint(b""),
        distortions=scorer.manifest.distortions,
        overwrite=arguments.overwrite,
        retry_errors=arguments.retry_errors,
    )


def _picture_writer(folder: Path) -> "Callable[[Score], None]":
    from drexperts.runtime.explain import explanation, file_name
    from drexperts.runtime.preprocess import decode

    folder.mkdir(parents=True, exist_ok=True)

    def write(score: "Score") -> None:
        if score.error is None:
            explanation(decode(score.source), score).save(folder / file_name(score.source))

    return write
