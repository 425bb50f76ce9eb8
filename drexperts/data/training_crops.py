"""Training crops: which image, where, mirrored or not.

Everything random comes from (seed, epoch, position in the epoch) and nothing else, so that neither
the number of workers, nor that of processes, nor a resumed run changes what is learnt from.
"""

import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import SeedSequence, default_rng
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import data

from drexperts.data.dataset import Sample
from drexperts.data.images import ImageStore, Pixels
from drexperts.runtime.errors import ConfigError, DataError, UserError


class Batch(NamedTuple):
    """Crops that go through the model together.

    images: uint8 [b, 3, size, size], RGB
    labels: float32 [b]
    names: of the images, [b]
    """

    images: Tensor
    labels: Tensor
    names: list[str]


class TrainingBatches:
    """One process's share of each epoch, in micro-batches.

    Every image gives `crops` crops an epoch; a step of the optimiser takes `batch` of them, over
    all processes; what is left at the end of an epoch is dropped. With fewer crops than one batch,
    the batch is all of them, less what `world * accumulate` leaves over.

    Args:
        size: of the square crops, in pixels.
        rank, world: of which process these are the batches, and of how many.
        accumulate: micro-batches in a step of this process.
        workers: processes that decode, which live as long as this object; 0 decodes in this one.
        pin: whether the tensors are in page-locked memory, for copies to a GPU.

    Attributes:
        batch: crops in a step over all processes, at most the `batch` asked for.
        steps: steps in an epoch.
        accumulate: micro-batches in a step.

    Raises ConfigError for a batch that cannot be divided.
    """

    def __init__(
        self,
        store: ImageStore,
        samples: Sequence[Sample],
        *,
        crops: int,
        size: int,
        batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        self.batch = divisible_batch(len(samples) * crops, batch, world, accumulate)
        self.steps = len(samples) * crops // self.batch
        self.accumulate = accumulate
        self._images, self._crops, self._seed = len(samples), crops, seed
        self._rank, self._world = rank, world
        self._parts: list[_Part] = []
        self._loader = data.DataLoader(
            _Crops(store, samples, size, seed),
            batch_size=None,  # an item of the data set is a micro-batch
            sampler=self._parts,
            collate_fn=_as_it_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals_to_the_main_process,
            pin_memory=pin,
            generator=torch.Generator(),  # or each epoch would draw from PyTorch's global one
        )

    def epoch(self, number: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """The micro-batches of an epoch from a step on, `accumulate` a step.

        What comes before `first_step` is not decoded. One epoch at a time: end or abandon an
        iterator before the next is begun.

        Raises DataError for an image that was changed or removed since the run began, and for
        workers that died; UserError if an image cannot be cached.
        """
        self._parts[:] = self._planned(number)[first_step * self.accumulate :]
        return _received(self._loader)

    def _planned(self, epoch: int) -> list["_Part"]:
        plan = plan_epoch(self._images, self._crops, self.batch, self._seed, epoch)
        positions = np.arange(plan.size).reshape(plan.shape)
        mine = np.s_[:, self._rank :: self._world]
        shape = (self.steps * self.accumulate, -1)
        parts = zip(positions[mine].reshape(shape), plan[mine].reshape(shape), strict=True)
        return [_Part(epoch, *part) for part in parts]


def divisible_batch(crops: int, batch: int, world: int, accumulate: int) -> int:
    """The crops in a step: `batch`, or fewer where an epoch has fewer; see `TrainingBatches`.

    Raises ConfigError if `batch` cannot be divided, or nothing is left.
    """
    parts = world * accumulate
    if min(batch, parts) < 1 or batch % parts:
        raise ConfigError(
            f"a batch of {batch} cannot be divided over {world} processes with {accumulate} "
            f"micro-batches each: make --batch a multiple of {parts}, or change --accumulate"
        )
    fitting = min(batch, crops - crops % parts)
    if fitting < 1:
        raise ConfigError(
            f"{crops} crops an epoch cannot be divided over {world} processes with {accumulate} "
            "micro-batches each: use more images, fewer processes or a smaller --accumulate"
        )
    return fitting


def plan_epoch(images: int, crops: int, batch: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch: for each step, which image each crop is of, int64 [steps, batch].

    Each image comes `crops` times in a random order, whose incomplete end is dropped.
    """
    each = np.repeat(np.arange(images), crops)
    order = default_rng(SeedSequence([seed, epoch])).permutation(each)
    return order[: order.size - order.size % batch].reshape(-1, batch)


def random_crop(
    store: ImageStore, sample: Sample, size: int, seed: int, epoch: int, position: int
) -> Pixels:
    """The crop at a position of an epoch's order, uint8 [size, size, 3].

    Anywhere in the image; mirrored left to right every second time, and top to bottom likewise.
    Raises what `ImageStore.pixels` raises.
    """
    # A spawn key: as a third word, 0 would give the numbers that already made the order.
    draws = default_rng(SeedSequence([seed, epoch], spawn_key=(position,))).random(4)
    crop = store.crop(sample, size, (draws[0], draws[1]))
    across, down = (-1 if draw < 0.5 else 1 for draw in draws[2:])
    return crop[::down, ::across]


class _Part(NamedTuple):
    """A micro-batch: positions in the order of an epoch, and the image at each."""

    epoch: int
    positions: NDArray[np.int64]
    images: NDArray[np.int64]


class _Crops(data.Dataset[Batch | UserError]):
    """Micro-batches by their plan. An error is an item too: raised here, a worker would wrap it."""

    def __init__(self, store: ImageStore, samples: Sequence[Sample], size: int, seed: int) -> None:
        self._store, self._samples, self._size, self._seed = store, samples, size, seed

    def __getitem__(self, part: _Part) -> Batch | UserError:
        samples = [self._samples[i] for i in part.images]
        images = torch.empty((len(samples), 3, self._size, self._size), dtype=torch.uint8)
        planes = images.numpy()
        try:
            for i, (sample, position) in enumerate(zip(samples, part.positions, strict=True)):
                crop = random_crop(
                    self._store, sample, self._size, self._seed, part.epoch, int(position)
                )
                planes[i] = crop.transpose(2, 0, 1)
        except DataError as error:
            return DataError(f"{error}; restore it, and run the same command again")
        except UserError as error:
            return error
        labels = torch.tensor([sample.label for sample in samples], dtype=torch.float32)
        return Batch(images, labels, [sample.name for sample in samples])


def _received(loader: "data.DataLoader[Batch | UserError]") -> Generator[Batch, None, None]:
    with workers_explained():
        with _signals_held():  # where none are running yet, this starts the workers
            items = iter(loader)
        for item in items:
            if isinstance(item, UserError):
                raise item
            yield item


@contextmanager
def workers_explained() -> Iterator[None]:
    """Around all that is done while workers decode: that one died is raised wherever that is."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as cause:
        # The last two come from the pipe of a worker that is only just dying.
        if isinstance(cause, RuntimeError) and not str(cause).startswith("DataLoader worker"):
            raise
        raise DataError(
            f"a process that decodes images died, often for want of memory: {cause}; "
            "pass fewer --workers, or allow more memory (of a container, also /dev/shm)"
        ) from cause


@contextmanager
def _signals_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM come afterwards; a process started within is born deaf to both."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, kept)


def _as_it_is(item: Any) -> Any:
    return item


def _leave_signals_to_the_main_process(_: int) -> None:
    """Ctrl-C and SIGTERM reach a whole group of processes; only the main one has work to save.

    A SIGTERM from the main process itself is how it ends a worker at exit, and is obeyed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # on Linux; elsewhere SIGTERM ends the worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_the_main_process, daemon=True).start()


def _obey_the_main_process() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
