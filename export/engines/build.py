"""An engine into a bundle: built, recorded, and proven where it runs here."""

import functools
import secrets
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from drexperts import runtime
from drexperts.export.changes import bundle_to_change
from drexperts.export.engines.engine_build import EngineBuild
from drexperts.export.engines.openvino_engine import openvino_engine
from drexperts.export.engines.options import EngineOptions
from drexperts.export.engines.source_graph import engine_graph, source_engine
from drexperts.export.engines.tensorrt_engine import engine_from_onnx
from drexperts.export.proof.photographs import Images, proof_images
from drexperts.export.proof.prove import (
    check_same_weights,
    loaded_checkpoint,
)
from drexperts.model.checkpoint import Checkpoint
from drexperts.runtime.errors import UserError
from drexperts.runtime.files import replace_file
from drexperts.runtime.manifest import (
    TENSORRT_BACKENDS,
    Engine,
    Manifest,
    read_manifest,
    sha256_of,
    write_manifest,
)
from drexperts.runtime.openvino_library import forcing_variable, import_openvino
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.trust import note_built_here
from drexperts.runtime.wording import remedy

DEFAULT_OPTIONS = EngineOptions()
WARM_UP, ROUNDS = 5, 30  # calls of each of two engines when they are timed


def build_engine(
    bundle: str | Path,
    backend: Literal["tensorrt", "tensorrt-rtx", "openvino", "onnx-cuda", "onnx-tensorrt"],
    options: EngineOptions = DEFAULT_OPTIONS,
    *,
    precision: Literal["fp32", "fp16", "bf16", "int8", "auto"] | None = None,
    fused_attention: bool = True,
    checkpoint: str | Path | Checkpoint | None = None,
    images: Images = None,
    progress: Progress = SILENT,
) -> Manifest:
    """Add an engine to a bundle, replacing an earlier one of the same backend and precision.

    Where this machine can run it, its proofs are measured at once; parity needs the checkpoint.
    Elsewhere it is recorded as built or inspected, until `verify` measures its proofs on a machine
    that can run it. If TensorRT builds it with the plugin, it is built without as well, and the
    faster proven one is kept.

    An engine for OpenVINO is made for the CPU of this machine, and its proof holds for others with
    the same capability.

    Args:
        options: for TensorRT only.
        precision: of the transformer blocks. For GPUs, "fp32", "fp16" or "bf16"; None keeps the
            bundle's, and another one is exported anew from the checkpoint, so that weights are
            rounded once. For OpenVINO, "fp32", "bf16", "int8" or "auto", the fastest mixture that
            keeps parity; None is "int8" for a bundle in int8, and otherwise "bf16" on a CPU that
            has it and "fp32" on others.
        fused_attention: False changes the graph so that no builder fuses attention.
        checkpoint: the one that was exported, for parity and for another precision.
        images: to verify on, as for `export_bundle`.

    Returns:
        The manifest as it was written, with the new engine last.

    Raises:
        UserError: the options contradict each other, the library cannot follow them, or another
            process changes the bundle.
        BuildError: the library cannot build the engine.

    Example:
        from drexperts.export import EngineOptions, build_engine

        options = EngineOptions(capabilities=("8.9",))
        engine = build_engine("bundle/", "tensorrt-rtx", options, precision="fp16",
                              checkpoint="model.safetensors").engines[-1]
    """
    with bundle_to_change(Path(bundle)) as place:
        return _build_engine(
            place, backend, options, precision, fused_attention, checkpoint, images, progress
        )


def _build_engine(
    bundle: Path,
    backend: str,
    options: EngineOptions,
    precision: str | None,
    fused_attention: bool,
    checkpoint: str | Path | Checkpoint | None,
    images: Images,
    progress: Progress,
) -> Manifest:
    manifest = read_manifest(bundle)
    source = source_engine(bundle, manifest)
    if backend == "openvino":
        import_openvino()  # raises now what would end the build after minutes
        if reason := forcing_variable():
            raise UserError(reason)
        _check_plain(backend, options, fused_attention)
    else:
        _check_for_gpus(source, backend, options, precision)
    loaded = loaded_checkpoint(checkpoint)
    if loaded is not None:
        progress("comparing the checkpoint with the bundle")
        check_same_weights(bundle, manifest, loaded, images)
        # What the export was given instead of the checkpoint's own: the engine is made for it, too.
        loaded = loaded._replace(scale=manifest.scale, preprocessing=manifest.preprocessing)
    if images is not None:
        proof_images(images)  # raises now for a folder without one
    work = _TensorrtBuild(bundle, manifest, loaded, images, progress)
    if backend == "openvino":
        return _record(bundle, openvino_engine(work, source, precision), progress)
    if backend not in TENSORRT_BACKENDS:
        _check_plain(backend, options, fused_attention, precision)
        same_file = replace(source, backend=backend, parity=None, invariance=None)
        return _record(bundle, work.proven(same_file), progress)
    kept = precision or source.precision
    if options.stripped and (kept != source.precision or not fused_attention):
        raise UserError(
            f"weights are put back from the bundle's own graph, in {source.precision}: build it as "
            f"it is, or without {remedy('--strip', 'stripped=True')}"
        )
    progress(f"the graph in {kept}")
    proto = engine_graph(bundle, manifest, kept, fused_attention, loaded)
    chosen = source if kept == source.precision else replace(source, islands=(), searched_on=())
    built = functools.partial(work.built, backend, proto, kept, fused_attention, chosen)
    engine = built(options)
    assert engine.plan is not None
    if options.plugin == "prefer" and engine.plan.plugin_layers and work.can_prove(engine):
        engine = work.or_better(engine, lambda: built(replace(options, plugin="off")))
    return _record(bundle, engine, progress)


