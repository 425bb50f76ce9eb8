"""The torch-free runtime: a bundle and an image make a Score.

from drexperts import runtime

scorer = runtime.load("bundle/")
score = scorer.score("photo.jpg")
score.value, score.std, score.distortions, score.fingerprint
"""

import os
from collections.abc import Callable
from pathlib import Path

from drexperts.runtime.errors import (
    BundleError,
    ConfigError,
    DrexpertsError,
    ImageError,
    InternalError,
    MissingDependencyError,
    UserError,
    WeightsError,
)
from drexperts.runtime.manifest import Engine, Manifest, read_manifest, sha256_of
from drexperts.runtime.onnx_session import OnnxSession
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.scorer import DistortionMaps, Score, Scorer, Session

__all__ = [
    "BundleError",
    "ConfigError",
    "DistortionMaps",
    "DrexpertsError",
    "Engine",
    "ImageError",
    "InternalError",
    "Manifest",
    "MissingDependencyError",
    "Preprocessing",
    "Score",
    "Scorer",
    "Session",
    "UserError",
    "WeightsError",
    "load",
    "open_engine",
    "read_manifest",
]


def _open_onnx(path: Path, engine: Engine, threads: int | None) -> Session:
    return OnnxSession(path, max_batch=engine.max_batch, threads=threads)


# Best first.
_BACKENDS: dict[str, Callable[[Path, Engine, int | None], Session]] = {"onnx": _open_onnx}


def load(
    bundle: str | os.PathLike[str],
    device: str = "auto",
    *,
    threads: int | None = None,
    allow_unverified: bool = False,
) -> Scorer:
    """A Scorer on the best engine of a bundle folder; `scorer.session.description` says which.

    device: "auto" or "cpu"
    threads: CPU threads of the engine; None leaves its default
    allow_unverified: also take an engine without a passed proof

    Raises BundleError for a bundle that is missing, changed or unproven, MissingDependencyError
    without the engine's library, UserError for other arguments.
    """
    if device not in ("auto", "cpu"):
        raise UserError(f"device must be 'auto' or 'cpu', got {device!r}")
    if not isinstance(bundle, (str, os.PathLike)):
        raise UserError(f"name the bundle's folder, got {bundle!r}")
    manifest = read_manifest(bundle)
    engine = _best_engine(manifest, bundle, allow_unverified)
    return open_engine(bundle, manifest, engine, threads)


def open_engine(
    bundle: str | os.PathLike[str], manifest: Manifest, engine: Engine, threads: int | None = None
) -> Scorer:
    """A Scorer on one engine of a bundle, proven or not; its file must be the recorded one."""
    if threads is not None and (type(threads) is not int or threads < 1):
        raise UserError(f"threads must be a whole number of at least 1, got {threads!r}")
    path = Path(bundle) / engine.file
    _check_unchanged(path, engine)
    session = _BACKENDS[engine.backend](path, engine, threads)
    crop = manifest.preprocessing.crop
    if session.image_size not in (None, crop):
        raise BundleError(
            f"{str(bundle)!r} cuts crops of {crop} px for an engine that takes "
            f"{session.image_size} px: export it again with `drx export`"
        )
    return Scorer(manifest, engine, session)


def _best_engine(
    manifest: Manifest, bundle: str | os.PathLike[str], allow_unverified: bool
) -> Engine:
    known = [e for backend in _BACKENDS for e in manifest.engines if e.backend == backend]
    if not known:
        raise BundleError(
            f"{str(bundle)!r} has no engine this version can run; export it again with `drx export`"
        )
    for engine in known:
        if engine.proven or allow_unverified:
            return engine
    raise BundleError(
        f"no engine in {str(bundle)!r} is proven equal to the model: run `drx verify {bundle}`, "
        "or pass allow_unverified=True"
    )


def _check_unchanged(path: Path, engine: Engine) -> None:
    if not path.is_file():
        raise BundleError(f"{str(path)!r} is missing: export the bundle again with `drx export`")
    if sha256_of(path) != engine.sha256:
        raise BundleError(
            f"{str(path)!r} is not the file that was verified: its SHA-256 differs from the "
            "manifest's; restore it, or export the bundle again with `drx export`"
        )
