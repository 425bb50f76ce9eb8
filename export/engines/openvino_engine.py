"""Engines for OpenVINO on the CPU: an ONNX file whose graph has the types that were asked for.

The library compiles it for the CPU on which it is loaded. That is done here once as well, to read
back the type of each product.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from drexperts.export.engines.engine_build import EngineBuild
from drexperts.export.engines.openvino_types import compiled_products
from drexperts.export.engines.source_graph import engine_graph, source_graph
from drexperts.export.graph.bfloat16_blocks import bfloat16_blocks
from drexperts.export.graph.openvino_graph import openvino_graph
from drexperts.export.graph.openvino_precision import (
    OpenvinoInt8,
    has_bfloat16,
    searched_choices,
    type_of_rest,
    with_rest,
)
from drexperts.export.graph.precision import PrecisionChoice
from drexperts.export.proof.division import digest_of, divided, photographs_of
from drexperts.model.checkpoint import Checkpoint
from drexperts.runtime.cpus import cpu_capability
from drexperts.runtime.decoding import Source
from drexperts.runtime.errors import UserError
from drexperts.runtime.files import replace_file
from drexperts.runtime.manifest import Engine, sha256_of
from drexperts.runtime.openvino_library import openvino_version
from drexperts.runtime.wording import remedy

# What a precision needs photographs for, beside the proof: arguments of `divided`.
_NEEDED = {"auto": ("search", "calibration"), "int8": ("calibration",)}


def openvino_engine(build: EngineBuild, source: Engine, precision: str | None) -> Engine:
    """Write an engine for OpenVINO into the bundle, and prove it.

    Of "auto", the first that its proof does not refute, or the last one.

    Args:
        source: the bundle's ONNX engine.
        precision: see `build_engine`.

    Raises:
        UserError: the precision needs the checkpoint, or a type that this CPU lacks.
        BuildError: OpenVINO computes other types than the graph has.
    """
    wanted = precision or _usual_precision(source)
    _check_possible(wanted, source, build.checkpoint)
    from_source = wanted == source.precision
    needed = () if from_source else _NEEDED.get(wanted, ())
    parts = divided(photographs_of(build.images), *needed) if needed else {}
    work = _OpenvinoBuild(
        build.bundle,
        build.manifest,
        build.checkpoint,
        parts.get("proof", build.images),
        build.progress,
        source,
        parts,
    )
    return work.first_to_hold(work.choices(wanted))


def _usual_precision(source: Engine) -> str:
    """The fastest precision that needs no calibration."""
    if source.precision == "int8":
        return "int8"
    return "bf16" if has_bfloat16() else "fp32"


def _check_possible(precision: str, source: Engine, checkpoint: Checkpoint | None) -> None:
    if precision not in ("fp32", "bf16", "int8", "auto"):
        raise UserError(f"openvino builds fp32, bf16, int8 or auto on CPUs, got {precision!r}")
    if precision == "bf16" and not has_bfloat16():
        raise UserError(
            f"this CPU ({cpu_capability()}) multiplies no bfloat16, and would compute the engine "
            "in float32: build it in fp32 or int8, or on a CPU with AMX or AVX512_BF16"
        )
    if checkpoint is None and precision in _NEEDED and precision != source.precision:
        raise UserError(
            f"{precision} is calibrated on photographs with the model: pass "
            f"{remedy('--checkpoint FILE', 'checkpoint=')}, the one that was exported"
        )


@dataclass(frozen=True)
class _OpenvinoBuild(EngineBuild):
    """One build for OpenVINO.

    source: the bundle's ONNX engine
    parts: the photographs for "search" and "calibration", as far as they are needed
    """

    source: Engine
    parts: Mapping[str, Sequence[Source]]

    def choices(self, precision: str) -> Iterator[PrecisionChoice]:
        """The graph in a precision; of "auto" the fastest mixture, then ever safer ones."""
        maps, most = "maps" in self.manifest.outputs, self.source.max_batch
        if precision in ("fp32", "bf16"):
            graph = openvino_graph(self._float_graph())
            lowered = bfloat16_blocks(graph) if precision == "bf16" else graph
            yield PrecisionChoice(lowered, precision)
        elif precision == self.source.precision:
            graph = with_rest(openvino_graph(source_graph(self.bundle, self.source)))
            yield PrecisionChoice(graph, "int8", self.source.islands, rest=type_of_rest())
        else:
            assert self.checkpoint is not None
            if precision == "auto":
                yield from searched_choices(
                    self.checkpoint, self.parts, maps=maps, max_batch=most, progress=self.progress
                )
                return
            self.progress("calibrating on photographs")
            model = OpenvinoInt8(self.checkpoint, self.parts["calibration"], maps, most)
            yield PrecisionChoice(model.graph(()), "int8", rest=model.rest)

    def _float_graph(self) -> onnx.ModelProto:
        return engine_graph(self.bundle, self.manifest, "fp32", True, self.checkpoint)

    def first_to_hold(self, choices: Iterator[PrecisionChoice]) -> Engine:
        """The first engine whose proof does not refute it, or the last one."""
        # The manifest may name a file of the same bytes, which stays until it no longer does.
        named = {engine.file for engine in self.manifest.engines}
        engine: Engine | None = None
        for missed, choice in enumerate(choices):
            if engine is not None and engine.file not in named:
                (self.bundle / engine.file).unlink()
            engine = self.proven(replace(self.written(choice), missed=missed))
            if not engine.refuted:
                break
            kept = f" with {len(choice.islands)} parts in {choice.rest}" * bool(choice.islands)
            self.progress.note(f"the engine in {choice.precision}{kept} failed its proof")
        assert engine is not None
        return engine

    def written(self, choice: PrecisionChoice) -> Engine:
        """Write an engine into the bundle, and read back what OpenVINO makes of it."""
        self.progress(f"compiling for OpenVINO in {choice.precision}")
        aside = self.bundle / f".{secrets.token_hex(4)}.engine"  # a name that `changes` clears up
        try:
            onnx.save(choice.graph, aside)
            products = compiled_products(choice.graph, aside, self.source.max_batch)
            sha = sha256_of(aside)
            path = self.bundle / f"openvino-{choice.precision}-{sha[:8]}.onnx"
            replace_file(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        same = next((each for each in self.manifest.engines if each.sha256 == sha), None)
        return Engine(
            backend="openvino",
            file=path.name,
            sha256=sha,
            precision=choice.precision,
            max_batch=self.source.max_batch,
            versions={"openvino": str(openvino_version())},
            parity=None if same is None else same.parity,  # stays if none is measured here
            proven_on=None if same is None else same.proven_on,
            invariance=None,
            islands=choice.islands if choice.rest == "fp32" else (),
            bf16_layers=choice.islands if choice.rest == "bf16" else (),
            frontier=choice.trials,
            products=products,
            calibrated_on=self._used("calibration", self.source.calibrated_on, choice),
            searched_on=self._used("search", self.source.searched_on, choice),
        )

    def _used(
        self, part: str, of_source: tuple[str, ...], choice: PrecisionChoice
    ) -> tuple[str, ...]:
        """The pictures that were used for a part, here or when the source was made."""
        if self.parts:
            return tuple(map(digest_of, self.parts.get(part, ())))
        return of_source if choice.precision == self.source.precision else ()
