"""One step of training: precision, accumulation, clipping, optimiser, averaged weights."""

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
# The loss of crops [B, 3, size, size], in the form that the module takes, and targets [B, ...].
Loss = Callable[[Tensor, Tensor], Tensor]
MicroBatch = tuple[Tensor, Tensor]

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Most consecutive fp16 steps without a finite gradient; each of them halves the loss scale.
_OVERFLOWS = 20
# What AdamW keeps for each parameter.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Step(NamedTuple):
    """What one step did."""

    number: int  # from 1
    steps: int
    loss: float
    rate: float


@dataclass(frozen=True)
class StepSchedule:
    """The paper's schedule: each third of the steps has a tenth of the previous third's rate.

    With `warmup_epochs` the rate first rises linearly per step, from a thousandth. The thirds are
    still counted from the first step: the released code, with three warm-up epochs of nine, reaches
    the full rate only at the end of the third epoch and drops to a tenth in the next.
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
    """A linear rise, then half a cosine period down to zero."""

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
    """How a model is optimised.

    The defaults are the paper's, or the released code's where the paper gives no value.

    batch: crops per step, over all processes
    epochs: passes over the training images
    schedule: the learning rate of each step
    clip_norm: the largest norm of all gradients together
    amp: the type in which matrix products are computed; weights stay float32
    accumulate: micro-batches into which each process divides its share of a batch
    ema: decay of a running average of the weights, which is then validated and kept. At step n the
        decay is at most (1 + n) / (10 + n), so that a short training forgets its initial weights.
    seed: decides batches, crops and mirroring
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
                "epochs, batch and accumulate must be at least 1, got "
                f"{self.epochs}, {self.batch} and {self.accumulate}"
            )
        if not 0 < self.schedule.rate < math.inf:
            raise ConfigError(f"the learning rate must be above 0, got {self.schedule.rate}")
        if self.weight_decay < 0 or self.seed < 0:
            raise ConfigError(
                "weight decay and seed must be 0 or greater, got "
                f"{self.weight_decay} and {self.seed}"
            )
        if self.amp not in ("fp32", *DTYPES):
            raise ConfigError(f"unknown amp {self.amp!r}: choose fp32, fp16 or bf16")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema must be between 0 and 1, such as 0.999, got {self.ema}")


class Trainer:
    """A module, its loss, and all state that changes during training.

    Args:
        module: its parameters that require a gradient are trained.
        loss: the mean loss of a micro-batch. It may use more than the module.
        epoch_steps: steps per epoch.
        last_part: the context of each micro-batch, called with whether it is the last of its step.
            With several processes it delays the exchange of gradients until then.
        average: the mean of a number over all processes.
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
        self._overflows = 0  # consecutive steps whose gradients exceeded float16
        self._averages = [p.detach().clone() for p in self._parameters.values() if config.ema]

    def step(self, micro_batches: Sequence[MicroBatch]) -> Step:
        """Update the weights once, from micro-batches of equal size.

        Raises NotFiniteError if the loss or a gradient is not finite, before anything is changed.
        In fp16 a few steps with such gradients are allowed: they change no weight.
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
            f"gradients of step {self.done + 1} are not finite although its loss is: lower the "
            "learning rate" + ", or use --amp bf16" * self._scaler.is_enabled()
        )

    def _backward(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Compute the gradients of the mean loss, and return that loss."""
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
        """A context in which the module has its averaged weights, if an average is kept."""
        current = [p.detach() for p in self._parameters.values()] if self._averages else []
        kept = [weights.clone() for weights in current]
        _copy(current, self._averages)
        try:
            yield
        finally:
            _copy(current, kept)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a killed run needs to continue: tensors by name, and JSON-ready values."""
        tensors = {f"weights.{name}": p.detach() for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for moment, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{moment}.{name}"] = value
        for name, average in zip(self._parameters, self._averages, strict=False):
            tensors[f"average.{name}"] = average
        return tensors, {"done": self.done, "scaler": self._scaler.state_dict()}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `state`. Raises KeyError for the state of another module."""
        self.done = values["done"]
        self._scaler.load_state_dict(values["scaler"])
        for name, parameter in self._parameters.items():
            parameter.detach().copy_(tensors[f"weights.{name}"])
            moments = {m: tensors[key] for m in _MOMENTS if (key := f"{m}.{name}") in tensors}
            if moments:  # a parameter that never had a gradient has none
                moved = {m: value.to(self._device) for m, value in moments.items()}
                self._optimizer.state[parameter] = moved
        for name, average in zip(self._parameters, self._averages, strict=False):
            average.copy_(tensors[f"average.{name}"])


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def start_at(model: DRExperts, score: float) -> None:
    """Set the head so that expert weights sum to about one and every score is close to `score`.

    From the usual random start near zero, scores would take hundreds of steps to reach labels of
    0 to 100.
    """
    last = model.weighting.generator[-1]
    assert isinstance(last, nn.Linear)
    nn.init.constant_(last.bias, 1 / len(DISTORTIONS))
    nn.init.constant_(model.score.bias, score)
    with torch.no_grad():
        last.weight.mul_(0.1)
        model.score.weight.mul_(0.1)


def autocast(device: torch.device, amp: Amp) -> AbstractContextManager[Any]:
    """A context in which matrix products are computed in `amp`."""
    return nullcontext() if amp == "fp32" else torch.autocast(device.type, DTYPES[amp])


def _optimizer(parameters: dict[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW. As in the released code, biases and the gains of norms and layers do not decay."""
    free = {n for n, p in parameters.items() if n.endswith("bias") or _is_gain(n, p)}
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in parameters.items() if n not in free]},
        {"params": [p for n, p in parameters.items() if n in free], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, config.schedule.rate, weight_decay=config.weight_decay, fused=True
    )


def _is_gain(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a vector that does not decay.

    The released code decays two vectors, because they have one more dimension there.
    """
    return parameter.ndim <= 1 and name.rpartition(".")[2] not in ("alpha", "lambda_")
