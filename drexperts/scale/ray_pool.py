"""Engines in actors of Ray, which may be lost at any moment, and the tasks that they have."""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from drexperts.runtime.errors import UserError
from drexperts.scale.remote_engine import Facts
from drexperts.scale.tasks import Answer, Task

_log = logging.getLogger(__name__)

# An actor's handle, and the reference to what one of its methods will return.
Handle: TypeAlias = Any
Reference: TypeAlias = Any

TASKS_AT_ONCE = 2  # that an engine works on
_TASKS = TASKS_AT_ONCE + 1  # that it has, so that it never waits for the next
_MOST_LOSSES = 3  # of engines with the same task, or in a row before any has done one
_PATIENCE = 60.0  # seconds without an engine until a warning


class RayPool:
    """Hands tasks to the engine with the fewest, and again to another one if that is lost.

    A lost engine is replaced as soon as there is room for another. All engines must make the same
    scores. For one thread.

    ray: the module
    start: makes an actor and asks it to start its engine
    engines: how many there should be; those without room are waited for while others work

    Raises UserError if a task costs several engines, if none stays, and if one makes other scores;
    and what engines raise.
    """

    def __init__(
        self, ray: Any, start: Callable[[], tuple[Handle, Reference]], engines: int
    ) -> None:
        self._ray, self._start = ray, start
        self._starting: dict[Reference, Handle] = {}
        self._tasks: dict[Handle, int] = {}  # how many each engine has that has started
        self._running: dict[Reference, tuple[Handle, Task]] = {}
        self._waiting: deque[Task] = deque()
        self._losses, self._reason = 0, ""  # since an engine did a task, and of the last
        self._facts: Facts | None = None
        self.images_per_second = 0.0  # of one task on an engine, in its last one
        for _ in range(engines):
            self._add_engine()

    @property
    def has_room(self) -> bool:
        """Whether an engine will take a further task soon."""
        unfinished = len(self._waiting) + len(self._running)
        return unfinished < _TASKS * max(1, len(self._tasks))

    @property
    def engines(self) -> int:
        """How many engines there should be."""
        return len(self._starting) + len(self._tasks)

    def facts(self) -> Facts:
        """Of the first engine, which is waited for."""
        while self._facts is None:
            self.wait()
        return self._facts

    def submit(self, task: Task) -> None:
        """Have a task done; its answer is there after some `wait`."""
        self._waiting.append(task)
        self._hand_out()

    def forget(self) -> None:
        """Begin no further task."""
        self._waiting.clear()

    def wait(self) -> None:
        """Wait until something has happened."""
        references = [*self._running, *self._starting]
        for reference in self._ray.wait(references, timeout=_PATIENCE)[0]:
            if reference in self._starting:
                self._take_engine(reference)
            else:
                self._take_answer(reference)
            self._hand_out()
            return
        if not self._tasks:
            _log.warning("no engine runs: waiting for room on Ray, or for one that starts")

    def close(self) -> None:
        """End all engines."""
        for handle in [*self._tasks, *self._starting.values()]:
            self._ray.kill(handle)

    def _hand_out(self) -> None:
        while self._waiting and self._tasks:
            handle = min(self._tasks, key=self._tasks.__getitem__)
            if self._tasks[handle] == _TASKS:
                return
            task = self._waiting.popleft()
            self._running[handle.score.remote(task.items, task.maps)] = handle, task
            self._tasks[handle] += 1

    def _add_engine(self) -> None:
        handle, reference = self._start()
        self._starting[reference] = handle

    def _take_engine(self, reference: Reference) -> None:
        facts = self._value(reference)
        handle = self._starting.pop(reference)
        if facts is None:
            self._replace(handle)
            return
        self._facts = self._facts or facts
        if facts.fingerprint != self._facts.fingerprint:
            raise UserError(
                f"{facts.machine} makes other scores ({facts.engine.file} on "
                f"{facts.description}) than {self._facts.machine} ({self._facts.engine.file} on "
                f"{self._facts.description}): use machines with equal software and processors, or "
                "an engine that all of them have"
            )
        self._tasks[handle] = 0

    def _take_answer(self, reference: Reference) -> None:
        handle, task = self._running.pop(reference)
        answer: Answer | None = self._value(reference)
        if answer is not None:
            task.answer, self._losses = answer, 0
            self.images_per_second = len(task.items) / max(answer.seconds, 1e-6)
            if handle in self._tasks:
                self._tasks[handle] -= 1
            return
        task.losses += 1
        if task.losses > _MOST_LOSSES:
            raise UserError(_too_many_losses(task, self._reason))
        self._waiting.appendleft(task)
        if self._tasks.pop(handle, None) is not None:
            self._replace(handle)

    def _replace(self, handle: Handle) -> None:
        self._ray.kill(handle)  # it may be out of reach only
        self._losses += 1
        if self._losses > _MOST_LOSSES * self.engines + _MOST_LOSSES:
            raise UserError(
                f"engines on Ray are lost as soon as they start ({self._reason}): install "
                "drexperts with its libraries on all machines, and look into Ray's logs"
            )
        _log.warning("an engine on Ray was lost; its images are scored again")
        self._add_engine()

    def _value(self, reference: Reference) -> Any:
        """What an engine returned; None if it was lost. Raises what it raised."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            _log.info("%s", error)
            self._reason = f"{(str(error).strip() or repr(error)).splitlines()[-1]:.200}"
            return None


def _too_many_losses(task: Task, reason: str) -> str:
    names = [str(item[0] if isinstance(item, tuple) else item) for item in task.items]
    return (
        f"{task.losses} engines on Ray were lost while they scored {names[0]!r} to {names[-1]!r} "
        f"({reason}): look into Ray's logs; rows that are there are kept"
    )
