"""Training crops: of which image, where, and mirrored or not.

All randomness comes from (seed, epoch, position in the epoch) alone, so that the number of workers
or processes, or resuming a run, does not change the crops.
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
    names: the images' names, [b]
    """

    images: Tensor
    labels: Tensor
    names: list[str]


class TrainingBatches:
    """One process's share of each epoch, in micro-batches.

    Every image gives `crops` crops per epoch, and a step of the optimiser takes `batch` of them
    over all processes. An incomplete batch at the end of an epoch is dropped. If an epoch has fewer
    crops than one batch, the batch is all of them, rounded down to a multiple of
    `world * accumulate`.

    Args:
        size: side of the square crops, in pixels.
        rank, world: this process's number, and the number of processes.
        accumulate: micro-batches per step of this process.
        workers: decoding processes, which live as long as this object; 0 decodes in this process.
        pin: put the tensors into page-locked memory, for copies to a GPU.

    Attributes:
        batch: crops per step over all processes, at most the `batch` asked for.
        steps: steps per epoch.
        accumulate: micro-batches per step.

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
            batch_size=None,  # each item of the data set is a micro-batch
            sampler=self._parts,
            collate_fn=_as_it_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals_to_the_main_process,
            pin_memory=pin,
            generator=torch.Generator(),  # otherwise each epoch would draw from the global one
        )

    def epoch(self, number: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """The micro-batches of an epoch from `first_step` on, `accumulate` per step.

        Crops before `first_step` are not decoded. Only one epoch may be iterated at a time.

        Raises DataError if an image was changed or removed since the run began, or a worker died;
        UserError if an image cannot be cached.
        """
        self._parts[:] = self._share_of(number)[first_step * self.accumulate :]
        return _received(self._loader)

    def _share_of(self, epoch: int) -> list["_Part"]:
        order = epoch_order(self._images, self._crops, self.batch, self._seed, epoch)
        positions = np.arange(order.size).reshape(order.shape)
        mine = np.s_[:, self._rank :: self._world]
        shape = (self.steps * self.accumulate, -1)
        parts = zip(positions[mine].reshape(shape), order[mine].reshape(shape), strict=True)
        return [_Part(epoch, *part) for part in parts]


def divisible_batch(crops: int, batch: int, world: int, accumulate: int) -> int:
    """The crops per step: `batch`, or fewer if an epoch has fewer; see `TrainingBatches`.

    Raises ConfigError if `batch` cannot be divided or no crop is left.
    """
    parts = world * accumulate
    if min(batch, parts) < 1 or batch % parts:
        raise ConfigError(
            f"a batch of {batch} cannot be divided among {world} processes with {accumulate} "
            f"micro-batches each: make --batch a multiple of {parts}, or change --accumulate"
        )
    fitting = min(batch, crops - crops % parts)
    if fitting < 1:
        raise ConfigError(
            f"{crops} crops per epoch cannot be divided among {world} processes with {accumulate} "
            "micro-batches each: use more images, fewer processes or a smaller --accumulate"
        )
    return fitting


def epoch_order(images: int, crops: int, batch: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch: the image index of each crop of each step, int64 [steps, batch].

    Each image comes `crops` times, in a random order whose incomplete last batch is dropped.
    """
    each = np.repeat(np.arange(images), crops)
    order = default_rng(SeedSequence([seed, epoch])).permutation(each)
    return order[: order.size - order.size % batch].reshape(-1, batch)


def random_crop(
    store: ImageStore, sample: Sample, size: int, seed: int, epoch: int, position: int
) -> Pixels:
    """The crop at a position of an epoch's order, uint8 [size, size, 3].

    It lies anywhere in the image, and is mirrored left to right with probability 1/2, and top to
    bottom likewise. Raises the errors of `ImageStore.pixels`.
    """
    # A spawn key, because position 0 as a third word would repeat the numbers of the order.
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
    """Micro-batches. Errors are returned as items, because a worker would wrap a raised one."""

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
    """A context for all work while workers decode: PyTorch may raise their death anywhere in it."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as cause:
        # The last two come from the pipe of a worker that is only just dying.
        if isinstance(cause, RuntimeError) and not str(cause).startswith("DataLoader worker"):
            raise
        raise DataError(
            f"a process that decodes images died, often because memory ran out: {cause}; "
            "use fewer --workers, or allow more memory (in a container also for /dev/shm)"
        ) from cause


@contextmanager
def _signals_held() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM; processes that are started meanwhile have both blocked."""
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
    """Ignore Ctrl-C and SIGTERM, which reach all processes: only the main one has work to save.

    A SIGTERM that the main process itself sends is obeyed: it ends its workers that way.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # on Linux; elsewhere SIGTERM ends the worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_the_main_process, daemon=True).start()


def _obey_the_main_process() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
