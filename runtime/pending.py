"""What a Batcher has accepted and not answered: one lock over its queues, and no thread."""

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from drexperts.runtime.errors import ClosedError, QueueFullError
from drexperts.runtime.fair_queue import FairQueue
from drexperts.runtime.wording import remedy
from drexperts.runtime.work import Work


@dataclass(eq=False, kw_only=True)
class Job:
    """One submission.

    prepare: makes its work; it decodes
    answer: makes what the future gets from the work, once that is done
    deadline: until when it must have begun, on the clock of `time.monotonic`; None is for ever
    reserved: crops that count as pending
    ready: when it was decoded, on the same clock
    waited: seconds from then until it began
    begun: whether the engine, or an error, has it: it can no longer be cancelled
    """

    prepare: Callable[[], Work]
    answer: Callable[[Any], Any]
    group: Hashable
    deadline: float | None
    reserved: int
    future: Future[Any] = field(default_factory=Future)
    work: Work | None = None
    ready: float = 0.0
    waited: float = 0.0
    begun: bool = False


class Pending:
    """Jobs from their submission to their end, for threads that decode and that run the engine.

    Futures are settled by the callers, who have no lock then: a callback may submit again.

    most: crops that may be pending
    batch: crops in a call of the engine
    max_delay: seconds for which a batch that is not full waits for more crops
    """

    def __init__(self, most: int, batch: int, max_delay: float) -> None:
        self.most, self.batch, self.max_delay = most, batch, max_delay
        self.failure: Exception | None = None
        self.closed = False
        self.after_fork()

    def after_fork(self) -> None:
        """The jobs are the parent's, whose threads are not in the child."""
        self.crops = 0
        self._jobs: dict[Future[Any], Job] = {}
        self._unprepared: FairQueue[Job] = FairQueue(1)
        self._crops: FairQueue[tuple[Job, int]] = FairQueue(self.batch)
        self._lock = threading.RLock()
        self._to_prepare = threading.Condition(self._lock)
        self._to_run = threading.Condition(self._lock)
        self._deadlines = threading.Condition(self._lock)
        self._ended = threading.Condition(self._lock)
        self._alarm: float | None = None  # when `late` looks again

    def add(self, job: Job, *, prepared_here: bool) -> None:
        """Accept a job, whose crops are reserved.

        prepared_here: whether the caller prepares it and calls `prepared` next

        Raises the engine's error if it has failed, ClosedError, or QueueFullError.
        """
        with self._lock:
            self._check(job.reserved)
            self.crops += job.reserved
            self._jobs[job.future] = job
            if not prepared_here:
                self._unprepared.push(job.group, job)
                self._to_prepare.notify()
            if job.deadline is not None and (self._alarm is None or job.deadline < self._alarm):
                self._deadlines.notify()
        job.future.add_done_callback(self._cancelled)

    def next_to_prepare(self) -> Job | None:
        """The next job to prepare, once there is one; None when there will be none."""
        with self._lock:
            while not len(self._unprepared):
                if self.closed:
                    return None
                self._to_prepare.wait()
            return self._unprepared.pop()

    def prepared(self, job: Job, work: Work | None) -> bool:
        """Let the engine have the crops of a job, and give back what was reserved too many.

        work: None if there is none

        Returns whether the job ends here, for want of crops, and its future is to be settled.
        """
        crops = 0 if work is None else len(work.pixels)
        with self._lock:
            self._give_back(job, job.reserved - crops)
            if job.future not in self._jobs:  # withdrawn meanwhile
                self._give_back(job, crops)
                return False
            job.work, job.ready = work, time.monotonic()
            for index in range(crops):
                self._crops.push(job.group, (job, index))
            self._to_run.notify()
            return not crops and self.take(job)

    def next_batch(self) -> list[tuple[Job, int]] | None:
        """The next crops for the engine, once there are any; None when there will be none."""
        with self._lock:
            while not (self.closed and not self._jobs):
                delay = self._delay()
                if delay is not None and delay <= 0 and (batch := self._batch()):
                    return batch
                self._to_run.wait(delay)
            return None

    def ran(self, batch: list[tuple[Job, int]]) -> list[Job]:
        """Count crops as no longer pending; the jobs whose last crop this was, to be settled."""
        with self._lock:
            for job, _ in batch:
                self._give_back(job, 1)
            jobs = dict.fromkeys(job for job, _ in batch)
            return [job for job in jobs if job.work and job.work.done and self._remove(job)]

    def take(self, job: Job) -> bool:
        """Withdraw a job that failed; whether its future is the caller's to settle."""
        with self._lock:
            return self._remove(job) and self._begin(job)

    def take_all(self) -> list[Job]:
        """Withdraw every job that is left; those whose future is the caller's to settle."""
        with self._lock:
            return [job for job in tuple(self._jobs.values()) if self.take(job)]

    def late(self) -> list[Job] | None:
        """Wait for deadlines; the jobs that were too late; None when there will be none."""
        with self._lock:
            while not (self.closed and not self._jobs):
                now = time.monotonic()
                if late := self._late(now):
                    return late
                self._deadlines.wait(None if self._alarm is None else max(0, self._alarm - now))
            return None

    def fail(self, error: Exception) -> None:
        """Accept nothing more, because the engine has failed for good."""
        with self._lock:
            self.failure = self.failure or error

    def close(self) -> None:
        """Accept nothing more; what was accepted goes on."""
        with self._lock:
            self.closed = True
            self._notify_all()

    def wait_until_empty(self, timeout: float | None) -> bool:
        """Wait until every job has ended; whether they have."""
        with self._lock:
            return self._ended.wait_for(lambda: not self._jobs, timeout)

    def _check(self, crops: int) -> None:
        if self.failure is not None:
            # Without its traceback, which every raise would make longer.
            raise self.failure.with_traceback(None)
        if self.closed:
            raise ClosedError("this Batcher is closed: make another one")
        if self.crops + crops > self.most:
            raise QueueFullError(
                f"the queue is full: {self.crops} of {self.most} crops are pending, and this needs "
                f"{crops}; try again later, or raise {remedy('--queue', 'max_pending_crops')}"
            )

    def _delay(self) -> float | None:
        """Seconds for which the next batch may wait for more crops; None while there are none."""
        if not len(self._crops):
            return None
        if not self.max_delay or self.closed or len(self._crops) >= self.batch:
            return 0
        oldest = min(job.ready for job, _ in self._crops)
        return oldest + self.max_delay - time.monotonic()

    def _late(self, now: float) -> list[Job]:
        """Withdraw the jobs that are too late; otherwise set the alarm for the next deadline.

        A function of its own, because what it looks at must not be kept while a thread waits.
        """
        waiting = {job: job.deadline for job in self._jobs.values() if not job.begun}
        timed = {job: when for job, when in waiting.items() if when is not None}
        self._alarm = min(timed.values(), default=None)
        return [job for job, when in timed.items() if when <= now and self.take(job)]

    def _batch(self) -> list[tuple[Job, int]]:
        batch: list[tuple[Job, int]] = []
        while len(self._crops) and len(batch) < self.batch:
            job, index = self._crops.pop()
            if job.begun or self._begin(job):
                batch.append((job, index))
            else:  # cancelled just now
                self._give_back(job, 1)
                self._remove(job)
        if len(self._crops):
            self._to_run.notify()
        return batch

    def _begin(self, job: Job) -> bool:
        """From here on the job cannot be cancelled; whether it was not before."""
        if not job.begun:
            job.begun = job.future.set_running_or_notify_cancel()
            job.waited = time.monotonic() - job.ready
        return job.begun

    def _cancelled(self, future: Future[Any]) -> None:
        """Called when a future is done, also by whoever cancels it."""
        if future.cancelled():
            with self._lock:
                if (job := self._jobs.get(future)) is not None:
                    self.take(job)

    def _remove(self, job: Job) -> bool:
        """Forget a job, with its crops that nobody decodes or runs; whether it was there."""
        if self._jobs.pop(job.future, None) is None:
            return False
        unprepared, crops = len(self._unprepared), len(self._crops)
        self._unprepared.discard(job.group, lambda other: other is job)
        self._crops.discard(job.group, lambda crop: crop[0] is job)
        if unprepared > len(self._unprepared):
            self._give_back(job, job.reserved)
        self._give_back(job, crops - len(self._crops))
        if not self._jobs:
            self._notify_all()
        return True

    def _give_back(self, job: Job, crops: int) -> None:
        job.reserved -= crops
        self.crops -= crops

    def _notify_all(self) -> None:
        for each in (self._to_prepare, self._to_run, self._deadlines, self._ended):
            each.notify_all()
