"""The verb that measures: bench, of a bundle or of a step of training."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drexperts.cli.arguments import DONE, Outcome, add_verb
from drexperts.model.config import PRESETS

if TYPE_CHECKING:
    from drexperts.cli.arguments import Parser, Verbs
    from drexperts.ui.screen import Screen

_EVERY = ("single_stream", "multi_stream", "server", "offline")
# Options that --train does not take.
_OF_BUNDLES = ("baseline", "against", "scenario", "p99_bound", "seconds", "profile", "images")
_DESCRIPTION = (
    "Latency of a bundle's engine, alone or alternately with baselines in one run, or with --train "
    "the cost of a training step. A full-size bundle on a CPU takes about a minute as it is; each "
    "baseline adds its own time, --scenario up to 20 s (server: 240 s), --profile some seconds."
)


def add(verbs: "Verbs") -> None:
    """Its parser."""
    summary = "latency of an engine, or cost of a training step, against baselines"
    verb = add_verb(verbs, "bench", run, summary, "export")
    verb.description = _DESCRIPTION
    verb.add_argument("bundle", type=Path, nargs="?")
    verb.add_argument("--batch", type=_sizes, metavar="1,4", help="batch sizes")
    verb.add_argument("--repeats", type=int, metavar="N", help="rounds; 15, of --train 9")
    verb.add_argument("--threads", type=int, metavar="N")
    verb.add_argument(
        "--checkpoint",
        type=Path,
        help="the weights of the baselines: what the bundle was exported from",
    )
    verb.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="the report: JSON, raw times, Markdown, a page; of --train JSON alone",
    )
    _add_bundle_options(verb)
    _add_training_options(verb)


def _add_bundle_options(verb: "Parser") -> None:
    verb.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="NAME",
        help="repeatable: all, or eager-dense, eager-reduced, compile, aotinductor, onnx-dense, "
        "backbones, timm-backbone, pyiqa:METRIC, tensorrt, tensorrt-rtx, onnx-tensorrt, onnx-cuda; "
        "who cannot run is listed with the reason",
    )
    verb.add_argument(
        "--against",
        action="append",
        default=[],
        type=Path,
        metavar="BUNDLE",
        help="another bundle of the same model, in the same run; repeatable",
    )
    verb.add_argument(
        "--scenario",
        action="append",
        default=[],
        choices=("all", *_EVERY),
        help="how images may come, repeatable; none",
    )
    verb.add_argument(
        "--p99-bound",
        type=float,
        metavar="SECONDS",
        help="of the server; 3 times what an image alone takes",
    )
    verb.add_argument(
        "--seconds", type=float, metavar="S", help="most for each scenario; 20, the server 240"
    )
    verb.add_argument("--profile", action="store_true", help="also where the time goes")
    verb.add_argument(
        "--images", type=Path, metavar="DIR", help="photographs, 100 at most; one that is made"
    )


def _add_training_options(verb: "Parser") -> None:
    verb.add_argument(
        "--train", action="store_true", help="a step, against the dense form and the released one"
    )
    verb.add_argument("--preset", choices=PRESETS, default="paper", help="of --train")
    verb.add_argument(
        "--amp", choices=("fp32", "fp16", "bf16"), default="fp32", help="of our step in --train"
    )


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.runtime.errors import UserError

    if arguments.train:
        _check_training(arguments)
    elif arguments.bundle is None:
        raise UserError("name a bundle to measure, or --train for a step of training")
    if arguments.out is not None:
        _check_writable(arguments.out)
    if arguments.train:
        return _bench_training(arguments, screen)
    return _bench_bundle(arguments, screen)


def _check_training(arguments: argparse.Namespace) -> None:
    """Raises UserError for what a step of training does not take."""
    from drexperts.runtime.errors import UserError

    values = {name: getattr(arguments, name) for name in _OF_BUNDLES}
    # A zero is given, too.
    named = [name for name, value in values.items() if value or type(value) is float]
    given = [f"--{name.replace('_', '-')}" for name in named]
    given += ["BUNDLE"] * (arguments.bundle is not None)
    if given:
        raise UserError(f"--train measures no bundle: leave out {', '.join(given)}")
    if arguments.repeats is not None and arguments.repeats < 1:
        raise UserError(f"a measurement needs one repeat at least, got {arguments.repeats}")
    if arguments.batch is not None and len(arguments.batch) > 1:
        raise UserError("--train measures one batch size: name one with --batch")


def _check_writable(folder: Path) -> None:
    """Make the folder and write into it. Raises UserError, before anything is measured in vain."""
    from tempfile import TemporaryFile

    from drexperts.runtime.errors import UserError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as cause:
        raise UserError(
            f"cannot write into {folder} ({cause.strerror}): name another folder with --out"
        ) from cause


def _bench_bundle(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.bench.bundle import ROUNDS, Settings, bench_bundle, print_report
    from drexperts.bench.lineup import names_of

    settings = Settings(
        baselines=tuple(arguments.baseline),
        others=names_of(arguments.against),
        batches=arguments.batch,
        repeats=ROUNDS if arguments.repeats is None else arguments.repeats,
        threads=arguments.threads,
        checkpoint=arguments.checkpoint,
        images=arguments.images,
        scenarios=_EVERY if "all" in arguments.scenario else tuple(arguments.scenario),
        p99_bound=arguments.p99_bound,
        seconds=arguments.seconds,
        profile=arguments.profile,
    )
    with screen.progress() as progress:
        report = bench_bundle(arguments.bundle, settings, progress)
    print_report(report, screen.tables)
    if arguments.out is not None:
        from drexperts.bench.report import write_report

        write_report(report, arguments.out)
        screen.note(f"wrote {arguments.out / 'index.html'}, and the same as JSON and Markdown")
    return Outcome(DONE, report)


def _bench_training(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.bench.training_step import ROUNDS, bench_training, print_training_report
    from drexperts.model.config import DRExpertsConfig

    with screen.progress() as progress:
        report = bench_training(
            DRExpertsConfig.preset_named(arguments.preset),
            batch=(arguments.batch or (4,))[0],
            rounds=ROUNDS if arguments.repeats is None else arguments.repeats,
            amp=arguments.amp,
            threads=arguments.threads,
            checkpoint=arguments.checkpoint,
            progress=progress,
        )
    print_training_report(report, screen.tables)
    if arguments.out is not None:
        _write_json(report, arguments.out)
    return Outcome(DONE, report)


def _write_json(report: dict[str, Any], folder: Path) -> None:
    import json

    from drexperts.runtime.files import written_whole

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1, allow_nan=False)
    with written_whole(folder / "report.json") as file:
        file.write_text(text + "\n", encoding="utf-8")


def _sizes(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"give sizes such as 1,4, not {text!r}")
    return tuple(map(int, sizes))
