"""`drx eval`: how checkpoints and bundles agree with people's scores."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, Outcome, add_verb, check_out
from drexperts.cli.training_arguments import add_data, dataset_from

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    summary = "SRCC, PLCC, KRCC, RMSE of checkpoints and bundles, side by side"
    verb = add_verb(verbs, "eval", run, summary, "train")
    verb.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="CKPT or BUNDLE")
    add_data(verb)
    verb.add_argument("--splits", type=Path, metavar="FILE", help="of a training; else all images")
    verb.add_argument("--part", choices=("test", "validation", "train", "all"))
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda or such as cuda:1")
    verb.add_argument("--threads", type=int, metavar="N")
    verb.add_argument("--out", type=Path, metavar="FILE.csv", help="label and scores of each image")


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.data.recipes import RECIPES
    from drexperts.data.splits import read_splits
    from drexperts.evaluation.compare import evaluate_models, print_evaluation, write_predictions

    if arguments.out is not None:
        check_out(arguments.out)
    dataset = dataset_from(arguments)
    splits = None if arguments.splits is None else read_splits(arguments.splits)
    with screen.progress() as progress:
        evaluation = evaluate_models(
            arguments.models,
            dataset,
            splits=splits,
            part=arguments.part or ("all" if splits is None else "test"),
            protocol=arguments.protocol,
            recipe=RECIPES[arguments.data[0]],
            seed=arguments.seed,
            device=arguments.device,
            threads=arguments.threads,
            skip_bad=arguments.skip_bad,
            progress=progress,
        )
    print_evaluation(evaluation.report, screen.tables)
    if arguments.out is not None:
        write_predictions(evaluation, dataset, arguments.out)
    return Outcome(DONE, evaluation.report)
