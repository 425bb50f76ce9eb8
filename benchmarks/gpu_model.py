"""Judge and time the whole model on a GPU, in every form and way PyTorch has of running it.

    python benchmarks/gpu_model.py [--preset official|paper] [--minutes 8] [--checkpoint FILE]
        [--images FOLDER] [--batches 1 64 8 32] [--without WORD ...] [--receipt FILE]

Each contender is held to the float32 model first: ranks, weights and maps, repeatability, batch
invariance. One that fails, or raises where it is judged, is red and is not timed. What cannot be
made, has no memory, or is not reached in time is left out by name. Exit status 0: all gates are
green; 1: one is red, or none of ours was judged; 2: wrong arguments; 3: nothing was judged.

`--device cpu --quick` tries the script itself, on a tiny model. Such a receipt is of kind
`gpu-model-trial` and says nothing of a GPU.
"""

import argparse
import copy
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from drexperts.bench.provenance import gpu_cards, head
from drexperts.bench.timing import ratio, statistics

# PYTHONSAFEPATH, which this repository asks for, leaves a script's own folder out.
from drexperts.benchmarks.bench_kernels import Budget
from drexperts.benchmarks.gpu_contenders import (
    COMPILED,
    DENSE,
    PACKAGED,
    REDUCED,
    Captured,
    Contender,
    Head,
    Program,
    Programs,
    Reduced,
    forms,
)
from drexperts.benchmarks.gpu_gate import REFERENCE, Gate, outputs_of
from drexperts.benchmarks.gpu_images import crops_for
from drexperts.benchmarks.gpu_settings import BATCHES, Settings
from drexperts.benchmarks.kernel_gate import refusals
from drexperts.benchmarks.kernel_timing import Cpu, Gpu, Mode, measured
from drexperts.runtime.errors import UserError
from drexperts.runtime.files import written_whole
from drexperts.runtime.manifest import sha256_of

MODULES = (
    "drexperts.model.config",
    "drexperts.model.backbones",
    "drexperts.model.experts",
    "drexperts.model.dr_experts",
    "drexperts.kernels",
    "drexperts.export.graph.fold",
)
TIMED, JUDGED = "fp16", "bf16"
ROUNDS, QUICK_ROUNDS = 100, 5
AGAIN = "engine again"  # the first contender's second turn in a round: the noise floor
REFERENCE_BATCH = 8

# Seconds: what making a program may take, until one has been made; what rounds of a batch may
# take; and how long the device is kept busy before them.
MAKING, TIMING, WARMING = 60.0, 20.0, 1.0
LATE = "no time was left"
NO_CUDA = "no CUDA device"
NOTHING = 3  # exit status; 2 is that of wrong arguments
BOUNDARY = (
    "from uint8 pixels in device memory to score, weights and maps there, by device events around "
    "one call on an idle device; a captured graph copies the pixels into its buffer first"
)
TRIAL_BOUNDARY = "the processor's clock around one call: a trial of the script, no GPU figure"

Report = dict[str, Any]
Save = Callable[[Report], None]


