"""An engine for GPUs into a bundle: built, recorded, and proven where it runs here."""

import contextlib
import functools
import re
import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from drexperts import runtime
from drexperts.export.engines.options import EngineOptions
from drexperts.export.engines.source_graph import engine_graph, source_engine
from drexperts.export.engines.tensorrt_engine import engine_from_onnx
from drexperts.export.proof.photographs import verification_images
from drexperts.export.proof.prove import check_same_weights, images_in, prove_engine
from drexperts.model.checkpoint import Checkpoint, load_checkpoint
from drexperts.runtime.errors import UserError
from drexperts.runtime.files import ABANDONED_AFTER, replace_file
from drexperts.runtime.manifest import (
    TENSORRT_BACKENDS,
    Engine,
    Manifest,
    read_manifest,
    sha256_of,
    write_manifest,
)
from drexperts.runtime.preprocess import Source
from drexperts.runtime.progress import Progress
from drexperts.runtime.trust import note_built_here

BACKENDS = (*TENSORRT_BACKENDS, "onnx-cuda", "onnx-tensorrt")
WARM_UP, ROUNDS = 5, 30  # calls of each of two engines, when the faster is kept
# What a build may leave when it is killed: an engine that no manifest names, or a part of one.
_OWN = re.compile(
    r"(tensorrt(-rtx)?-(fp32|fp16|bf16)-|\.+)[0-9a-f]{8}\.engine(\.(part-)?[0-9a-f]{8})?"
    r"|\.manifest\.json\.(part-)?[0-9a-f]{8}"
)


def build_engine(
    bundle: Path,
    backend: str,
    options: EngineOptions,
    *,
    precision: str | None,
    fused_attention: bool,
    checkpoint: Path | None,
    images: Path | None,
    progress: Progress,
) -> Manifest:
    """Add an engine to a bundle, in the place of an earlier one of the same name.

    Where this machine can run it, its proofs are measured at once; parity needs the checkpoint.
    Where it cannot, the engine is recorded as built or inspected, and `drx verify` on a machine
    that can run it measures them. Of TensorRT engines with and without the plugin, the faster one
    that is proven stays.

    Args:
        precision: of the transformer blocks; None keeps the bundle's. Another one is exported
            from the checkpoint anew, so that weights are rounded once.
        fused_attention: False changes the graph so that no builder fuses attention.

    Raises:
        UserError: options that cannot be; BuildError where the library cannot build.
    """
    manifest = read_manifest(bundle)
    source = source_engine(bundle, manifest)
    _check_for_gpus(source, backend, options, precision)
    loaded = None if checkpoint is None else load_checkpoint(checkpoint)
    if loaded is not None:
        progress("holding the checkpoint against the bundle")
        check_same_weights(bundle, manifest, source, loaded)
    pictures = None if images is None else images_in(images)
    work = _Work(bundle, manifest, loaded, pictures, progress)
    if backend not in TENSORRT_BACKENDS:
        if (options, precision, fused_attention) != (EngineOptions(), None, True):
            raise UserError(
                f"{backend} runs the bundle's ONNX file as it is: leave out what shapes an engine, "
                "and keep --checkpoint and --images"
            )
        same_file = replace(source, backend=backend, parity=None, invariance=None)
        return _recorded(bundle, work.proven(same_file), progress.note)
    precision = precision or source.precision
    if options.stripped and (precision != source.precision or not fused_attention):
        raise UserError(
            f"weights are put back from the bundle's own graph, in {source.precision}: build it as "
            "it is, or leave --strip out"
        )
    progress(f"the graph in {precision}")
    proto = engine_graph(bundle, manifest, precision, fused_attention, loaded)
    islands = source.islands if precision == source.precision else ()
    built = functools.partial(work.built, backend, proto, precision, fused_attention, islands)
    engine = built(options)
    assert engine.plan is not None
    if options.plugin == "prefer" and engine.plan.plugin_layers and work.can_prove(engine):
        engine = work.or_better(engine, lambda: built(replace(options, plugin="off")))
    return _recorded(bundle, engine, progress.note)


def _check_for_gpus(
    source: Engine, backend: str, options: EngineOptions, precision: str | None
) -> None:
    """Raises UserError for a graph of eight bits, and for islands where float32 has no products."""
    if (precision or source.precision) == "int8":
        raise UserError(
            f"the bundle's graph is in int8, which is for CPUs: for {backend}, export another "
            "bundle with --precision fp16 or --precision auto --target gpu"
        )
    if source.islands and "7.5" in options.capabilities:
        raise UserError(
            "the bundle keeps parts in float32, of which compute capability 7.5 has no products: "
            "leave it out, or export a bundle with --precision fp16"
        )


