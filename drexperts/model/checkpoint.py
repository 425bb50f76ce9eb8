"""Reading and writing checkpoints: ours, the authors', and timm's weights for the encoder."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from timm.models.deit import checkpoint_filter_fn

from drexperts.model.config import DRExpertsConfig, EncoderConfig
from drexperts.model.downloads import Note, fetch
from drexperts.model.dr_experts import DRExperts, layout_of, new_model
from drexperts.model.metadata import PARTS, Metadata, read_metadata
from drexperts.model.released_checkpoint import model_from_upstream
from drexperts.model.weight_files import (
    State,
    compare_layout,
    load_strictly,
    read_safetensors,
    read_safetensors_metadata,
    read_torch_tensors,
    weights_digest,
    write_safetensors,
)
from drexperts.runtime.errors import ConfigError, WeightsError
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.training import Training

FORMAT = "drexperts-checkpoint-1"


class Checkpoint(NamedTuple):
    """A model, the scale of its scores, how its images are cropped, and what it was trained on."""

    model: DRExperts
    scale: ScoreScale | None  # None: the file does not say
    preprocessing: Preprocessing
    trained: Training | None = None  # None: the file does not say

    @property
    def weights(self) -> str:
        """The digest of the model's weights as they are now, see `weights_digest`."""
        return weights_digest(self.model.state_dict())


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write the weights and everything else of a checkpoint to one safetensors file, atomically.

    The file also states the digest of its weights, which `load_checkpoint` holds it to.

    save_checkpoint(checkpoint._replace(scale=ScoreScale(0, 100, True)), Path("m.safetensors"))
    """
    parts = {
        "config": checkpoint.model.config.as_dict(),
        "scale": checkpoint.scale and asdict(checkpoint.scale),
        "preprocessing": asdict(checkpoint.preprocessing),
        "trained": checkpoint.trained and asdict(checkpoint.trained),
    }
    metadata = {name: json.dumps(parts[name]) for name in PARTS}
    metadata |= {"format": FORMAT, "weights": checkpoint.weights}
    write_safetensors(checkpoint.model.state_dict(), metadata, path)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint: ours (`.safetensors`) or the authors' (any other suffix).

        model, scale, preprocessing, trained = load_checkpoint("model.safetensors")

    Raises WeightsError, which names the file, if it cannot be read as either, if its metadata
    describes no model of a supported kind and size, or if its weights do not fit, are not finite,
    or are not those that it was saved with.
    """
    path = Path(path)
    try:
        if path.suffix != ".safetensors":
            model = model_from_upstream(read_torch_tensors(path, "model"), source=str(path))
            return Checkpoint(model, None, default_preprocessing(model.config))
        return _own_checkpoint(path)
    except ConfigError as error:
        raise _no_model(path, error) from error


def _own_checkpoint(path: Path) -> Checkpoint:
    state, texts = read_safetensors(path)
    saved = texts.pop("weights", None)  # which older files do not state
    config, scale, preprocessing, trained = _own_metadata(path, texts)
    # Before the model is made, because its size is only what the metadata claims.
    compare_layout(state, layout_of(config), str(path))
    model = new_model(config)
    load_strictly(model, state, str(path))
    if saved not in (None, weights_digest(state)):
        raise WeightsError(
            f"the weights in {path} are not those that it was saved with: restore the file, or "
            "write changed weights with `save_checkpoint`"
        )
    return Checkpoint(model, scale, preprocessing, trained)


def config_of(path: str | Path) -> DRExpertsConfig:
    """The configuration of a checkpoint, of ours without reading its weights.

    Raises WeightsError like `load_checkpoint`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return load_checkpoint(path).model.config
    try:
        texts = read_safetensors_metadata(path)
        texts.pop("weights", None)
        return _own_metadata(path, texts).config
    except ConfigError as error:
        raise _no_model(path, error) from error


def _no_model(path: Path, error: ConfigError) -> WeightsError:
    return WeightsError(f"{path} describes no model that can be made: {error}")


def _own_metadata(path: Path, texts: dict[str, str]) -> Metadata:
    if "variant" in texts:
        raise WeightsError(
            f"{path} is the ablation {texts['variant']}: `drx reproduce` trains and tests it"
        )
    if texts.pop("format", None) != FORMAT:
        raise WeightsError(f"{path} is not a drexperts checkpoint: `drx train` writes one")
    return read_metadata(texts)


def default_preprocessing(config: DRExpertsConfig) -> Preprocessing:
    """Crops of the encoder's size from images whose shorter side is one to two crops long."""
    size = config.encoder.image_size
    return Preprocessing(size, short_side_min=size, short_side_max=2 * size, crops_per_side=3)


def load_encoder(model: DRExperts, source: Path | None = None, note: Note = lambda _: None) -> None:
    """Load published DeiT-III weights into the encoder.

    Args:
        source: a local file, timm's `model.safetensors` or the original `deit_3_*.pth`. None
            downloads timm's, which the configuration names, from the hub.
        note: told what is recorded of a download, see `fetch`.

    Raises:
        WeightsError: the file cannot be had or read, or its weights do not fit or are not finite.
    """
    config = model.config.encoder
    if source is None:
        source = fetch(_repository(config), "model.safetensors", note)
    safe = source.suffix == ".safetensors"
    state = read_safetensors(source)[0] if safe else read_torch_tensors(source, "model")
    load_strictly(model.encoder.vit, _timm_names(state, model, source), str(source))


def _repository(config: EncoderConfig) -> str:
    """timm's repository of the weights; those of another image size are resampled."""
    if config.published is None or config.weights == "none":
        raise WeightsError(f"the encoder, {config.name}, has no published weights: pass a file")
    nearest = 224 if config.image_size <= 224 else 384
    return f"timm/{config.published}_{nearest}.{config.weights}"


def _timm_names(state: State, model: DRExperts, source: Path) -> State:
    """DeiT-III's weights under timm's names, without its classifier."""
    try:
        renamed = checkpoint_filter_fn(dict(state), model.encoder.vit, adapt_layer_scale=True)
    except Exception as error:  # which ones it raises depends on what it takes the file for
        raise WeightsError(
            f"{source} is not a file of DeiT-III ({type(error).__name__})"
        ) from error
    return {key: value for key, value in renamed.items() if not key.startswith("head.")}
