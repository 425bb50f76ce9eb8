"""Run the parts of the GPU suite within a time, each in a process of its own, and sum them up.

    python benchmarks/gpu_parts.py OUT [--seconds 500] [--parts kernels official paper] [--trial]

Started by gpu_suite.sh, which prepares what they import. It needs nothing but Python itself: a
library that a part lacks is named, and a part that breaks or is killed leaves what it had written.
Exit status 0: all gates are green; 1: one is red; 2: nothing was judged.
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

from drexperts.bench.provenance import gpu_cards

# PYTHONSAFEPATH, which this repository asks for, leaves a script's own folder out.
from drexperts.benchmarks.gpu_summary import (
    SHOWN,
    Outcome,
    Report,
    read_receipt,
    status,
    summarise,
    write_summary,
)

HERE = Path(__file__).parent
# Shares of the time, in the order in which they run; what one leaves over the next ones get.
SHARES = {"kernels": 0.35, "official": 0.45, "paper": 0.2}
# Seconds that a part is left to end by itself, that one must have to begin, and of a probe.
ENDING, LEAST, PROBING = 20.0, 10.0, 60.0
PROBE = "import torch; assert torch.cuda.is_available(), 'no CUDA device'"
LATE, KILLED = "no time was left", "it was killed when its time was up"
MISSING = "is not installed"
NOTHING = 3  # exit status of a part that judged nothing, and says why; 2 is wrong arguments


@dataclass(frozen=True)
class Part:
    """A benchmark, and the file its receipt is to have."""

    name: str
    trial: bool
    options: tuple[str, ...] = ()

    @property
    def receipt(self) -> str:
        stem = self.name if self.name == "kernels" else f"model-{self.name}"
        return f"{stem}-{'trial' if self.trial else 'gpu'}.json"

    def command(self, receipt: Path, seconds: float) -> list[str]:
        """What runs it, for so many seconds."""
        minutes = f"{seconds / 60:.2f}"
        common = ["--minutes", minutes, "--receipt", str(receipt), *self.options]
        if self.name == "kernels":
            return [str(HERE / "bench_kernels.py"), *common, *["--quick"] * self.trial]
        device = ["--device", "cpu", "--quick"] if self.trial else []
        return [str(HERE / "gpu_model.py"), "--preset", self.name, *common, *device]


def run_parts(parts: Sequence[Part], out: Path, seconds: float) -> Iterator[Outcome]:
    """Run all parts; those for which no time is left, or which cannot begin, are named."""
    end = time.monotonic() + seconds
    reason = None if parts[0].trial else why_no_gpu()
    for i, part in enumerate(parts):
        left = end - time.monotonic()
        given = left * SHARES[part.name] / sum(SHARES[other.name] for other in parts[i:])
        if reason or given < LEAST:
            yield Outcome(part.name, None, reason or LATE, 0.0)
        else:
            yield run_part(part, out, given)


def why_no_gpu() -> str | None:
    """Why no part can begin; None where PyTorch finds a CUDA device."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=PROBING,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"PyTorch did not come up in {PROBING:g} s"
    return why_it_ended(done.stderr) if done.returncode else None


def run_part(part: Part, out: Path, seconds: float) -> Outcome:
    """Run one part, its words in a log beside its receipt; kill it when its time is up."""
    receipt, log = out / part.receipt, out / f"{part.name}.log"
    ending = min(ENDING, seconds / 2)
    command = [sys.executable, *part.command(receipt, seconds - ending)]
    receipt.unlink(missing_ok=True)  # of an earlier run
    start = time.monotonic()
    with log.open("w") as stream:
        # A session of its own: the compiler has workers, and they are to end with it.
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        else:
            code = process.returncode
        finally:
            _kill(process)
    spent = time.monotonic() - start
    written = part.receipt if receipt.exists() else None
    if code is None:
        return Outcome(part.name, written, KILLED, spent, broken=not is_complete(receipt))
    words = log.read_text()
    if code == 0 or (code == 1 and has_red_gate(receipt)):
        return Outcome(part.name, written, None, spent)
    why = why_it_ended(words)
    broken = code != NOTHING and not why.endswith(MISSING)
    return Outcome(part.name, written, why, spent, broken)


def has_red_gate(receipt: Path) -> bool:
    """Whether a receipt says what exit status 1 says; else that status is an exception's."""
    return not all(_report(receipt).get("gates", {}).values())


def is_complete(receipt: Path) -> bool:
    """Whether a part had judged all that it was to judge."""
    return _report(receipt).get("complete", False) is True


def _report(receipt: Path) -> Report:
    return read_receipt(receipt)[0] if receipt.exists() else {}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def why_it_ended(words: str) -> str:
    """The last line of what a process said; the library's name where one was missing."""
    last = (words.strip().splitlines() or ["it said nothing"])[-1]
    missing = re.fullmatch(r"ModuleNotFoundError: No module named '([\w.]+)'", last)
    return f"{missing[1]} {MISSING}" if missing else last[:SHOWN]


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=500.0, help="for everything; 500")
    parser.add_argument("--parts", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--trial", action="store_true", help="on the CPU: does it run at all")
    parser.add_argument("--checkpoint", type=Path, help="for the whole model")
    parser.add_argument("--images", type=Path, help="a folder of photographs for the whole model")
    return parser.parse_args(given)


def model_options(options: argparse.Namespace) -> tuple[str, ...]:
    """What the whole model's parts are told beside the time."""
    given = {"--checkpoint": options.checkpoint, "--images": options.images}
    return tuple(word for name, path in given.items() if path for word in (name, str(path)))


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    signal.signal(signal.SIGTERM, _stop)
    options.out.mkdir(parents=True, exist_ok=True)
    before = gpu_cards()
    outcomes: list[Outcome] = []
    words = model_options(options)
    parts = [
        Part(name, options.trial, () if name == "kernels" else words)
        for name in SHARES
        if name in options.parts
    ]
    try:
        for outcome in run_parts(parts, options.out, options.seconds):
            outcomes.append(outcome)
    except KeyboardInterrupt:
        outcomes += [_stopped(part, options.out) for part in parts[len(outcomes) :]]
    report = summarise(outcomes, options.out, options.trial, [before, gpu_cards()])
    write_summary(report, options.out)
    print((options.out / "summary.md").read_text())
    return status(report)


def _stopped(part: Part, out: Path) -> Outcome:
    written = (out / part.receipt).exists()
    return Outcome(part.name, part.receipt if written else None, "the suite was stopped", 0.0)


if __name__ == "__main__":
    sys.exit(main())
