"""The options that the verbs on rated images share, and the objects that they describe."""

import argparse
import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from drexperts.cli.arguments import add_scale, scale_of, whole_number
from drexperts.model.config import LEAST_IMAGE_SIZE, PRESETS, SIZES

if TYPE_CHECKING:
    from collections.abc import Callable

    from drexperts.cli.arguments import Parser
    from drexperts.data.dataset import Dataset
    from drexperts.data.recipes import Recipe
    from drexperts.model.config import DRExpertsConfig
    from drexperts.model.dr_experts import DRExperts
    from drexperts.training.from_nothing import PriorTraining
    from drexperts.training.settings import Resources
    from drexperts.training.trainer import Amp, TrainConfig
    from drexperts.ui.screen import Screen


class Start(NamedTuple):
    """What training starts from.

    make: makes the model
    prior: how its prior is trained before, if it starts from nothing
    """

    config: "DRExpertsConfig"
    make: "Callable[[], DRExperts]"
    prior: "PriorTraining | None" = None


_NAMES = "koniq10k livec spaq livefb bid live csiq tid2013 kadid10k folder"


def add_data(verb: "Parser") -> None:
    verb.add_argument(
        "--data",
        nargs=2,
        required=True,
        metavar=("NAME", "ROOT"),
        help=f"a data set, one of {_NAMES}, and its folder; for `folder` a .csv or .parquet file "
        "with the columns path, score and optionally group",
    )
    add_scale(verb)
    verb.add_argument(
        "--higher-is-better",
        action="store_true",
        help="mirror labels of which lower is better, such as DMOS, in their range",
    )
    add_protocol(verb)


def add_protocol(verb: "Parser") -> None:
    verb.add_argument(
        "--protocol",
        choices=("grid", "released"),
        default="grid",
        help="crops for validation and test: the runtime's fixed ones, or random ones as in the "
        "released code (default: grid)",
    )
    verb.add_argument(
        "--seed",
        type=whole_number,
        default=0,
        metavar="N",
        help="seed for everything random (default: 0)",
    )
    verb.add_argument(
        "--skip-bad", action="store_true", help="leave out invalid ratings and unreadable images"
    )


def add_selection(verb: "Parser") -> None:
    verb.add_argument(
        "--select-on-test",
        action="store_true",
        help="choose the epoch by the test images, as the released code does (default: by the "
        "validation images)",
    )


def add_model(verb: "Parser") -> None:
    verb.add_argument(
        "--preset",
        choices=PRESETS,
        help="the model as in the paper or as in the released code (default: paper)",
    )
    verb.add_argument(
        "--size",
        choices=SIZES,
        help="size of the encoder; tiny always starts from nothing (default: that of the data "
        "set's recipe)",
    )
    verb.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="side of the square crops in pixels, 128 or more (default: 384, or 128 for tiny)",
    )
    verb.add_argument(
        "--from-nothing",
        action="store_true",
        help="start without published weights, with a small prior that first learns synthetic "
        "distortions of the training images",
    )
    verb.add_argument(
        "--encoder",
        type=Path,
        metavar="FILE",
        help="DeiT-III weights to start from (default: downloaded from Hugging Face)",
    )
    verb.add_argument(
        "--prior",
        type=Path,
        metavar="FILE",
        help="DA-CLIP weights (default: downloaded from Hugging Face)",
    )
    verb.add_argument(
        "--init",
        type=Path,
        metavar="CKPT",
        help="start from a whole checkpoint instead of --encoder and --prior",
    )


def add_optimisation(verb: "Parser") -> None:
    verb.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="passes over the images (default: 9, or 10 for a model without published weights)",
    )
    verb.add_argument(
        "--rate",
        type=float,
        metavar="R",
        help="learning rate (default: 2e-4, or 1e-3 for a model without published weights)",
    )
    verb.add_argument(
        "--accumulate",
        type=int,
        default=1,
        metavar="N",
        help="micro-batches per step, to save memory (default: 1)",
    )
    verb.add_argument(
        "--amp",
        choices=("fp32", "fp16", "bf16"),
        help="type in which matrix products are computed (default: fp16 on a GPU, fp32 on a CPU)",
    )
    verb.add_argument(
        "--ema",
        type=float,
        metavar="DECAY",
        help="average the weights with this decay, such as 0.999 (default: no average)",
    )


def add_resources(verb: "Parser") -> None:
    """Options that do not change the result."""
    verb.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or one GPU such as cuda:1 (default: auto)"
    )
    verb.add_argument(
        "--workers",
        type=whole_number,
        metavar="N",
        help="processes that decode images (default: one per two cores, at most 8)",
    )
    verb.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder that keeps decoded images (default: none, images are decoded every time)",
    )
    verb.add_argument(
        "--save-minutes",
        type=float,
        default=10.0,
        metavar="N",
        help="minutes between two saved states (default: 10)",
    )
    verb.add_argument(
        "--tensorboard", action="store_true", help="also write TensorBoard events to OUT/events"
    )


def screen_of_first_process(arguments: argparse.Namespace, screen: "Screen") -> "Screen":
    """The screen, silent unless this is the first of torchrun's processes."""
    from drexperts.training.place import speaks
    from drexperts.ui.screen import Screen

    if speaks():
        return screen
    arguments.json = False
    return Screen(quiet=True)


