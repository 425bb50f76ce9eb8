"""Images in the portions that are sent to engines."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from drexperts.runtime.score import Score
from drexperts.runtime.work import Item

_MOST_BYTES = 2**25  # of images that are sent, and not only named


@dataclass(frozen=True)
class Answer:
    """What an engine did with a task.

    machine: its host name
    scores: one for each item
    missing: paths of files that its machine does not have
    seconds: how long it took
    """

    machine: str
    scores: list[Score]
    missing: list[str]
    seconds: float


@dataclass(eq=False)
class Task:
    """Images that are scored together, on any engine.

    items, maps: as `Scorer.score_stream` takes them
    answer: None until an engine has done it
    losses: how many engines were lost while they had it
    """

    items: list[Item]
    maps: bool = False
    answer: Answer | None = None
    losses: int = 0


def tasks_of(
    items: Iterable[Item], group: int, wanted: Callable[[], int], maps: bool = False
) -> Iterator[Task]:
    """Tasks of whole groups: each image has the neighbours that it would have in one process.

    group: images that share batches
    wanted: asked before each task how many images it should have
    """
    stream = iter(items)
    while True:
        task, size, most = list[Item](), 0, wanted()
        while not task or (len(task) < most and size < _MOST_BYTES):
            part = list(itertools.islice(stream, group))
            task += part
            size += sum(map(_sent_bytes, part))
            if len(part) < group:
                break
        if not task:
            return
        yield Task(task, maps)


def source_of(item: Any) -> Any:
    """The image of an item, or what fetches it. Tuples that are no pairs fail when scored."""
    return item[-1] if isinstance(item, tuple) and item else item


def _sent_bytes(item: Any) -> int:
    source = source_of(item)
    if isinstance(source, Image.Image):
        return source.width * source.height * len(source.getbands())
    return len(source) if isinstance(source, bytes) else int(getattr(source, "nbytes", 0))
