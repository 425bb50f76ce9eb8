"""A trained model to a bundle that the runtime accepts, or to one that it refuses and says why."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from drexperts.export.engines.build import is_leftover
from drexperts.export.graph.precision import Mixture, mixture
from drexperts.export.proof.draft import MODEL_FILE, draft
from drexperts.export.proof.parity import parity_sets
from drexperts.export.proof.photographs import verification_images
from drexperts.export.proof.prove import images_in, prove
from drexperts.model.checkpoint import Checkpoint, load_checkpoint
from drexperts.runtime.errors import BundleError, ConfigError, UserError
from drexperts.runtime.files import folder_written_whole
from drexperts.runtime.manifest import (
    FILE_NAME,
    Manifest,
    ScoreScale,
    read_manifest,
    sha256_of,
    write_manifest,
)
from drexperts.runtime.preprocess import Source
from drexperts.runtime.progress import SILENT, Progress


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    images: Path | None,
    scale: ScoreScale | None,
    precision: str,
    target: str = "cpu",
    maps: bool,
    max_batch: int,
    progress: Progress,
) -> Manifest:
    """`export_bundle` from a checkpoint file; `scale` overrides the file's."""
    progress(f"reading {checkpoint}")
    loaded = load_checkpoint(checkpoint)
    chosen = loaded._replace(scale=scale or loaded.scale)
    pictures = None if images is None else images_in(images)
    return export_bundle(chosen, out, pictures, precision, maps, max_batch, progress, target)


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    images: Sequence[Source] | None = None,
    precision: str = "fp32",
    maps: bool = True,
    max_batch: int = 8,
    progress: Progress = SILENT,
    target: str = "cpu",
) -> Manifest:
    """Fold, write ONNX, verify, and only then put the bundle at `out`.

    Made aside and renamed, so that a broken run leaves what was there. A bundle that fails its
    proof does take its place at `out`, with its report for `drx info`; `runtime.load` refuses it.

    Args:
        images: to verify on, RGB; None takes `verification_images`.
        precision: of the transformer blocks, "fp32", "fp16" or "int8", or "auto", the lowest that
            keeps its parity; see `mixture`.
        maps: also an output of distortion maps.
        max_batch: the largest batch, verified and admitted.
        target: what "auto" is for, "cpu" or "gpu".

    Raises:
        ConfigError: the checkpoint does not say what scale its scores are on, or contradicts
            itself; `max_batch` is not 1 to 1024.
        UserError: `out` is something other than a bundle, or no engine could be proven on
            `images`, see `parity_sets`.
    """
    _check_exportable(checkpoint, max_batch)
    out = out.resolve()  # where a link leads is what is replaced
    _check_replaceable(out)
    pictures = verification_images() if images is None else images
    parity_sets(pictures, checkpoint.preprocessing)  # raises now what the proof would after minutes
    with folder_written_whole(out) as aside:
        progress("folding and writing ONNX")
        made = mixture(
            checkpoint, precision, target, pictures, maps=maps, max_batch=max_batch, tell=progress
        )
        _write(made, checkpoint, aside, maps, max_batch)
        return prove(aside, checkpoint, pictures, progress)


def _write(made: Mixture, checkpoint: Checkpoint, folder: Path, maps: bool, max_batch: int) -> None:
    """A bundle that nothing was proven of yet."""
    onnx.save(made.graph, folder / MODEL_FILE)
    sha256 = sha256_of(folder / MODEL_FILE)
    manifest = draft(checkpoint, MODEL_FILE, sha256, made.precision, maps, max_batch)
    (engine,) = manifest.engines
    engine = replace(engine, islands=made.islands, frontier=made.frontier)
    write_manifest(replace(manifest, engines=(engine,)), folder)


def _check_exportable(checkpoint: Checkpoint, max_batch: int) -> None:
    size, crop = checkpoint.model.config.encoder.image_size, checkpoint.preprocessing.crop
    if checkpoint.scale is None:
        raise ConfigError("the checkpoint does not say its scores' scale: pass --scale LOW:HIGH")
    if crop != size:
        raise ConfigError(f"the checkpoint cuts {crop} px crops for a model of {size} px images")
    if not 1 <= max_batch <= 1024:
        raise ConfigError(f"the largest batch must be 1 to 1024, got {max_batch}")


def _check_replaceable(out: Path) -> None:
    """Only nothing, an empty folder, or a bundle and nothing else may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        own = {FILE_NAME, *(engine.file for engine in read_manifest(out).engines)}
    except BundleError:
        own = set()
    if not own or {path.name for path in out.iterdir() if not is_leftover(path)} - own:
        raise UserError(f"{out} holds other things than a bundle: choose another place for it")
