"""The manifest of a checkpoint's model before anything is proven of it."""

from importlib.metadata import version

from drexperts.model.checkpoint import Checkpoint
from drexperts.model.config import DISTORTIONS
from drexperts.runtime.errors import ConfigError
from drexperts.runtime.manifest import OUTPUTS, SCHEMA, Engine, Manifest
from drexperts.runtime.wording import remedy


def draft_manifest(
    checkpoint: Checkpoint,
    engine: Engine,
    *,
    outputs: tuple[str, ...] = OUTPUTS,
    libraries: tuple[str, ...] = ("torch", "timm"),
) -> Manifest:
    """A manifest with one engine, of which there are no proofs yet.

    Args:
        outputs: that the engine has.
        libraries: that made the engine; their versions are recorded.

    Raises:
        ConfigError: the checkpoint does not say what scale its scores are on, or it cuts crops of
            another size than the model takes.
    """
    config, crop = checkpoint.model.config, checkpoint.preprocessing.crop
    if checkpoint.scale is None:
        give = remedy("--scale LOW:HIGH", "scale=ScoreScale(...)")
        raise ConfigError(f"the checkpoint does not say its scores' scale: pass {give}")
    if crop != config.encoder.image_size:
        raise ConfigError(
            f"the checkpoint cuts {crop} px crops for a model of {config.encoder.image_size} px "
            "images: save it again with matching sizes"
        )
    return Manifest(
        schema=SCHEMA,
        preset=config.preset,
        config=config.as_dict(),
        preprocessing=checkpoint.preprocessing,
        scale=checkpoint.scale,
        distortions=DISTORTIONS,
        outputs=outputs,
        engines=(engine,),
        created_with={name: version(name) for name in ("drexperts", *libraries)},
        weights=checkpoint.weights,
        trained=checkpoint.trained,
    )
