"""Run the parts of the GPU suite within a time, each in its own process, and sum them up.

    python benchmarks/gpu_parts.py OUT [--seconds 500] [--parts kernels official paper] [--trial]

gpu_suite.sh starts it, and prepares what the parts import. This script needs only what the runtime
needs: a part that lacks another library is left out, with the library's name, and a part that
breaks or is killed leaves what it had written. Exit status 0: all checks passed; 1: one failed; 2:
nothing was checked.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from drexperts.bench.json_files import write_json
from drexperts.bench.provenance import Gpu, Machine, Source, gpus, this_machine, this_source

HERE = Path(__file__).parent
# Shares of the time, in the order in which they run; the next ones get what one leaves over.
SHARES = {"kernels": 0.35, "official": 0.45, "paper": 0.2}
# Seconds that a part has left to end by itself, that one needs to begin, and of a probe.
ENDING, LEAST, PROBING = 20.0, 10.0, 60.0
PROBE = "import torch; assert torch.cuda.is_available(), 'no CUDA device'"
LATE, KILLED = "no time was left", "it was killed when its time was up"
STOPPED = "the suite was stopped"
MISSING = "is not installed"
NOTHING = 3  # exit status of a part that checked nothing, and says why; 2 is wrong arguments
SHOWN = 160  # characters of a reason

State = Literal["passed", "failed", "left out"]


@dataclass(frozen=True)
class Part:
    """A benchmark of the suite."""

    name: str
    trial: bool
    options: tuple[str, ...] = ()

    @property
    def receipt(self) -> str:
        """The name of its receipt."""
        stem = self.name if self.name == "kernels" else f"model-{self.name}"
        return f"{stem}-{'trial' if self.trial else 'gpu'}.json"

    def command(self, receipt: Path, seconds: float) -> list[str]:
        """What runs it for so many seconds."""
        minutes = f"{seconds / 60:.2f}"
        common = ["--minutes", minutes, "--receipt", str(receipt), *self.options]
        if self.name == "kernels":
            return [str(HERE / "bench_kernels.py"), *common, *["--quick"] * self.trial]
        device = ["--device", "cpu", "--quick"] if self.trial else []
        return [str(HERE / "gpu_model.py"), "--preset", self.name, *common, *device]


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    receipt: the name of its receipt, None if it left none
    why: the reason for a failure or for being left out
    seconds: it took
    """

    part: str
    state: State
    receipt: str | None = None
    why: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Summary:
    """All parts of a run; gpus_before is their state before the first."""

    trial: bool
    machine: Machine
    source: Source
    gpus_before: tuple[Gpu, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def status(self) -> int:
        """The exit status: 0 all parts passed, 1 one failed, 2 nothing was checked."""
        states = {outcome.state for outcome in self.outcomes}
        return 1 if "failed" in states else 0 if "passed" in states else 2

    def markdown(self, out: Path) -> Iterator[str]:
        """A page of what the parts printed."""
        yield "# TRIAL on a CPU: no time here is a GPU's" if self.trial else "# GPU suite"
        gpus = [f"{gpu.name}, driver {gpu.driver}" for gpu in self.machine.gpus or ()]
        versions = ", ".join(f"{n} {v}" for n, v in self.machine.versions.items())
        yield f"\n{'; '.join(gpus) or 'no GPU'}; {versions}; commit {self.source.commit}"
        for outcome in self.outcomes:
            why = f": {outcome.why}" if outcome.why else ""
            yield f"\n## {outcome.part}: {outcome.state} after {outcome.seconds:.0f} s{why}"
            printed = out / f"{outcome.part}.txt"
            if printed.exists():
                yield f"\n```\n{printed.read_text().strip()}\n```"


def run_parts(parts: Sequence[Part], out: Path, seconds: float) -> Iterator[Outcome]:
    """Run all parts. Those that have no time left, or cannot begin, are left out."""
    end = time.monotonic() + seconds
    reason = None if parts[0].trial else why_no_gpu()
    for i, part in enumerate(parts):
        left = end - time.monotonic()
        given = left * SHARES[part.name] / sum(SHARES[other.name] for other in parts[i:])
        if reason or given < LEAST:
            yield Outcome(part.name, "left out", why=reason or LATE)
        else:
            yield run_part(part, out, given)


def why_no_gpu() -> str | None:
    """Why no part can begin; None if PyTorch finds a CUDA device."""
    command = [sys.executable, "-c", PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBING, check=False)
    except subprocess.TimeoutExpired:
        return f"PyTorch did not come up in {PROBING:g} s"
    return last_words(done.stderr) if done.returncode else None


def run_part(part: Part, out: Path, seconds: float) -> Outcome:
    """Run one part, and kill it when its time is up.

    What it prints goes into a .txt file beside its receipt, its progress and errors into a .log.
    """
    receipt, log = out / part.receipt, out / f"{part.name}.log"
    ending = min(ENDING, seconds / 2)
    command = [sys.executable, *part.command(receipt, seconds - ending)]
    receipt.unlink(missing_ok=True)  # of an earlier run
    start = time.monotonic()
    with log.open("w") as errors, (out / f"{part.name}.txt").open("w") as printed:
        # A session of its own, so that the compiler's workers end with it.
        process = subprocess.Popen(command, stdout=printed, stderr=errors, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill(process)
    spent = time.monotonic() - start
    written = part.receipt if receipt.exists() else None
    state, why = _state(code, out, part)
    return Outcome(part.name, state, written, why, spent)


def _state(code: int | None, out: Path, part: Part) -> tuple[State, str | None]:
    """What the exit status of a part says, None if it was killed, and its reason."""
    if code == 0:
        return "passed", None
    if code is None:
        return "failed", KILLED
    words = (out / f"{part.name}.log").read_text()
    # Python itself exits with 1 after an exception, too, and then the last words are its message.
    printed = (out / f"{part.name}.txt").read_text()
    why = last_words(printed if code == 1 and "Traceback" not in words else words)
    return ("left out" if code == NOTHING or why.endswith(MISSING) else "failed"), why


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_words(text: str) -> str:
    """The last line that a process printed; the name of a library that it missed."""
    last = (text.strip().splitlines() or ["it printed nothing"])[-1]
    missing = re.fullmatch(r"ModuleNotFoundError: No module named '([\w.]+)'", last)
    return f"{missing[1]} {MISSING}" if missing else last[:SHOWN]


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=500.0, help="in all (default: 500)")
    parser.add_argument("--parts", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--trial", action="store_true", help="a trial of the suite on the CPU")
    parser.add_argument("--checkpoint", type=Path, help="for the whole model")
    parser.add_argument("--images", type=Path, help="a folder of photographs for the whole model")
    return parser.parse_args(given)


def parts_of(options: argparse.Namespace) -> list[Part]:
    """The parts that are wanted, with what the whole model's parts are told."""
    given = {"--checkpoint": options.checkpoint, "--images": options.images}
    words = tuple(word for name, path in given.items() if path for word in (name, str(path)))
    return [
        Part(name, options.trial, () if name == "kernels" else words)
        for name in SHARES
        if name in options.parts
    ]


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    signal.signal(signal.SIGTERM, _stop)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    before, parts = gpus(), parts_of(options)
    outcomes: list[Outcome] = []
    try:
        for outcome in run_parts(parts, out, options.seconds):
            outcomes.append(outcome)
    except KeyboardInterrupt:
        for part in parts[len(outcomes) :]:
            written = part.receipt if (out / part.receipt).exists() else None
            outcomes.append(Outcome(part.name, "left out", written, STOPPED))
    source = this_source("drexperts.model", "drexperts.kernels", "drexperts.export")
    summary = Summary(options.trial, this_machine(), source, before, tuple(outcomes))
    write_json(summary, out / "summary.json")
    page = "\n".join(summary.markdown(out)) + "\n"
    (out / "summary.md").write_text(page)
    print(page, end="")
    return summary.status


if __name__ == "__main__":
    sys.exit(main())