class Bench:
    """One run, noted in `report` as it goes.

    `save` is called with the report after every contender, so that a killed run leaves a receipt.
    """

    def __init__(
        self,
        settings: Settings,
        budget: Budget,
        command: str,
        folder: Path,
        save: Save = lambda _: None,
    ) -> None:
        self.settings, self.budget, self.folder, self.save = settings, budget, folder, save
        self.device = torch.device(settings.device)
        self.timer: Cpu | Gpu = Gpu() if settings.device == "cuda" else Cpu()
        self.plan = settings.plan()
        self.making = 0.0  # the longest that a program took
        self.model, self.scale = settings.model()
        pixels, sizes, origin = crops_for(self.model.config, settings.images)
        self.pixels, self.sizes = pixels.to(self.device), sizes
        self.left_out: dict[str, str] = {}
        self.report = self._head(command, origin)

    def _head(self, command: str, origin: str) -> Report:
        settings = self.settings
        kind = "gpu-model-trial" if settings.trial else "gpu-model"
        checkpoint = settings.checkpoint
        return {
            **head(kind, command, MODULES, torch.get_num_threads()),
            "device": torch.cuda.get_device_name() if settings.device == "cuda" else None,
            "cuda": torch.version.cuda,
            "complete": False,
            "seconds": self.budget.seconds,
            "preset": self.model.config.preset,
            "weights": "random" if checkpoint is None else sha256_of(checkpoint),
            "images": {"from": origin, **self.sizes},
            "boundary": TRIAL_BOUNDARY if settings.trial else BOUNDARY,
            "gates": {},
            "verdicts": [],
            "batches": [],
            "clocks": [],
            "left_out": self.left_out,
        }

    @torch.no_grad()
    def run(self) -> Report:
        """A JSON-ready report; times in seconds, memory in bytes."""
        expected = self._reference()
        gates = {
            precision: Gate(
                precision,
                self.pixels,
                self.sizes,
                expected,
                self.scale,
                max(self.settings.batches),
            )
            for precision in (TIMED, JUDGED)
        }
        programs = self._programs(TIMED)
        for batch in self.settings.batches:
            self._batch(batch, programs, gates[TIMED])
        self._judge_only(gates[JUDGED])
        self.report["complete"] = True
        self.save(self.report)
        return self.report

    def _reference(self) -> Any:
        """What the float32 model says, its pooling in plain PyTorch and no TF32 anywhere."""
        model = copy.deepcopy(self.model).requires_grad_(False)
        model.saliency.pooling.backend = "reference"
        whole = Reduced(model, torch.float32).to(self.device).eval()
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return outputs_of(whole, self.pixels, REFERENCE_BATCH)

    def _programs(self, precision: str) -> Programs:
        folder = self.folder / precision
        folder.mkdir()
        return Programs(forms(self.model, precision, self.device), folder)

    def _batch(self, batch: int, programs: Programs, gate: Gate) -> None:
        """Judge all contenders at a batch size, then time those that are right, in turns."""
        if self.budget.left() <= 0:
            self.left_out[f"{gate.precision}, B{batch}"] = LATE
            return
        programs.forget()
        self.timer.begin()
        found = self._judged(batch, programs, gate, self.plan)
        if found.able:
            self._time(batch, found, programs)
        self.save(self.report)

    def _judge_only(self, gate: Gate) -> None:
        """Judge ours in the other precision, at the largest batch: one image has no neighbours."""
        batch = max(self.settings.batches)
        if self.budget.left() <= 0:
            self.left_out[gate.precision] = LATE
            return
        self.timer.begin()
        programs = self._programs(gate.precision)
        programs.forget()
        ours = [contender for contender in self.plan if contender.form != DENSE]
        self._judged(batch, programs, gate, ours)

    def _judged(
        self, batch: int, programs: Programs, gate: Gate, plan: Sequence[Contender]
    ) -> "Found":
        """Make and judge every contender; who cannot be made is named with the reason."""
        found = Found({}, {}, {})
        verdicts: Report = {
            "precision": gate.precision,
            "batch": batch,
            "reference": REFERENCE,
            "span": self.scale.span,
            "scores": {REFERENCE: gate.expected.scores.tolist()},
            "parity": {},
            "others": {},
        }
        self.report["verdicts"].append(verdicts)
        for contender in plan:
            label = f"{gate.precision}, B{batch}, {contender.name}"
            reason = self._why_not(contender, programs)
            if reason:
                self.left_out[label] = reason
                continue
            say(f"judging {label}")
            with refusals(self.left_out, label):
                program = self._made(batch, contender, programs, found)
            if label not in self.left_out:
                self._judge(label, contender, program, batch, gate, found, verdicts)
            self.save(self.report)
        return found

    def _judge(
        self,
        label: str,
        contender: Contender,
        program: Program,
        batch: int,
        gate: Gate,
        found: "Found",
        verdicts: Report,
    ) -> None:
        """Capture and judge a program; that it raises is a mistake, unless for want of memory."""
        try:
            held = self._held(batch, contender, program, found)
            verdict = gate.judge(contender, held, batch)
        except torch.OutOfMemoryError as error:
            self.left_out[label] = said(error)
            return
        except Exception as error:
            verdict = {"mistakes": [said(error)]}
        self._note(label, contender, verdict, verdicts)
        if not verdict["mistakes"]:
            found.able[contender.name] = held

    def _why_not(self, contender: Contender, programs: Programs) -> str | None:
        if contender.graph and self.settings.device != "cuda":
            return NO_CUDA
        needed = 0.0 if programs.has(contender) else max(MAKING, 1.2 * self.making)
        return LATE if self.budget.left() <= min(needed, self.budget.seconds / 2) else None

    def _made(
        self, batch: int, contender: Contender, programs: Programs, found: "Found"
    ) -> Program:
        """The contender's program, not yet captured."""
        pixels = batch_of(self.pixels, batch)
        new, start = not programs.has(contender), time.monotonic()
        program = programs.program(contender, pixels)
        if new:
            found.made_s[contender.name] = time.monotonic() - start
            self.making = max(self.making, found.made_s[contender.name])
        return program

    def _held(self, batch: int, contender: Contender, program: Program, found: "Found") -> Program:
        """What is called: the program or its graph. Notes the memory that a call of it takes."""
        pixels = batch_of(self.pixels, batch)
        captured: list[Program] = []

        def once() -> None:
            captured.append(Captured(program, pixels, self.timer) if contender.graph else program)
            captured[0](pixels)

        found.peak_bytes[contender.name] = peak_bytes(self.device, once)
        return captured[0]

    def _note(self, label: str, contender: Contender, verdict: Report, verdicts: Report) -> None:
        self.report["gates"][label] = not verdict["mistakes"]
        if "scores" in verdict:
            verdicts["scores"][contender.name] = verdict.pop("scores")
            verdicts["parity"][contender.name] = verdict.pop("parity")
        verdicts["others"][contender.name] = verdict

    def _time(self, batch: int, found: "Found", programs: Programs) -> None:
        before = gpu_cards()
        pixels = batch_of(self.pixels, batch)
        refused: dict[str, str] = {}
        first, *_ = found.able
        calls = {name: partial(program, pixels) for name, program in found.able.items()}
        calls |= {AGAIN: calls[first]} | self._heads(pixels, found, programs, refused)
        self._warm(calls[first])
        say(f"timing {TIMED}, B{batch}")
        mode = Mode(training=False)
        taken = measured(
            {name: (call, 1) for name, call in calls.items()},
            partial(self.timer.sample, mode=mode),
            QUICK_ROUNDS if self.settings.quick else ROUNDS,
            max(0.0, min(TIMING, self.budget.left())),
            partial(refusals, refused),
        )
        if not taken.keys() & found.able.keys():
            self.left_out[f"{TIMED}, B{batch}, times"] = "; ".join(refused.values())
            return
        row = timed_row(taken, first) | {
            "precision": TIMED,
            "batch": batch,
            "boundary": "engine_gpu",
            "peak_bytes": found.peak_bytes,
            "made_s": found.made_s,
            "refused": refused,
        }
        self.report["batches"].append(row)
        self.report["noise_floor"] = self.report["batches"][0]["ratio"].get(AGAIN)
        self.report["clocks"].append([f"{TIMED}, B{batch}", before, gpu_cards()])

    def _heads(
        self, pixels: Tensor, found: "Found", programs: Programs, refused: dict[str, str]
    ) -> dict[str, Callable[[], object]]:
        """The head alone, run as those contenders of the reduced form are that a graph holds."""
        whole = programs.forms[REDUCED]
        assert isinstance(whole, Reduced)
        nothing = torch.zeros(1, device=self.device)
        heads: dict[str, nn.Module] = {"head": Head(whole, pixels)}
        calls: dict[str, Callable[[], object]] = {}
        for name in found.able:
            contender = next(c for c in self.plan if c.name == name)
            held = contender.graph or self.settings.device != "cuda"
            if contender.form != REDUCED or contender.maker == PACKAGED or not held:
                continue
            part = replace(contender, form="head")
            if contender.maker == COMPILED and self.budget.left() < MAKING:
                refused[part.name] = LATE
                continue
            with refusals(refused, part.name):
                program = Programs(heads, self.folder).program(part, nothing)
                call = Captured(program, nothing, self.timer) if part.graph else program
                calls[part.name] = partial(call, nothing)
        return calls

    def _warm(self, call: Callable[[], object]) -> None:
        """Bring the device to its clocks."""
        start = time.monotonic()
        while time.monotonic() - start < (0 if self.settings.quick else WARMING):
            call()
            if self.settings.device == "cuda":
                torch.cuda.synchronize()


