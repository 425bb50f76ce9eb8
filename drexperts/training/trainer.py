"""One step of training: precision, accumulation, clipping, the optimiser, an average of weights."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from drexperts.model.config import DISTORTIONS
from drexperts.model.dr_experts import DRExperts
from drexperts.runtime.errors import ConfigError, NotFiniteError

Amp = Literal["fp32", "fp16", "bf16"]
# A loss from crops [B, 3, size, size], as the loss wants them, and their targets [B, ...].
Loss = Callable[[Tensor, Tensor], Tensor]
MicroBatch = tuple[Tensor, Tensor]

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Steps in a row without a finite gradient in fp16; the scale of the loss is halved after each.
_OVERFLOWS = 20
# What AdamW keeps of each parameter.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Step(NamedTuple):
    """What is told of each step."""

    number: int  # from 1
    steps: int
    loss: float
    rate: float


@dataclass(frozen=True)
class StepSchedule:
    """The paper's schedule: each third of the steps has a tenth of the rate of the one before.

    With `warmup_epochs` the rate first rises linearly, step by step, from a thousandth. The thirds
    are counted from the beginning all the same: the released code, with three of nine, reaches the
    full rate only at the end of the third epoch, and has a tenth of it in the next.
    """

    rate: float = 2e-4
    warmup_epochs: float = 0.0

    def __call__(self, step: int, epoch_steps: int, steps: int) -> float:
        """The learning rate of step 0 <= `step` < `steps`."""
        rising = round(self.warmup_epochs * epoch_steps)
        if step < rising:
            low = self.rate / 1000
            return low + (self.rate - low) * step / rising
        return self.rate * 0.1 ** (3 * step // steps)


@dataclass(frozen=True)
class CosineSchedule:
    """A linear rise, then half a cosine down to zero."""

    rate: float
    warmup_steps: int

    def __call__(self, step: int, epoch_steps: int, steps: int) -> float:
        """The learning rate of step 0 <= `step` < `steps`."""
        if step < self.warmup_steps:
            return self.rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(steps - self.warmup_steps, 1)
        return self.rate * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast. The defaults are the paper's, and the released code's where it is
    silent.

    batch: crops in one step, over all processes
    accumulate: parts in which a process computes its share of a batch, one after the other
    amp: the type in which products are computed; weights stay float32
    ema: decay of a running average of the weights, which is then what is validated and kept; at
        step n at most (1 + n) / (10 + n), lest a short training keeps the weights of its start
    seed: decides batches, crops and mirrorings
    """

    batch: int
    epochs: int = 9
    schedule: StepSchedule | CosineSchedule = field(default_factory=StepSchedule)
    weight_decay: float = 0.05
    clip_norm: float = 5.0
    amp: Amp = "fp32"
    accumulate: int = 1
    ema: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.accumulate) < 1:
            raise ConfigError(
                f"epochs, batch and accumulate must be at least one, not "
                f"{self.epochs}, {self.batch} and {self.accumulate}"
            )
        if not 0 < self.schedule.rate < math.inf:
            raise ConfigError(f"the learning rate must be above zero, not {self.schedule.rate}")
        if self.weight_decay < 0 or self.seed < 0:
            raise ConfigError(
                f"weight decay and seed cannot be negative: {self.weight_decay}, {self.seed}"
            )
        if self.amp not in ("fp32", *DTYPES):
            raise ConfigError(f"amp={self.amp!r}: choose fp32, fp16 or bf16")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema={self.ema}: a decay is between 0 and 1, such as 0.999")


