"""A training from its data to its result, in a folder, that can be stopped and killed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from drexperts.data.images import ImageStore, Stamp, check_images, sizing
from drexperts.data.splits import Split
from drexperts.data.training_crops import divisible_batch
from drexperts.evaluation.predict import weights_digest
from drexperts.model.ablations import Variant, ablated
from drexperts.model.dr_experts import DRExperts
from drexperts.runtime.errors import DataError, StoppedError, UserError, WeightsError
from drexperts.runtime.progress import Progress
from drexperts.training.distributed import Processes
from drexperts.training.loop import TrainingLoop
from drexperts.training.run_folder import RunFolder, difference
from drexperts.training.settings import Resources, Run
from drexperts.training.stopping import StopRequest, stop_requests
from drexperts.training.trainer import start_at


def train_run(
    run: Run,
    new_model: Callable[[], DRExperts],
    out: Path,
    resources: Resources,
    progress: Progress,
) -> dict[str, Any]:
    """Train, validate each epoch, test the best; the result, which is also `out/result.json`.

    A run that was stopped or killed goes on where its state was saved, to the same result, on a CPU
    to the bit; one that is done returns its result at once. Under `torchrun` every process calls
    this, and returns the same.

    Raises StoppedError after SIGTERM or Ctrl-C, TrainingError, DataError.
    """
    with Processes(resources.device) as processes:
        with _seeded(run.config.seed):
            base = new_model()
            digest = _start_digest(base)
            model = _model(run, base)
        crop = model.config.encoder.image_size
        crops = len(run.split.train) * run.recipe.train_crops
        divisible_batch(crops, run.config.batch, processes.world, run.config.accumulate)
        store = ImageStore(run.dataset, sizing(run.protocol, run.recipe, crop), resources.cache)
        settings = run.settings() | {"model": digest}
        _require_one_run(settings, processes)
        with (
            processes.from_first(lambda: RunFolder(out, settings)) as folder,
            stop_requests() as request,
        ):
            if (result := processes.from_first(folder.result)) is not None:
                return result
            parts, reasons, store.stamps = processes.from_first(
                lambda: _readable(run, store, resources, progress, request)
            )
            return TrainingLoop(
                run, parts, reasons, store, model, folder, processes, resources, progress, request
            ).run()


def _require_one_run(settings: dict[str, Any], processes: Processes) -> None:
    """Else gradients of other data would be averaged, or a process wait for steps of another."""
    first, *others = processes.gather([settings])
    for other in others:
        if other != first:
            raise UserError(
                f"the processes were given different runs ({difference(first, other)}): start all "
                "with the same command, on the same data and weights"
            )


def start_digest(new_model: Callable[[], DRExperts], seed: int) -> str:
    """16 hex digits of the weights that trainings of a seed start from, as their results have them.

    They are taken before the head is set for the labels and parts are left out, so that they are
    the same for every split and variant, which with them decide the rest.
    """
    with _seeded(seed):
        return _start_digest(new_model())


def _start_digest(model: DRExperts) -> str:
    return weights_digest(model)[:16]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random weights are those of the seed; what is drawn elsewhere stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _model(run: Run, model: DRExperts) -> Variant:
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise WeightsError("the model to start from has weights that are no numbers: take another")
    if run.fresh:
        start_at(model, fmean(sample.label for sample in run.dataset.select(run.split.train)))
    return ablated(model, run.variant)


def _readable(
    run: Run, store: ImageStore, resources: Resources, progress: Progress, request: StopRequest
) -> tuple[Split, tuple[str, ...], dict[str, Stamp]]:
    """The split without the images that cannot be read, where those may be left out, and why; and
    what tells the others' files from changed ones."""

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
        raise DataError("the split has no images to train on, or none to test: choose another")
    return Split(**readable), reasons, store.stamps