@dataclass
class Found:
    """Of the contenders at a batch size: who is right, and what making and calling each took."""

    able: dict[str, Program]
    made_s: dict[str, float]
    peak_bytes: dict[str, int | None]


def batch_of(pixels: Tensor, batch: int) -> Tensor:
    """The first crops, from the front again where there are not enough: [batch, 3, H, W]."""
    return pixels[torch.arange(batch) % len(pixels)]


def peak_bytes(device: torch.device, step: Callable[[], object]) -> int | None:
    """Device memory that a step takes at its peak beyond what was taken before; None on a CPU.

    As PyTorch's allocator counts it: a package keeps its own copy of the weights elsewhere.
    """
    if device.type != "cuda":
        step()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def timed_row(taken: Mapping[str, list[float]], engine: str) -> Report:
    """Statistics, ratios to the first contender, and the head's share of the whole by round.

    Args:
        engine: of whom `AGAIN` is the second turn; if it was dropped, that is left out as well.
    """
    whole = {name: times for name, times in taken.items() if not name.startswith("head")}
    if engine not in whole:
        whole.pop(AGAIN, None)
    (_, first), *others = whole.items()
    return {
        "latency": {name: statistics(times) for name, times in whole.items()},
        "ratio": {name: ratio(times, first) for name, times in others},
        "head": {
            name: {
                "time": statistics(taken[f"head{name.removeprefix('reduced')}"]),
                "share": ratio(taken[f"head{name.removeprefix('reduced')}"], times),
            }
            for name, times in whole.items()
            if f"head{name.removeprefix('reduced')}" in taken
        },
    }


