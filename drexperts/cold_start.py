"""What a fresh process takes to score with a bundle, in time and memory: start, load, first call.

Run as a module it is that process, in which nothing but the runtime is resident.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def cold_start(bundle: Path, batch: int, threads: int | None, gpu: str | None) -> dict[str, Any]:
    """Measure a process of its own.

    Args:
        batch: crops of the call that the peaks of "memory" include.
        threads: of the engine; None leaves its default.
        gpu: index or UUID of the GPU that it runs on; None for the CPU.

    Returns:
        "cold_start": seconds of import, load and the first call, of one crop, and bytes resident
        and at most until then. "memory": the most bytes of the process after a call of `batch`
        crops, and of the GPU.

    Raises UserError for what `runtime.load` refuses.
    """
    arguments = [str(bundle), str(batch), str(threads or ""), gpu or ""]
    command = [sys.executable, "-P", "-m", __name__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        from drexperts.runtime.errors import UserError  # not before the clock runs

        # The last line of a traceback: the class of the error, then what to do.
        raise UserError(done.stderr.strip().splitlines()[-1].partition(": ")[2])
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _measured(bundle: str, batch: int, threads: int | None, gpu: str | None) -> dict[str, Any]:
    start = time.perf_counter()
    from drexperts import runtime

    imported = time.perf_counter()
    scorer = runtime.load(bundle, threads=threads)
    loaded = time.perf_counter()
    import numpy as np

    size = scorer.manifest.preprocessing.crop
    scorer.session.run(np.zeros((1, 3, size, size), np.uint8))
    first = time.perf_counter()
    resident, peak = _memory("VmRSS"), _memory("VmHWM")
    from drexperts.telemetry import SMI_PERIOD, Window

    with Window(gpu) as window:
        scorer.session.run(np.zeros((batch, 3, size, size), np.uint8))
        if gpu is not None:
            time.sleep(10 * SMI_PERIOD)  # what a session takes of a GPU it keeps
    cold = {
        "import_s": imported - start,
        "load_s": loaded - imported,
        "first_inference_s": first - loaded,
        "resident_bytes": resident,
        "peak_bytes": peak,
    }
    return {"cold_start": cold, "memory": window.memory()}


def _memory(name: str) -> int:
    """Bytes, of a line of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line for line in lines if line.startswith(name + ":"))
    return 1024 * int(found.split()[1])


if __name__ == "__main__":
    bundle, batch, threads, gpu = sys.argv[1:]
    print(json.dumps(_measured(bundle, int(batch), int(threads or 0) or None, gpu or None)))
