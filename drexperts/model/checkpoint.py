"""Reading and writing checkpoints: ours, the authors', and timm's weights for the encoder."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from timm.models.deit import checkpoint_filter_fn

from drexperts.model.config import DRExpertsConfig
from drexperts.model.dr_experts import DRExperts, new_model
from drexperts.model.released_checkpoint import model_from_upstream
from drexperts.model.weight_files import (
    fetch,
    load_strictly,
    read_safetensors,
    read_torch_file,
    write_safetensors,
)
from drexperts.runtime.errors import WeightsError
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing

FORMAT = "drexperts-checkpoint-1"


class Checkpoint(NamedTuple):
    """A trained model, the scale of its scores, and how its images were cropped."""

    model: DRExperts
    scale: ScoreScale | None  # None: the file does not say
    preprocessing: Preprocessing


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write model, configuration, scale and preprocessing to one safetensors file, atomically.

    save_checkpoint(checkpoint._replace(scale=ScoreScale(0, 100, True)), Path("m.safetensors"))
    """
    parts = {
        "config": checkpoint.model.config.as_dict(),
        "scale": checkpoint.scale and asdict(checkpoint.scale),
        "preprocessing": asdict(checkpoint.preprocessing),
    }
    metadata = {name: json.dumps(part) for name, part in parts.items()}
    write_safetensors(checkpoint.model.state_dict(), metadata | {"format": FORMAT}, path)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint: ours (`.safetensors`) or the authors' (any other suffix).

        model, scale, preprocessing = load_checkpoint("model.safetensors")

    Raises WeightsError, which names the file, if it cannot be read as either.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        model = model_from_upstream(read_torch_file(path))
        return Checkpoint(model, None, default_preprocessing(model.config))
    state, metadata = read_safetensors(path)
    if "variant" in metadata:
        raise WeightsError(
            f"{path} is the ablation {metadata['variant']}: `drx reproduce` trains and tests it"
        )
    if metadata.get("format") != FORMAT:
        raise WeightsError(f"{path} is not a drexperts checkpoint: `drx train` writes one")
    try:
        parts = {name: json.loads(metadata[name]) for name in ("config", "scale", "preprocessing")}
        config = DRExpertsConfig.from_dict(parts["config"])
        scale = None if parts["scale"] is None else ScoreScale(**parts["scale"])
        preprocessing = Preprocessing(**parts["preprocessing"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} was changed: its metadata cannot be read") from error
    model = new_model(config)
    load_strictly(model, state, str(path))
    return Checkpoint(model, scale, preprocessing)


def default_preprocessing(config: DRExpertsConfig) -> Preprocessing:
    """Crops of the encoder's size from images whose shorter side is one to two crops long."""
    size = config.encoder.image_size
    return Preprocessing(size, short_side_min=size, short_side_max=2 * size, crops_per_side=3)


def load_encoder(model: DRExperts, source: Path | None = None) -> None:
    """Load published DeiT-III weights into the encoder.

    Args:
        source: a local file, timm's `model.safetensors` or the original `deit_3_*.pth`. None
            downloads timm's, which the configuration names, from the hub.
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
