"""A training from its data to its result, in a folder, which may be stopped or killed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from drexperts.data.images import ImageStore, Stamp, check_images, sizing
from drexperts.data.splits import Split, Splits, read_splits, write_splits
from drexperts.data.training_crops import divisible_batch
from drexperts.evaluation.predict import model_digest
from drexperts.model.ablations import Variant, ablated
from drexperts.model.dr_experts import DRExperts
from drexperts.runtime.errors import DataError, StoppedError, UserError, WeightsError
from drexperts.runtime.progress import SILENT, Progress
from drexperts.training.distributed import Processes
from drexperts.training.files import SPLIT, show_again
from drexperts.training.from_nothing import keep_start, load_start
from drexperts.training.loop import TrainingLoop
from drexperts.training.result import TrainingResult, Watch
from drexperts.training.run_folder import RunFolder, difference
from drexperts.training.settings import Resources, Run
from drexperts.training.stopping import StopRequest, stop_requests
from drexperts.training.trainer import start_at


def train(
    run: Run,
    new_model: Callable[[], DRExperts],
    out: str | Path,
    *,
    asked: str | None = None,
    resources: Resources | None = None,
    watch: Watch = lambda _: None,
    progress: Progress = SILENT,
) -> TrainingResult:
    """Train on one split, validate after each epoch, and test the best model.

    `out` holds `splits.json` and `log.jsonl` from the start, then `best.safetensors` and
    `index.html`, and at the end `result.json` and `predictions.csv`. A run that was stopped or
    killed continues from its last saved state with the same result, on a CPU to the bit. A run that
    is done returns its result. Under `torchrun` every process calls this and returns the same.

    Args:
        new_model: makes the model to start from; called with PyTorch's generator seeded.
        out: the run's folder.
        asked: what a caller may tell a repeated call by, see `drexperts.training.files.finished`.
        watch: told what was found after every epoch.

    Example: see `drexperts.training`.

    Raises:
        StoppedError: SIGTERM or Ctrl-C; the state is saved.
        DataError: the images or labels cannot be used.
        TrainingError: the loss is not finite, or the memory is too small.
        UserError: `out` holds another run.
    """
    resources = resources or Resources()
    with Processes(resources.device) as processes:
        with _seeded(run.config.seed):
            base = new_model()
            digest = _start_digest(base)
            model = _model(run, base)
        crop = model.config.encoder.image_size
        crops = len(run.split.train) * run.recipe.train_crops
        divisible_batch(crops, run.config.batch, processes.world, run.config.accumulate)
        store = ImageStore(run.dataset, sizing(run.protocol, run.recipe, crop), resources.cache)
        settings = run.settings() | {"model": digest, "asked": asked}
        _require_one_run(settings, processes)
        with (
            processes.from_first(lambda: RunFolder(Path(out), settings)) as folder,
            stop_requests() as request,
        ):
            if (result := processes.from_first(folder.result)) is not None:
                if processes.first:
                    show_again(result, folder.path, run.dataset, watch, progress)
                return result
            processes.from_first(lambda: _write_split(run, folder.path / SPLIT))
            parts, skipped, store.stamps = processes.from_first(
                lambda: _readable(run, store, resources, progress, request)
            )
            base, model = base.to(processes.device), model.to(processes.device)
            if run.prior is not None:
                samples = run.dataset.select(parts.train)
                make = partial(keep_start, base, run.prior, store, samples)
                processes.from_first(lambda: _start(folder, make, run, progress, request))
                load_start(base, folder.start)
            return TrainingLoop(
                run=run,
                parts=parts,
                skipped=skipped,
                store=store,
                model=model,
                folder=folder,
                processes=processes,
                resources=resources,
                watch=watch if processes.first else lambda _: None,
                progress=progress,
                request=request,
            ).train()


def _start(
    folder: RunFolder,
    make: Callable[..., None],
    run: Run,
    progress: Progress,
    request: StopRequest,
) -> None:
    """Prepare the model that starts from nothing, unless an earlier call did."""

    def tell(text: str, done: int, total: int) -> None:
        progress(text, done, total)
        if request.signal is not None:
            raise StoppedError(f"stopped while {text}: run the same command again", request.signal)

    folder.check_start()
    make(folder.start, run.config.seed, tell)


def _require_one_run(settings: dict[str, Any], processes: Processes) -> None:
    """Otherwise gradients of different data would be averaged, or a process would wait forever."""
    first, *others = processes.gather([settings])
    for other in others:
        if other != first:
            raise UserError(
                f"the processes were given different runs ({difference(first, other)}): start all "
                "with the same command, on the same data and weights"
            )


def start_digest(new_model: Callable[[], DRExperts], seed: int) -> str:
    """16 hex digits of the weights that trainings with this seed start from, as in their results.

    It is taken before the head is set for the labels and before an ablation removes parts, so it is
    the same for every split and variant; these two decide the rest.
    """
    with _seeded(seed):
        return _start_digest(new_model())


def _start_digest(model: DRExperts) -> str:
    return model_digest(model)[:16]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's generator, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _model(run: Run, model: DRExperts) -> Variant:
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise WeightsError("the model to start from has weights that are not finite: take another")
    if run.fresh:
        start_at(model, fmean(sample.label for sample in run.dataset.select(run.split.train)))
    return ablated(model, run.variant)


def _write_split(run: Run, path: Path) -> None:
    """Write the split alone: this model sees the test images of others."""
    try:
        kept = read_splits(path).splits  # perhaps the file that the split was read from
    except DataError:
        kept = ()
    if run.split not in kept:
        data = run.dataset
        write_splits(Splits(data.name, data.published_digest, run.split_seed, (run.split,)), path)


def _readable(
    run: Run, store: ImageStore, resources: Resources, progress: Progress, request: StopRequest
) -> tuple[Split, tuple[str, ...], dict[str, Stamp]]:
    """The split without the images that were left out, why they were, and the stamps of the rest.

    Stamps tell an unchanged file from a changed one.
    """

    def tell(done: int, total: int) -> None:
        progress("reading every image once", done, total)
        if request.signal is not None:
            raise StoppedError(f"stopped after reading {done} of {total} images", request.signal)

    parts = asdict(run.split)
    names = sorted(name for part in parts.values() for name in part)
    good, reasons = check_images(
        store,
        run.dataset.select(names),
        skip_bad=resources.skip_bad,
        workers=resources.processes(),
        tell=tell,
    )
    for reason in reasons:
        progress.note(f"left out: {reason}")
    kept = {sample.name for sample in good}
    readable = {part: tuple(n for n in having if n in kept) for part, having in parts.items()}
    if not (readable["train"] and readable["test"]):
        raise DataError("the split has no images to train on, or none to test on: choose another")
    return Split(**readable), reasons, store.stamps