def _check_for_gpus(
    source: Engine, backend: str, options: EngineOptions, precision: str | None
) -> None:
    """Raises UserError for an int8 graph, and for float32 islands on compute capability 7.5."""
    if precision == "auto":
        raise UserError(
            f"for {backend} name fp32, fp16 or bf16: which of them parity allows is searched when "
            "a bundle is exported for the target gpu"
        )
    if (precision or source.precision) == "int8":
        raise UserError(
            f"the bundle's graph is in int8, which is for CPUs: for {backend}, export another "
            "bundle in fp16, or in the precision that is found for the target gpu"
        )
    if source.islands and "7.5" in options.capabilities:
        raise UserError(
            "the bundle keeps parts in float32, which compute capability 7.5 cannot multiply: "
            "leave it out, or export a bundle in fp16"
        )


def _check_plain(
    backend: str, options: EngineOptions, fused_attention: bool, precision: str | None = None
) -> None:
    """Raises UserError, for another backend than TensorRT, for what shapes an engine of it."""
    if (options, fused_attention, precision) != (DEFAULT_OPTIONS, True, None):
        if backend == "openvino":
            raise UserError(
                "openvino takes none of the options that shape a TensorRT engine: leave them out, "
                "and keep the precision, the checkpoint and the images"
            )
        raise UserError(
            f"{backend} runs the bundle's ONNX file as it is: leave out what shapes an engine, and "
            "keep the checkpoint and the images"
        )


class _TensorrtBuild(EngineBuild):
    """Builds of TensorRT and of TensorRT for RTX."""

    def built(
        self,
        backend: str,
        proto: onnx.ModelProto,
        precision: str,
        fused_attention: bool,
        source: Engine,
        options: EngineOptions,
    ) -> Engine:
        """Build one engine into the bundle, whose manifest does not name it yet, and prove it.

        source: whose islands it has

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
        engine = Engine(
            backend=backend,
            file=path.name,
            sha256=sha,
            precision=precision,
            max_batch=max(profile.max for profile in plan.profiles),
            versions={backend: plan.version},
            parity=None,
            invariance=None,
            plan=replace(plan, fused_attention=fused_attention),
            islands=source.islands,
            searched_on=source.searched_on,
        )
        return self.proven(engine)

    def or_better(self, engine: Engine, build_other: Callable[[], Engine]) -> Engine:
        """The faster proven one of an engine and another that is built; the other is deleted."""
        try:
            best, worse = self.faster_first(engine, build_other())
        except UserError as failure:
            self.progress.note(f"there is no engine without the plugin to compare with: {failure}")
            return engine
        (self.bundle / worse.file).unlink()
        return best

    def faster_first(self, first: Engine, second: Engine) -> tuple[Engine, Engine]:
        """Two engines, the faster proven one first.

        They run alternately, on the optimum of the first profile, so that whatever else the GPU
        does affects both.
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
        self.progress.note(f"with the plugin the engine takes {ratio:.3f} times as long as without")
        return (first, second) if ratio <= 1 else (second, first)

    def opened(self, engine: Engine) -> runtime.Scorer:
        return runtime.open_engine(self.bundle, self.manifest, engine)


def _record(bundle: Path, engine: Engine, progress: Progress) -> Manifest:
    """Write a new engine into the manifest, and delete the files that it no longer names.

    A proven engine stays beside one of its kind that failed its proof, which nothing loads.
    """
    before = read_manifest(bundle)
    replaced = [
        other
        for other in before.engines
        if _in_its_place(other, engine) and not (other.proven and engine.refuted)
    ]
    if any(other.proven for other in replaced) and not engine.proven:
        progress.note(
            f"{engine.file} takes the place of a proven engine: prove it with `drx verify`"
        )
    kept = [other for other in before.engines if other not in replaced]
    manifest = replace(before, engines=(*kept, engine))
    write_manifest(manifest, bundle)
    named = {each.file for each in manifest.engines}
    for file in {each.file for each in before.engines} - named:
        (bundle / file).unlink(missing_ok=True)
    return manifest


def _in_its_place(old: Engine, new: Engine) -> bool:
    """Whether the new engine replaces the old one: a bundle holds one of each kind."""
    if (old.backend, old.precision) != (new.backend, new.precision):
        return False
    if old.plan is None or new.plan is None:
        return True
    return old.plan.capabilities == new.plan.capabilities


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
