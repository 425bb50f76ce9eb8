"""The steps and epochs of a training, and what is saved between them."""

import csv
import math
import platform
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from drexperts.data.images import ImageStore
from drexperts.data.recipes import preprocessing
from drexperts.data.splits import Split
from drexperts.data.training_crops import TrainingBatches, workers_explained
from drexperts.evaluation.metrics import Metrics, compute_metrics
from drexperts.evaluation.predict import ScoredImage, predict, scorer_of
from drexperts.model.ablations import Variant
from drexperts.model.backbones import normalised
from drexperts.model.checkpoint import Checkpoint, save_checkpoint
from drexperts.model.dr_experts import DRExperts
from drexperts.model.weight_files import load_strictly, read_safetensors, write_safetensors
from drexperts.runtime.cpus import available_cpus, cpu_name
from drexperts.runtime.errors import (
    DataError,
    MissingDependencyError,
    NotFiniteError,
    StoppedError,
    TrainingError,
    UserError,
    WeightsError,
)
from drexperts.runtime.files import written_whole
from drexperts.runtime.installing import install_command
from drexperts.runtime.progress import Progress
from drexperts.runtime.training import Training, utc_now
from drexperts.training.distributed import Processes
from drexperts.training.files import PREDICTIONS, refresh_page
from drexperts.training.result import Epoch, TrainingResult, Watch, best_epoch
from drexperts.training.run_folder import RunFolder, State
from drexperts.training.settings import Resources, Run
from drexperts.training.stopping import StopRequest
from drexperts.training.trainer import DTYPES, Step, Trainer

ABLATION_FORMAT = "drexperts-ablation-1"


