"""What a fresh process needs to score with a bundle, in time and memory: start, load, first call.

Run as a script, this file is that process, in which nothing but the runtime is resident.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drexperts.bench.reports import ColdStart, Memory

_REFUSED = 3  # the status of a process that ends with a UserError; Python itself takes 1 and 2


def cold_start(
    bundle: Path, batch: int, threads: int, gpu: str | None, engine: str | None = None
) -> tuple["ColdStart", "Memory"]:
    """Measure a process of its own.

    Files come from the page cache where this process has read them before: a load from a cold disk
    takes longer.

    Args:
        batch: crops of the call that the memory includes.
        threads: of the engine.
        gpu: index or UUID of the GPU that it runs on; None for the CPU.
        engine: which engine of the bundle, as `runtime.load` takes it.

    Raises:
        UserError: what `runtime.load` refuses, and a process that a signal ended.
        InternalError: another failure of the process.
    """
    from drexperts.bench.reports import ColdStart, Memory

    arguments = [str(bundle), str(batch), str(threads), gpu or "", engine or ""]
    # Not `-m`: to find the module, Python would import our packages before the clock runs.
    command = [sys.executable, "-P", __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _failure(done)
    measured = json.loads(done.stdout.splitlines()[-1])
    return ColdStart(**measured["cold_start"]), Memory(**measured["memory"])


def _failure(done: "subprocess.CompletedProcess[str]") -> Exception:
    from drexperts.runtime.errors import InternalError, UserError  # not before the clock runs

    if done.returncode == _REFUSED:
        return UserError(json.loads(done.stdout.splitlines()[-1])["error"])
    if done.returncode < 0 or not done.stderr.strip():
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        return UserError(
            f"the process that measures the start was ended by {how}, most likely for lack of "
            "memory: close other programs, or ask for smaller batches"
        )
    return InternalError(f"measuring the start failed: {done.stderr.strip().splitlines()[-1]}")


def _measured(
    bundle: str, batch: int, threads: int, gpu: str | None, engine: str | None
) -> dict[str, Any]:
    start = time.perf_counter()
    from drexperts.runtime import load  # the name, because the package itself imports nothing

    imported = time.perf_counter()
    scorer = load(bundle, engine=engine, threads=threads)
    loaded = time.perf_counter()
    import numpy as np

    size = scorer.preprocessing.crop
    scorer.session.run(np.zeros((1, 3, size, size), np.uint8))
    first = time.perf_counter()
    from drexperts.bench import telemetry

    cold = {
        "import_s": imported - start,
        "load_s": loaded - imported,
        "first_inference_s": first - loaded,
        "resident_bytes": telemetry.resident_bytes(),
        "peak_bytes": telemetry.host_peak_bytes(),
    }
    with telemetry.Window(gpu) as window:
        scorer.session.run(np.zeros((batch, 3, size, size), np.uint8))
    return {"cold_start": cold, "memory": vars(window.memory())}


def _main(bundle: str, batch: str, threads: str, gpu: str, engine: str) -> int:
    """Print what was measured, or the user's error; return the exit status."""
    try:
        print(json.dumps(_measured(bundle, int(batch), int(threads), gpu or None, engine or None)))
    except Exception as error:
        from drexperts.runtime.errors import UserError  # not before the clock runs

        if not isinstance(error, UserError):
            raise
        print(json.dumps({"error": str(error)}))
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
