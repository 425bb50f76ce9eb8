"""The options that the verbs on rated images share, and what they make of them."""

import argparse
import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drexperts.cli.arguments import add_scale, scale_of, whole_number
from drexperts.model.config import PRESETS

if TYPE_CHECKING:
    from collections.abc import Callable

    from drexperts.cli.arguments import Parser
    from drexperts.data.dataset import Dataset
    from drexperts.data.recipes import Recipe
    from drexperts.model.config import DRExpertsConfig
    from drexperts.model.dr_experts import DRExperts
    from drexperts.training.settings import Resources
    from drexperts.training.trainer import Amp, TrainConfig
    from drexperts.ui.screen import Screen

_NAMES = "koniq10k livec spaq livefb bid live csiq tid2013 kadid10k folder"


def add_data(verb: "Parser") -> None:
    verb.add_argument(
        "--data",
        nargs=2,
        required=True,
        metavar=("NAME", "ROOT"),
        help=f"one of {_NAMES}; of a folder, the .csv or .parquet with path, score[, group]",
    )
    add_scale(verb)
    verb.add_argument("--higher-is-better", action="store_true", help="mirror DMOS in its range")
    add_protocol(verb)


def add_protocol(verb: "Parser") -> None:
    verb.add_argument(
        "--protocol",
        choices=("grid", "released"),
        default="grid",
        help="the runtime's crops, or the authors' random ones by seed",
    )
    verb.add_argument("--seed", type=whole_number, default=0, metavar="N")
    verb.add_argument("--skip-bad", action="store_true", help="leave bad rows and images out")


def add_selection(verb: "Parser") -> None:
    verb.add_argument(
        "--select-on-test", action="store_true", help="as the released code; the result says so"
    )


def add_model(verb: "Parser") -> None:
    verb.add_argument("--preset", choices=PRESETS, help="paper")
    verb.add_argument("--size", choices=("small", "base"), help="by default the data set's")
    verb.add_argument("--image-size", type=int, choices=(224, 384), help="384")
    verb.add_argument("--encoder", type=Path, metavar="FILE", help="DeiT-III; else from the hub")
    verb.add_argument("--prior", type=Path, metavar="FILE", help="DA-CLIP; else from the hub")
    verb.add_argument("--init", type=Path, metavar="CKPT", help="start from a checkpoint instead")


def add_optimisation(verb: "Parser") -> None:
    verb.add_argument("--epochs", type=int, default=9, metavar="N")
    verb.add_argument("--rate", type=float, default=2e-4, help="learning rate")
    verb.add_argument("--accumulate", type=int, default=1, metavar="N", help="parts of a step")
    verb.add_argument(
        "--amp", choices=("fp32", "fp16", "bf16"), help="of products; fp16 on a GPU, else fp32"
    )
    verb.add_argument("--ema", type=float, metavar="0.999", help="average the weights")


def add_resources(verb: "Parser") -> None:
    """Where and how fast."""
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda or such as cuda:1")
    verb.add_argument("--workers", type=whole_number, metavar="N", help="processes that decode")
    verb.add_argument("--cache", type=Path, metavar="DIR", help="keep decoded images there")
    verb.add_argument("--save-minutes", type=float, default=10.0, metavar="N")
    verb.add_argument("--tensorboard", action="store_true", help="events in OUT/events")


def screen_of_first_process(arguments: argparse.Namespace, screen: "Screen") -> "Screen":
    """Of the processes of `torchrun`, the first one speaks."""
    from drexperts.training.torchrun import speaks
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
        raise ConfigError(f"--crops {arguments.crops}: give 1 or more")
    asked = {"batch": arguments.batch, "train_crops": arguments.crops}
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    return replace(RECIPES[arguments.data[0]], **changes)


def model_from(
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
    config = DRExpertsConfig.preset_named(
        arguments.preset or "paper", arguments.size or size, arguments.image_size or 384
    )

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


def train_config_from(
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


def resources_from(arguments: argparse.Namespace) -> "Resources":
    from drexperts.training.settings import Resources

    return Resources(
        arguments.device,
        arguments.workers,
        arguments.cache,
        arguments.save_minutes,
        arguments.skip_bad,
        arguments.tensorboard,
    )
