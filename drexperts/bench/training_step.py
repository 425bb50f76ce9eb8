"""A step of training beside the dense form and the released recipe, each in its own process."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drexperts.bench.baselines import baseline_model, released
from drexperts.bench.provenance import this_machine, this_source
from drexperts.bench.reports import OURS, TrainingReport, TrainingVariant
from drexperts.bench.telemetry import host_peak_bytes, resident_bytes
from drexperts.bench.timing import SETTLE, photograph, seconds
from drexperts.data.dataset import Dataset, Sample
from drexperts.data.images import GridSize, ImageStore
from drexperts.data.recipes import RECIPES, preprocessing
from drexperts.data.training_crops import TrainingBatches
from drexperts.model.backbones import normalised
from drexperts.model.config import DRExpertsConfig
from drexperts.model.dr_experts import DRExperts
from drexperts.runtime.errors import ConfigError, UserError
from drexperts.runtime.manifest import ScoreScale, sha256_of
from drexperts.runtime.progress import SILENT, Progress
from drexperts.training.trainer import Amp, TrainConfig, Trainer

ROUNDS = 9
WARM_UP = 2  # steps of each variant before any is timed; the first makes the optimiser's state
# What a step consists of. Other processes make the batch meanwhile.
PARTS = ("backbone", "controller", "head", "optimiser")

# The source that the numbers depend on.
PACKAGES = (
    "drexperts.bench",
    "drexperts.data",
    "drexperts.kernels",
    "drexperts.model",
    "drexperts.training",
)


class Workload(NamedTuple):
    """What every variant trains, and with how much."""

    config: DRExpertsConfig
    checkpoint: Path | None
    batch: int
    threads: int | None


class Variant(NamedTuple):
    """A form of the model that is trained.

    encodes: whether prompts are encoded on each call
    dense: whether all rows are computed
    """

    encodes: bool
    dense: bool
    amp: Amp


class Measured(NamedTuple):
    """One step. peak_bytes: of memory until now, above the start's; None where it is not known"""

    loss: float
    seconds: float
    parts: dict[str, float]
    peak_bytes: int | None


def variants(amp: Amp) -> dict[str, Variant]:
    """Ours first. The others use float32, in which the released code trains on a CPU."""
    found = {OURS: Variant(encodes=False, dense=False, amp=amp)}
    if amp != "fp32":
        found["ours, fp32"] = Variant(encodes=False, dense=False, amp="fp32")
    found["dense"] = Variant(encodes=False, dense=True, amp="fp32")
    found["released"] = Variant(encodes=True, dense=True, amp="fp32")
    return found


def bench_training(
    config: DRExpertsConfig,
    *,
    batch: int = 4,
    rounds: int = ROUNDS,
    amp: Amp = "fp32",
    threads: int | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress = SILENT,
) -> TrainingReport:
    """Measure a step of the trainer on this machine's CPU: Smooth L1, backward, clipping, AdamW.

    Variants have the same weights and crops. Each lives in its own process, so that its peak of
    memory and the state of its allocator are its own, and one computes at a time: once in every
    round, in random order. Ratios are taken within a round. Linux only.

    Args:
        amp: of our step; for another type than fp32, ours in fp32 is a variant too.
        threads: of PyTorch; None leaves its default.
        checkpoint: weights and configuration; None makes random weights, which take the same time.

    Raises UserError for what cannot be measured, and where the process of a variant ended.

    Example:
        from drexperts.bench import bench_training
        from drexperts.model.config import DRExpertsConfig

        report = bench_training(DRExpertsConfig.paper(), batch=2, rounds=5)
        report.ratio("released").p50
    """
    if min(batch, rounds) < 1:
        raise ConfigError(f"a measurement needs a batch and a round at least: {batch}, {rounds}")
    checkpoint = None if checkpoint is None else Path(checkpoint)
    trained = variants(amp)
    machine, source = this_machine(threads), this_source(*PACKAGES)
    progress("starting a process for each variant")
    with _workers(trained, Workload(config, checkpoint, batch, threads)) as workers:
        steps = _rounds(workers, rounds, progress)
    return TrainingReport(
        command=_command(config, checkpoint, batch, rounds, amp, threads),
        machine=machine,
        source=source,
        preset=config.preset,
        weights="random" if checkpoint is None else sha256_of(checkpoint),
        batch=batch,
        variants={
            name: TrainingVariant(
                trained[name].amp,
                tuple(step.seconds for step in found),
                found[0].loss,
                found[-1].peak_bytes,
            )
            for name, found in steps.items()
        },
        parts={part: tuple(step.parts[part] for step in steps[OURS]) for part in PARTS},
        data=_data_times(config, batch, rounds),
    )


def _command(
    config: DRExpertsConfig,
    checkpoint: Path | None,
    batch: int,
    rounds: int,
    amp: Amp,
    threads: int | None,
) -> str:
    """The command that measures the same again; paths are left out."""
    command = f"drx bench --train --preset {config.preset} --batch {batch} --repeats {rounds}"
    command += f" --amp {amp}" + (f" --threads {threads}" if threads is not None else "")
    return command + " --checkpoint FILE" * (checkpoint is not None)


def _rounds(
    workers: dict[str, "_Worker"], rounds: int, progress: Progress
) -> dict[str, list[Measured]]:
    """The steps of each variant, without those of the warm-up."""
    steps: dict[str, list[Measured]] = {name: [] for name in workers}
    shuffle = random.Random(0).shuffle
    for i in range(WARM_UP + rounds):
        progress(f"round {max(0, i + 1 - WARM_UP)} of {rounds}")
        turns = list(workers)
        shuffle(turns)
        for name in turns:
            time.sleep(SETTLE)
            steps[name].append(workers[name].step())
    return {name: found[WARM_UP:] for name, found in steps.items()}


