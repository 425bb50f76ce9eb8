"""Scores of a data set, from a checkpoint or a bundle, both through the runtime's Scorer."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from drexperts import runtime
from drexperts.data.dataset import Dataset, Sample
from drexperts.data.images import ImageStore, Tell, check_images, sizing
from drexperts.data.recipes import Protocol, Recipe
from drexperts.model.ablations import Variant
from drexperts.model.backbones import normalised
from drexperts.model.checkpoint import Checkpoint, load_checkpoint
from drexperts.model.draft import draft_manifest
from drexperts.model.weight_files import hash_tensors
from drexperts.runtime.decoding.decoders import LocalDecoder
from drexperts.runtime.errors import ConfigError, DeviceError, UserError, WeightsError
from drexperts.runtime.manifest import OUTPUTS, Engine, ScoreScale
from drexperts.runtime.preprocess import Preprocessing, with_crops_per_side
from drexperts.runtime.score import Score
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.selection import parse_device

Pixels = NDArray[np.uint8]

_CHECKERS = 4  # threads that decode
_MAX_BATCH = 1024  # PyTorch itself has no limit


class TorchSession:
    """A PyTorch model as a `runtime.session.Session`, on the device that holds it.

    While it runs the model is in evaluation mode; afterwards its modes are restored.

    Args:
        autocast: the type in which matrix products are computed; None for float32.
        prepare: makes the model's input of uint8 pixels [B, 3, H, W].
    """

    concurrency = 1

    def __init__(
        self,
        model: Variant,
        autocast: torch.dtype | None = None,
        *,
        prepare: Callable[[torch.Tensor], torch.Tensor] = normalised,
        max_batch: int = _MAX_BATCH,
    ) -> None:
        self._model, self._autocast = model, autocast
        self._prepare, self.max_batch = prepare, max_batch
        self._device = model.score.weight.device
        where = "CPU"
        if self._device.type == "cuda":
            where = torch.cuda.get_device_name(self._device)
        self.description = f"PyTorch {torch.__version__} {where}, {_precision(autocast)}"

    def run(self, pixels: Pixels) -> dict[str, NDArray[np.float32]]:
        """pixels: uint8 [B, 3, H, W] -> "score" [B], "weights" [B, D], "maps" [B, D, g, g].

        Raises DeviceError if the GPU runs out of memory.
        """
        mixed = torch.autocast(
            self._device.type, self._autocast, enabled=self._autocast is not None
        )
        try:
            with torch.inference_mode(), _evaluating(self._model), mixed:
                outputs = self._model(self._prepare(torch.from_numpy(pixels).to(self._device)))
        except torch.OutOfMemoryError as cause:
            raise DeviceError(
                f"the GPU has too little memory for {len(pixels)} crops: free some, or use the CPU"
            ) from cause
        return {name: getattr(outputs, name).float().cpu().numpy() for name in OUTPUTS}

    def close(self) -> None:
        """Release the model."""
        del self._model


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def open_model(
    path: str | Path,
    device: str = "auto",
    *,
    engine: str | None = None,
    threads: int | None = None,
    scale: ScoreScale | None = None,
    crops_per_side: int | None = None,
) -> Scorer:
    """Open a checkpoint, or a bundle's best engine as an application gets it, for scoring.

    Args:
        path: a bundle's folder, a checkpoint of ours, or one of the authors' code.
        device: "auto", "cpu", "cuda", or one GPU such as "cuda:1".
        engine: which engine of a bundle is used, as `runtime.load` takes it.
        threads: CPU threads; for a checkpoint this sets PyTorch's threads for the whole process.
        scale: the scale of a checkpoint's scores, used if its file does not state one.
        crops_per_side: the crop grid, see `runtime.load`; None takes the model's own.

    Raises:
        ConfigError: a checkpoint does not state the scale of its scores, or the grid is out of
            range.
        UserError: `path` or the device does not exist; also what `runtime.load` and
            `load_checkpoint` raise.
    """
    path = Path(path)
    if path.is_dir():
        return runtime.load(
            path, device, engine=engine, threads=threads, crops_per_side=crops_per_side
        )
    if not path.exists():
        raise UserError(f"{path} does not exist: name a checkpoint, or a bundle's folder")
    place = _torch_device(device)
    if threads is not None:
        if threads < 1:
            raise ConfigError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    checkpoint = load_checkpoint(path)
    checkpoint.model.to(place)
    known = checkpoint._replace(scale=checkpoint.scale or scale)
    return scorer_of(known, crops_per_side=crops_per_side)


def scorer_of(
    checkpoint: Checkpoint,
    autocast: torch.dtype | None = None,
    *,
    crops_per_side: int | None = None,
) -> Scorer:
    """A Scorer on a model in memory, on the device that holds it. Its manifest is in no bundle.

    Raises ConfigError for a checkpoint that has no scale or that contradicts itself, and for a grid
    that is out of range.
    """
    model = checkpoint.model
    engine = Engine(
        backend="torch",
        file="checkpoint",
        sha256=model_digest(model),
        precision=_precision(autocast),
        max_batch=_MAX_BATCH,
        versions={"torch": version("torch")},
        parity=None,
        invariance=None,
    )
    manifest = draft_manifest(checkpoint, engine)
    decoder = LocalDecoder(with_crops_per_side(checkpoint.preprocessing, crops_per_side))
    return Scorer(manifest, engine, TorchSession(model, autocast), decoder=decoder)


def model_digest(model: Variant) -> str:
    """SHA-256 of a model's configuration and tensors, as 64 hex digits."""
    digest = hashlib.sha256(json.dumps(model.config.as_dict(), sort_keys=True).encode())
    hash_tensors(digest, model.state_dict())
    return digest.hexdigest()


