"""A stand-in engine that a test holds, lets go and makes fail, so that nothing depends on time."""

import threading

import numpy as np
from numpy.typing import NDArray


class HeldEngine:
    """Scores are mean brightness; a crop that is all white is NaN.

    Each call waits until the test lets it go with `go`, unless the engine was opened with `free`.

    batches: the mean brightness of each crop of each call, rounded
    """

    max_batch = 8
    description = "held"

    def __init__(self, concurrency: int = 1, *, free: bool = False) -> None:
        self.concurrency = concurrency
        self.batches: list[list[int]] = []
        self.errors: list[Exception] = []
        self.entered = threading.Semaphore(0)
        self._tickets = threading.Semaphore(0)
        self._free = free

    def go(self, calls: int = 1) -> None:
        """Let so many calls end."""
        self._tickets.release(calls)

    def hold(self) -> None:
        """From here on, let no call end that the test does not let go, and forget earlier ones."""
        self._free = False
        while self.entered.acquire(blocking=False):
            pass

    def go_on(self) -> None:
        """Let all calls end from here on."""
        self._free = True
        self._tickets.release(1000)

    def fail_next(self, error: Exception, calls: int = 1) -> None:
        """Let so many calls raise, in their order."""
        self.errors += [error] * calls

    def wait_entered(self) -> None:
        """Wait until one more call has begun."""
        assert self.entered.acquire(timeout=6), "the engine was not called"

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        score = pixels.mean(axis=(1, 2, 3), dtype=np.float32)
        self.batches.append(score.round().astype(int).tolist())
        self.entered.release()
        if not self._free:
            assert self._tickets.acquire(timeout=6), "the test did not let the engine go"
        if self.errors:
            raise self.errors.pop(0)
        score[score == 255] = np.nan
        return {
            "score": score,
            "weights": np.repeat(score[:, None], 10, axis=1),
            "maps": np.zeros((len(pixels), 10, 4, 4), np.float32),
        }

    def close(self) -> None:
        pass