def verdict(report: Report) -> int:
    """The exit status. Without a gate of ours it is that of a red one, unless no time was left."""
    gates = report["gates"]
    failed = any(why not in (LATE, NO_CUDA) for why in report["left_out"].values())
    if not gates and not failed:
        return NOTHING
    return 0 if judged_ours(report) and all(gates.values()) else 1


def judged_ours(report: Report) -> bool:
    """Whether any form but the dense one was judged."""
    names = [name for found in report["verdicts"] for name in found["others"]]
    return not all(name.startswith(DENSE) for name in names)


def lines(report: Report) -> list[str]:
    """What is printed."""
    shown = []
    for row in report["batches"]:
        for name, times in row["latency"].items():
            rate = row["batch"] / times["p50"]
            label = f"{row['precision']}, B{row['batch']}, {name}"
            shown.append(f"{label:48} {1e3 * times['p50']:10.3f} ms {rate:10.0f} images/s")
        for name, part in row["head"].items():
            shown.append(f"the head is {part['share']['p50']:.1%} of {name}")
    shown += [f"left out: {label}: {why[:160]}" for label, why in report["left_out"].items()]
    shown += [f"RED {label}" for label, green in report["gates"].items() if not green]
    return shown + ["none of ours was judged"] * (not judged_ours(report))


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=("official", "paper"), default="official")
    parser.add_argument("--checkpoint", type=Path, help="random weights if not given")
    parser.add_argument("--images", type=Path, help="a folder of photographs")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--without", nargs="+", default=(), metavar="WORD", help="in a name")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything; 8 if not given")
    parser.add_argument("--receipt", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run at all")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    given = sys.argv[1:] if given is None else given
    options = arguments(given)
    if options.device == "cuda" and not torch.cuda.is_available():
        say(f"{NO_CUDA}; --device cpu --quick tries the script itself")
        return NOTHING
    budget = Budget(60 * options.minutes)
    settings = Settings(
        options.preset,
        options.checkpoint,
        options.images,
        tuple(options.batches),
        tuple(options.without),
        options.device,
        options.quick,
    )

    def save(report: Report) -> None:
        if options.receipt:
            with written_whole(options.receipt) as path:
                path.write_text(json.dumps(report, allow_nan=False) + "\n")

    command = shlex.join(["python", "benchmarks/gpu_model.py", *given])
    with TemporaryDirectory() as folder:
        try:
            report = Bench(settings, budget, command, Path(folder), save).run()
        except UserError as error:
            say(str(error))
            return NOTHING
    print("\n".join(lines(report)))
    return verdict(report)


if __name__ == "__main__":
    sys.exit(main())