@dataclass(frozen=True)
class _Work:
    """What the steps of one build share."""

    bundle: Path
    manifest: Manifest
    checkpoint: Checkpoint | None
    images: Sequence[Source] | None
    progress: Progress

    def built(
        self,
        backend: str,
        proto: onnx.ModelProto,
        precision: str,
        fused_attention: bool,
        islands: tuple[str, ...],
        options: EngineOptions,
    ) -> Engine:
        """Build one engine into the bundle, whose manifest does not name it yet, and prove it.

        The file's name ends in its hash: a build that is killed before the manifest is written
        leaves the engine that it would have replaced as it was.
        """
        self.progress(f"building a {backend} engine in {precision}")
        aside = self.bundle / f".{secrets.token_hex(4)}.engine"
        try:
            plan = engine_from_onnx(proto, backend, aside, options, self.progress)
            note_built_here(sha := sha256_of(aside))
            path = self.bundle / f"{backend}-{precision}-{sha[:8]}.engine"
            replace_file(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        plan = replace(plan, fused_attention=fused_attention)
        most = max(profile.max for profile in plan.profiles)
        engine = Engine(
            backend=backend,
            file=path.name,
            sha256=sha,
            precision=precision,
            max_batch=most,
            versions={backend: plan.version},
            parity=None,
            invariance=None,
            plan=plan,
            islands=islands,
        )
        return self.proven(engine)

    def can_prove(self, engine: Engine) -> bool:
        """Whether both proofs of an engine can be measured here."""
        return self.checkpoint is not None and runtime.obstacle(engine) is None

    def proven(self, engine: Engine) -> Engine:
        """The engine with its proofs, if this machine can run it, and as it is if it fails to."""
        if runtime.obstacle(engine) is not None:
            return engine
        images = verification_images() if self.images is None else self.images
        tell = self.progress
        try:
            return prove_engine(self.bundle, self.manifest, engine, self.checkpoint, images, tell)
        except UserError as failure:
            self.progress.note(f"{engine.file} was built and could not be proven: {failure}")
            return engine

    def or_better(self, engine: Engine, build_other: Callable[[], Engine]) -> Engine:
        """The faster proven one of an engine and another, which is built; the other's file goes."""
        try:
            best, worse = self.faster_first(engine, build_other())
        except UserError as failure:
            self.progress.note(f"there is no engine without the plugin to compare with: {failure}")
            return engine
        (self.bundle / worse.file).unlink()
        return best

    def faster_first(self, first: Engine, second: Engine) -> tuple[Engine, Engine]:
        """Two engines, the faster one of those that are proven in front.

        They run alternately, on a batch that the first profile is for, so that whatever else the
        GPU does falls on both.
        """
        if not (first.proven and second.proven):
            return (second, first) if second.proven else (first, second)
        assert first.plan is not None
        side = self.manifest.preprocessing.crop
        pixels = np.zeros((first.plan.profiles[0].opt, 3, side, side), np.uint8)
        with self.opened(first) as with_plugin, self.opened(second) as without:
            ratio = time_ratio(
                lambda: with_plugin.session.run(pixels), lambda: without.session.run(pixels)
            )
        self.progress.note(f"with the plugin it takes {ratio:.3f} times what it takes without")
        return (first, second) if ratio <= 1 else (second, first)

    def opened(self, engine: Engine) -> runtime.Scorer:
        return runtime.open_engine(self.bundle, self.manifest, engine)


def _recorded(bundle: Path, engine: Engine, note: Callable[[str], None]) -> Manifest:
    """Write a new engine into the manifest; the files of what it replaces go."""
    before = read_manifest(bundle)  # again: another build may have ended meanwhile
    replaced = [other for other in before.engines if _in_its_place(other, engine)]
    if any(other.proven for other in replaced) and not engine.proven:
        note(f"{engine.file} takes the place of a proven engine: prove it with `drx verify`")
    kept = [other for other in before.engines if other not in replaced]
    manifest = replace(before, engines=(*kept, engine))
    write_manifest(manifest, bundle)
    named = {each.file for each in manifest.engines}
    for file in {each.file for each in before.engines} - named:
        (bundle / file).unlink(missing_ok=True)
    _sweep(bundle, named)
    return manifest


def _in_its_place(old: Engine, new: Engine) -> bool:
    """Whether the two are of one kind, of which a bundle holds one."""
    if (old.backend, old.precision) != (new.backend, new.precision):
        return False
    if old.plan is None or new.plan is None:
        return True
    return old.plan.capabilities == new.plan.capabilities


def is_leftover(path: Path) -> bool:
    """Whether a file is what a build that was killed left."""
    return _OWN.fullmatch(path.name) is not None


def _sweep(bundle: Path, named: set[str]) -> None:
    """Remove what builds that were killed left; not what a build may still be at."""
    for path in bundle.iterdir():
        if is_leftover(path) and path.name not in named:
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED_AFTER:
                    path.unlink()


def time_ratio(first: Callable[[], object], second: Callable[[], object]) -> float:
    """The median, over alternate calls, of the time of `first` over that of `second`."""
    ratios = []
    for _ in range(WARM_UP + ROUNDS):
        start = time.perf_counter()
        first()
        between = time.perf_counter()
        second()
        ratios.append((between - start) / (time.perf_counter() - between))
    return statistics.median(ratios[WARM_UP:])