def _precision(autocast: torch.dtype | None) -> str:
    return {None: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[autocast]


def _torch_device(text: str) -> torch.device:
    kind, gpu = parse_device(text)
    there = torch.cuda.device_count()
    if kind == "cpu" or (kind == "auto" and not there):
        return torch.device("cpu")
    if gpu >= there:
        raise DeviceError(f"PyTorch sees {there} GPUs here, and {text} was asked for: use the CPU")
    return torch.device("cuda", gpu)


class ScoredImage(NamedTuple):
    """A model's score of one rated image.

    label: on the data set's scale, mirrored if `ScoredImages.mirrored`
    score: mean over the crops, on the model's scale
    std: population standard deviation over the crops
    """

    name: str
    label: float
    score: float
    std: float
    crops: int


@dataclass(frozen=True)
class ScoredImages:
    """A model's scores of rated images.

    skipped: why each unusable image was left out on request, one line each
    mirrored: whether labels were mirrored in their range, so that higher means the same in both
    fingerprint: see `runtime.scorer.Scorer.fingerprint`
    """

    rows: tuple[ScoredImage, ...]
    skipped: tuple[str, ...]
    mirrored: bool
    fingerprint: str


def predict(
    scorer: Scorer,
    dataset: Dataset,
    samples: Sequence[Sample],
    *,
    protocol: Protocol,
    recipe: Recipe,
    seed: int = 0,
    skip_bad: bool = False,
    progress: Tell = lambda done, total: None,
) -> ScoredImages:
    """Score rated images. All of them are checked before the first is scored.

    With the protocol `grid` each file goes through the Scorer. With `released` each image is
    resized as for training, and random crops of it, mirrored at random if the recipe says so, go
    through the same Scorer. The crops depend only on `seed` and the image's name.

    Args:
        skip_bad: leave out unusable images, see `images.check_images`.
        progress: called with the number of images scored and of all images.

    Raises:
        DataError: no image is usable, or some are not and `skip_bad` is not set.
        WeightsError: the model's scores are not finite.
    """
    store = ImageStore(dataset, sizing(protocol, recipe, scorer.preprocessing.crop))
    good, skipped = check_images(
        store, samples, skip_bad=skip_bad, workers=_CHECKERS, tell=lambda done, total: None
    )
    source = scorer if protocol == "grid" else _of_single_crops(scorer)
    results = (
        _on_grid(source, store, good)
        if protocol == "grid"
        else _on_random_crops(source, store, good, recipe, seed)
    )
    mirrored = dataset.scale.higher_is_better != scorer.manifest.scale.higher_is_better
    ends = dataset.scale.low + dataset.scale.high
    rows = []
    for sample, scores in zip(good, results, strict=True):
        label = ends - sample.label if mirrored else sample.label
        mean, std = float(np.mean(scores)), float(np.std(scores))
        rows.append(ScoredImage(sample.name, label, mean, std, len(scores)))
        progress(len(rows), len(good))
    example = dataset.root if protocol == "grid" else np.zeros((1, 1, 3), np.uint8)
    return ScoredImages(tuple(rows), skipped, mirrored, source.fingerprint(example))


def _on_grid(
    scorer: Scorer, store: ImageStore, samples: Sequence[Sample]
) -> Iterator[tuple[float, ...]]:
    rows = scorer.score_stream(store.dataset.path(sample) for sample in samples)
    for sample, row in zip(samples, rows, strict=True):
        _check_scored(store, sample, [row])
        yield row.raw


def _of_single_crops(scorer: Scorer) -> Scorer:
    """The same engine for images that already have the size of a crop."""
    crop = scorer.preprocessing.crop
    decoder = LocalDecoder(Preprocessing(crop, crop, crop, 1))
    return Scorer(
        scorer.manifest, scorer.engine, scorer.session, batch=scorer.batch, decoder=decoder
    )


def _on_random_crops(
    scorer: Scorer, store: ImageStore, samples: Sequence[Sample], recipe: Recipe, seed: int
) -> Iterator[tuple[float, ...]]:
    crop = scorer.preprocessing.crop
    rows = scorer.score_stream(
        cut
        for sample in samples
        for cut in random_crops(store.pixels(sample), crop, recipe, _generator(seed, sample.name))
    )
    for sample in samples:
        of_it = list(itertools.islice(rows, recipe.test_crops))
        _check_scored(store, sample, of_it)
        yield tuple(row.value for row in of_it)


def _check_scored(store: ImageStore, sample: Sample, rows: Sequence[Score]) -> None:
    if any(row.error is not None for row in rows):
        store.pixels(sample)  # raises DataError if the image has become unreadable
        raise WeightsError(
            f"the model's score of {sample.name} is not finite: its weights are damaged, or its "
            "training diverged, which a lower learning rate prevents"
        )


def _generator(seed: int, name: str) -> np.random.Generator:
    of_name = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return np.random.default_rng(np.random.SeedSequence([seed, of_name]))


def random_crops(
    pixels: Pixels, crop: int, recipe: Recipe, generator: np.random.Generator
) -> Iterator[Pixels]:
    """The released test crops, uint8 [crop, crop, 3], of an image [H, W, 3] at least as large."""
    height, width, _ = pixels.shape
    tops = generator.integers(0, height - crop + 1, recipe.test_crops)
    lefts = generator.integers(0, width - crop + 1, recipe.test_crops)
    turned = generator.random((recipe.test_crops, 2)) < (0.5 if recipe.test_flips else 0.0)
    for top, left, (upside_down, mirrored) in zip(tops, lefts, turned, strict=True):
        cut = pixels[top : top + crop, left : left + crop]
        yield np.ascontiguousarray(cut[:: -1 if upside_down else 1, :: -1 if mirrored else 1])
