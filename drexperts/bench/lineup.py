"""Who is timed beside an engine, and who is not and why: other engines, other bundles, contenders
of PyTorch and of plain exports."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drexperts import runtime
from drexperts.bench.timing import photograph
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import Engine, read_manifest
from drexperts.runtime.preprocess import crops_from_image, decode
from drexperts.runtime.progress import Progress
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.selection import (
    BACKENDS,
    by_preference,
    check_wanted,
    parse_device,
    why_no_driver,
)

if TYPE_CHECKING:
    from drexperts.bench.baselines import Subject

Pixels = NDArray[np.uint8]
Contender = Callable[[Pixels], object]

ENGINE = "engine"
ALL = "all"
# Engines of GPUs; one that the bundle has enters without being asked for.
GPU_ENGINES = tuple(name for name, backend in BACKENDS.items() if backend.device == "cuda")


@dataclass
class Entrants:
    """Who runs, and who does not.

    batches: of pixels, on each of which everybody is tried before he is admitted
    running: the engine first
    against: of other engines, what `card` says
    left_out: the reasons
    agreement: of forms of the model, and of the engine where its checkpoint is there, how far their
        scores are from those of the reduced form in PyTorch, of the larger magnitude
    """

    batches: Sequence[Pixels]
    running: dict[str, Contender]
    against: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)

    def admit(self, name: str, make: Callable[[], Contender]) -> bool:
        """Admit whoever can be made and run; else keep the reason."""
        try:
            contender = make()
            for pixels in self.batches:
                contender(pixels)
        except Exception as cause:  # of libraries that fail in ways of their own
            self.left_out[name] = _reason(cause)
            return False
        self.running[name] = contender
        return True


def enter(
    scorer: Scorer,
    bundle: Path,
    batches: Sequence[Pixels],
    *,
    baselines: Sequence[str],
    others: Mapping[str, Path],
    threads: int,
    checkpoint: Path | None,
    progress: Progress,
) -> Entrants:
    """Everybody who can run.

    Args:
        scorer: of the bundle's engine that is measured.
        baselines: see `named`.
        others: bundles of the same model, by the names they are to have.
        threads: of every engine and of PyTorch, whose are set for this process.
        checkpoint: the weights of the forms of the model, the bundle's own; None makes random ones.

    Raises UserError for a bundle or a checkpoint that does not fit, and for an unknown baseline.
    """
    entrants = Entrants(batches, {ENGINE: scorer.session.run})
    for name, other in others.items():
        progress(f"opening {name}")
        _enter_bundle(entrants, scorer, name, other, threads)
    for name, engine in _besides(scorer).items():
        progress(f"opening {name}")
        _enter_engine(entrants, scorer, bundle, name, engine, threads)
    asked = named(baselines) if baselines else []
    for name in asked:
        if name in GPU_ENGINES:
            _explain_absence(entrants, scorer, name)
    contenders = [name for name in asked if name not in GPU_ENGINES]
    if contenders or checkpoint is not None:
        _enter_contenders(entrants, scorer, contenders, threads, checkpoint, progress)
    return entrants


def named(baselines: Sequence[str]) -> list[str]:
    """Baselines by name, "all" replaced by every one. Raises UserError for an unknown one."""
    from drexperts.bench.baselines import CONTENDERS, PYIQA

    every = (*CONTENDERS, *GPU_ENGINES)
    unknown = [n for n in baselines if n not in (ALL, *every) and not n.startswith(PYIQA)]
    if unknown:
        raise UserError(
            f"unknown baseline {', '.join(unknown)}: choose of {', '.join((ALL, *every))}, or any "
            f"of pyiqa's metrics as {PYIQA}NAME"
        )
    asked = [n for name in baselines for n in (every if name == ALL else (name,))]
    return list(dict.fromkeys(asked))


def names_of(bundles: Sequence[Path]) -> dict[str, Path]:
    """Other bundles by what they are: "engine-" and the precision of their first engine."""
    found: dict[str, Path] = {}
    taken: Counter[str] = Counter()
    for bundle in bundles:
        first = next(by_preference(read_manifest(bundle).engines), None)
        name = f"{ENGINE}-{first.precision if first else 'none'}"
        taken[name] += 1
        found[name if taken[name] == 1 else f"{name}-{taken[name]}"] = bundle
    return found


def card(bundle: Path, scorer: Scorer) -> dict[str, Any]:
    """What an engine is, JSON-ready, without paths of this machine."""
    engine = scorer.engine
    return {
        "preset": scorer.manifest.preset,
        "engine": engine.file,
        "sha256": engine.sha256,
        "backend": engine.backend,
        "precision": engine.precision,
        "session": scorer.session.description,
        "bytes": (bundle / engine.file).stat().st_size,
    }


def device_of(scorer: Scorer) -> str:
    """Of its engine: "cpu" or "cuda"."""
    return BACKENDS[scorer.engine.backend].device


def _enter_bundle(entrants: Entrants, scorer: Scorer, name: str, other: Path, threads: int) -> None:
    """Raises UserError: who names a bundle wants it in the run."""
    found = runtime.load(other, threads=threads)
    ours, theirs = scorer.manifest, found.manifest
    if (ours.config, ours.preprocessing.crop) != (theirs.config, theirs.preprocessing.crop):
        raise UserError(f"{other} is of another model than the bundle: their times say nothing")
    if not entrants.admit(name, lambda: _within_reach(found, entrants.batches).session.run):
        raise UserError(f"{other} cannot be run beside the bundle: {entrants.left_out[name]}")
    entrants.against[name] = card(other, found)


def _besides(scorer: Scorer) -> dict[str, Engine]:
    """The bundle's other engines, by backend; by file where that is taken."""
    found: dict[str, Engine] = {}
    for engine in scorer.manifest.engines:
        if engine != scorer.engine:
            found[engine.file if engine.backend in found else engine.backend] = engine
    return found


