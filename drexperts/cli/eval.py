"""`drx eval`: how checkpoints and bundles agree with people's scores."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, Outcome, add_engine, add_verb, check_out
from drexperts.cli.training_arguments import add_data, dataset_from

if TYPE_CHECKING:
    from rich.table import Table

    from drexperts.cli.arguments import Verbs
    from drexperts.evaluation.compare import Difference, Evaluation
    from drexperts.evaluation.metrics import Change, Interval, Spread
    from drexperts.ui.screen import Screen

_LABELS = {
    "srcc": "SRCC",
    "plcc": "PLCC, raw",
    "plcc_fitted": "PLCC, logistic fit",
    "krcc": "KRCC",
    "rmse": "RMSE, logistic fit",
}


def add(verbs: "Verbs") -> None:
    summary = "compare checkpoints and bundles with labels: SRCC, PLCC, KRCC and RMSE"
    verb = add_verb(verbs, "eval", run, summary, "train")
    verb.add_argument(
        "models", type=Path, nargs="+", metavar="MODEL", help="a checkpoint or a bundle's folder"
    )
    add_data(verb)
    verb.add_argument(
        "--splits",
        type=Path,
        metavar="FILE",
        help="evaluate the splits in this file, such as a training's splits.json (default: the "
        "whole data set)",
    )
    verb.add_argument(
        "--part",
        choices=("test", "validation", "train", "all"),
        help="part of each split to evaluate (default: test, or all without --splits)",
    )
    verb.add_argument(
        "--crops-per-side",
        type=_grids,
        default=(None,),
        metavar="N[,N...]",
        help="most crops along each axis of an image, 1 to 64, or own for the model's own grid; of "
        "several, such as own,2,1, each is compared with the first (default: own)",
    )
    verb.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or one GPU such as cuda:1 (default: auto)"
    )
    add_engine(verb)
    verb.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads (default: one per core that may be used)",
    )
    verb.add_argument(
        "--out",
        type=Path,
        metavar="FILE.csv",
        help="write the label and the scores of each image to this file (default: no file)",
    )


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.data import read_splits
    from drexperts.evaluation import evaluate, write_predictions

    if arguments.out is not None:
        check_out(arguments.out)
    dataset = dataset_from(arguments)
    with screen.progress() as progress:
        evaluation = evaluate(
            arguments.models,
            dataset,
            splits=None if arguments.splits is None else read_splits(arguments.splits),
            part=arguments.part,
            protocol=arguments.protocol,
            crops_per_side=arguments.crops_per_side,
            seed=arguments.seed,
            device=arguments.device,
            engine=arguments.engine,
            threads=arguments.threads,
            skip_bad=arguments.skip_bad,
            progress=progress,
        )
    screen.tables.print(_metrics_table(evaluation))
    if evaluation.differences:
        screen.tables.print(_differences_table(evaluation.differences))
    for line in _circumstances(evaluation):
        screen.tables.print(line)
    if arguments.out is not None:
        write_predictions(evaluation, dataset, arguments.out)
    return Outcome(DONE, evaluation.as_json())


def _grids(text: str) -> "tuple[int | None, ...]":
    """Crops per side, separated by commas; None for "own"."""
    words = [word.strip() for word in text.split(",")]
    if not all(word == "own" or word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"give own or numbers such as own,2,1, not {text!r}")
    return tuple(None if word == "own" else int(word) for word in words)


def _metrics_table(evaluation: "Evaluation") -> "Table":
    from rich.table import Table

    from drexperts.evaluation.metrics import INTERVALS
    from drexperts.ui.fitting import Name

    models, count = evaluation.models, evaluation.data.splits
    table = Table("split", "metric", title=f"scores against labels; {INTERVALS}")
    for model in models:
        table.add_column(Name(model.label), no_wrap=True, justify="right")
    for number in range(count):
        metrics = [model.splits[number] for model in models]
        for name, label in _LABELS.items():
            cells = [_with_interval(getattr(m, name), m.intervals[name]) for m in metrics]
            title = f"{number}: {metrics[0].images} images" if name == "srcc" else ""
            table.add_row(title, label, *cells, end_section=name == "rmse")
    if count > 1:
        titles = [f"median of {count}", "± std, range", *[""] * len(_LABELS)]
        for title, (name, label) in zip(titles, _LABELS.items(), strict=False):
            table.add_row(title, label, *(_with_spread(getattr(m.median, name)) for m in models))
    return table


def _differences_table(differences: "Sequence[Difference]") -> "Table":
    from rich.table import Table

    from drexperts.ui.fitting import Name

    table = Table(title=Name(f"against {differences[0].reference}"))
    table.add_column("model", no_wrap=True)
    table.add_column("weights")
    headers = ("largest |Δ score|", "SRCC", "PLCC", "Δ SRCC with labels", "Δ PLCC with labels")
    for header in headers:
        table.add_column(header, justify="right")
    for each in differences:
        largest = "other scale" if each.score_max is None else f"{each.score_max:.3g}"
        weights = {True: "same", False: "other", None: "unknown"}[each.same_weights]
        changes = [_changed([split[name] for split in each.changes]) for name in ("srcc", "plcc")]
        both = _number(each.srcc, 6), _number(each.plcc, 6)
        table.add_row(each.model, weights, largest, *both, *changes)
    return table


def _changed(changes: "Sequence[Change]") -> str:
    """Of one split with its interval, of several as the metrics of several are shown."""
    from drexperts.evaluation.metrics import spread

    if len(changes) == 1:
        return _with_interval(*changes[0])
    return _with_spread(spread([change.value for change in changes]))


def _circumstances(evaluation: "Evaluation") -> Iterator[str]:
    """What the numbers were measured on, one line each."""
    data, protocol = evaluation.data, evaluation.as_json()["protocol"]
    details = [f"{name} {value}" for name, value in protocol.items() if name != "name"]
    yield f"data {data.name} {data.digest}, labels {data.scale}"
    yield f"split {', '.join(data.split_digests)}, part {data.part}"
    yield f"protocol {protocol['name']}, {', '.join(details)}"
    if left := data.labels_skipped:
        yield f"{len(left)} ratings left out, first {left[0]}"
    for model in evaluation.models:
        text = f"{model.label}: {model.session}, {model.fingerprint}, "
        text += f"{model.crops} crops of {model.images} images"
        text += ", labels mirrored to its direction" * model.labels_mirrored
        text += f", {len(model.skipped)} unusable images left out" * bool(model.skipped)
        yield text


def _with_interval(value: float, interval: "Interval") -> str:
    return f"{_number(value)} [{_number(interval.low)}, {_number(interval.high)}]"


def _with_spread(spread: "Spread") -> str:
    median, std, low, high = map(_number, spread)
    return f"{median} ± {std} [{low}, {high}]"


def _number(value: float, digits: int = 4) -> str:
    return "-" if value != value else f"{value:.{digits}f}"