class _Worker:
    """A variant in its own process."""

    def __init__(self, name: str, variant: Variant, what: Workload) -> None:
        self.name = name
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imports once for all
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, variant, what), daemon=True)
        self._process.start()
        theirs.close()

    def step(self) -> Measured:
        """Take a step."""
        self._pipe.send(None)
        measured: Measured = self.answer()
        return measured

    def answer(self) -> Any:
        """What the process sends next. Raises UserError where it sends one, or has ended."""
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise UserError(
                f"the process that trains {self.name!r} ended, most likely for lack of memory: "
                "take a smaller batch, or a machine with more"
            ) from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


@contextmanager
def _workers(trained: dict[str, Variant], what: Workload) -> Iterator[dict[str, _Worker]]:
    """A process for each variant, ready to train; all are ended afterwards."""
    workers: dict[str, _Worker] = {}
    try:
        for name, variant in trained.items():
            workers[name] = _Worker(name, variant, what)
        for worker in workers.values():
            worker.answer()
        yield workers
    finally:
        for worker in workers.values():
            worker.end()


def _serve(pipe: Connection, variant: Variant, what: Workload) -> None:
    """The process of a variant: a step for each message, until it is ended."""
    try:
        step = _Trained(variant, what)
    except UserError as error:
        pipe.send(error)
        return
    pipe.send(None)
    while True:
        pipe.recv()
        pipe.send(step())


class _Scores(nn.Module):
    """The scores of one form of a model, which is trained."""

    def __init__(self, model: DRExperts, dense: bool) -> None:
        super().__init__()
        self.model, self._dense = model, dense

    def forward(self, images: Tensor) -> Tensor:
        predict = self.model.forward_dense if self._dense else self.model
        scores: Tensor = predict(images).score
        return scores


class _Trained:
    """A variant that takes one step of the trainer per call, and measures it."""

    def __init__(self, variant: Variant, what: Workload) -> None:
        if what.threads is not None:
            torch.set_num_threads(what.threads)
        torch.manual_seed(0)  # the same weights and crops for all variants
        model = baseline_model(what.config, what.checkpoint).train()
        size = model.config.encoder.image_size
        pixels = torch.randint(0, 256, (what.batch, 3, size, size), dtype=torch.uint8)
        self._batch = normalised(pixels), torch.rand(what.batch)
        self._clock = _Clock(model)
        scores = _Scores(released(model) if variant.encodes else model, variant.dense)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return F.smooth_l1_loss(scores(images).float(), labels)

        # One epoch holds all steps, so that the learning rate stays the same.
        config = TrainConfig(what.batch, amp=variant.amp)
        self._trainer = Trainer(model, loss, config, epoch_steps=1_000_000)
        Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is counted
        self._resident = resident_bytes()

    def __call__(self) -> Measured:
        start = time.perf_counter()
        loss = self._trainer.step([self._batch]).loss
        end = time.perf_counter()
        peak = host_peak_bytes()
        above = None if peak is None else peak - self._resident
        return Measured(loss, end - start, self._clock.parts(start, end), above)


class _Clock:
    """When the parts of a step begin and end, by hooks on a model.

    The backbone is the encoder's forward and backward pass. The head includes the loss, and the
    optimiser includes the clipping.
    """

    def __init__(self, model: DRExperts) -> None:
        self._at: dict[str, float] = {}
        model.encoder.register_forward_pre_hook(self._mark("encoder begins"))
        model.encoder.register_forward_hook(self._mark("encoder ends"))
        model.encoder.register_forward_hook(self._mark_gradient_of_tokens)
        model.controller.register_forward_hook(self._mark("controller ends"))
        for parameter in model.encoder.parameters():
            parameter.register_post_accumulate_grad_hook(self._mark("backward ends"))

    def _mark(self, event: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            self._at[event] = time.perf_counter()

        return hook

    def _mark_gradient_of_tokens(self, module: nn.Module, inputs: object, tokens: Tensor) -> None:
        tokens.register_hook(self._mark("head's backward ends"))

    def parts(self, start: float, end: float) -> dict[str, float]:
        """Seconds of each of `PARTS` in the step that began at `start` and ended at `end`."""
        at = self._at
        forward = at["encoder ends"] - at["encoder begins"]
        backward = at["backward ends"] - at["head's backward ends"]
        controller = at["controller ends"] - at["encoder ends"]
        head = at["head's backward ends"] - at["controller ends"]
        backbone = forward + backward
        rest = end - start - backbone - controller - head
        return dict(zip(PARTS, (backbone, controller, head, rest), strict=True))


def _data_times(config: DRExpertsConfig, batch: int, rounds: int) -> tuple[float, ...]:
    """Seconds in which one core decodes, crops, mirrors and normalises each of `rounds` batches."""
    size = config.encoder.image_size
    with TemporaryDirectory() as folder:
        samples = tuple(Sample(f"{i}.jpg", 0.5, str(i)) for i in range(batch * rounds))
        content = photograph()
        for sample in samples:
            (Path(folder) / sample.name).write_bytes(content)
        scale = ScoreScale(0.0, 1.0, higher_is_better=True)
        dataset = Dataset("folder", Path(folder), samples, scale, ())
        store = ImageStore(dataset, GridSize(preprocessing(RECIPES["folder"], size)))
        batches = TrainingBatches(store, samples, crops=1, size=size, batch=batch, seed=0)
        micro_batches = batches.epoch(0)
        taken = [seconds(lambda: normalised(next(micro_batches).images)) for _ in range(rounds)]
        return tuple(taken)
