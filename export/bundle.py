"""A checkpoint to a verified bundle."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import onnx

from drexperts.evaluation.predict import TorchSession
from drexperts.export.changes import is_leftover
from drexperts.export.graph.precision import (
    MODEL_FILE,
    PrecisionChoice,
    choices_of_precision,
    draft_of,
    parts_needed,
)
from drexperts.export.proof.division import digest_of, divided, photographs_of
from drexperts.export.proof.parity import parity_sets
from drexperts.export.proof.photographs import Images
from drexperts.export.proof.prove import loaded_checkpoint, measure_proofs
from drexperts.model.checkpoint import Checkpoint
from drexperts.runtime.decoding import Source
from drexperts.runtime.errors import BundleError, ConfigError, UserError
from drexperts.runtime.files import folder_written_whole
from drexperts.runtime.manifest import (
    FILE_NAME,
    OUTPUTS,
    Engine,
    Manifest,
    ScoreScale,
    read_manifest,
    sha256_of,
    write_manifest,
)
from drexperts.runtime.preprocess import with_crops_per_side
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.proof import EXPORT_LIMITS
from drexperts.runtime.reference_crop import reference_crop
from drexperts.runtime.training import utc_now

# Of the transformer blocks; "auto" searches for the lowest that keeps the parity limits.
ExportPrecision = Literal["fp32", "fp16", "int8", "auto"]


def export_bundle(
    checkpoint: str | Path | Checkpoint,
    out: str | Path,
    *,
    images: Images = None,
    scale: ScoreScale | None = None,
    crops_per_side: int | None = None,
    precision: ExportPrecision = "fp32",
    target: Literal["cpu", "gpu"] = "cpu",
    maps: bool = True,
    max_batch: int = 8,
    progress: Progress = SILENT,
) -> Manifest:
    """Fold a model, write it as ONNX, verify it, and only then put the bundle at `out`.

    The bundle is made aside and renamed, so that a run that fails leaves what was at `out`. A
    bundle that fails its proof does take its place there, with its report for `drx info`;
    `runtime.load` refuses it.

    Args:
        checkpoint: the file of a checkpoint, or one in memory.
        out: the bundle's folder: one that does not exist or is empty, or a bundle to replace.
        images: to make the engine on and to prove it on, a folder of photographs or the images
            themselves, which are `divided`; None takes `verification_images`.
        scale: of the scores; None takes the checkpoint's own.
        crops_per_side: the most crops along each axis of an image, 1 to 64, which the manifest
            states and the proof is measured with; None takes the checkpoint's own.
        precision: of the transformer blocks. "auto" takes the lowest that keeps parity: if the one
            that the search found fails its proof, ones with more parts in float32 are tried.
        target: what "auto" searches for: "cpu", int8; "gpu", fp16.
        maps: whether the distortion maps are an output as well.
        max_batch: the largest batch, 1 to 1024, which is verified.

    Returns:
        The manifest as it was written; `manifest.engines[0].proven` says whether parity and batch
        invariance passed.

    Raises:
        ConfigError: the scale is not known, the checkpoint contradicts itself, or `max_batch` or
            `crops_per_side` is out of range.
        UserError: `out` is something other than a bundle, another process writes it, or no engine
            could be proven on `images`, see `parity_sets`.

    Example:
        from drexperts.export import export_bundle

        manifest = export_bundle("model.safetensors", "bundle/", precision="int8")
        manifest.engines[0].proven
    """
    if not 1 <= max_batch <= 1024:
        raise ConfigError(f"the largest batch must be 1 to 1024, got {max_batch}")
    if not isinstance(checkpoint, Checkpoint):
        progress(f"reading {checkpoint}")
    loaded = loaded_checkpoint(checkpoint)
    assert loaded is not None
    spec = with_crops_per_side(loaded.preprocessing, crops_per_side)
    loaded = loaded._replace(scale=scale or loaded.scale, preprocessing=spec)
    outputs = OUTPUTS if maps else OUTPUTS[:2]
    draft = draft_of(loaded, "fp32", outputs, max_batch)  # raises now for an incomplete checkpoint
    draft = replace(draft, reference_score=_reference_score(loaded))
    out = Path(out).resolve()  # if it is a link, its target is replaced
    parts = divided(photographs_of(images), *parts_needed(precision, target))
    with folder_written_whole(out) as aside:
        _check_replaceable(out)
        # Raises now what the proof would after minutes.
        parity_sets(parts["proof"], loaded.preprocessing)
        progress("folding and writing ONNX")
        choices = choices_of_precision(
            loaded, precision, target, parts, maps=maps, max_batch=max_batch, progress=progress
        )
        for missed, chosen in enumerate(choices):
            engine = replace(_engine(draft, chosen, parts), missed=missed)
            made = replace(draft, engines=(engine,))
            manifest = _proven(aside, made, chosen.graph, loaded, parts["proof"], progress)
            parity = manifest.engines[0].parity
            if parity is None or parity.passed:
                break
            progress.note(f"it failed its proof with {len(chosen.islands)} parts in float32")
        return manifest


def _reference_score(loaded: Checkpoint) -> float | None:
    """None for a model that computes no number, of which the proof says more."""
    crop = reference_crop(loaded.preprocessing.crop)
    score = float(TorchSession(loaded.model).run(crop[None])["score"][0])
    return score if math.isfinite(score) else None


def _engine(
    draft: Manifest, chosen: PrecisionChoice, parts: Mapping[str, Sequence[Source]]
) -> Engine:
    return replace(
        draft.engines[0],
        precision=chosen.precision,
        islands=chosen.islands,
        frontier=chosen.trials,
        calibrated_on=tuple(map(digest_of, parts.get("calibration", ()))),
        searched_on=tuple(map(digest_of, parts.get("search", ()))),
    )


def _proven(
    folder: Path,
    manifest: Manifest,
    graph: onnx.ModelProto,
    loaded: Checkpoint,
    pictures: Sequence[Source],
    progress: Progress,
) -> Manifest:
    """Write a bundle of one engine, and measure its proofs under the limits of an export."""
    onnx.save(graph, folder / MODEL_FILE)
    engine = replace(manifest.engines[0], sha256=sha256_of(folder / MODEL_FILE))
    write_manifest(replace(manifest, engines=(engine,), created=utc_now()), folder)
    return measure_proofs(
        folder, loaded, pictures, progress=progress, limits=EXPORT_LIMITS
    ).manifest


def _check_replaceable(out: Path) -> None:
    """Raises UserError unless there is nothing, an empty folder, or a bundle and nothing else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        own = {FILE_NAME, *(engine.file for engine in read_manifest(out).engines)}
    except BundleError:
        own = set()
    if not own or {path.name for path in out.iterdir() if not is_leftover(path)} - own:
        raise UserError(f"{out} holds other things than a bundle: choose another place for it")