@dataclass(kw_only=True)
class TrainingLoop:
    """The steps and epochs of one run, and what is saved between them.

    parts, skipped: the split without unreadable images, and why these were left out
    model: on the device of `processes`
    """

    run: Run
    parts: Split
    skipped: tuple[str, ...]
    store: ImageStore
    model: Variant
    folder: RunFolder
    processes: Processes
    resources: Resources
    watch: Watch
    progress: Progress
    request: StopRequest

    def __post_init__(self) -> None:
        self.crop: int = self.model.config.encoder.image_size
        self.batches = TrainingBatches(
            self.store,
            self.run.dataset.select(self.parts.train),
            crops=self.run.recipe.train_crops,
            size=self.crop,
            batch=self.run.config.batch,
            seed=self.run.config.seed,
            rank=self.processes.rank,
            world=self.processes.world,
            accumulate=self.run.config.accumulate,
            workers=self.resources.processes(),
            pin=self.processes.device.type == "cuda",
        )
        self.trainer = _trainer(self.run, self.model, self.batches.steps, self.processes)
        if self.batches.batch < self.run.config.batch:
            self.progress.note(
                f"an epoch has fewer crops than --batch {self.run.config.batch}, so each step "
                f"takes {self.batches.batch}"
            )
        self.epochs: list[Epoch] = []
        self.losses = 0.0  # the sum over the steps of this epoch
        self.events: Any = None
        self.page_missing = False
        self.saved_at = self.started_at = time.monotonic()
        self.seconds_before = 0.0  # that earlier processes trained for

    def train(self) -> TrainingResult:
        """Do everything that is left to do, and return the result."""
        self._resume()
        while True:
            epoch, first_step = divmod(self.trainer.done, self.batches.steps)
            if first_step == 0 and len(self.epochs) < epoch:
                self._judge_epoch(epoch)
            if self.trainer.done == self.trainer.steps:
                return self._finish()
            self._train_epoch(epoch, first_step)
            self._save()

    def _resume(self) -> None:
        state = self.folder.load_state()
        done = 0 if state is None else state.values["done"]
        if len(set(self.processes.gather([done]))) > 1:
            raise UserError(
                f"the processes see different states in {self.folder.path}: it must be on a disk "
                "that all of them share, under the same path"
            )
        if self.processes.first:
            self.folder.cut_log(state)
            self.events = _events(self.folder.path, done) if self.resources.tensorboard else None
        if state is None:
            return
        if state.values["images"] != self.store.digest:
            raise DataError(
                "images were changed since the run began, or copied without their times: restore "
                f"them, or remove {self.folder.path} to start over"
            )
        if state.values["epochs"] and not self.folder.best.exists():
            raise UserError(
                f"{self.folder.best}, the best model so far, is missing: restore it, or remove "
                f"{self.folder.path} to start over"
            )
        try:
            self.trainer.load_state(*state)
        except (KeyError, ValueError, TypeError, RuntimeError) as cause:
            raise WeightsError(
                f"the state in {self.folder.path} does not fit this model ({cause}): remove the "
                "folder to start over"
            ) from cause
        self.epochs = [Epoch(**each) for each in state.values["epochs"]]
        self.losses, self.seconds_before = state.values["losses"], state.values["seconds"]
        self.progress.note(f"continuing after step {self.trainer.done} of {self.trainer.steps}")
        if self.epochs:
            self.watch(self.run.so_far(self.epochs))

    def _train_epoch(self, epoch: int, first_step: int) -> None:
        self.model.train()
        started, crops = time.monotonic(), 0
        self.losses *= first_step > 0
        with (
            workers_explained(),
            closing(self.batches.epoch(epoch, first_step)) as micro_batches,
        ):
            for part in _parts(micro_batches, self.run.config.accumulate):
                with self.processes.together():
                    step = self._step(part)
                crops += self.batches.batch
                self.losses += step.loss
                self._tell(epoch, step, crops / (time.monotonic() - started))
                stopping = self._is_asked_to_stop()
                if stopping or self.processes.any(self._is_save_due()):
                    self._save()
                if stopping:
                    self._stop()

    def _step(self, part: Sequence[tuple[Tensor, Tensor, list[str]]]) -> Step:
        device = self.processes.device
        try:
            return self.trainer.step(
                [
                    (normalised(pixels.to(device, non_blocking=True)), labels.to(device))
                    for pixels, labels, _ in part
                ]
            )
        except NotFiniteError as error:
            place = self.folder.path / f"not-finite-{self.trainer.done + 1}-{self.processes.rank}"
            _keep_batch(part, place)
            raise NotFiniteError(f"{error}; its batch is in {place}") from None
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            raise TrainingError(_memory_advice(len(part[0][0]), len(part))) from error

    def _tell(self, epoch: int, step: Step, rate: float) -> None:
        if not self.processes.first:
            return
        self._log(step.number, loss=step.loss, rate=step.rate, images_per_second=rate)
        text = (
            f"epoch {epoch + 1} of {self.run.config.epochs}, loss {step.loss:.4g}, "
            f"{rate:.1f} images/s"
        )
        self.progress(text, step.number, step.steps)

    def _is_save_due(self) -> bool:
        minutes = (time.monotonic() - self.saved_at) / 60
        return self.processes.first and minutes >= self.resources.save_minutes

    def _save(self) -> None:
        """Write the state in the first process; the others wait, and share its error."""
        tensors, values = self.trainer.state()
        values |= {
            "epochs": [each._asdict() for each in self.epochs],
            "losses": self.losses,
            "seconds": self._seconds(),
            "images": self.store.digest,
        }
        self.processes.from_first(lambda: self.folder.save_state(State(tensors, values)))
        self.saved_at = time.monotonic()

    def _seconds(self) -> float:
        """How long the training took so far, all processes that continued it together."""
        return self.seconds_before + time.monotonic() - self.started_at

    def _is_asked_to_stop(self) -> bool:
        """Whether any process was asked to stop; all processes get the same answer."""
        return self.processes.any(self.request.signal is not None)

    def _stop(self) -> NoReturn:
        """Raise StoppedError. The state on disk must be up to date."""
        raise StoppedError(
            f"stopped after step {self.trainer.done} of {self.trainer.steps}; the state is saved: "
            "run the same command to continue",
            self.request.signal or signal.SIGTERM,
        )

    def _judge_epoch(self, epoch: int) -> None:
        """Validate the model after an epoch, and keep it if it is the best so far."""
        names = self.parts.test if self.run.select_on_test else self.parts.validation
        plcc = srcc = loss = None
        with self.trainer.averaged():
            if names:
                found, rows = self._judge(names, f"validating epoch {epoch}")
                plcc, srcc = _defined(found.plcc), _defined(found.srcc)
                loss = _loss_of(rows)
            mean = self.losses / self.batches.steps
            self.epochs.append(Epoch(epoch, plcc, srcc, mean, loss))
            if best_epoch(self.epochs, self.run.select_by) in (epoch, None):
                self.processes.from_first(self._keep)
        if self.processes.first:
            where = {"seconds": self._seconds(), "machine": _machine(self.processes.device)}
            self.folder.log(step=self.trainer.done, **where)
            self._log(self.trainer.done, **self.epochs[-1]._asdict())
        self._save()
        self.watch(self.run.so_far(self.epochs))
        self._refresh_page()

    def _refresh_page(self) -> None:
        """Write the run's page. Why it cannot be written is noted once, not after every epoch."""
        if self.processes.first:
            missing = refresh_page(self.folder.path, self.run.dataset)
            if missing and not self.page_missing:
                self.progress.note(missing)
            self.page_missing = missing is not None

    def _log(self, step: int, **values: Any) -> None:
        self.folder.log(step=step, **values)
        for name, value in values.items():
            if self.events is not None and value is not None:
                self.events.add_scalar(name, value, step)

    def _judge(
        self, names: Sequence[str], text: str, resamples: int = 0
    ) -> tuple[Metrics, list[ScoredImage]]:
        """The metrics and scores of some images; each process scores its share of them."""
        run, processes = self.run, self.processes
        samples = run.dataset.select(names)[processes.rank :: processes.world]
        scorer = scorer_of(self._checkpoint(), DTYPES.get(run.config.amp))
        found: list[ScoredImage] = []
        with suppress(StoppedError):
            found += predict(
                scorer,
                run.dataset,
                samples,
                protocol=run.protocol,
                recipe=run.recipe,
                seed=run.config.seed,
                progress=partial(self._tell_judging, text),
            ).rows
        if self._is_asked_to_stop():  # only now, when every process has ended or left its part
            self._stop()
        rows = sorted(processes.gather(found), key=lambda row: row.name)
        labels, scores = [row.label for row in rows], [row.score for row in rows]
        return compute_metrics(labels, scores, resamples=resamples), rows

    def _tell_judging(self, text: str, done: int, total: int) -> None:
        self.progress(text, done, total)
        if self.request.signal is not None:
            raise StoppedError("stopped while images were scored", self.request.signal)

    def _checkpoint(self, trained: Training | None = None) -> Checkpoint:
        spec = preprocessing(self.run.recipe, self.crop)
        # An ablation has everything of a model that scoring uses.
        return Checkpoint(cast(DRExperts, self.model), self.run.dataset.scale, spec, trained)

    def _trained(self, test: Metrics | None) -> Training:
        """What the best model so far was trained on, and its test once that is done."""
        run, best = self.run, best_epoch(self.epochs, self.run.select_by)
        return Training(
            dataset=_plain(run.dataset.name),
            data_digest=run.dataset.digest,
            split_digest=run.split.digest,
            images=self._counts(),
            selected_on="last epoch" if best is None else run.selected_on,
            selected_by=None if best is None else run.select_by,
            epoch=best or len(self.epochs),
            when=utc_now(),
            srcc=None if test is None else _defined(test.srcc),
            plcc=None if test is None else _defined(test.plcc),
        )

    def _counts(self) -> tuple[int, ...]:
        return tuple(len(part) for part in asdict(self.parts).values())

    def _keep(self, test: Metrics | None = None) -> None:
        """Write the best model so far, ready for `drx export`; of an ablation only its weights."""
        if self.run.variant == "full":
            save_checkpoint(self._checkpoint(self._trained(test)), self.folder.best)
        else:
            metadata = {"format": ABLATION_FORMAT, "variant": self.run.variant}
            write_safetensors(self.model.state_dict(), metadata, self.folder.best)

    def _finish(self) -> TrainingResult:
        """Test the best model and write the result."""
        best, _ = self.processes.from_first(lambda: read_safetensors(self.folder.best))
        load_strictly(self.model, best, str(self.folder.best))
        metrics, rows = self._judge(self.parts.test, "testing", resamples=1000)
        chosen = best_epoch(self.epochs, self.run.select_by)
        packages = {name: version(name) for name in ("drexperts", "torch", "timm")}
        result = TrainingResult(
            settings=self.folder.settings,
            images=self._counts(),
            selected_on="last epoch" if chosen is None else self.run.selected_on,
            selected_by=None if chosen is None else self.run.select_by,
            processes=self.processes.world,
            skipped=self.skipped,
            test=metrics,
            epochs=tuple(self.epochs),
            best_epoch=chosen or len(self.epochs),
            versions=packages | {"python": platform.python_version()},
        )
        if self.processes.first:
            _write_predictions(rows, self.folder.path / PREDICTIONS)
            self._keep(metrics)  # a kill from here on leaves the state, and the test is repeated
            self.folder.finish(result)
        self._refresh_page()
        if self._is_asked_to_stop():  # so that the next of several trainings does not begin
            self._stop()
        return result


