"""`drx`: one verb a stage. What a verb needs is imported when it runs, so that help is instant
and scoring needs no torch."""

import argparse
import dataclasses
import io
import json
import os
import re
import sys
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drexperts import __version__
from drexperts.cli.arguments import (
    DONE,
    GATE_FAILED,
    INTERRUPTED,
    OUR_BUG,
    USER_MISTAKE,
    Outcome,
    add_scale,
    add_verb,
    scale_of,
)
from drexperts.cli.bench import add_bench_verb
from drexperts.cli.training_verbs import add_training_verbs

if TYPE_CHECKING:
    from collections.abc import Callable

    from drexperts.cli.arguments import Parser, Verbs
    from drexperts.runtime import Manifest, Score, Scorer
    from drexperts.runtime.results import ResultFile
    from drexperts.ui.screen import Screen

DEFAULT_PROFILE = "1:8:64"

# Libraries that only some verbs need; a verb's `extra` brings those it needs.
_OPTIONAL = {"torch", "torchvision", "timm", "open_clip", "safetensors"}
_OPTIONAL |= {"onnx", "onnxscript", "skimage", "pandas", "scipy", "openpyxl", "pyarrow"}


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit status.

    0 done, 1 done and a gate failed, 2 the user's mistake, 70 our bug, 130 interrupted, 143
    terminated.
    """
    arguments = _parsed(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name may be what no encoding can print
            stream.reconfigure(errors="backslashreplace")
    outcome = _run(arguments)
    if arguments.json:
        print(json.dumps(outcome.document, allow_nan=False), flush=True)
    return outcome.status


def _parsed(argv: list[str]) -> argparse.Namespace:
    try:
        return _parser().parse_args(argv)
    except SystemExit as ended:
        if ended.code == USER_MISTAKE and "--json" in argv:
            print(json.dumps({"error": "the command line is wrong, see stderr"}), flush=True)
        raise


def _run(arguments: argparse.Namespace) -> Outcome:
    from drexperts.runtime.errors import StoppedError, UserError
    from drexperts.ui.screen import Screen

    try:
        outcome: Outcome = arguments.run(arguments, Screen(json_last=arguments.json))
        return outcome
    except StoppedError as error:
        return _failed(error.status, str(error))
    except UserError as error:
        return _failed(USER_MISTAKE, str(error))
    except OSError as error:
        return _failed(USER_MISTAKE, f"{error}; check the path, its permissions and the free space")
    except KeyboardInterrupt:
        message = "interrupted"
        if arguments.verb == "score" and arguments.out is not None:
            message += f"; the rows in {arguments.out} are kept, run the same again to go on"
        return _failed(INTERRUPTED, message)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and missing.partition(".")[0] in _OPTIONAL:
            remedy = f'pip install "drexperts[{arguments.extra}]"'
            return _failed(USER_MISTAKE, f"`drx {arguments.verb}` needs {missing}: {remedy}")
        return _bug(error)


def _failed(status: int, message: str) -> Outcome:
    print(f"drx: {message}", file=sys.stderr)
    return Outcome(status, {"error": message})


def _bug(error: Exception) -> Outcome:
    from drexperts.runtime.errors import InternalError

    traceback.print_exc()
    ours = error if isinstance(error, InternalError) else InternalError(repr(error))
    return _failed(OUR_BUG, str(ours))


def _score(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
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


def _info(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.runtime import obstacle, read_manifest
    from drexperts.ui.tables import bundle_table, engine_table, proof_table

    bundle: Path = arguments.bundle
    manifest = read_manifest(bundle)
    states = {
        engine.file: _state(bundle / engine.file, engine.sha256) for engine in manifest.engines
    }
    screen.tables.print(bundle_table(str(bundle), manifest))
    for engine in manifest.engines:
        path = bundle / engine.file
        size = path.stat().st_size if path.is_file() else None
        table = engine_table(engine, states[engine.file], size, obstacle(engine))
        screen.tables.print(table, proof_table(engine))
    intact = all(state == "intact" for state in states.values())
    document = _document(bundle, manifest) | {"files": states, "intact": intact}
    return Outcome(DONE if intact and document["proven"] else GATE_FAILED, document)


def _state(path: Path, sha256: str) -> str:
    from drexperts.runtime.manifest import sha256_of

    if not path.is_file():
        return "MISSING"
    return "intact" if sha256_of(path) == sha256 else "CHANGED"


def _export(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.export.bundle import export_checkpoint

    with screen.progress() as progress:
        manifest = export_checkpoint(
            arguments.checkpoint,
            arguments.out,
            images=arguments.images,
            scale=None if arguments.scale is None else scale_of(arguments.scale),
            precision=arguments.precision,
            target=arguments.target,
            maps=not arguments.no_maps,
            max_batch=arguments.max_batch,
            progress=progress,
        )
    return _proof(arguments.out, manifest, screen)


def _build(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.export.engines.build import build_engine
    from drexperts.export.engines.options import EngineOptions, parse_profiles

    options = EngineOptions(
        profiles=parse_profiles(arguments.batch or [DEFAULT_PROFILE]),
        workspace=arguments.workspace,
        optimization_level=arguments.opt_level,
        capabilities=tuple(arguments.capability),
        version_compatible=arguments.version_compatible,
        hardware_compatibility=arguments.hardware_compatibility,
        stripped=arguments.strip,
        timing_cache=arguments.timing_cache,
        plugin=arguments.plugin,
    )
    with screen.progress() as progress:
        manifest = build_engine(
            arguments.bundle,
            arguments.backend,
            options,
            precision=arguments.precision,
            fused_attention=not arguments.no_fused_attention,
            checkpoint=arguments.checkpoint,
            images=arguments.images,
            progress=progress,
        )
    return _proof(arguments.bundle, manifest, screen)


def _verify(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.export.proof.prove import verify_bundle

    if arguments.debug_layers:
        from drexperts.export.engines.debug_layers import check_comparable
        from drexperts.runtime import read_manifest

        check_comparable(read_manifest(arguments.bundle))
    with screen.progress() as progress:
        manifest = verify_bundle(
            arguments.bundle,
            checkpoint=arguments.checkpoint,
            images=arguments.images,
            progress=progress,
            trust=arguments.trust,
        )
    outcome = _proof(arguments.bundle, manifest, screen)
    return _debug_layers(arguments, screen, outcome) if arguments.debug_layers else outcome


def _debug_layers(arguments: argparse.Namespace, screen: "Screen", outcome: Outcome) -> Outcome:
    from drexperts.export.engines.debug_layers import bundle_layers, divergence_table

    layers: dict[str, Any] = {}
    with screen.progress() as progress:
        checkpoint, images = arguments.checkpoint, arguments.images
        reports = list(bundle_layers(arguments.bundle, checkpoint, images, progress))
    for engine, report in reports:
        screen.tables.print(f"{engine.file} ({engine.backend})", divergence_table(report))
        first = report.first
        layers[engine.file] = None if first is None else first.tensor
        if first is not None and first.hidden:
            screen.note("build it with --no-fused-attention if the kernel is an attention")
    diverged = any(tensor is not None for tensor in layers.values())
    document = outcome.document | {"first_divergence": layers}
    return Outcome(GATE_FAILED if diverged else outcome.status, document)


def _triton_repo(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.export.triton_repository import write_repository

    files = write_repository(
        arguments.bundle,
        arguments.out,
        name=arguments.name,
        instances=arguments.instances,
        max_queue_delay=arguments.max_queue_delay,
        allow_unverified=arguments.allow_unverified,
    )
    screen.tables.print(f"wrote {arguments.out}; its README.md says what is in it and what is not")
    return Outcome(DONE, {"out": str(arguments.out), "files": [str(file) for file in files]})


def _proof(bundle: Path, manifest: "Manifest", screen: "Screen") -> Outcome:
    from drexperts.runtime import obstacle
    from drexperts.ui.tables import proof_table

    for engine in manifest.engines:
        screen.tables.print(proof_table(engine))
        if reason := obstacle(engine):
            screen.note(f"{engine.file} ({engine.backend}) does not run here: {reason}")
    document = _document(bundle, manifest)
    return Outcome(DONE if document["proven"] else GATE_FAILED, document)


def _document(bundle: Path, manifest: "Manifest") -> dict[str, Any]:
    """A bundle is proven by one engine, and not by one that failed its proof beside it."""
    engines = manifest.engines
    refuted = any(engine.refuted for engine in engines)
    proven = any(engine.proven for engine in engines) and not refuted
    return {"bundle": str(bundle), "proven": proven, "manifest": dataclasses.asdict(manifest)}


def _demo(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.demo.run import run_demo

    with screen.progress() as progress:
        report = run_demo(arguments.out, screen.tables, progress)
    return Outcome(DONE if report["passed"] else GATE_FAILED, report)


def _convert_prior(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.model.daclip import convert_daclip

    convert_daclip(arguments.source, arguments.target)
    screen.tables.print(f"wrote {arguments.target}")
    return Outcome(DONE, {"target": str(arguments.target)})


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMGT]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"give bytes such as 512M or 4G, not {text!r}")
    return int(match[1]) * 1024 ** " KMGT".index(match[2] or " ")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="drx", description="Blind image-quality assessment with DR.Experts, deployed."
    )
    parser.add_argument("--version", action="version", version=f"drx {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_demo(verbs)
    add_training_verbs(verbs)
    _add_export(verbs)
    _add_build(verbs)
    _add_verify(verbs)
    _add_score(verbs)
    add_bench_verb(verbs)
    _add_info(verbs)
    _add_triton_repo(verbs)
    _add_convert_prior(verbs)
    return parser


def _add_demo(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "demo", _demo, "every stage on a small model, on this machine", "export")
    verb.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR")


def _add_export(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "export", _export, "a checkpoint to a verified bundle", "export")
    verb.add_argument("checkpoint", type=Path)
    verb.add_argument("--out", type=Path, required=True, metavar="BUNDLE")
    verb.add_argument("--images", type=Path, metavar="DIR", help="photographs to verify on")
    add_scale(verb)
    verb.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8", "auto"),
        default="fp32",
        help="of the transformer blocks; auto takes the lowest that keeps its parity, part by part",
    )
    verb.add_argument(
        "--target", choices=("cpu", "gpu"), default="cpu", help="of auto: int8 or fp16"
    )
    verb.add_argument("--no-maps", action="store_true", help="leave the distortion maps out")
    verb.add_argument("--max-batch", type=int, default=8, metavar="N")


def _add_verify(verbs: "Verbs") -> None:
    summary = "measure parity and batch invariance again, rewrite the proof"
    verb = add_verb(verbs, "verify", _verify, summary, "export")
    verb.add_argument("bundle", type=Path)
    verb.add_argument("--checkpoint", type=Path, help="the weights to hold it against")
    verb.add_argument("--images", type=Path, metavar="DIR", help="photographs to verify on")
    verb.add_argument(
        "--debug-layers", action="store_true", help="the first tensor that is wrong, if one is"
    )
    _add_trust(verb)


def _add_trust(verb: "Parser") -> None:
    verb.add_argument(
        "--trust", action="store_true", help="also TensorRT engines that were not built here"
    )


def _add_build(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "build", _build, "an engine for GPUs into a bundle", "export")
    verb.add_argument("bundle", type=Path)
    backends = ("tensorrt", "tensorrt-rtx", "onnx-cuda", "onnx-tensorrt")
    verb.add_argument("--backend", choices=backends, required=True)
    verb.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), help="another than the bundle's"
    )
    verb.add_argument("--checkpoint", type=Path, help="for parity, and for another precision")
    verb.add_argument("--images", type=Path, metavar="DIR", help="photographs to verify on")
    verb.add_argument(
        "--batch",
        action="append",
        metavar="MIN:OPT:MAX",
        help=f"batch sizes of an optimisation profile, repeatable; {DEFAULT_PROFILE}",
    )
    verb.add_argument(
        "--capability",
        action="append",
        default=[],
        metavar="8.9",
        help="a compute capability to build for, repeatable; tensorrt-rtx only",
    )
    verb.add_argument(
        "--plugin",
        choices=("require", "prefer", "off"),
        default="prefer",
        help="the pooling as our Triton kernel; tensorrt only",
    )
    verb.add_argument("--no-fused-attention", action="store_true", help="if it gives wrong scores")
    verb.add_argument("--workspace", type=_bytes, metavar="4G", help="most scratch memory")
    verb.add_argument("--opt-level", type=int, choices=range(6), help="of the builder")
    verb.add_argument("--timing-cache", type=Path, metavar="FILE", help="kept and reused")
    verb.add_argument(
        "--version-compatible", action="store_true", help="also for newer TensorRT; may be slower"
    )
    verb.add_argument(
        "--hardware-compatibility",
        choices=("none", "ampere+", "same-capability"),
        default="none",
        help="also for other GPUs; may be slower",
    )
    verb.add_argument("--strip", action="store_true", help="leave the weights out")


def _add_score(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "score", _score, "scores of images, and what they come from")
    verb.add_argument("bundle", type=Path)
    verb.add_argument("paths", nargs="+", metavar="path", help="a file, a folder or a pattern")
    verb.add_argument(
        "--out", type=Path, metavar="FILE", help=".jsonl or .csv; a file of an earlier run goes on"
    )
    verb.add_argument(
        "--explain", type=Path, metavar="DIR", help="a picture of each image that is scored"
    )
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda or such as cuda:1")
    _add_trust(verb)
    verb.add_argument("--threads", type=int, metavar="N", help="of the engine")
    verb.add_argument("--batch", type=int, metavar="N", help="most crops at a time")
    verb.add_argument("--overwrite", action="store_true", help="start --out over")
    verb.add_argument("--retry-errors", action="store_true", help="score failed images again")


def _add_info(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "info", _info, "what a bundle is, and what it was proven on")
    verb.add_argument("bundle", type=Path)


def _add_triton_repo(verbs: "Verbs") -> None:
    summary = "a bundle as a model repository of Triton Inference Server"
    verb = add_verb(verbs, "triton-repo", _triton_repo, summary)
    verb.add_argument("bundle", type=Path)
    verb.add_argument("--out", type=Path, required=True, metavar="DIR")
    verb.add_argument("--name", default="drexperts", help="what the models' names begin with")
    verb.add_argument("--instances", type=int, default=1, metavar="N", help="of each model")
    verb.add_argument(
        "--max-queue-delay",
        type=int,
        default=500,
        metavar="MICROSECONDS",
        help="how long a request waits for others to share its batch",
    )
    verb.add_argument(
        "--allow-unverified", action="store_true", help="engines without a proof, too"
    )


def _add_convert_prior(verbs: "Verbs") -> None:
    summary = "the published DA-CLIP to a slim file, once"
    verb = add_verb(verbs, "convert-prior", _convert_prior, summary, "train")
    verb.add_argument("source", type=Path, metavar="SOURCE.pt")
    verb.add_argument("target", type=Path, metavar="TARGET.safetensors")


if __name__ == "__main__":
    sys.exit(main())
