"""What is timed beside an engine: other engines, other bundles, and baselines.

What cannot run is left out, with the reason.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drexperts import runtime
from drexperts.bench.reports import ENGINE, EngineDescription
from drexperts.bench.timing import photograph
from drexperts.runtime.decoding import decode
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import CPU_BACKENDS, Engine, digest, read_manifest
from drexperts.runtime.onnx_session import OnnxSession
from drexperts.runtime.openvino_session import OpenvinoSession
from drexperts.runtime.preprocess import crops_from_image
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.selection import (
    BACKENDS,
    by_preference,
    check_wanted,
    parse_device,
    why_no_driver,
)

Pixels = NDArray[np.uint8]
Run = Callable[[Pixels], object]

ALL = "all"
# Engines of GPUs. Those that the bundle has are timed without being asked for.
GPU_ENGINES = tuple(name for name, backend in BACKENDS.items() if backend.device == "cuda")
# What bears on speed of how a TensorRT plan was built.
_BUILT = ("hardware_compatibility", "plugin_layers", "fused_attention", "version_compatible")


@dataclass
class Variants:
    """What runs, and why other things do not.

    batches: of pixels, on each of which a variant is tried before it is added
    running: the engine first
    against: descriptions of the other engines
    agreement: how far scores are from those of the reduced form in PyTorch, of forms of the model,
        and of the engine where its checkpoint is given
    """

    batches: Sequence[Pixels]
    running: dict[str, Run]
    against: dict[str, EngineDescription] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Run]) -> bool:
        """Add a variant if it can be made and run; otherwise keep the reason."""
        try:
            run = make()
            for pixels in self.batches:
                run(pixels)
        except Exception as cause:  # each library fails in its own ways
            self.left_out[name] = _reason(cause)
            return False
        self.running[name] = run
        return True

    def check(self, name: str, apart: float, device: str) -> None:
        """Raises UserError for a baseline that computes something else: its time means nothing."""
        from drexperts.bench.baselines import ALIKE, HALF_ALIKE

        if math.isfinite(apart):
            self.agreement[name] = apart
        alike = HALF_ALIKE.get(name, ALIKE[device])
        if not apart <= alike:
            raise UserError(
                f"its scores are {apart:.1e} from those of the reduced form in PyTorch, more than "
                f"{alike:.0e}: it computes something else"
            )


def prepared(
    scorer: Scorer,
    bundle: Path,
    batches: Sequence[Pixels],
    *,
    threads: int,
    sweep: Sequence[int] = (),
    baselines: Sequence[str] = (),
    against: Mapping[str, Path] | None = None,
    checkpoint: Path | None = None,
    progress: Progress = SILENT,
) -> Variants:
    """Everything that can run.

    Args:
        scorer: of the bundle's engine that is measured.
        threads: of every engine and of PyTorch, whose are set for this process.
        sweep: other numbers of threads with which the measured engine is to run, too.
        baselines: see `baseline_names`.
        against: bundles of the same model, by the names they are to have.
        checkpoint: the weights of the forms of the model, the bundle's own; None makes random ones.

    Raises UserError for a bundle or a checkpoint that does not fit, and for an unknown baseline.
    """
    variants = Variants(batches, {ENGINE: scorer.session.run})
    for count in sweep:
        name = f"{ENGINE}-{count}-thread{'s' * (count > 1)}"
        progress(f"opening {name}")
        _add_engine(variants, scorer, bundle, name, scorer.engine, count)
    for name, other in (against or {}).items():
        progress(f"opening {name}")
        _add_bundle(variants, scorer, name, other, threads)
    for name, engine in _other_engines(scorer).items():
        progress(f"opening {name}")
        _add_engine(variants, scorer, bundle, name, engine, threads)
    asked = baseline_names(baselines) if baselines else []
    for name in asked:
        if name in GPU_ENGINES:
            _explain_absence(variants, scorer, name)
    built = [name for name in asked if name not in GPU_ENGINES]
    if built or checkpoint is not None:
        _add_baselines(variants, scorer, built, threads, checkpoint, progress)
    return variants


def baseline_names(baselines: Sequence[str]) -> list[str]:
    """Names of baselines, with "all" replaced by every one. Raises UserError for an unknown one."""
    from drexperts.bench.baselines import BASELINES, PYIQA

    every = (*BASELINES, *GPU_ENGINES)
    unknown = [n for n in baselines if n not in (ALL, *every) and not n.startswith(PYIQA)]
    if unknown:
        raise UserError(
            f"unknown baseline {', '.join(unknown)}: choose from {', '.join((ALL, *every))}, or "
            f"any of pyiqa's metrics as {PYIQA}NAME"
        )
    asked = [n for name in baselines for n in (every if name == ALL else (name,))]
    return list(dict.fromkeys(asked))


def names_of(bundles: Sequence[Path]) -> dict[str, Path]:
    """Other bundles by name: "engine-" and the precision of their first engine."""
    found: dict[str, Path] = {}
    taken: Counter[str] = Counter()
    for bundle in bundles:
        first = next(by_preference(read_manifest(bundle).engines), None)
        name = f"{ENGINE}-{first.precision if first else 'none'}"
        taken[name] += 1
        found[name if taken[name] == 1 else f"{name}-{taken[name]}"] = bundle
    return found


def described(bundle: Path, scorer: Scorer) -> EngineDescription:
    """What a bundle's open engine is."""
    engine = scorer.engine
    return EngineDescription(
        preset=scorer.manifest.preset,
        engine=engine.file,
        sha256=engine.sha256,
        backend=engine.backend,
        precision=engine.precision,
        session=scorer.session.description,
        bytes=(bundle / engine.file).stat().st_size,
        digest=digest(scorer.manifest),
        options=_options(scorer),
    )


