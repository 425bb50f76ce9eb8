"""Checkpoints in and out: ours, the authors', and timm's weights for the encoder."""

import json
from pathlib import Path
from typing import NamedTuple

from timm.models.deit import checkpoint_filter_fn

from drexperts.config import DRExpertsConfig
from drexperts.model import DRExperts, new_model
from drexperts.runtime.errors import WeightsError
from drexperts.runtime.manifest import ScoreScale
from drexperts.upstream import model_from_upstream
from drexperts.weights import (
    fetch,
    load_strictly,
    read_safetensors,
    read_torch_file,
    write_safetensors,
)

FORMAT = "drexperts-checkpoint-1"


class Checkpoint(NamedTuple):
    """A trained model, and the scale of its scores where the file says it."""

    model: DRExperts
    scale: ScoreScale | None


def save_checkpoint(model: DRExperts, scale: ScoreScale, path: Path) -> None:
    """Write model, configuration and scale to one safetensors file, atomically."""
    config, named = json.dumps(model.config.as_dict()), json.dumps(vars(scale))
    metadata = {"format": FORMAT, "config": config, "scale": named}
    write_safetensors(model.state_dict(), metadata, path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of ours (`.safetensors`) or of the authors' code (anything else)."""
    if path.suffix != ".safetensors":
        return Checkpoint(model_from_upstream(read_torch_file(path)), None)
    state, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise WeightsError(f"{path} is no drexperts checkpoint; `drx demo` shows how one is made")
    model = new_model(DRExpertsConfig.from_dict(json.loads(metadata["config"])))
    load_strictly(model, state, str(path))
    return Checkpoint(model, ScoreScale(**json.loads(metadata["scale"])))


def load_encoder(model: DRExperts, source: Path | None = None) -> None:
    """Load published DeiT-III weights into the encoder.

    Args:
        source: a local file, timm's `model.safetensors` or the original `deit_3_*.pth`; None
            fetches timm's from the hub by the configuration's name.
    """
    config = model.config.encoder
    if source is None:
        source = fetch(f"timm/{config.architecture}.{config.weights}", "model.safetensors")
    safe = source.suffix == ".safetensors"
    state = read_safetensors(source)[0] if safe else read_torch_file(source)
    vit = model.encoder.vit
    renamed = checkpoint_filter_fn(state, vit, adapt_layer_scale=True)
    kept = {k: v for k, v in renamed.items() if not k.startswith("head.")}
    load_strictly(vit, kept, str(source))
