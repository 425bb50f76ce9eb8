"""A step of training against the dense form and the released recipe, each in its own process."""

import math
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
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from drexperts.bench.baselines import baseline_model, released
from drexperts.bench.provenance import head
from drexperts.bench.timing import SETTLE, photograph, ratio, ratio_text, seconds, statistics
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

OURS = "ours"
ROUNDS = 9
WARM_UP = 2  # steps of each contender before any is timed; the optimiser's state comes in the first
# What a step consists of; the batch is made beside it, by processes of their own.
PARTS = ("backbone", "controller", "head", "optimiser")
ALIKE = 1e-4  # between the first losses of float32 forms of the same weights, relative

# Whose source the numbers speak of.
MODULES = (
    "drexperts.bench.training_step",
    "drexperts.model.config",
    "drexperts.bench.baselines",
    "drexperts.data.images",
    "drexperts.data.training_crops",
    "drexperts.training.trainer",
    "drexperts.model.dr_experts",
    "drexperts.model.experts",
    "drexperts.model.backbones",
    "drexperts.kernels",
)


class Task(NamedTuple):
    """What every contender trains, and with how much."""

    config: DRExpertsConfig
    checkpoint: Path | None
    batch: int
    threads: int | None


class Contender(NamedTuple):
    """Whether prompts are encoded on each call, whether all rows are computed, and in what type."""

    encodes: bool
    dense: bool
    amp: Amp


def contenders(amp: Amp) -> dict[str, Contender]:
    """Ours first. The others are in float32, in which the released code trains on a CPU."""
    found = {OURS: Contender(encodes=False, dense=False, amp=amp)}
    if amp != "fp32":
        found["ours, fp32"] = Contender(encodes=False, dense=False, amp="fp32")
    found["dense"] = Contender(encodes=False, dense=True, amp="fp32")
    found["released"] = Contender(encodes=True, dense=True, amp="fp32")
    return found


