"""The proofs of a bundle's engines, measured on this machine and written into the manifest."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from drexperts import runtime
from drexperts.export.changes import bundle_to_change
from drexperts.export.engines.source_graph import source_engine
from drexperts.export.proof.agreement import largest_difference
from drexperts.export.proof.batch_invariance import measure_invariance
from drexperts.export.proof.division import LEAST, digest_of, in_turn, photographs_of
from drexperts.export.proof.parity import Reference, eager_outputs, engine_outputs
from drexperts.export.proof.photographs import Images, proof_images
from drexperts.model.checkpoint import Checkpoint, load_checkpoint
from drexperts.model.config import DRExpertsConfig
from drexperts.runtime.decoding import Source
from drexperts.runtime.errors import (
    DeviceError,
    MissingDependencyError,
    NotTakenError,
    UserError,
)
from drexperts.runtime.manifest import Engine, Manifest, read_manifest, write_manifest
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.proof import LIMITS
from drexperts.runtime.wording import remedy

COMPARED_ON = 3  # pictures, when a checkpoint is compared with a bundle


@dataclass(frozen=True)
class Measured:
    """What `verify` measured of an engine. What it did not measure is as it was recorded before.

    reason: why not both were measured; None if they were
    """

    file: str
    backend: str
    parity: bool
    batch_invariance: bool
    reason: str | None


@dataclass(frozen=True)
class Verification:
    """What `verify` did.

    manifest: with the new proofs, as it was written
    images: what was measured on, such as "40 images in photos"
    measured: for each engine of the manifest, in its order
    """

    manifest: Manifest
    images: str
    measured: tuple[Measured, ...]


def verify(
    bundle: str | Path,
    *,
    checkpoint: str | Path | Checkpoint | None = None,
    images: Images = None,
    trust: bool = False,
    progress: Progress = SILENT,
) -> Verification:
    """Measure the proofs of every engine of a bundle that runs here, and rewrite them.

    An engine that this machine cannot run, or that cannot be opened, keeps its record, and the
    others are still measured.

    A proof that failed can be measured again, and one that passes replaces it.

    Args:
        checkpoint: the weights that engines are compared with. Without it, only batch invariance
            is measured, and parity stays as it was recorded, on other images.
        images: to verify on, a folder of photographs, None for `verification_images`, or the
            images themselves. Of the first two, those photographs are taken that no engine of the
            bundle was made on, or all if fewer than `LEAST` are left; of the last, all, in their
            order. A proof says how many an engine was made on.
        trust: also run TensorRT engines that were not built here.

    Returns:
        The new manifest, and what of its proofs was measured now.

    Raises:
        UserError: the checkpoint is of another model or has other weights, `images` are too few or
            too much alike, or another process changes the bundle.
        NotTakenError, MissingDependencyError, DeviceError: no engine could be opened.

    Example:
        from drexperts.export import verify

        done = verify("bundle/", checkpoint="model.safetensors", images="photos/")
        all(engine.proven for engine in done.manifest.engines)
        all(engine.parity for engine in done.measured)  # on these photos
    """
    loaded = loaded_checkpoint(checkpoint)
    with bundle_to_change(Path(bundle)) as place:
        if loaded is not None:
            progress("comparing the checkpoint with the bundle")
            check_same_weights(place, read_manifest(place), loaded, images)
        return measure_proofs(place, loaded, images, trust=trust, progress=progress)


def measure_proofs(
    bundle: Path,
    loaded: Checkpoint | None,
    images: Images,
    *,
    trust: bool = False,
    progress: Progress = SILENT,
    limits: Mapping[str, dict[str, float]] = LIMITS,
) -> Verification:
    """What `verify` does with the bundle's own checkpoint, in a folder that nobody else writes.

    limits: of each precision, for what was not proven on the same pictures before
    """
    manifest = read_manifest(bundle)
    pictures = pictures_for(manifest, images)
    reference = None
    if loaded is not None:
        reference = Reference(
            loaded.model, pictures, manifest.preprocessing, progress, limits=limits
        )
    proven: list[Engine] = []
    measured: list[Measured] = []
    failures: list[UserError] = []
    for engine in manifest.engines:
        reason = runtime.obstacle(engine)
        if reason is None:
            try:
                proven.append(
                    prove_engine(
                        bundle, manifest, engine, reference, pictures, progress, trust=trust
                    )
                )
            except (NotTakenError, MissingDependencyError, DeviceError) as failure:
                reason = str(failure)
                failures.append(failure)
        measured.append(_measured(engine, reference is not None, reason))
    if failures and not proven:
        raise failures[0]
    written = record_proofs(bundle, proven)
    return Verification(written, _described(images, pictures), tuple(measured))


def _measured(engine: Engine, with_checkpoint: bool, reason: str | None) -> Measured:
    """reason: why nothing was measured"""
    if reason is not None:
        return Measured(engine.file, engine.backend, False, False, reason)
    if with_checkpoint:
        return Measured(engine.file, engine.backend, True, True, None)
    give = remedy("--checkpoint FILE", "checkpoint=")
    reason = f"parity is measured against the checkpoint that was exported: pass {give}"
    return Measured(engine.file, engine.backend, False, True, reason)


def _described(images: Images, pictures: Sequence[Source]) -> str:
    place = "scikit-image" if images is None else images
    where = f" in {place}" if isinstance(place, str | Path) else ""
    return f"{len(pictures)} images{where}"


def pictures_for(manifest: Manifest, images: Images) -> Sequence[Source]:
    """The images to verify a bundle on, see `verify`."""
    if images is not None and not isinstance(images, str | Path):
        return images
    seen = frozenset[str]().union(*(engine.made_on for engine in manifest.engines))
    photographs = photographs_of(images)
    left = [each for each in photographs if seen.isdisjoint(map(digest_of, each))]
    return in_turn(left if len(left) >= LEAST else photographs)


def loaded_checkpoint(checkpoint: str | Path | Checkpoint | None) -> Checkpoint | None:
    """A checkpoint that may be given as its file."""
    if checkpoint is None or isinstance(checkpoint, Checkpoint):
        return checkpoint
    return load_checkpoint(Path(checkpoint))


def record_proofs(bundle: Path, measured: Sequence[Engine]) -> Manifest:
    """Write the proofs of the engines that were measured into the manifest."""
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
    reference: Reference | None,
    images: Sequence[Source],
    progress: Progress = SILENT,
    *,
    trust: bool = False,
) -> Engine:
    """One engine with its proofs measured here; its parity stays as it was without a reference.

    Raises what `open_engine` does.
    """
    # The batches certified before do not bound what is measured now, but a proof of the file does.
    same_file = (each.parity for each in manifest.engines if each.sha256 == engine.sha256)
    before = engine.parity or next(filter(None, same_file), None)
    unbound = replace(engine, parity=before, invariance=None)
    parity = engine.parity
    with ExitStack() as stack:

        def opened(threads: int | None = None) -> runtime.Scorer:
            scorer = runtime.open_engine(bundle, manifest, unbound, threads, trust=trust)
            return stack.enter_context(scorer)

        if reference is not None:
            parity = reference.parity(opened(), progress)
            if parity.seen:
                progress.note(
                    f"{engine.file} was made on {parity.seen} of these {len(images)} images, which "
                    "say little about others"
                )
        invariance = measure_invariance(
            lambda threads: opened(threads).session, images, manifest, engine, progress
        )
    on = runtime.capability_for(engine)
    if on != engine.proven_on and reference is None:
        parity = None  # it was measured on another GPU or CPU
    return replace(engine, parity=parity, invariance=invariance, proven_on=on)


def check_same_weights(
    bundle: Path, manifest: Manifest, checkpoint: Checkpoint, images: Images = None
) -> None:
    """Raises UserError for a checkpoint of another model or other weights than the bundle's.

    Measured against it, a good engine would fail its proof, and an engine made from it would score
    as another model. A bundle of an earlier version has no digest of its weights: the scores of its
    ONNX engine for the first of the images are compared with the checkpoint's.
    """
    _check_same_model(checkpoint, manifest)
    if manifest.weights is None:
        return _check_same_scores(bundle, manifest, checkpoint, images)
    if (found := checkpoint.weights) != manifest.weights:
        raise UserError(
            f"the checkpoint has other weights than the bundle, {found[:15]}… instead of "
            f"{manifest.weights[:15]}…; pass the checkpoint that was exported"
        )


def _check_same_model(checkpoint: Checkpoint, manifest: Manifest) -> None:
    config = checkpoint.model.config.as_dict()
    # Read and written again, because older versions named a published encoder in any size.
    exported = DRExpertsConfig.from_dict(manifest.config).as_dict()
    if config != exported:
        changed = [name for name in config if config[name] != exported[name]]
        raise UserError(
            f"the checkpoint is of another model than the bundle: {', '.join(changed)} differ; "
            "pass the checkpoint that was exported"
        )


def _check_same_scores(
    bundle: Path, manifest: Manifest, checkpoint: Checkpoint, images: Images
) -> None:
    """Compare a few scores, which may differ by twice what they did when the engine was proven."""
    engine = source_engine(bundle, manifest)
    pictures = proof_images(images)[:COMPARED_ON]
    expected = eager_outputs(checkpoint.model, pictures, manifest.preprocessing)
    with runtime.open_engine(bundle, manifest, replace(engine, invariance=None)) as scorer:
        got = engine_outputs(scorer, pictures)
    drift = largest_difference(got.scores, expected.scores) / manifest.scale.span
    limit = _largest_drift(engine)
    if not drift <= limit:
        raise UserError(
            f"the checkpoint has other weights than the bundle: a score differs by {drift:.1e} of "
            f"the span, and rounding explains {limit:.1e}; pass the checkpoint that was exported"
        )


def _largest_drift(engine: Engine) -> float:
    """By how much scores of the same weights may differ, as a share of the span."""
    limit = LIMITS[engine.precision]["score_max"]
    if engine.parity is None:
        return limit
    # Another machine sums float32 in another order, however near it came where it was measured.
    return min(limit, max(2 * engine.parity.score_max, LIMITS["fp32"]["score_max"]))
