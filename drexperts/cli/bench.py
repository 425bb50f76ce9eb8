"""`drx bench`: measures a bundle, or a step of training."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, Outcome, add_engine, add_verb
from drexperts.model.config import PRESETS

if TYPE_CHECKING:
    from drexperts.cli.arguments import Parser, Verbs
    from drexperts.ui.screen import Screen

_SCENARIOS = ("single_stream", "multi_stream", "server", "offline")
# Options that --train does not take.
_OF_BUNDLES = (
    "engine",
    "baseline",
    "against",
    "scenario",
    "p99_bound",
    "seconds",
    "profile",
    "images",
)
_DESCRIPTION = (
    "Measure the latency of a bundle's engine, alone or beside baselines in the same rounds, or "
    "with --train the cost of a training step. A full-size bundle on a CPU takes about a minute by "
    "itself; each baseline adds its own time, --scenario up to 20 s (server: 240 s), --profile a "
    "few seconds."
)


def add(verbs: "Verbs") -> None:
    """Add the parser of this verb."""
    summary = "measure an engine's latency, or the cost of a training step, beside baselines"
    verb = add_verb(verbs, "bench", run, summary, "export")
    verb.description = _DESCRIPTION
    verb.add_argument("bundle", type=Path, nargs="?", help="the bundle to measure")
    verb.add_argument(
        "--batch",
        type=_sizes,
        metavar="N,N",
        help="batch sizes, none above the one that the bundle is certified for (default: 1,4 as "
        "far as it is; with --train 4)",
    )
    verb.add_argument(
        "--repeats", type=int, metavar="N", help="timing rounds (default: 15, with --train 9)"
    )
    verb.add_argument(
        "--threads",
        type=_sizes,
        metavar="N,N",
        help="threads of engines and of PyTorch; the engine is also measured with each further "
        "number (default: one per physical core that may be used; with --train PyTorch's own "
        "default)",
    )
    verb.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="the weights of the baselines, which the bundle was exported from (default: random "
        "weights, which take the same time)",
    )
    verb.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write the report there: JSON, Markdown, an HTML page, and a trace of the profile; "
        "with --train, JSON alone",
    )
    _add_bundle_options(verb)
    _add_training_options(verb)


def _add_bundle_options(verb: "Parser") -> None:
    add_engine(verb)
    verb.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="NAME",
        help="also time this baseline: all, or eager-dense, eager-reduced, compile, aotinductor, "
        "onnx-dense, openvino, openvino-fp32, backbones, timm-backbone, pyiqa:METRIC, tensorrt, "
        "tensorrt-rtx, onnx-tensorrt, onnx-cuda; may be repeated; baselines that cannot run are "
        "listed with the reason",
    )
    verb.add_argument(
        "--against",
        action="append",
        default=[],
        type=Path,
        metavar="BUNDLE",
        help="also time another bundle of the same model, in the same rounds; may be repeated",
    )
    verb.add_argument(
        "--scenario",
        action="append",
        default=[],
        choices=("all", *_SCENARIOS),
        help="also measure this way in which images may arrive; may be repeated (default: none)",
    )
    verb.add_argument(
        "--p99-bound",
        type=float,
        metavar="SECONDS",
        help="highest p99 latency of the server (default: 3 times what an image alone takes)",
    )
    verb.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="time limit for each scenario (default: 20, for the server 240)",
    )
    verb.add_argument("--profile", action="store_true", help="also measure where the time goes")
    verb.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="a folder of photographs, at most 100 of which are used (default: one that is made)",
    )


def _add_training_options(verb: "Parser") -> None:
    verb.add_argument(
        "--train",
        action="store_true",
        help="measure a training step, beside the dense form and the released recipe",
    )
    verb.add_argument(
        "--preset",
        choices=PRESETS,
        default="paper",
        help="the model of --train (default: paper)",
    )
    verb.add_argument(
        "--amp",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="the type in which --train runs our step (default: fp32)",
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
    if arguments.out is not None:
        # A library that the page needs is missed now, and not after the measurement.
        import drexperts.bench.page  # noqa: F401
    return _bench_bundle(arguments, screen)


def _check_training(arguments: argparse.Namespace) -> None:
    """Raises UserError for arguments that a training step does not take."""
    from drexperts.runtime.errors import UserError

    values = {name: getattr(arguments, name) for name in _OF_BUNDLES}
    # Zero is falsy, but was given.
    named = [name for name, value in values.items() if value or type(value) is float]
    given = [f"--{name.replace('_', '-')}" for name in named]
    given += ["BUNDLE"] * (arguments.bundle is not None)
    if given:
        raise UserError(f"--train measures no bundle: leave out {', '.join(given)}")
    if arguments.repeats is not None and arguments.repeats < 1:
        raise UserError(f"a measurement needs at least one repeat, got {arguments.repeats}")
    if arguments.batch is not None and len(arguments.batch) > 1:
        raise UserError("--train measures one batch size: name one with --batch")
    if arguments.threads is not None and len(arguments.threads) > 1:
        raise UserError("--train measures one number of threads: name one with --threads")


def _check_writable(folder: Path) -> None:
    """Make the folder and write into it. Raises UserError if that fails."""
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
    from drexperts.bench import bundle
    from drexperts.bench.report import print_report, with_summary, write_report
    from drexperts.bench.variants import names_of

    options = bundle.BenchOptions(
        engine=arguments.engine,
        baselines=tuple(arguments.baseline),
        against=names_of(arguments.against),
        batches=arguments.batch,
        repeats=bundle.ROUNDS if arguments.repeats is None else arguments.repeats,
        threads=arguments.threads,
        checkpoint=arguments.checkpoint,
        images=arguments.images,
        scenarios=_SCENARIOS if "all" in arguments.scenario else tuple(arguments.scenario),
        p99_bound=arguments.p99_bound,
        seconds=arguments.seconds,
        profile=arguments.profile,
    )
    with screen.progress() as progress:
        report = bundle.bench(arguments.bundle, options, progress)
    print_report(report, screen.tables)
    if arguments.out is not None:
        write_report(report, arguments.out)
        screen.note(f"wrote {arguments.out / 'index.html'}, and the same as JSON and Markdown")
    return Outcome(DONE, with_summary(report))


def _bench_training(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.bench import training_step
    from drexperts.bench.json_files import write_json
    from drexperts.bench.report import print_training_report, with_summary
    from drexperts.model.config import DRExpertsConfig

    with screen.progress() as progress:
        report = training_step.bench_training(
            DRExpertsConfig.preset_named(arguments.preset),
            batch=(arguments.batch or (4,))[0],
            rounds=training_step.ROUNDS if arguments.repeats is None else arguments.repeats,
            amp=arguments.amp,
            threads=(arguments.threads or (None,))[0],
            checkpoint=arguments.checkpoint,
            progress=progress,
        )
    print_training_report(report, screen.tables)
    if arguments.out is not None:
        write_json(report, arguments.out / "report.json")
    return Outcome(DONE, with_summary(report))


def _sizes(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"give numbers from 1 on, such as 1,4, not {text!r}")
    return tuple(map(int, sizes))