def _trainer(run: Run, model: nn.Module, epoch_steps: int, processes: Processes) -> Trainer:
    scores = processes.wrap(_Scores(model))

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.smooth_l1_loss(scores(images).float(), labels)

    return Trainer(
        model,
        loss,
        run.config,
        epoch_steps,
        last_part=lambda last: processes.last_part(scores, last),
        average=processes.average,
    )


class _Scores(nn.Module):
    """Only the scores of a model: the loss needs nothing else, nor gradients of anything else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.model(images).score
        return scores


def _machine(device: torch.device) -> str:
    cpus = f"{cpu_name()}, {available_cpus()} CPUs, {platform.platform(terse=True)}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}; {cpus}"
    return cpus


def _defined(value: float) -> float | None:
    """The value; None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def _loss_of(rows: Sequence[ScoredImage]) -> float:
    """The loss of whole images; it is the training's, of which crops are the images."""
    scores, labels = (torch.tensor([getattr(row, n) for row in rows]) for n in ("score", "label"))
    return F.smooth_l1_loss(scores, labels).item()


def _plain(name: str) -> str:
    """The name of a data set as a manifest may hold it; from Python it can be any text."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name)[:200].strip("-") or "unnamed"


def _events(folder: Path, done: int) -> Any:
    """TensorBoard's writer; it discards what an earlier process wrote after step `done`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            f"--tensorboard needs TensorBoard: {install_command('tensorboard')}"
        ) from error
    return SummaryWriter(str(folder / "events"), purge_step=done + 1)


