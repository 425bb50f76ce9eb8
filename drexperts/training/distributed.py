"""The processes of one training: those that `torchrun` started, or this one alone."""

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import distributed, nn
from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from drexperts.runtime.errors import DeviceError, LostProcessError
from drexperts.training.torchrun import place

T = TypeVar("T")

# Others wait while one process reads every image once, which takes longer than a step.
_PATIENCE = timedelta(hours=6)
# torchrun's store outlives a group. Under the same keys the next one finds the addresses of
# processes as they were in the last, and waits for them until its patience ends.
_GROUPS = itertools.count()
# How gloo and NCCL, and what is between them and Python, say that another process is gone.
_LOST = re.compile("gloo|NCCL|ProcessGroup|TCPStore|(closed|reset) by peer|Broken pipe")


class Processes:
    """A group of processes, each with a device, that run the same program.

    rank, world: this process's number, and how many there are
    first: whether it is the one that writes files and speaks

    `torchrun` says which process is which in the environment. Enter it to start and to leave the
    group: NCCL between GPUs, gloo between CPUs. Whatever is exchanged raises LostProcessError once
    another process has ended.
    """

    def __init__(self, device: str = "auto") -> None:
        self.rank, self.world, local_rank = place()
        self.first = self.rank == 0
        self.device = _device(device, local_rank)

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world > 1:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            with self.together():
                store, rank, world = next(rendezvous("env://", timeout=_PATIENCE))
                store = PrefixStore(f"group {next(_GROUPS)}", store)
                distributed.init_process_group(
                    backend, store=store, rank=rank, world_size=world, timeout=_PATIENCE
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.world > 1:
            distributed.destroy_process_group()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Where gradients or anything else are exchanged: LostProcessError for the backend's own.

        Other errors stay what they are.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not (isinstance(error, DistError) or _LOST.search(str(error))):
                raise
            cause = " ".join(str(error).split())
            raise LostProcessError(
                f"another process of this training ended; see its message (here: {cause:.300})"
            ) from error

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, with its gradients averaged over the processes."""
        if self.world == 1:
            return module
        ids = [self.device] if self.device.type == "cuda" else None
        # Biases of keys cancel in a softmax, so that some parameters have no gradient.
        with self.together():
            wrapped = DistributedDataParallel(module, device_ids=ids, find_unused_parameters=True)
        # Buffers are constants. An attribute, as the argument's name depends on torch's version.
        wrapped.broadcast_buffers = False
        return wrapped

    def last_part(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Where a step has several parts, gradients are exchanged after the last one only."""
        if last or not isinstance(module, DistributedDataParallel):
            return nullcontext()
        return module.no_sync()

    def average(self, value: float) -> float:
        """The mean of a number over the processes."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        with self.together():
            distributed.all_reduce(total)
            return total.item() / self.world

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return self.average(float(flag)) > 0

    def wait(self) -> None:
        """Until all processes are here."""
        self.average(0.0)

    def gather(self, part: list[T]) -> list[T]:
        """The parts of all processes, one after the other."""
        if self.world == 1:
            return part
        parts: list[Any] = [None] * self.world
        with self.together():
            distributed.all_gather_object(parts, part)
        return [item for gathered in parts for item in gathered]

    def from_first(self, work: Callable[[], T]) -> T:
        """What the first process finds, in all of them. An error there is an error everywhere."""
        if self.world == 1:
            return work()
        found: list[Any] = [None, None]
        if self.first:
            try:
                found[0] = work()
            except Exception as error:  # raised below, after the others know
                found[1] = error
        with self.together():
            distributed.broadcast_object_list(found)
        if found[1] is not None:
            raise found[1]
        return found[0]


def _device(name: str, local_rank: int) -> torch.device:
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if there else "cpu"
    if not re.fullmatch("cpu|cuda(:[1-9]?[0-9])?", name):
        raise DeviceError(f"--device {name} is none: choose cpu, cuda or such as cuda:1")
    device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
    if device.type == "cuda" and device.index >= there:
        raise DeviceError(
            f"PyTorch finds {there} CUDA devices here, and {device} was asked for: "
            "--device cpu, or check the driver"
        )
    return device
