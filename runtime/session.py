"""What every engine is to the rest of the runtime."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Session(Protocol):
    """An engine that is ready to run.

    max_batch: the largest batch that `run` takes
    concurrency: the largest number of threads that may call `run` at the same time
    description: library, version and device
    """

    max_batch: int
    concurrency: int
    description: str

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Score crops.

        pixels: uint8 [B, 3, H, W]

        Returns float32 "score" [B], "weights" [B, D] and, if the engine has them, "maps"
        [B, D, g, g].
        """
        ...

    def close(self) -> None:
        """Free the engine; caches that make its next start faster are kept on disk."""
        ...
