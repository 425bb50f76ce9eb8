"""A queue in which nobody waits for all that somebody else has put in before."""

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """First come, first served within a group; groups take turns of `turn` items each.

    Equal groups of up to `turn` items are served in the order in which they came. Not safe to share
    between threads without a lock.
    """

    def __init__(self, turn: int) -> None:
        self._turn = turn
        self._groups: dict[Hashable, deque[T]] = {}  # the first has its turn
        self._taken = 0  # of the first group's turn
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for items in self._groups.values():
            yield from items

    def push(self, group: Hashable, item: T) -> None:
        """Add an item after all others of its group."""
        self._groups.setdefault(group, deque()).append(item)
        self._count += 1

    def pop(self) -> T:
        """Remove and return the next item. Raises IndexError if there is none."""
        if not self._groups:
            raise IndexError("the queue is empty")
        group = next(iter(self._groups))
        # Not before now, so that a group that came in the meantime is next.
        if self._taken == self._turn:
            self._groups[group] = self._groups.pop(group)
            self._taken = 0
            group = next(iter(self._groups))
        item = self._groups[group].popleft()
        self._count -= 1
        self._taken += 1
        if not self._groups[group]:
            self._end(group)
        return item

    def discard(self, group: Hashable, unwanted: Callable[[T], bool]) -> None:
        """Remove the items of a group that nobody wants any more."""
        items = self._groups.get(group, deque())
        kept = deque(item for item in items if not unwanted(item))
        self._count -= len(items) - len(kept)
        if kept:
            self._groups[group] = kept
        elif items:
            self._end(group)

    def _end(self, group: Hashable) -> None:
        if next(iter(self._groups)) == group:
            self._taken = 0
        del self._groups[group]