def bench_training(
    config: DRExpertsConfig,
    *,
    batch: int = 4,
    rounds: int = ROUNDS,
    amp: Amp = "fp32",
    threads: int | None = None,
    checkpoint: Path | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure a step of the trainer on this machine's CPU: Smooth L1, backward, clipping, AdamW.

    Contenders have the same weights and crops. Each lives in a process of its own, so that its peak
    of memory and the state of its allocator are its own, and one computes at a time: once in every
    round, in random order. Ratios are taken within a round. Linux only.

    Args:
        amp: of our step; without fp32, ours in fp32 is a contender too.
        threads: of PyTorch; None leaves its default.
        checkpoint: weights and configuration; None makes random weights, which cost the same.

    Returns:
        A JSON-ready report: times in seconds, memory in bytes above what is resident before the
        first step. `data` is the time in which one core makes a batch of 1024x768 JPEGs.

    Raises UserError for what cannot be measured, and where a contender's process ended.
    """
    if min(batch, rounds) < 1:
        raise ConfigError(f"a measurement needs a batch and a round at least: {batch}, {rounds}")
    entrants = contenders(amp)
    progress("building the contenders")
    with _workers(entrants, Task(config, checkpoint, batch, threads)) as workers:
        steps = _rounds(workers, rounds, progress)
    taken = {name: [step["seconds"] for step in found] for name, found in steps.items()}
    peaks = {name: found[-1]["peak_bytes"] for name, found in steps.items()}
    losses = {name: found[0]["loss"] for name, found in steps.items()}
    command = _command(config, checkpoint, batch, rounds, amp, threads)
    return head("training", command, MODULES, threads) | {
        "preset": config.preset,
        "weights": "random" if checkpoint is None else sha256_of(checkpoint),
        "batch": batch,
        "amp": {name: contender.amp for name, contender in entrants.items()},
        "loss": losses,
        "gates": {"losses": _agree(losses, entrants)},
        "latency": {name: statistics(times) for name, times in taken.items()},
        "ratio": {name: ratio(taken[name], taken[OURS]) for name in entrants if name != OURS},
        "peak_bytes": peaks,
        "peak_ratio": {name: peaks[name] / peaks[OURS] for name in entrants if name != OURS},
        "parts": {part: statistics([s["parts"][part] for s in steps[OURS]]) for part in PARTS},
        "data": statistics(_data_times(config, batch, rounds)),
    }


def _command(
    config: DRExpertsConfig,
    checkpoint: Path | None,
    batch: int,
    rounds: int,
    amp: Amp,
    threads: int | None,
) -> str:
    """What measures the same again; paths are left out."""
    command = f"drx bench --train --preset {config.preset} --batch {batch} --repeats {rounds}"
    command += f" --amp {amp}" + (f" --threads {threads}" if threads is not None else "")
    return command + " --checkpoint FILE" * (checkpoint is not None)


def _agree(losses: dict[str, float], entrants: dict[str, Contender]) -> bool:
    """Whether the dense form in float32 has our loss there, of the same weights and crops."""
    ours = next(name for name, entrant in entrants.items() if entrant.amp == "fp32")
    return math.isclose(losses[ours], losses["dense"], rel_tol=ALIKE)


def _rounds(
    workers: dict[str, "_Worker"], rounds: int, progress: Progress
) -> dict[str, list[dict[str, Any]]]:
    """What each contender measured of its steps, without those of the warm-up."""
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
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
    """A contender in a process of its own."""

    def __init__(self, name: str, contender: Contender, task: Task) -> None:
        self.name = name
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imports once for all
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contender, task), daemon=True)
        self._process.start()
        theirs.close()

    def step(self) -> dict[str, Any]:
        """What a step took: seconds, in all and in parts, and the peak of memory up to now."""
        self._pipe.send(None)
        measured: dict[str, Any] = self.answer()
        return measured

    def answer(self) -> Any:
        """What the process sends next. Raises UserError where it is an error or none comes."""
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise UserError(
                f"the process that trains {self.name!r} ended, most likely for want of memory: "
                "take a smaller batch, or a machine with more"
            ) from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def end(self) -> None:
        """End the process, whatever it is at."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


@contextmanager
def _workers(entrants: dict[str, Contender], task: Task) -> Iterator[dict[str, _Worker]]:
    """A process for each contender, ready to train; all are ended afterwards."""
    workers: dict[str, _Worker] = {}
    try:
        for name, contender in entrants.items():
            workers[name] = _Worker(name, contender, task)
        for worker in workers.values():
            worker.answer()
        yield workers
    finally:
        for worker in workers.values():
            worker.end()


def _serve(pipe: Connection, contender: Contender, task: Task) -> None:
    """A contender's process: a step for each message, until it is ended."""
    try:
        step = _Step(contender, task)
    except UserError as error:
        pipe.send(error)
        return
    pipe.send(None)
    while True:
        pipe.recv()
        pipe.send(step())


class _Scores(nn.Module):
    """The scores of one form of a model: what is trained."""

    def __init__(self, model: DRExperts, dense: bool) -> None:
        super().__init__()
        self.model, self._dense = model, dense

    def forward(self, images: Tensor) -> Tensor:
        predict = self.model.forward_dense if self._dense else self.model
        scores: Tensor = predict(images).score
        return scores


class _Step:
    """A contender's step of the trainer, and its measurement."""

    def __init__(self, contender: Contender, task: Task) -> None:
        if task.threads is not None:
            torch.set_num_threads(task.threads)
        torch.manual_seed(0)  # the same weights and crops for everybody
        model = baseline_model(task.config, task.checkpoint).train()
        size = model.config.encoder.image_size
        pixels = torch.randint(0, 256, (task.batch, 3, size, size), dtype=torch.uint8)
        self._batch = normalised(pixels), torch.rand(task.batch)
        self._clock = _Clock(model)
        scores = _Scores(released(model) if contender.encodes else model, contender.dense)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return F.smooth_l1_loss(scores(images).float(), labels)

        # One epoch holds all steps, so that the rate stays what it is.
        config = TrainConfig(task.batch, amp=contender.amp)
        self._trainer = Trainer(model, loss, config, epoch_steps=1_000_000)
        self._resident = _forget_peak()

    def __call__(self) -> dict[str, Any]:
        start = time.perf_counter()
        loss = self._trainer.step([self._batch]).loss
        end = time.perf_counter()
        return {
            "loss": loss,
            "seconds": end - start,
            "parts": self._clock.parts(start, end),
            "peak_bytes": _memory("VmHWM") - self._resident,
        }


class _Clock:
    """When the parts of a step begin and end, by hooks on a model.

    The backbone is the encoder's forward and backward pass; the head includes the loss, the
    optimiser the clipping.
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
        """Seconds of each of `PARTS` in the step that began and ended then."""
        at = self._at
        forward = at["encoder ends"] - at["encoder begins"]
        backward = at["backward ends"] - at["head's backward ends"]
        controller = at["controller ends"] - at["encoder ends"]
        head = at["head's backward ends"] - at["controller ends"]
        backbone = forward + backward
        rest = end - start - backbone - controller - head
        return dict(zip(PARTS, (backbone, controller, head, rest), strict=True))


def _forget_peak() -> int:
    """Bytes resident now, from which on the peak is counted."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    """Bytes, of a line of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line for line in lines if line.startswith(field + ":"))
    return 1024 * int(found.split()[1])


def _data_times(config: DRExpertsConfig, batch: int, rounds: int) -> list[float]:
    """Seconds in which one core decodes, crops, mirrors and normalises each of some batches."""
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
        return [seconds(lambda: normalised(next(micro_batches).images)) for _ in range(rounds)]


def print_training_report(report: dict[str, Any], console: Console) -> None:
    """The report as a table, and what our step consists of."""
    machine = report["machine"]
    console.print(f"{machine['cpu']}, {machine['cores']} cores; training, {report['preset']}")
    headings = ("", "type", "p50 s", "p90 s", "cv", "times ours", "peak MB", "times ours")
    table = Table(*headings, box=SIMPLE_HEAD, pad_edge=False)
    for name, times in report["latency"].items():
        shown = ratio_text(report["ratio"].get(name))
        peak, peak_ratio = report["peak_bytes"][name], report["peak_ratio"].get(name)
        numbers = [f"{times['p50']:.2f}", f"{times['p90']:.2f}", f"{times['cv']:.0%}", shown]
        memory = [f"{peak / 1e6:.0f}", "" if peak_ratio is None else f"{peak_ratio:.2f}"]
        table.add_row(name, report["amp"][name], *numbers, *memory)
    console.print(table)
    parts = {name: times["p50"] for name, times in report["parts"].items()}
    whole = sum(parts.values())
    split = ", ".join(f"{name} {1e3 * p:.0f} ms ({p / whole:.0%})" for name, p in parts.items())
    console.print(f"our step of {report['batch']} crops: {split}")
    console.print(f"data, beside it: {1e3 * report['data']['p50']:.0f} ms of one core a batch")
