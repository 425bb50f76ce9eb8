"""The proofs of a bundle's engines, measured on this machine and written into the manifest."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from drexperts import runtime
from drexperts.export.proof.agreement import largest_difference
from drexperts.export.proof.parity import (
    LIMITS,
    eager_outputs,
    engine_outputs,
    measure_invariance,
    measure_parity,
)
from drexperts.export.proof.photographs import verification_images
from drexperts.model.checkpoint import Checkpoint, load_checkpoint
from drexperts.runtime.errors import (
    BundleError,
    DeviceError,
    ImageError,
    MissingDependencyError,
    NotTakenError,
    UserError,
)
from drexperts.runtime.manifest import Engine, Manifest, read_manifest, write_manifest
from drexperts.runtime.preprocess import Source, decode
from drexperts.runtime.progress import SILENT, Progress

COMPARED_ON = 3  # pictures, when a checkpoint is held against a bundle


def verify_bundle(
    bundle: Path,
    *,
    checkpoint: Path | None,
    images: Path | None,
    progress: Progress,
    trust: bool = False,
) -> Manifest:
    """Measure a bundle's proofs again and rewrite them.

    Parity needs the weights it is held against, so without `checkpoint` the recorded parity stays
    and only batch invariance is measured. An engine that this machine cannot run keeps its record.

    Args:
        trust: also run TensorRT engines that were not built here.
    """
    loaded = None if checkpoint is None else load_checkpoint(checkpoint)
    pictures = None if images is None else images_in(images)
    return prove(bundle, loaded, pictures, progress, trust=trust)


def prove(
    bundle: Path,
    checkpoint: Checkpoint | None,
    images: Sequence[Source] | None,
    progress: Progress,
    *,
    trust: bool = False,
) -> Manifest:
    """Measure every engine of a bundle that runs here and write the proofs into its manifest.

    What keeps one engine from being opened, `progress` is told, and its record stays; the others
    are measured all the same.

    Raises:
        NotTakenError, MissingDependencyError, DeviceError: none could be opened.
    """
    manifest = read_manifest(bundle)
    if checkpoint is not None:
        check_same_model(checkpoint, manifest)
    pictures = verification_images() if images is None else images
    measured: list[Engine] = []
    failures: list[UserError] = []
    for engine in manifest.engines:
        if runtime.obstacle(engine):
            continue
        try:
            measured.append(
                prove_engine(bundle, manifest, engine, checkpoint, pictures, progress, trust=trust)
            )
        except (NotTakenError, MissingDependencyError, DeviceError) as failure:
            progress(f"{engine.file} ({engine.backend}) is not measured: {failure}")
            failures.append(failure)
    if failures and not measured:
        raise failures[0]
    return record_proofs(bundle, measured)


def record_proofs(bundle: Path, measured: Sequence[Engine]) -> Manifest:
    """Write what was measured into the manifest as it is now: a build may have ended meanwhile."""
    manifest = read_manifest(bundle)
    found = {(engine.backend, engine.sha256): engine for engine in measured}
    engines = tuple(
        found.get((engine.backend, engine.sha256), engine) for engine in manifest.engines
    )
    proven = replace(manifest, engines=engines)
    write_manifest(proven, bundle)
    return proven


def prove_engine(
    bundle: Path,
    manifest: Manifest,
    engine: Engine,
    checkpoint: Checkpoint | None,
    images: Sequence[Source],
    progress: Progress,
    *,
    trust: bool = False,
) -> Engine:
    """One engine with its proofs measured here; parity stays as it was without a checkpoint.

    Raises BundleError for a precision of which no limits are known; else as `open_engine`.
    """
    _check_precision(engine)
    # What was certified before does not bound what is measured now.
    unbound = replace(engine, invariance=None)
    parity = engine.parity
    with ExitStack() as stack:

        def opened(threads: int | None = None) -> runtime.Scorer:
            scorer = runtime.open_engine(bundle, manifest, unbound, threads, trust=trust)
            return stack.enter_context(scorer)

        if checkpoint is not None:
            parity = measure_parity(opened(), checkpoint.model, images, engine.precision, progress)
        invariance = measure_invariance(
            lambda threads: opened(threads).session,
            images,
            manifest,
            engine.precision,
            progress,
            () if engine.plan is None else engine.plan.profiles,
        )
    on = None if engine.backend == "onnx" else runtime.capability()
    if on != engine.proven_on and checkpoint is None:
        parity = None  # it was another GPU's
    return replace(engine, parity=parity, invariance=invariance, proven_on=on)


def _check_precision(engine: Engine) -> None:
    if engine.precision not in LIMITS:
        raise BundleError(
            f"{engine.file} is of precision {engine.precision!r}, this version knows "
            f"{', '.join(LIMITS)}: install a later drexperts, or export the bundle again"
        )


def images_in(folder: Path) -> list[Path]:
    """The readable images of a folder, by name; what is no image is passed over."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of images")
    images = [path for path in sorted(folder.iterdir()) if _is_image(path)]
    if not images:
        raise UserError(f"{folder} holds no readable image: name a folder of photographs")
    return images


def _is_image(path: Path) -> bool:
    try:
        decode(path)
    except ImageError:
        return False
    return True


def check_same_model(checkpoint: Checkpoint, manifest: Manifest) -> None:
    """Raises UserError for a checkpoint of another model than the bundle's."""
    # Through JSON, as the manifest went.
    config = json.loads(json.dumps(checkpoint.model.config.as_dict()))
    if config != manifest.config:
        changed = [name for name in config if config[name] != manifest.config.get(name)]
        raise UserError(
            f"the checkpoint is of another model than the bundle: {', '.join(changed)} differ; "
            "name the checkpoint that was exported"
        )


def check_same_weights(
    bundle: Path, manifest: Manifest, engine: Engine, checkpoint: Checkpoint
) -> None:
    """Hold a checkpoint against the bundle's ONNX engine, on a few pictures.

    Scores may differ by twice what they did when the engine was proven, on other images.

    Raises UserError for one of other weights: an engine made of it would score as another model.
    """
    check_same_model(checkpoint, manifest)
    pictures = verification_images()[:COMPARED_ON]
    spec = manifest.preprocessing
    expected = eager_outputs(checkpoint.model, pictures, spec, SILENT)
    with runtime.open_engine(bundle, manifest, replace(engine, invariance=None)) as scorer:
        got = engine_outputs(scorer, pictures, SILENT)
    drift = largest_difference(got.scores, expected.scores) / manifest.scale.span
    limit = _largest_drift(engine)
    if not drift <= limit:
        raise UserError(
            f"the checkpoint has other weights than the bundle: a score differs by {drift:.1e} of "
            f"the span, where {limit:.1e} is rounding; name the checkpoint that was exported"
        )


def _largest_drift(engine: Engine) -> float:
    """By which scores of the same weights may differ, as a share of the span."""
    limit = LIMITS[engine.precision]["score_max"]
    if engine.parity is None:
        return limit
    # Another machine sums float32 in another order, however near it came where it was measured.
    return min(limit, max(2 * engine.parity.score_max, LIMITS["fp32"]["score_max"]))
