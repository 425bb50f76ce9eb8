"""DA-CLIP's published weights, reduced to what DR.Experts reads: the controller and ten prompts.

Layout and names are those of the `daclip_ViT-B-32.pt` that Luo et al. publish.
"""

from pathlib import Path

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor

from drexperts.model.backbones import Controller, PromptEncoder, constant_prompts
from drexperts.model.config import ControllerConfig
from drexperts.model.downloads import Note, fetch
from drexperts.model.dr_experts import DRExperts
from drexperts.model.weight_files import (
    State,
    check_finite,
    compare_layout,
    depth_of,
    load_strictly,
    read_safetensors,
    read_torch_tensors,
    shape_of,
    subset,
    write_safetensors,
)
from drexperts.runtime.errors import ConfigError, WeightsError

REPOSITORY, FILENAME = "weblzw/daclip-uir-ViT-B-32-irsde", "daclip_ViT-B-32.pt"
FORMAT = "drexperts-prior-1"

_CONTROL = "visual_control."
_BLOCKS, _ZEROS = "transformer.transformer.resblocks.", "transformer.zero_modules."


def load_prior(model: DRExperts, source: Path | None = None, note: Note = lambda _: None) -> None:
    """Load DA-CLIP's controller and the ten prompts into a model.

    Args:
        source: the slim file that `convert_daclip` writes, or the published `.pt`. None downloads
            the published one, 1.7 GB, from the hub.
        note: told what is recorded of a download, see `fetch`.

    Raises:
        WeightsError: the file cannot be had or read, or its weights do not fit or are not finite.
    """
    source = fetch(REPOSITORY, FILENAME, note) if source is None else source
    state = read_prior(source)
    prompts = {"prompts": state.pop("prompts")}
    if model.controller.zero is None:
        state = {k: v for k, v in state.items() if not k.startswith("zero.")}
    load_strictly(model.prompts, prompts, str(source))
    load_strictly(model.controller, state, str(source))


def read_prior(source: Path) -> dict[str, Tensor]:
    """`Controller`'s keys and `prompts`, from the slim file or the published one."""
    if source.suffix != ".safetensors":
        try:
            return prior_from_daclip(read_torch_tensors(source, "state_dict"), str(source))
        except ConfigError as error:
            raise WeightsError(f"{source} is no DA-CLIP that can be made: {error}") from error
    state, metadata = read_safetensors(source)
    if metadata.get("format") != FORMAT or "prompts" not in state:
        raise WeightsError(f"{source} is not a slim DA-CLIP file: `drx convert-prior` writes one")
    return state


def convert_daclip(source: str | Path, target: str | Path) -> None:
    """Reduce the published `.pt` of 1.7 GB to a safetensors file that `load_prior` reads faster.

    Example:
        convert_daclip("daclip_ViT-B-32.pt", "prior.safetensors")

    Raises:
        WeightsError: the source cannot be read or is not DA-CLIP.
        OSError: the target cannot be written.
    """
    source, target = Path(source), Path(target)
    write_safetensors(read_prior(source), {"format": FORMAT, "source": source.name}, target)


def prior_from_daclip(state: State, source: str, prefix: str = "") -> dict[str, Tensor]:
    """`Controller`'s keys and `prompts` [10, embedding] in float64, from DA-CLIP's state dict.

    Args:
        prefix: what DA-CLIP's keys begin with in `state`, where it is part of a larger model.

    Raises:
        WeightsError: keys are missing, unexpected or of another shape, or weights are not finite.
            The message names them.
        ConfigError: the shapes are beyond those of any published model.
    """
    config = controller_config(state, source, prefix)
    ours = {k: v for k, v in state.items() if k.startswith(prefix)}
    compare_layout(ours, daclip_layout(state, config, source, prefix), source)
    control = subset(state, prefix + _CONTROL)
    prior = {
        "visual." + key.replace("transformer.transformer.", "transformer."): value
        for key, value in control.items()
        if not key.startswith(_ZEROS)
    }
    last = f"{_ZEROS}{config.depth - 1}."
    prior |= {f"zero.{end}": value for end, value in subset(control, last).items()}
    prior |= {"prompts": _prompts(state, source, prefix + "clip.")}
    check_finite(prior, source)
    return prior


def controller_config(state: State, source: str, prefix: str = "") -> ControllerConfig:
    """The controller's sizes, read from its shapes. The heads of CLIP's towers are 64 wide."""
    control = prefix + _CONTROL
    width, _, patch, _ = shape_of(state, control + "conv1.weight", 4, source)
    tokens, _ = shape_of(state, control + "positional_embedding", 2, source)
    _, embedding = shape_of(state, control + "proj", 2, source)
    depth = depth_of(state, control + _BLOCKS, source)
    image_size = round((tokens - 1) ** 0.5) * patch
    return ControllerConfig(image_size, patch, width, depth, max(1, width // 64), embedding)


def daclip_layout(
    state: State, config: ControllerConfig, source: str, prefix: str = ""
) -> dict[str, tuple[int, ...]]:
    """All keys and shapes of DA-CLIP: frozen CLIP, its alias `visual`, and the controller."""
    with torch.device("meta"):  # shapes only
        tower = Controller(config, tokens=True, hidden=True).visual.state_dict()
        text = text_tower(state, source, prefix + "clip.").state_dict()
    layout: dict[str, tuple[int, ...]] = {"logit_scale": (), "clip.logit_scale": ()}
    for key, value in tower.items():
        shape = tuple(value.shape)
        layout["clip.visual." + key] = layout["visual." + key] = shape
        layout[_CONTROL + key.replace("transformer.resblocks.", _BLOCKS)] = shape
    for i in range(config.depth):
        layout[f"{_CONTROL}{_ZEROS}{i}.weight"] = (config.width, config.width)
        layout[f"{_CONTROL}{_ZEROS}{i}.bias"] = (config.width,)
    layout |= {"clip." + key: tuple(value.shape) for key, value in text.items()}
    return {prefix + key: shape for key, shape in layout.items()}


def text_tower(state: State, source: str, prefix: str) -> TextTransformer:
    """CLIP's text tower in the sizes of the keys under `prefix`, with random weights."""
    context, width = shape_of(state, prefix + "positional_embedding", 2, source)
    vocabulary, _ = shape_of(state, prefix + "token_embedding.weight", 2, source)
    _, outputs = shape_of(state, prefix + "text_projection", 2, source)
    depth = depth_of(state, prefix + "transformer.resblocks.", source)
    heads = max(1, width // 64)
    # CLIP's vocabulary and the longest text; a mask is context x context.
    if (context, vocabulary) != (77, 49408) or width % heads or width > 2048 or depth > 64:
        raise WeightsError(
            f"{source}: {prefix} is not CLIP's text tower: {context} positions and {vocabulary} "
            f"words, expected 77 and 49408, at width {width} and depth {depth}"
        )
    return TextTransformer(context, vocabulary, width, heads, depth, output_dim=outputs)


def _prompts(state: State, source: str, prefix: str) -> Tensor:
    tower = text_tower(state, source, prefix).double()
    text = subset(state, prefix)
    tower.load_state_dict({key: text[key] for key in tower.state_dict()})
    return constant_prompts(PromptEncoder(tower).eval()).prompts
