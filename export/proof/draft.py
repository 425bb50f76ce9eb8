"""A bundle's manifest before anything of it is proven."""

from importlib.metadata import version

from drexperts.model.checkpoint import Checkpoint
from drexperts.model.config import DISTORTIONS
from drexperts.runtime.manifest import OUTPUTS, SCHEMA, Engine, Manifest

MODEL_FILE = "model.onnx"


def draft(
    checkpoint: Checkpoint, file: str, sha256: str, precision: str, maps: bool, max_batch: int
) -> Manifest:
    """What there is to say of an ONNX file of a checkpoint whose scale is known."""
    config = checkpoint.model.config
    assert checkpoint.scale is not None
    engine = Engine(
        backend="onnx",
        file=file,
        sha256=sha256,
        precision=precision,
        max_batch=max_batch,
        versions={"onnx": version("onnx")},
        parity=None,
        invariance=None,
    )
    return Manifest(
        schema=SCHEMA,
        preset=config.preset,
        config=config.as_dict(),
        preprocessing=checkpoint.preprocessing,
        scale=checkpoint.scale,
        distortions=DISTORTIONS,
        outputs=OUTPUTS if maps else OUTPUTS[:2],
        engines=(engine,),
        created_with={name: version(name) for name in ("drexperts", "torch", "timm", "onnx")},
    )
