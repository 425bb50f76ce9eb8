"""Score files on the machines of a Ray cluster, into one result file.

Example:
    from drexperts.scale.ray import score_dataset

    score_dataset("bundle/", "/shared/photos", "scores.parquet", address="auto")
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Self

from drexperts.runtime.decoding.decoders import Decoder, LocalDecoder
from drexperts.runtime.errors import UserError
from drexperts.runtime.file_scorer import check_maps
from drexperts.runtime.manifest import Engine, Manifest
from drexperts.runtime.remote_bundle import absolute
from drexperts.runtime.score import Score
from drexperts.runtime.scorer import PassedOver
from drexperts.runtime.scoring import ScoringSummary, score_files
from drexperts.runtime.work import Item
from drexperts.scale.ray_cluster import check_count, connected, room_for, share_of
from drexperts.scale.ray_pool import TASKS_AT_ONCE, Handle, RayPool, Reference
from drexperts.scale.remote_engine import RemoteEngine
from drexperts.scale.tasks import Task, tasks_of

_SECONDS = 1.0  # that a task should take: long beside the time to send it, short enough to lose
_MOST_IMAGES = 512  # of a task
_AHEAD = 16  # tasks per engine that are done before an earlier one is


def score_dataset(
    bundle: str | os.PathLike[str],
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
    out: str | os.PathLike[str] | None = None,
    *,
    address: str | None = None,
    device: str = "auto",
    cpus: int | None = None,
    engines: int | None = None,
    load: dict[str, Any] | None = None,
    **options: Any,
) -> ScoringSummary:
    """Score images on Ray as `drexperts.runtime.score_files` does in one process.

    The result file is the same, its rows are in the same order, and a run that was killed is
    continued by the same call, on Ray or without it.

    address, device, cpus, engines, load: see `RayScorer`
    options: of `score_files`, such as `listed` and `shard`
    """
    with RayScorer(
        bundle, address=address, device=device, cpus=cpus, engines=engines, **(load or {})
    ) as scorer:
        return score_files(scorer, paths, out, **options)


class RayScorer:
    """Scores streams of images with engines in actors of Ray, for `score_files`.

    Paths and URLs are opened where the engines are, under the names that they have here. What is
    in archives and tables is read here and sent. Scores come back in the order of the images; rows
    are written here, so that no folder for results needs to be shared. An engine that is lost with
    its process or machine is replaced, and its images are scored again.

    A context manager. For one thread, and one stream at a time.

    bundle: the bundle's folder, which is at this path on every machine, or its URL
    address: of a cluster; None is the one that this process is connected to, or the one in
        RAY_ADDRESS, or else Ray is started on this machine
    device: "auto", "cpu" or "cuda": an engine takes one GPU, or none
    cpus: CPUs of each engine, and threads on CPUs; None is 4, or as many as the machines have
    engines: how many; None is as many as have room. More are started when there is room for them
    options: of `drexperts.runtime.load`; `isolated` is True unless it is given here

    Raises MissingDependencyError without Ray, and UserError where no engine has room, and where a
    machine cannot load the bundle or makes other scores.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        address: str | None = None,
        device: str = "auto",
        cpus: int | None = None,
        engines: int | None = None,
        **options: Any,
    ) -> None:
        self._bundle = absolute(bundle)
        with ExitStack() as stack:
            ray = stack.enter_context(connected(address))
            share = share_of(ray, device, cpus)
            options = {"isolated": True, "threads": share.cpus} | options | {"device": device}
            actor = ray.remote(
                num_cpus=share.cpus, num_gpus=share.gpus, max_concurrency=TASKS_AT_ONCE
            )(RemoteEngine)
            self._load = self._bundle, options, os.getcwd()
            room = room_for(ray, share) if engines is None else engines
            check_count("engines", room)
            self._pool = RayPool(ray, lambda: self._started(actor), room)
            stack.callback(self._pool.close)
            self._facts = facts = self._pool.facts()
            self._closing = stack.pop_all()
        self.decoder: Decoder = LocalDecoder(facts.preprocessing, facts.limits)

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""
        return self._facts.manifest

    @property
    def engine(self) -> Engine:
        """The engine of the bundle that the actors use."""
        return self._facts.engine

    @property
    def batch(self) -> int:
        """The largest number of crops per call of the engine."""
        return self._facts.batch

    @property
    def description(self) -> str:
        """How many engines there are, and on what."""
        return f"Ray, {self._pool.engines} engines, each {self._facts.description}"

    @property
    def passed_over(self) -> tuple[PassedOver, ...]:
        """The better engines that the first actor could not use."""
        return self._facts.passed_over

    @property
    def other_crops_per_side(self) -> int | None:
        """See `Scorer.other_crops_per_side`."""
        return self._facts.other_crops_per_side

    def fingerprint(self) -> str:
        """Of the scores of all engines, see `Scorer.fingerprint`."""
        return self._facts.fingerprint

    def check_ready(self, maps: bool) -> None:
        """Raise UserError for maps that the bundle lacks."""
        check_maps(self.manifest, maps)

    def score_stream(self, sources: Iterable[Item], *, maps: bool = False) -> Iterator[Score]:
        """The score of each source in their order, see `Scorer.score_stream`; read far ahead."""
        # Maps take a megabyte per image, and scores wait for those of earlier images.
        wanted = (lambda: self.batch) if maps else self._images_per_task
        tasks = tasks_of(sources, self.batch, wanted, maps)
        order = deque[Task]()
        pool, more = self._pool, True
        try:
            while more or order:
                # One task at least: tasks of a stream that was given up may fill all engines.
                while more and (
                    not order or (pool.has_room and len(order) < _AHEAD * pool.engines)
                ):
                    task = next(tasks, None)
                    more = task is not None
                    if task is not None:
                        order.append(task)
                        pool.submit(task)
                if order and order[0].answer is None:
                    pool.wait()
                while order and order[0].answer is not None:
                    yield from _scores(order.popleft())
        finally:
            pool.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _started(self, actor: Any) -> tuple[Handle, Reference]:
        handle = actor.remote()
        return handle, handle.start.remote(*self._load)

    def _images_per_task(self) -> int:
        wanted = int(_SECONDS * self._pool.images_per_second)
        return max(self.batch, min(wanted, _MOST_IMAGES))


def _scores(task: Task) -> list[Score]:
    """The scores of a task that is done.

    Raises UserError for a file that is here and not where the engine is: that machine lacks a
    folder, and each image in it would be an error.
    """
    assert task.answer is not None
    for path in task.answer.missing:
        if os.path.exists(path):
            raise UserError(
                f"{path!r} is on this machine, and not on {task.answer.machine}: mount its folder "
                "at the same path on all machines, or name the images by URLs"
            )
    return task.answer.scores