def _enter_engine(
    entrants: Entrants,
    scorer: Scorer,
    bundle: Path,
    name: str,
    engine: Engine,
    threads: int,
) -> None:
    opened: list[Scorer] = []

    def make() -> Contender:
        check_wanted(engine, parse_device("auto"), unverified=False)
        opened.append(runtime.open_engine(bundle, scorer.manifest, engine, threads))
        return _within_reach(opened[0], entrants.batches).session.run

    if entrants.admit(name, make):
        entrants.against[name] = card(bundle, opened[0])


def _within_reach(scorer: Scorer, batches: Sequence[Pixels]) -> Scorer:
    most = scorer.session.max_batch
    if max(len(pixels) for pixels in batches) > most:
        raise UserError(f"it admits batches of 1 to {most}: ask for smaller ones")
    return scorer


def _enter_contenders(
    entrants: Entrants,
    scorer: Scorer,
    names: Sequence[str],
    threads: int,
    checkpoint: Path | None,
    progress: Progress,
) -> None:
    import torch

    from drexperts.bench.baselines import FORMS, build, difference

    torch.set_num_threads(threads)
    subject = _subject(scorer, entrants.batches, threads, checkpoint)
    pixels = _photographed(scorer, entrants.batches[0])

    def make(name: str) -> Contender:
        contender = build(name, subject)
        if name in FORMS:
            _hold(entrants, name, difference(name, contender, subject, pixels), subject.device)
        return contender

    if checkpoint is not None:
        run = entrants.running[ENGINE]
        entrants.agreement[ENGINE] = difference(ENGINE, run, subject, pixels)
    for name in names:
        progress(f"building {name}")
        entrants.admit(name, functools.partial(make, name))


def _hold(entrants: Entrants, name: str, apart: float, device: str) -> None:
    """Raises UserError for a contender that computes something else: its time says nothing."""
    from drexperts.bench.baselines import ALIKE

    if math.isfinite(apart):
        entrants.agreement[name] = apart
    if not apart <= ALIKE[device]:
        raise UserError(
            f"its scores are {apart:.1e} from those of the reduced form in PyTorch, more than "
            f"{ALIKE[device]:.0e}: it computes something else"
        )


def _photographed(scorer: Scorer, like: Pixels) -> Pixels:
    """Crops of a photograph, again and again, in the shape of a batch that contenders know."""
    spec = scorer.manifest.preprocessing
    return np.resize(crops_from_image(decode(photograph()), spec).pixels, like.shape)


def _subject(
    scorer: Scorer, batches: Sequence[Pixels], threads: int, checkpoint: Path | None
) -> "Subject":
    from drexperts.bench.baselines import Subject
    from drexperts.model.config import DRExpertsConfig

    return Subject(
        config=DRExpertsConfig.from_dict(scorer.manifest.config),
        checkpoint=checkpoint,
        crop=scorer.manifest.preprocessing.crop,
        max_batch=max(len(pixels) for pixels in batches),
        threads=threads,
        device=device_of(scorer),
    )


def _explain_absence(entrants: Entrants, scorer: Scorer, name: str) -> None:
    """Why an engine that was asked for is not there, unless it is."""
    if name in entrants.running or name in entrants.left_out:
        return
    if scorer.engine.backend == name:
        entrants.left_out[name] = "it is the engine that is measured"
    else:
        missing = f"the bundle has none: add it with `drx build BUNDLE --backend {name}`"
        entrants.left_out[name] = why_no_driver() or missing


def _reason(cause: Exception) -> str:
    """An error's text; of others than ours its kind and first line."""
    if isinstance(cause, UserError):
        return str(cause)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return ": ".join([type(cause).__name__, *lines[:1]])