def _options(scorer: Scorer) -> dict[str, str]:
    """How an engine is set: by its session, or when its plan was built."""
    session, plan = scorer.session, scorer.engine.plan
    if isinstance(session, (OnnxSession, OpenvinoSession)):
        return session.options
    built = {} if plan is None else vars(plan)
    return {name: str(built[name]) for name in _BUILT if name in built}


def device_of(scorer: Scorer) -> str:
    """The device of its engine: "cpu" or "cuda"."""
    return BACKENDS[scorer.engine.backend].device


def _add_bundle(variants: Variants, scorer: Scorer, name: str, other: Path, threads: int) -> None:
    """Raises UserError where it cannot run, because the user asked for this bundle."""
    found = runtime.load(other, threads=threads)
    ours, theirs = scorer.manifest, found.manifest
    if (ours.config, ours.preprocessing.crop) != (theirs.config, theirs.preprocessing.crop):
        raise UserError(f"{other} holds another model than the bundle: their times do not compare")
    if not variants.add(name, lambda: _large_enough(found, variants.batches).session.run):
        raise UserError(f"{other} cannot run beside the bundle: {variants.left_out[name]}")
    variants.against[name] = described(other, found)


def _other_engines(scorer: Scorer) -> dict[str, Engine]:
    """The bundle's other engines by name, or by file where that name is taken.

    Those for GPUs are named as their backend, those for CPUs such as "engine-openvino-bf16".
    """
    found: dict[str, Engine] = {}
    for engine in scorer.manifest.engines:
        on_cpu = engine.backend in CPU_BACKENDS
        name = f"{ENGINE}-{engine.backend}-{engine.precision}" if on_cpu else engine.backend
        if engine != scorer.engine:
            found[engine.file if name in found else name] = engine
    return found


def _add_engine(
    variants: Variants, scorer: Scorer, bundle: Path, name: str, engine: Engine, threads: int
) -> None:
    opened: list[Scorer] = []

    def make() -> Run:
        check_wanted(engine, parse_device("auto"), unverified=False)
        opened.append(runtime.open_engine(bundle, scorer.manifest, engine, threads))
        return _large_enough(opened[0], variants.batches).session.run

    if variants.add(name, make):
        variants.against[name] = described(bundle, opened[0])


def _large_enough(scorer: Scorer, batches: Sequence[Pixels]) -> Scorer:
    most = scorer.session.max_batch
    if max(len(pixels) for pixels in batches) > most:
        raise UserError(f"it takes batches of 1 to {most}: ask for smaller ones")
    return scorer


def _add_baselines(
    variants: Variants,
    scorer: Scorer,
    names: Sequence[str],
    threads: int,
    checkpoint: Path | None,
    progress: Progress,
) -> None:
    import torch

    from drexperts.bench.baselines import FORMS, Subject, build, difference
    from drexperts.model.config import DRExpertsConfig

    torch.set_num_threads(threads)
    spec = scorer.preprocessing
    subject = Subject(
        config=DRExpertsConfig.from_dict(scorer.manifest.config),
        checkpoint=checkpoint,
        crop=spec.crop,
        max_batch=max(len(pixels) for pixels in variants.batches),
        threads=threads,
        device=device_of(scorer),
    )
    # As many crops of a photograph as the first batch has.
    crops = crops_from_image(decode(photograph()), spec).pixels
    pixels = np.resize(crops, variants.batches[0].shape)

    def make(name: str) -> Run:
        run = build(name, subject)
        if name in FORMS:
            variants.check(name, difference(name, run, subject, pixels), subject.device)
        return run

    if checkpoint is not None:
        engine = variants.running[ENGINE]
        variants.agreement[ENGINE] = difference(ENGINE, engine, subject, pixels)
    for name in names:
        progress(f"building {name}")
        variants.add(name, functools.partial(make, name))


def _explain_absence(variants: Variants, scorer: Scorer, name: str) -> None:
    """Say why an engine that was asked for is not there, unless it is."""
    if name in variants.running or name in variants.left_out:
        return
    if scorer.engine.backend == name:
        variants.left_out[name] = "it is the engine that is measured"
    else:
        missing = f"the bundle has none: add it with `drx build BUNDLE --backend {name}`"
        variants.left_out[name] = why_no_driver() or missing


def _reason(cause: Exception) -> str:
    """The text of one of our errors; the class and first line of any other."""
    if isinstance(cause, UserError):
        return str(cause)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return ": ".join([type(cause).__name__, *lines[:1]])