class Trainer:
    """A module, its loss, and all that changes while it is trained.

    Args:
        module: what is trained: its parameters that require a gradient.
        loss: of a micro-batch, averaged over it. It may go through more than the module.
        epoch_steps: steps of an epoch.
        last_part: entered for each micro-batch with whether it is the last of its step; where
            several processes train, it keeps gradients from being exchanged before that.
        average: of a number over all processes.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        config: TrainConfig,
        epoch_steps: int,
        *,
        last_part: Callable[[bool], AbstractContextManager[Any]] = lambda _: nullcontext(),
        average: Callable[[float], float] = lambda value: value,
    ) -> None:
        self.config = config
        self.epoch_steps, self.steps = epoch_steps, epoch_steps * config.epochs
        self.done = 0
        self._loss, self._last_part, self._average = loss, last_part, average
        self._parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._device = next(iter(self._parameters.values())).device
        self._optimizer = _optimizer(self._parameters, config)
        scaling = config.amp == "fp16"
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=scaling)
        self._overflows = 0  # steps in a row whose gradients left float16
        self._averages = [p.detach().clone() for p in self._parameters.values() if config.ema]

    def step(self, micro_batches: Sequence[MicroBatch]) -> Step:
        """One update from micro-batches of equal size.

        Raises NotFiniteError, before anything is changed, where the loss or a gradient is not
        finite. In fp16 gradients may be, now and then: such a step changes no weight.
        """
        rate = self.config.schedule(self.done, self.epoch_steps, self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        loss = self._average(self._backward(micro_batches))
        if not math.isfinite(loss):
            raise NotFiniteError(
                f"the loss became {loss} in step {self.done + 1}: lower the learning rate, and "
                "check images and labels"
            )
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self.config.clip_norm)
        self._check_gradients(norm.item())
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self.config.ema is not None:
            decay = min(self.config.ema, (1 + self.done) / (10 + self.done))
            for average, parameter in zip(self._averages, self._parameters.values(), strict=True):
                average.lerp_(parameter.detach(), 1 - decay)
        self.done += 1
        return Step(self.done, self.steps, loss, rate)

    def _check_gradients(self, norm: float) -> None:
        finite = math.isfinite(norm)
        self._overflows = 0 if finite else self._overflows + 1
        if finite or (self._scaler.is_enabled() and self._overflows <= _OVERFLOWS):
            return
        raise NotFiniteError(
            f"gradients of step {self.done + 1} are no numbers though its loss is one: lower the "
            "learning rate" + ", or take --amp bf16" * self._scaler.is_enabled()
        )

    def _backward(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Gradients of the mean loss, and the loss."""
        count, total = len(micro_batches), torch.zeros((), device=self._device)
        for number, (images, targets) in enumerate(micro_batches, 1):
            with self._last_part(number == count):
                with autocast(self._device, self.config.amp):
                    loss = self._loss(images, targets) / count
                self._scaler.scale(loss).backward()
            total += loss.detach()
        return total.item()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The module with its averaged weights for a while, where an average is kept."""
        current = [p.detach() for p in self._parameters.values()] if self._averages else []
        kept = [weights.clone() for weights in current]
        _copy(current, self._averages)
        try:
            yield
        finally:
            _copy(current, kept)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a killed run needs to go on: tensors by name, and JSON-ready values."""
        tensors = {f"weights.{name}": p.detach() for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for moment, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{moment}.{name}"] = value
        for name, average in zip(self._parameters, self._averages, strict=False):
            tensors[f"average.{name}"] = average
        return tensors, {"done": self.done, "scaler": self._scaler.state_dict()}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `state`. Raises KeyError for another module's."""
        self.done = values["done"]
        self._scaler.load_state_dict(values["scaler"])
        for name, parameter in self._parameters.items():
            parameter.detach().copy_(tensors[f"weights.{name}"])
            moments = {m: tensors[key] for m in _MOMENTS if (key := f"{m}.{name}") in tensors}
            if moments:  # none of a parameter that never had a gradient
                moved = {m: value.to(self._device) for m, value in moments.items()}
                self._optimizer.state[parameter] = moved
        for name, average in zip(self._parameters, self._averages, strict=False):
            average.copy_(tensors[f"average.{name}"])


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def start_at(model: DRExperts, score: float) -> None:
    """Weights that add up to about one, and about this score for every image.

    From the usual random start near zero, labels of 0..100 take hundreds of steps to come near.
    """
    last = model.weighting.generator[-1]
    assert isinstance(last, nn.Linear)
    nn.init.constant_(last.bias, 1 / len(DISTORTIONS))
    nn.init.constant_(model.score.bias, score)
    with torch.no_grad():
        last.weight.mul_(0.1)
        model.score.weight.mul_(0.1)


def autocast(device: torch.device, amp: Amp) -> AbstractContextManager[Any]:
    """Products in `amp`, where it is not float32."""
    return nullcontext() if amp == "fp32" else torch.autocast(device.type, DTYPES[amp])


def _optimizer(parameters: dict[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; as released, biases and the gains of norms and of layers do not decay."""
    free = {n for n, p in parameters.items() if n.endswith("bias") or _is_gain(n, p)}
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in parameters.items() if n not in free]},
        {"params": [p for n, p in parameters.items() if n in free], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, config.schedule.rate, weight_decay=config.weight_decay, fused=True
    )


def _is_gain(name: str, parameter: nn.Parameter) -> bool:
    """Vectors, but for the two that the released code decays: they have a dimension more there."""
    return parameter.ndim <= 1 and name.rpartition(".")[2] not in ("alpha", "lambda_")