def _parts(micro_batches: Iterator[Any], count: int) -> Iterator[list[Any]]:
    """The micro-batches of each step, `count` at a time."""
    while part := list(islice(micro_batches, count)):
        yield part


def _is_out_of_memory(error: Exception) -> bool:
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


def _memory_advice(crops: int, parts: int) -> str:
    """What to change after a step of `parts` micro-batches of `crops` did not fit into memory."""
    full = f"out of memory with {crops} crops at once: "
    if crops == 1:
        return full + "use --amp bf16, --size small or --image-size 224"
    more = next(count for count in range(2, crops + 1) if crops % count == 0)
    return full + (
        f"--accumulate {parts * more} computes the same batch in smaller parts, --amp bf16 in half "
        "the memory. Either is another run: choose another --out, or remove this one"
    )


def _keep_batch(part: Sequence[tuple[Tensor, Tensor, list[str]]], folder: Path) -> None:
    """Write the crops as pictures, and their names and labels as a table, for inspection."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        (name, label, crop)
        for pixels, labels, names in part
        for name, label, crop in zip(names, labels.tolist(), pixels, strict=True)
    ]
    with open(folder / "batch.csv", "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("crop", "image", "label"))
        for number, (name, label, crop) in enumerate(rows):
            table.writerow((f"{number:03}.png", name, label))
            Image.fromarray(crop.permute(1, 2, 0).numpy()).save(folder / f"{number:03}.png")


def _write_predictions(rows: Sequence[ScoredImage], path: Path) -> None:
    with written_whole(path) as aside, open(aside, "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("path", "label", "score", "std"))
        table.writerows((row.name, row.label, row.score, row.std) for row in rows)
