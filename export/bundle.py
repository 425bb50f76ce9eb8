"""A trained model to a bundle that the runtime accepts, or to one that it refuses and says why."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnx

from drexperts import runtime
from drexperts.checkpoint import Checkpoint, load_checkpoint
from drexperts.config import DISTORTIONS
from drexperts.export.photographs import verification_images
from drexperts.export.to_onnx import onnx_from_model
from drexperts.export.verify import Progress, measure_invariance, measure_parity
from drexperts.runtime.errors import BundleError, ConfigError, ImageError, UserError
from drexperts.runtime.manifest import (
    FILE_NAME,
    OUTPUTS,
    SCHEMA,
    Engine,
    Manifest,
    ScoreScale,
    read_manifest,
    sha256_of,
    write_manifest,
)
from drexperts.runtime.preprocess import Source, decode

MODEL_FILE = "model.onnx"
ABANDONED = 24 * 3600.0  # seconds


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    images: Path | None,
    scale: ScoreScale | None,
    precision: str,
    maps: bool,
    max_batch: int,
    progress: Progress,
) -> Manifest:
    """`export_bundle` from a checkpoint file; `scale` overrides the file's."""
    progress(f"reading {checkpoint}")
    loaded = load_checkpoint(checkpoint)
    chosen = loaded._replace(scale=scale or loaded.scale)
    pictures = None if images is None else images_in(images)
    return export_bundle(chosen, out, pictures, precision, maps, max_batch, progress)


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    images: Sequence[Source] | None = None,
    precision: str = "fp32",
    maps: bool = True,
    max_batch: int = 8,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Fold, write ONNX, verify, and only then put the bundle at `out`.

    Made aside and renamed, so that a broken run leaves what was there. A bundle that fails its
    proof does take its place at `out`, with its report for `drx info`; `runtime.load` refuses it.

    Args:
        images: to verify on, RGB; None takes `verification_images`.
        precision: "fp32" or "fp16", of the transformer blocks.
        maps: also an output of distortion maps.
        max_batch: the largest batch, verified and admitted.

    Raises:
        ConfigError: the checkpoint does not say what scale its scores are on, or contradicts
            itself; `max_batch` is not 1 to 1024.
        UserError: `out` is something other than a bundle.
    """
    _check_exportable(checkpoint, max_batch)
    out = out.resolve()  # where a link leads is what is replaced
    _check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep_abandoned(out)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        progress("folding and writing ONNX")
        proto = onnx_from_model(checkpoint.model, maps, precision, max_batch)
        onnx.save(proto, aside / MODEL_FILE)
        write_manifest(_unproven(checkpoint, aside, precision, maps, max_batch), aside)
        manifest = prove(aside, checkpoint, images, progress)
        _replace_folder(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest


def verify_bundle(
    bundle: Path, *, checkpoint: Path | None, images: Path | None, progress: Progress
) -> Manifest:
    """Measure a bundle's proof again and rewrite it.

    Parity needs the weights it is held against, so without `checkpoint` the recorded parity stays
    and only batch invariance is measured.
    """
    loaded = None if checkpoint is None else load_checkpoint(checkpoint)
    return prove(bundle, loaded, None if images is None else images_in(images), progress)


def prove(
    bundle: Path,
    checkpoint: Checkpoint | None,
    images: Sequence[Source] | None,
    progress: Progress,
) -> Manifest:
    """Measure every engine of a bundle and write the proofs into its manifest."""
    manifest = read_manifest(bundle)
    if checkpoint is not None:
        _check_same_model(checkpoint, manifest)
    pictures = verification_images() if images is None else images
    engines = []
    for engine in manifest.engines:
        parity = engine.parity
        if checkpoint is not None:
            scorer = runtime.open_engine(bundle, manifest, engine)
            parity = measure_parity(scorer, checkpoint.model, pictures, engine.precision, progress)

        def session(threads: int | None, engine: Engine = engine) -> runtime.Session:
            return runtime.open_engine(bundle, manifest, engine, threads).session

        invariance = measure_invariance(session, pictures, manifest, engine.precision, progress)
        engines.append(replace(engine, parity=parity, invariance=invariance))
    proven = replace(manifest, engines=tuple(engines))
    write_manifest(proven, bundle)
    return proven


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


def _unproven(
    checkpoint: Checkpoint, folder: Path, precision: str, maps: bool, max_batch: int
) -> Manifest:
    config = checkpoint.model.config
    assert checkpoint.scale is not None
    engine = Engine(
        backend="onnx",
        file=MODEL_FILE,
        sha256=sha256_of(folder / MODEL_FILE),
        precision=precision,
        max_batch=max_batch,
        versions={"onnx": version("onnx")},
        parity=None,
        invariance=None,
    )
    return Manifest(
        schema=SCHEMA,
        preset=config.preset,
        config=config.as_dict(),
        preprocessing=checkpoint.preprocessing,
        scale=checkpoint.scale,
        distortions=DISTORTIONS,
        outputs=OUTPUTS if maps else OUTPUTS[:2],
        engines=(engine,),
        created_with={name: version(name) for name in ("drexperts", "torch", "timm", "onnx")},
    )


def _check_exportable(checkpoint: Checkpoint, max_batch: int) -> None:
    size, crop = checkpoint.model.config.encoder.image_size, checkpoint.preprocessing.crop
    if checkpoint.scale is None:
        raise ConfigError("the checkpoint does not say its scores' scale: pass --scale LOW:HIGH")
    if crop != size:
        raise ConfigError(f"the checkpoint cuts {crop} px crops for a model of {size} px images")
    if not 1 <= max_batch <= 1024:
        raise ConfigError(f"the largest batch must be 1 to 1024, got {max_batch}")


def _check_same_model(checkpoint: Checkpoint, manifest: Manifest) -> None:
    # Through JSON, as the manifest went.
    config = json.loads(json.dumps(checkpoint.model.config.as_dict()))
    if config != manifest.config:
        changed = [name for name in config if config[name] != manifest.config.get(name)]
        raise UserError(
            f"the checkpoint is of another model than the bundle: {', '.join(changed)} differ; "
            "name the checkpoint that was exported"
        )


def _check_replaceable(out: Path) -> None:
    """Only nothing, an empty folder, or a bundle and nothing else may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        own = {FILE_NAME, *(engine.file for engine in read_manifest(out).engines)}
    except BundleError:
        own = set()
    if not own or {path.name for path in out.iterdir()} - own:
        raise UserError(f"{out} holds other things than a bundle: choose another place for it")


def _sweep_abandoned(out: Path) -> None:
    """Remove what exports that were killed left beside `out`; no export takes that long."""
    for path in out.parent.iterdir():
        left = path.name.startswith((f".{out.name}.partial-", f".{out.name}.old-"))
        if left and time.time() - path.stat().st_mtime > ABANDONED:
            shutil.rmtree(path, ignore_errors=True)


def _replace_folder(source: Path, target: Path) -> None:
    """Put `source` at `target`, whose old contents go only once the new ones are in place."""
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    if target.exists():
        os.replace(target, old)
    os.chmod(source, 0o755)  # made for its owner alone
    os.replace(source, target)
    shutil.rmtree(old, ignore_errors=True)