def dataset_from(arguments: argparse.Namespace) -> "Dataset":
    from drexperts.data.dataset import higher_is_better
    from drexperts.data.layouts import open_dataset

    name, root = arguments.data
    scale = None if arguments.scale is None else scale_of(arguments.scale)
    dataset = open_dataset(name, Path(root), scale=scale, skip_bad=arguments.skip_bad)
    return higher_is_better(dataset) if arguments.higher_is_better else dataset


def recipe_from(arguments: argparse.Namespace) -> "Recipe":
    from drexperts.data.recipes import RECIPES
    from drexperts.runtime.errors import ConfigError

    if arguments.crops is not None and arguments.crops < 1:
        raise ConfigError(f"--crops must be at least 1, got {arguments.crops}")
    asked = {"batch": arguments.batch, "train_crops": arguments.crops}
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    return replace(RECIPES[arguments.data[0]], **changes)


def model_from(arguments: argparse.Namespace, size: str, note: "Callable[[str], None]") -> "Start":
    """What training starts from: published or given weights, a checkpoint, or nothing.

    note: told what is recorded of weights that are downloaded
    """
    from drexperts.model.checkpoint import config_of, load_checkpoint, load_encoder
    from drexperts.model.config import DRExpertsConfig
    from drexperts.model.daclip import load_prior
    from drexperts.model.dr_experts import new_model
    from drexperts.training.from_nothing import PriorTraining, untrained_model

    if arguments.init is not None:
        config, trained = config_of(arguments.init), cache(load_checkpoint)
        _check_init(arguments, config)
        return Start(config, lambda: copy.deepcopy(trained(arguments.init).model))
    preset, size = arguments.preset or "paper", arguments.size or size
    side = arguments.image_size or (LEAST_IMAGE_SIZE if size == "tiny" else 384)
    if arguments.from_nothing or size == "tiny":
        _check_from_nothing(arguments)
        small = DRExpertsConfig.from_nothing(size, side, preset)
        return Start(small, lambda: untrained_model(small), PriorTraining())
    config = DRExpertsConfig.preset_named(preset, size, side)

    def make() -> "DRExperts":
        model = new_model(config)
        load_encoder(model, arguments.encoder, note)
        load_prior(model, arguments.prior, note)
        return model

    return Start(config, make)


def _check_from_nothing(arguments: argparse.Namespace) -> None:
    """Raise UserError for weights that are given to a model that starts without any."""
    from drexperts.runtime.errors import UserError

    asked = "--from-nothing" if arguments.from_nothing else f"--size {arguments.size}"
    for name in ("encoder", "prior"):
        if getattr(arguments, name) is not None:
            raise UserError(
                f"{asked} starts without weights: leave --{name} out, or choose --size small or "
                "base without --from-nothing"
            )


def _check_init(arguments: argparse.Namespace, config: "DRExpertsConfig") -> None:
    """Raise UserError for options that contradict the checkpoint of --init."""
    from drexperts.runtime.errors import UserError

    if arguments.preset not in (None, config.preset):
        raise UserError(
            f"{arguments.init} has the preset {config.preset}, which contradicts --preset "
            f"{arguments.preset}: leave one of the two out"
        )
    for name in ("size", "image_size", "encoder", "prior", "from_nothing"):
        if getattr(arguments, name) not in (None, False):
            raise UserError(
                f"--init already holds the whole model: leave --{name.replace('_', '-')} out"
            )


def _amp(arguments: argparse.Namespace) -> "Amp":
    """The type asked for, or on a GPU that of the released code."""
    import torch

    cuda = arguments.device.startswith("cuda") or (
        arguments.device == "auto" and torch.cuda.is_available()
    )
    amp: Amp = arguments.amp or ("fp16" if cuda else "fp32")
    return amp


def train_config_from(
    arguments: argparse.Namespace, recipe: "Recipe", config: "DRExpertsConfig"
) -> "TrainConfig":
    """The optimisation that the options describe: the paper's if there are published weights."""
    from drexperts.training import from_nothing
    from drexperts.training.trainer import CosineSchedule, StepSchedule, TrainConfig

    ours = config.encoder.weights == "none"
    epochs, rate = (from_nothing.EPOCHS, from_nothing.RATE) if ours else (9, 2e-4)
    epochs = epochs if arguments.epochs is None else arguments.epochs
    rate = rate if arguments.rate is None else arguments.rate
    # The preset's warm-up is for nine epochs; this keeps its share of the training.
    steps = StepSchedule(rate, config.warmup_epochs * epochs / 9)
    return TrainConfig(
        batch=recipe.batch,
        epochs=epochs,
        schedule=CosineSchedule(rate, from_nothing.WARMUP_STEPS) if ours else steps,
        amp=_amp(arguments),
        accumulate=arguments.accumulate,
        ema=arguments.ema,
        seed=arguments.seed,
    )


def resources_from(arguments: argparse.Namespace) -> "Resources":
    from drexperts.training.settings import Resources

    return Resources(
        device=arguments.device,
        workers=arguments.workers,
        cache=arguments.cache,
        save_minutes=arguments.save_minutes,
        skip_bad=arguments.skip_bad,
        tensorboard=arguments.tensorboard,
    )
