"""The processes of one training: those that `torchrun` started, or this one alone."""

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
from torch import distributed, nn
from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from drexperts.runtime.errors import DeviceError, LostProcessError
from drexperts.training.place import place

T = TypeVar("T")

# The other processes wait while one reads every image once, which takes much longer than a step.
_PATIENCE = timedelta(hours=6)
# torchrun's store outlives a group. Under the same keys the next group would find the addresses of
# the last one's processes, and wait for them until the time limit.
_GROUPS = itertools.count()
# Parts of the messages with which gloo, NCCL and their transports report a lost process.
_LOST = re.compile("gloo|NCCL|ProcessGroup|TCPStore|(closed|reset) by peer|Broken pipe")


class Processes:
    """A group of processes that run the same program, each with a device of its own.

    rank, world: this process's number, and the number of processes
    first: whether this process is the one that writes files and prints

    `with` joins the group and leaves it again: NCCL connects GPUs, gloo connects CPUs. Every
    exchange raises LostProcessError once another process has ended.
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

    def __exit__(self, *_: object) -> None:
        if self.world > 1:
            distributed.destroy_process_group()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wraps an exchange: the backend's errors about lost processes become LostProcessError."""
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
        # Biases of keys cancel in a softmax, so some parameters have no gradient.
        with self.together():
            wrapped = DistributedDataParallel(module, device_ids=ids, find_unused_parameters=True)
        # Buffers are constants. The argument's name depends on torch's version, the attribute's
        # does not.
        wrapped.broadcast_buffers = False
        return wrapped

    def last_part(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """A context for one part of a step: only the last part exchanges gradients."""
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
        """Whether the flag is set in any process."""
        return self.average(float(flag)) > 0

    def wait(self) -> None:
        """Wait until all processes call this."""
        self.average(0.0)

    def gather(self, part: list[T]) -> list[T]:
        """The parts of all processes, concatenated by rank."""
        if self.world == 1:
            return part
        parts: list[Any] = [None] * self.world
        with self.together():
            distributed.all_gather_object(parts, part)
        return [item for gathered in parts for item in gathered]

    def from_first(self, work: Callable[[], T]) -> T:
        """The first process's result, in all processes; an error there is raised in all of them."""
        if self.world == 1:
            return work()
        found: list[Any] = [None, None]
        if self.first:
            try:
                found[0] = work()
            except Exception as error:  # raised below, once the others know
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
        raise DeviceError(f"unknown --device {name!r}: choose auto, cpu, cuda or a GPU as cuda:1")
    device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
    if device.type == "cuda" and device.index >= there:
        raise DeviceError(
            f"PyTorch finds {there} CUDA devices, but {device} was asked for: use --device cpu, "
            "or check the driver"
        )
    return device
