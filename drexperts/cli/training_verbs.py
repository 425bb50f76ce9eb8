"""The verbs that train and judge: train, eval, reproduce, synth, explain."""

import argparse
import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drexperts.cli.arguments import DONE, GATE_FAILED, Outcome, add_scale, add_verb, scale_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from drexperts.cli.arguments import Parser, Verbs
    from drexperts.data.dataset import Dataset
    from drexperts.data.recipes import Recipe
    from drexperts.data.splits import Splits
    from drexperts.model.config import DRExpertsConfig
    from drexperts.model.dr_experts import DRExperts
    from drexperts.runtime.manifest import ScoreScale
    from drexperts.training.settings import Resources
    from drexperts.training.trainer import Amp, TrainConfig
    from drexperts.ui.screen import Screen

_NAMES = "koniq10k livec spaq livefb bid live csiq tid2013 kadid10k folder"


def add_training_verbs(verbs: "Verbs") -> None:
    """Their parsers."""
    _add_train(verbs)
    _add_eval(verbs)
    _add_reproduce(verbs)
    _add_synth(verbs)
    _add_explain(verbs)


def _train(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.training.run import train_run
    from drexperts.training.settings import Run
    from drexperts.training.torchrun import speaks

    screen = _of_the_first(arguments, screen)
    dataset = _dataset(arguments)
    screen.note(f"{len(dataset.samples)} images of {dataset.name}, data {dataset.digest}")
    for reason in dataset.skipped:
        screen.note(f"left out: {reason}")
    recipe = _recipe(arguments)
    splits = _splits(arguments, dataset)
    chosen = range(len(splits.splits)) if arguments.split is None else [arguments.split]
    config, new_model = _model(arguments, recipe.size)
    results, folders = [], []
    for number in chosen:
        split = _numbered(splits, number)
        run = Run(
            dataset,
            split,
            split.digest,
            recipe,
            _train_config(arguments, recipe, config),
            arguments.protocol,
            arguments.select_on_test,
            fresh=arguments.init is None,
        )
        out = arguments.out if arguments.split is not None else arguments.out / f"split-{number}"
        folders.append(out)
        with screen.progress() as progress:
            results.append(train_run(run, new_model, out, _resources(arguments), progress))
        # Of this split only: on the test part of another, this model would know the images.
        if speaks():
            _write_split(replace(splits, splits=(split,)), out / "splits.json", arguments.splits)
    return _trained(folders, results, screen)


def _write_split(splits: "Splits", path: Path, given: Path | None) -> None:
    """Unless it is the file that the split is from, which may hold others."""
    from drexperts.data.splits import write_splits

    if given is None or not (path.exists() and path.samefile(given)):
        write_splits(splits, path)


def _dataset(arguments: argparse.Namespace) -> "Dataset":
    from drexperts.data.dataset import higher_is_better
    from drexperts.data.layouts import open_dataset

    name, root = arguments.data
    scale = None if arguments.scale is None else scale_of(arguments.scale)
    dataset = open_dataset(name, Path(root), scale=scale, skip_bad=arguments.skip_bad)
    return higher_is_better(dataset) if arguments.higher_is_better else dataset


def _recipe(arguments: argparse.Namespace) -> "Recipe":
    from drexperts.data.recipes import RECIPES
    from drexperts.runtime.errors import ConfigError

    if arguments.crops is not None and arguments.crops < 1:
        raise ConfigError(f"--crops {arguments.crops}: give 1 or more")
    asked = {"batch": arguments.batch, "train_crops": arguments.crops}
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    return replace(RECIPES[arguments.data[0]], **changes)


def _splits(arguments: argparse.Namespace, dataset: "Dataset") -> "Splits":
    from drexperts.data.splits import check_splits, make_splits, read_splits

    if arguments.splits is None:
        validation = 0.0 if arguments.select_on_test else 0.1
        return make_splits(dataset, seed=arguments.seed, validation=validation)
    splits = read_splits(arguments.splits)
    check_splits(splits, dataset)
    return splits


def _numbered(splits: "Splits", number: int) -> Any:
    from drexperts.runtime.errors import UserError

    if not 0 <= number < len(splits.splits):
        raise UserError(f"--split {number}: there are splits 0 to {len(splits.splits) - 1}")
    return splits.splits[number]


def _model(
    arguments: argparse.Namespace, size: str
) -> "tuple[DRExpertsConfig, Callable[[], DRExperts]]":
    """The configuration, and what makes a model of it with published or with given weights."""
    from drexperts.model.checkpoint import load_checkpoint, load_encoder
    from drexperts.model.config import DRExpertsConfig
    from drexperts.model.daclip import load_prior
    from drexperts.model.dr_experts import new_model

    if arguments.init is not None:
        trained = load_checkpoint(arguments.init).model
        _check_init(arguments, trained.config)
        return trained.config, lambda: copy.deepcopy(trained)
    preset = {"paper": DRExpertsConfig.paper, "official": DRExpertsConfig.official}
    make_config = preset[arguments.preset or "paper"]
    config = make_config(arguments.size or size, arguments.image_size or 384)

    def make() -> "DRExperts":
        model = new_model(config)
        load_encoder(model, arguments.encoder)
        load_prior(model, arguments.prior)
        return model

    return config, make


def _check_init(arguments: argparse.Namespace, config: "DRExpertsConfig") -> None:
    """A checkpoint decides what the model is, and has all its weights."""
    from drexperts.runtime.errors import UserError

    if arguments.preset not in (None, config.preset):
        raise UserError(
            f"{arguments.init} is of the preset {config.preset}, and --preset {arguments.preset} "
            "was asked for: leave one of the two out"
        )
    for name in ("size", "image_size", "encoder", "prior"):
        if getattr(arguments, name) is not None:
            raise UserError(
                f"--init brings the whole model: leave --{name.replace('_', '-')} out, or --init"
            )


def _amp(arguments: argparse.Namespace) -> "Amp":
    """On a GPU what the released code trains in, unless another is asked for."""
    import torch

    cuda = arguments.device.startswith("cuda") or (
        arguments.device == "auto" and torch.cuda.is_available()
    )
    amp: Amp = arguments.amp or ("fp16" if cuda else "fp32")
    return amp


def _train_config(
    arguments: argparse.Namespace, recipe: "Recipe", config: "DRExpertsConfig"
) -> "TrainConfig":
    """What was asked for, and the paper's schedule."""
    from drexperts.training.trainer import StepSchedule, TrainConfig

    # Of the preset's warm-up, which is for nine epochs, the same share.
    warmup = config.warmup_epochs * arguments.epochs / 9
    return TrainConfig(
        recipe.batch,
        arguments.epochs,
        StepSchedule(arguments.rate, warmup),
        amp=_amp(arguments),
        accumulate=arguments.accumulate,
        ema=arguments.ema,
        seed=arguments.seed,
    )


def _resources(arguments: argparse.Namespace) -> "Resources":
    from drexperts.training.settings import Resources

    return Resources(
        arguments.device,
        arguments.workers,
        arguments.cache,
        arguments.save_minutes,
        arguments.skip_bad,
        arguments.tensorboard,
    )


def _trained(folders: list[Path], results: list[dict[str, Any]], screen: "Screen") -> Outcome:
    from drexperts.training.run_folder import BEST
    from drexperts.ui.tables import metrics_table

    screen.tables.print(metrics_table([result["test"] for result in results]))
    for folder, result in zip(folders, results, strict=True):
        screen.tables.print(
            f"split {result['split_digest']}: tested on {result['test']['images']} images, epoch "
            f"{result['best_epoch']}, chosen on: {result['selected_on']}; {folder / BEST}"
        )
    document = {"out": [str(folder) for folder in folders], "results": results}
    return Outcome(DONE, document)


def _eval(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.data.recipes import RECIPES
    from drexperts.data.splits import read_splits
    from drexperts.evaluation.compare import evaluate_models, print_evaluation, write_predictions

    if arguments.out is not None:
        _check_out(arguments.out)
    dataset = _dataset(arguments)
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


def _check_out(path: Path) -> None:
    """Before the work whose result is to be there."""
    from drexperts.runtime.errors import UserError

    if path.is_dir():
        raise UserError(f"--out {path} is a folder: name a file")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror or error}") from error


def _reproduce(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.paper.reproduce import Plan, reproduce

    screen = _of_the_first(arguments, screen)
    config, new_model = _model(arguments, "small")
    plan = Plan(
        arguments.data_root,
        arguments.out,
        new_model,
        _start(arguments, config),
        lambda recipe: _train_config(arguments, recipe, config),
        arguments.splits,
        arguments.protocol,
        arguments.select_on_test,
        fresh=arguments.init is None,
        published=not (arguments.init or arguments.encoder or arguments.prior),
    )
    resources = _resources(arguments)
    with screen.progress() as progress:
        report = reproduce(arguments.table, plan, resources, progress, arguments.only)
    page = arguments.out / f"{arguments.table}.md"
    if page.exists():
        screen.tables.print(page.read_text(encoding="utf-8"))
    return Outcome(GATE_FAILED if report["failures"] else DONE, report)


def _start(arguments: argparse.Namespace, config: "DRExpertsConfig") -> str:
    """In words, what the models of a table start from."""
    if arguments.init is not None:
        return f"the checkpoint {arguments.init}"
    parts = ((name, getattr(arguments, name)) for name in ("encoder", "prior"))
    given = [f"{name} {path}" for name, path in parts if path is not None]
    weights = "published weights" + "".join(f", {text}" for text in given)
    return f"{weights}; preset {config.preset}, {config.encoder.image_size} px"


def _explain(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.evaluation.predict import open_model
    from drexperts.runtime.errors import UserError, WeightsError
    from drexperts.runtime.explain import explanation
    from drexperts.runtime.files import written_whole
    from drexperts.runtime.preprocess import decode

    if arguments.out.suffix.lower() != ".png":
        raise UserError(f"{arguments.out}: the picture is a PNG, so let its name end in .png")
    _check_out(arguments.out)
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


def _of_the_first(arguments: argparse.Namespace, screen: "Screen") -> "Screen":
    """Of the processes of `torchrun`, the first one speaks."""
    from drexperts.training.torchrun import speaks
    from drexperts.ui.screen import Screen

    if speaks():
        return screen
    arguments.json = False
    return Screen(quiet=True)


def _synth(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.data.synthetic_set import SCORE, SynthConfig, parse_levels, write_synthetic_set

    given = {"levels": parse_levels(arguments.levels), "blocks": arguments.blocks}
    given |= {"seed": arguments.seed, "side": arguments.side}
    if arguments.types is not None:
        given["types"] = tuple(arguments.types.split(","))
    with screen.progress() as progress:
        report = write_synthetic_set(
            arguments.clean,
            arguments.out,
            SynthConfig(**given),
            workers=arguments.workers,
            progress=progress,
        )
    for reason in report["skipped"]:
        screen.note(f"left out: {reason}")
    screen.tables.print(f"{arguments.out}: {report['images']} images; a score is {SCORE}")
    return Outcome(DONE, report)


def _add_train(verbs: "Verbs") -> None:
    summary = "fine-tune on rated images; killed or stopped, the same command goes on"
    verb = add_verb(verbs, "train", _train, summary, "train")
    _add_data(verb)
    verb.add_argument("--out", type=Path, required=True, metavar="DIR")
    verb.add_argument(
        "--splits", type=Path, metavar="FILE", help="of an earlier run; by default 80/20, ten times"
    )
    chosen = verb.add_mutually_exclusive_group()
    chosen.add_argument("--split", type=int, default=0, metavar="N", help="which; 0")
    chosen.add_argument(
        "--all-splits", dest="split", action="store_const", const=None, help="one after the other"
    )
    _add_selection(verb)
    _add_model(verb)
    _add_optimisation(verb)
    verb.add_argument("--batch", type=int, metavar="N", help="crops a step; the data set's")
    verb.add_argument("--crops", type=int, metavar="N", help="of an image and epoch; the set's")
    _add_resources(verb)


def _add_eval(verbs: "Verbs") -> None:
    summary = "SRCC, PLCC, KRCC, RMSE of checkpoints and bundles, side by side"
    verb = add_verb(verbs, "eval", _eval, summary, "train")
    verb.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="CKPT or BUNDLE")
    _add_data(verb)
    verb.add_argument("--splits", type=Path, metavar="FILE", help="of a training; else all images")
    verb.add_argument("--part", choices=("test", "validation", "train", "all"))
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda or such as cuda:1")
    verb.add_argument("--threads", type=int, metavar="N")
    verb.add_argument("--out", type=Path, metavar="FILE.csv", help="label and scores of each image")


def _add_reproduce(verbs: "Verbs") -> None:
    summary = "one of the paper's comparisons: ours beside the reported numbers"
    verb = add_verb(verbs, "reproduce", _reproduce, summary, "train")
    verb.add_argument("table", choices=[f"table{number}" for number in range(1, 6)])
    verb.add_argument(
        "--data-root", type=Path, required=True, metavar="DIR", help="a folder a data set: koniq10k"
    )
    verb.add_argument("--out", type=Path, default=Path("runs/reproduce"), metavar="DIR")
    verb.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="data set, variant or share"
    )
    verb.add_argument("--splits", type=int, default=10, metavar="N", help="how many; 10")
    _add_protocol(verb)
    _add_selection(verb)
    _add_model(verb)
    _add_optimisation(verb)
    _add_resources(verb)


def _add_explain(verbs: "Verbs") -> None:
    summary = "a picture of where the experts look in a photograph"
    verb = add_verb(verbs, "explain", _explain, summary, "train")
    verb.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint or a bundle")
    verb.add_argument("photo", type=Path)
    verb.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    verb.add_argument(
        "--compare", action="store_true", help="DA-CLIP's, the encoder's and refined attention"
    )
    add_scale(verb)


def _add_data(verb: "Parser") -> None:
    verb.add_argument(
        "--data",
        nargs=2,
        required=True,
        metavar=("NAME", "ROOT"),
        help=f"one of {_NAMES}; of a folder, the .csv or .parquet with path, score[, group]",
    )
    add_scale(verb)
    verb.add_argument("--higher-is-better", action="store_true", help="mirror DMOS in its range")
    _add_protocol(verb)


def _whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"give a whole number, 0 or more, not {text!r}")
    return int(text)


def _add_protocol(verb: "Parser") -> None:
    verb.add_argument(
        "--protocol",
        choices=("grid", "released"),
        default="grid",
        help="the runtime's crops, or the authors' random ones by seed",
    )
    verb.add_argument("--seed", type=_whole_number, default=0, metavar="N")
    verb.add_argument("--skip-bad", action="store_true", help="leave bad rows and images out")


def _add_selection(verb: "Parser") -> None:
    verb.add_argument(
        "--select-on-test", action="store_true", help="as the released code; the result says so"
    )


def _add_model(verb: "Parser") -> None:
    verb.add_argument("--preset", choices=("paper", "official"), help="paper")
    verb.add_argument("--size", choices=("small", "base"), help="by default the data set's")
    verb.add_argument("--image-size", type=int, choices=(224, 384), help="384")
    verb.add_argument("--encoder", type=Path, metavar="FILE", help="DeiT-III; else from the hub")
    verb.add_argument("--prior", type=Path, metavar="FILE", help="DA-CLIP; else from the hub")
    verb.add_argument("--init", type=Path, metavar="CKPT", help="start from a checkpoint instead")


def _add_optimisation(verb: "Parser") -> None:
    verb.add_argument("--epochs", type=int, default=9, metavar="N")
    verb.add_argument("--rate", type=float, default=2e-4, help="learning rate")
    verb.add_argument("--accumulate", type=int, default=1, metavar="N", help="parts of a step")
    verb.add_argument(
        "--amp", choices=("fp32", "fp16", "bf16"), help="of products; fp16 on a GPU, else fp32"
    )
    verb.add_argument("--ema", type=float, metavar="0.999", help="average the weights")


def _add_resources(verb: "Parser") -> None:
    """Where and how fast."""
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda or such as cuda:1")
    verb.add_argument("--workers", type=_whole_number, metavar="N", help="processes that decode")
    verb.add_argument("--cache", type=Path, metavar="DIR", help="keep decoded images there")
    verb.add_argument("--save-minutes", type=float, default=10.0, metavar="N")
    verb.add_argument("--tensorboard", action="store_true", help="events in OUT/events")


def _add_synth(verbs: "Verbs") -> None:
    summary = "a labelled set from a folder of clean pictures: distortions at five levels"
    verb = add_verb(verbs, "synth", _synth, summary, "train")
    verb.add_argument("clean", type=Path, metavar="CLEAN_DIR")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR")
    verb.add_argument("--types", metavar="A,B", help="of the distortions; all 25")
    verb.add_argument("--levels", default="1-5", metavar="1-5")
    verb.add_argument("--blocks", type=int, default=0, metavar="N", help="mixed images a picture")
    verb.add_argument("--side", type=int, default=512, metavar="N", help="most of a shorter side")
    verb.add_argument("--seed", type=int, default=0, metavar="N")
    verb.add_argument("--workers", type=int, metavar="N", help="processes")
