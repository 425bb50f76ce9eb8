"""Open a bundle on the best engine that this machine can run."""

import functools
import logging
import os

from drexperts.runtime.decoding.decoders import Decoder, LocalDecoder
from drexperts.runtime.decoding.limits import DEFAULT_LIMITS, DecodingLimits
from drexperts.runtime.decoding.workers import IsolatedDecoder
from drexperts.runtime.errors import (
    BundleError,
    ChangedFileError,
    DeviceError,
    MissingDependencyError,
    NotTakenError,
    UserError,
)
from drexperts.runtime.interface import misfit
from drexperts.runtime.manifest import Engine, Manifest
from drexperts.runtime.preprocess import with_crops_per_side
from drexperts.runtime.quoting import quoted
from drexperts.runtime.remote_bundle import absolute, engine_file, manifest_of
from drexperts.runtime.scorer import DECODERS, PassedOver, Scorer
from drexperts.runtime.selection import (
    BACKENDS,
    Resources,
    by_preference,
    check_allowed,
    check_wanted,
    chosen,
    parse_device,
)
from drexperts.runtime.session import Session

_MOST_THREADS = 4096  # more than any machine has; libraries crash on absurd numbers
_log = logging.getLogger(__name__)


def load(
    bundle: str | os.PathLike[str],
    device: str = "auto",
    *,
    engine: str | None = None,
    batch: int | None = None,
    threads: int | None = None,
    streams: int = 1,
    crops_per_side: int | None = None,
    allow_unverified: bool = False,
    trust: bool = False,
    digest: str | None = None,
    isolated: bool = False,
    decoders: int = DECODERS,
    limits: DecodingLimits = DEFAULT_LIMITS,
) -> Scorer:
    """A Scorer on the best engine of a bundle that this machine can run.

    bundle: a folder, or with the extra "remote" the URL of one, such as s3://bucket/bundle; the
        manifest and the engine that is opened are downloaded into the user's cache folder

    `scorer.session.description` says which engine it is, `scorer.passed_over` which better engines
    were not used and why. Both are logged as well.

    device: "auto", "cpu", "cuda", or a GPU by its number, such as "cuda:1"
    engine: only engines of this backend, such as "openvino" or "onnx", or of this file of the
        bundle; None takes any
    batch: the largest number of crops per call of the engine; None is 8, or fewer if the engine
        takes fewer
    threads: CPU threads of the engine; None is one per core that this process may use
    streams: how many calls an OpenVINO engine computes at once, which share its threads: more for a
        server, 1 for the shortest answer; other engines have their own number
    crops_per_side: the most crops along each axis of an image, 1 to 64; None is the bundle's own
        grid, with which its engines were proven. With another one scores have another fingerprint
        and say so in `Score.crops_per_side`; an image that has no room for so many gets fewer
    allow_unverified: also take an engine without a passed proof
    trust: also take a TensorRT engine that was not built here, which can run its maker's code
    digest: the only bundle to accept, as `drx info` prints it; None accepts any
    isolated: decode files and bytes in processes of their own, with limits of memory and time: an
        image that crashes its decoder costs its own score only
    decoders: how many of these processes; `score_stream` feeds two
    limits: the most pixels, bytes and seconds that decoding may take

    Raises BundleError for a bundle that is missing, changed, of another digest, or has no proven
    engine that runs here; MissingDependencyError if the library of its only engine is not
    installed; DeviceError for a GPU that cannot be used; UserError for invalid arguments.
    """
    wanted = parse_device(device)
    if not isinstance(bundle, (str, os.PathLike)):
        raise UserError(f"bundle must be the path or the URL of a bundle's folder, got {bundle!r}")
    manifest = manifest_of(bundle, digest)
    failures: list[tuple[Engine, UserError]] = []
    for each in by_preference(chosen(manifest.engines, engine)):
        try:
            check_wanted(each, wanted, unverified=allow_unverified)
            scorer = open_engine(
                bundle,
                manifest,
                each,
                threads,
                streams=streams,
                batch=batch,
                crops_per_side=crops_per_side,
                gpu=wanted.gpu,
                trust=trust,
                isolated=isolated,
                decoders=decoders,
                limits=limits,
            )
        except ChangedFileError:
            raise
        except (BundleError, DeviceError, MissingDependencyError) as error:
            _log.info("%s (%s) is not used: %s", each.file, each.backend, error)
            failures.append((each, error))
        else:
            _log.info("using %s on %s", each.file, scorer.session.description)
            scorer.passed_over = _passed_over(failures)
            return scorer
    raise _none_left(bundle, failures)


def open_engine(
    bundle: str | os.PathLike[str],
    manifest: Manifest,
    engine: Engine,
    threads: int | None = None,
    *,
    streams: int = 1,
    batch: int | None = None,
    crops_per_side: int | None = None,
    gpu: int = 0,
    trust: bool = False,
    isolated: bool = False,
    decoders: int = DECODERS,
    limits: DecodingLimits = DEFAULT_LIMITS,
) -> Scorer:
    """A Scorer on one engine of a bundle, whether or not it is proven.

    The arguments are those of `load`; `gpu` is a GPU's number. Raises NotTakenError for an engine
    that this machine cannot run or that is not trusted, and otherwise what `load` raises.
    """
    # Absolute, because a process that opens it again may be in another folder.
    reopen = functools.partial(
        open_session,
        absolute(bundle),
        manifest,
        engine,
        threads,
        streams=streams,
        gpu=gpu,
        trust=trust,
    )
    spec = with_crops_per_side(manifest.preprocessing, crops_per_side)
    decoder: Decoder = (
        IsolatedDecoder(spec, limits, decoders) if isolated else LocalDecoder(spec, limits)
    )
    return Scorer(manifest, engine, reopen(), batch=batch, decoder=decoder, reopen=reopen)


def open_session(
    bundle: str | os.PathLike[str],
    manifest: Manifest,
    engine: Engine,
    threads: int | None = None,
    *,
    streams: int = 1,
    gpu: int = 0,
    trust: bool = False,
) -> Session:
    """One engine of a bundle, ready to run. Arguments and errors are those of `open_engine`."""
    for name, count in {"threads": 1 if threads is None else threads, "streams": streams}.items():
        if type(count) is not int or not 1 <= count <= _MOST_THREADS:
            raise UserError(
                f"{name} must be a whole number from 1 to {_MOST_THREADS}, got {quoted(count)}"
            )
    check_allowed(engine, gpu, trust=trust)
    path = engine_file(bundle, manifest, engine)
    session = BACKENDS[engine.backend].open(path, engine, Resources(threads, streams, gpu))
    if difference := misfit(manifest, engine, session.inputs, session.outputs):
        session.close()
        raise BundleError(
            f"{str(path)!r} does not fit its manifest: {difference}; {engine.made_again}"
        )
    return session


def _passed_over(failures: list[tuple[Engine, UserError]]) -> tuple[PassedOver, ...]:
    return tuple(PassedOver(engine.file, engine.backend, str(error)) for engine, error in failures)


def _none_left(
    bundle: str | os.PathLike[str], failures: list[tuple[Engine, UserError]]
) -> UserError:
    """The error that `load` raises when no engine can be used."""
    if not failures:
        return BundleError(
            f"{str(bundle)!r} has no engine this version can run; export it again with `drx export`"
        )
    errors = [error for _, error in failures]
    if len(errors) == 1 and not isinstance(errors[0], NotTakenError):
        return errors[0]
    reasons = "; ".join(
        f"{file} ({backend}): {why}" for file, backend, why in _passed_over(failures)
    )
    return BundleError(f"no engine in {str(bundle)!r} can be used here: {reasons}")
