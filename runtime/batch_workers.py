"""The threads of a Batcher: they decode, run the engine and drop what is late."""

import atexit
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from drexperts.runtime.errors import ClosedError, DeadlineError, OutOfMemoryError, UserError
from drexperts.runtime.forks import renew_in_children
from drexperts.runtime.pending import Job, Pending
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.work import ImageWork

# An error of the engine that is not known to stay is taken for one that does after so many calls in
# a row: then somebody must look, and a supervisor that starts the program anew may help.
_FAILURES_IN_A_ROW = 3
_log = logging.getLogger(__name__)


class BatchObserver(Protocol):
    """Told by a Batcher's threads what they did. What it raises is logged."""

    def decoded(self, seconds: float) -> None:
        """An image was decoded, or found to be unreadable."""
        ...

    def queued(self, seconds: float) -> None:
        """A submission waited so long, from when it was decoded until the engine began it."""
        ...

    def ran(self, seconds: float, crops: int) -> None:
        """A call of the engine with so many crops ended."""
        ...


class _Nobody:
    def decoded(self, seconds: float) -> None: ...
    def queued(self, seconds: float) -> None: ...
    def ran(self, seconds: float, crops: int) -> None: ...


class Workers:
    """The threads of a Batcher. They end when it is closed and everything has ended.

    They refer to this object and not to their Batcher, so that one that is dropped is closed.
    """

    def __init__(
        self, scorer: Scorer, pending: Pending, decoders: int, observer: BatchObserver | None
    ) -> None:
        self._scorer, self._pending = scorer, pending
        self._decoders, self._observer = decoders, observer or _Nobody()
        self._failed_in_a_row = 0
        self.after_fork()
        renew_in_children(self)
        _LIVE.add(self)

    def after_fork(self) -> None:
        """The threads and what they worked at are the parent's; a child starts its own."""
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()
        self._pending.after_fork()

    def start(self) -> None:
        """Start the threads, at the first submission."""
        with self._starting:
            if self._threads:
                return
            steps = {
                "decode": [self._decode_next] * self._decoders,
                "engine": [self._run_next] * self._scorer.concurrency,
                "deadline": [self._drop_late],
            }
            for name, each in steps.items():
                for step in each:
                    thread = threading.Thread(
                        target=_repeat, args=(step,), name=f"drexperts-{name}", daemon=True
                    )
                    thread.start()
                    self._threads.append(thread)

    def end(self, timeout: float | None) -> None:
        """Wait until everything has ended, at most `timeout` seconds; what is left then fails."""
        if threading.current_thread() in self._threads:
            return
        if not self._pending.wait_until_empty(timeout):
            self._fail_the_rest()
            timeout = 0
        for thread in self._threads:
            thread.join(timeout)

    def end_now(self) -> None:
        """Fail everything but what runs, and wait for that."""
        self._pending.close()
        self._fail_the_rest()
        for thread in self._threads:
            thread.join()

    def prepare(self, job: Job) -> None:
        """Decode a job's image, and pass its crops on to the engine."""
        start = time.monotonic()
        try:
            work = job.prepare()
        except Exception as error:
            if self._pending.prepared(job, None):
                _fail([job], error)
            return
        if isinstance(work, ImageWork):
            with _logged("an observer of batches"):
                self._observer.decoded(time.monotonic() - start)
        if self._pending.prepared(job, work):
            _settle(job)

    def _fail_the_rest(self) -> None:
        error = ClosedError("the Batcher was closed before this was scored: submit it elsewhere")
        _fail(self._pending.take_all(), error)

    def _decode_next(self) -> bool:
        job = self._pending.next_to_prepare()
        if job is not None:
            self.prepare(job)
        return job is not None

    def _run_next(self) -> bool:
        batch = self._pending.next_batch()
        if batch is None:
            return False
        start, failed, failure = time.monotonic(), list[Job](), None
        try:
            self._scorer.run([(job.work, index) for job, index in batch if job.work is not None])
        except Exception as error:
            failed, failure = self._failed([job for job, _ in batch], error), error
        else:
            self._failed_in_a_row = 0
        with _logged("an observer of batches"):
            self._observer.ran(time.monotonic() - start, len(batch))
        # Before anybody hears of it: who submits again then must find these crops' place free.
        done = self._pending.ran(batch)
        if failure is not None:
            _fail(failed, failure)
        for job in done:
            with _logged("an observer of batches"):
                self._observer.queued(job.waited)
            _settle(job)
        return True

    def _failed(self, jobs: list[Job], error: Exception) -> list[Job]:
        """The jobs to fail after a call that failed; all that there are, if others would fail."""
        self._failed_in_a_row += 1
        passes = isinstance(error, OutOfMemoryError) or not isinstance(error, UserError)
        if passes and self._failed_in_a_row < _FAILURES_IN_A_ROW:
            _log.warning("a call of the engine failed: %s", error)
            return [job for job in dict.fromkeys(jobs) if self._pending.take(job)]
        if self._pending.failure is None:
            _log.error("the engine failed, and nothing more is scored: %s", error)
        self._pending.fail(error)
        return self._pending.take_all()

    def _drop_late(self) -> bool:
        late = self._pending.late()
        _fail(late or [], DeadlineError("it was not begun in time: try again, or allow more time"))
        return late is not None


def _repeat(step: Callable[[], bool]) -> None:
    """What a thread does: one step after another, which keep nothing in between."""
    while step():
        pass


def _settle(job: Job) -> None:
    """End a job whose work is done."""
    try:
        assert job.work is not None
        if job.work.failure is not None:
            raise job.work.failure
        result = job.answer(job.work)
    except Exception as error:
        _fail([job], error)
    else:
        with _logged("a callback of a future"):
            job.future.set_result(result)


def _fail(jobs: list[Job], error: Exception) -> None:
    for job in jobs:
        with _logged("a callback of a future"):
            job.future.set_exception(error)


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """Code of the caller must not end a thread, for which everything else would wait for ever."""
    try:
        yield
    except BaseException:
        _log.exception("%s failed", what)


_LIVE: "weakref.WeakSet[Workers]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """The interpreter must not end while a thread is in the engine's code."""
    for workers in list(_LIVE):
        workers.end_now()
