"""The proofs of a bundle's engines, measured on this machine and written into the manifest."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from drexperts import runtime
from drexperts.export.changes import bundle_to_change
from drexperts.export.proof.agreement import largest_difference
from drexperts.export.proof.batch_invariance import measure_invariance
from drexperts.export.proof.division import digest_of, in_turn, photographs_of
from drexperts.export.proof.parity import Reference, eager_outputs, engine_outputs
from drexperts.export.proof.photographs import Images, proof_images, verification_images
from drexperts.model.checkpoint import Checkpoint, load_checkpoint
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

COMPARED_ON = 3  # pictures, when a checkpoint is compared with a bundle


def verify(
    bundle: str | Path,
    *,
    checkpoint: str | Path | Checkpoint | None = None,
    images: Images = None,
    trust: bool = False,
    progress: Progress = SILENT,
) -> Manifest:
    """Measure the proofs of every engine of a bundle that runs here, and rewrite them.

    An engine that this machine cannot run, or that cannot be opened, keeps its record; `progress`
    is told why, and the others are still measured.

    Args:
        checkpoint: the weights that engines are compared with. Without it, the recorded parity
            stays and only batch invariance is measured.
        images: to verify on, a folder of photographs or the images themselves; None takes
            the `verification_images` that no engine of the bundle was made on. A proof says how
            many an engine was made on.
        trust: also run TensorRT engines that were not built here.

    Returns:
        The manifest with its new proofs, as it was written.

    Raises:
        UserError: the checkpoint is of another model, `images` are too few or too much alike, or
            another process changes the bundle.
        NotTakenError, MissingDependencyError, DeviceError: no engine could be opened.

    Example:
        from drexperts.export import verify

        manifest = verify("bundle/", checkpoint="model.safetensors")
        all(engine.proven for engine in manifest.engines)
    """
    loaded = loaded_checkpoint(checkpoint)
    with bundle_to_change(Path(bundle)) as place:
        return measure_proofs(place, loaded, images, trust=trust, progress=progress)


def measure_proofs(
    bundle: Path,
    loaded: Checkpoint | None,
    images: Images,
    *,
    trust: bool = False,
    progress: Progress = SILENT,
    limits: Mapping[str, dict[str, float]] = LIMITS,
) -> Manifest:
    """What `verify` does, in a folder that nobody else writes, under the limits of a precision."""
    manifest = read_manifest(bundle)
    pictures = pictures_for(manifest, images)
    reference = None
    if loaded is not None:
        check_same_model(loaded, manifest)
        reference = Reference(
            loaded.model, pictures, manifest.preprocessing, progress, limits=limits
        )
    measured: list[Engine] = []
    failures: list[UserError] = []
    for engine in manifest.engines:
        if runtime.obstacle(engine):
            continue
        try:
            measured.append(
                prove_engine(bundle, manifest, engine, reference, pictures, progress, trust=trust)
            )
        except (NotTakenError, MissingDependencyError, DeviceError) as failure:
            progress(f"{engine.file} ({engine.backend}) is not measured: {failure}")
            failures.append(failure)
    if failures and not measured:
        raise failures[0]
    return record_proofs(bundle, measured)


def pictures_for(manifest: Manifest, images: Images) -> Sequence[Source]:
    """The images to verify a bundle on, see `verify`."""
    if images is not None:
        return proof_images(images)
    seen = frozenset[str]().union(*(engine.made_on for engine in manifest.engines))
    return in_turn([each for each in photographs_of(None) if seen.isdisjoint(map(digest_of, each))])


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
    # The batches certified before do not bound what is measured now.
    unbound = replace(engine, invariance=None)
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
    on = None if engine.backend == "onnx" else runtime.capability()
    if on != engine.proven_on and reference is None:
        parity = None  # it was measured on another GPU
    return replace(engine, parity=parity, invariance=invariance, proven_on=on)


def check_same_model(checkpoint: Checkpoint, manifest: Manifest) -> None:
    """Raises UserError for a checkpoint of another model than the bundle's."""
    # Through JSON, as the manifest went.
    config = json.loads(json.dumps(checkpoint.model.config.as_dict()))
    if config != manifest.config:
        changed = [name for name in config if config[name] != manifest.config.get(name)]
        raise UserError(
            f"the checkpoint is of another model than the bundle: {', '.join(changed)} differ; "
            "pass the checkpoint that was exported"
        )


def check_same_weights(
    bundle: Path, manifest: Manifest, engine: Engine, checkpoint: Checkpoint
) -> None:
    """Compare a checkpoint with the bundle's ONNX engine, on a few pictures.

    Scores may differ by twice what they did when the engine was proven on other images.

    Raises UserError for other weights: an engine made from them would score as another model.
    """
    check_same_model(checkpoint, manifest)
    pictures = verification_images()[:COMPARED_ON]
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
