"""Check and time the whole model on a GPU, in every form and every way PyTorch can run it.

    python benchmarks/gpu_model.py [--preset official|paper] [--minutes 8] [--checkpoint FILE]
        [--images FOLDER] [--batches 1 64 8 32] [--without WORD ...] [--receipt FILE]

Each variant is first compared with the float32 model: ranks, weights and maps, repeatability, batch
invariance. One that fails, or raises while it is checked, is not timed. What cannot be made, has no
memory, or is not reached in time is left out, with the reason. Exit status 0: all checks passed;
1: one failed, or none of our forms was checked; 2: wrong arguments; 3: nothing was checked.

`--device cpu --quick` is a trial of the script itself, on a tiny model.
"""

import argparse
import copy
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from drexperts.bench.json_files import write_json
from drexperts.bench.provenance import gpus, this_machine, this_source
from drexperts.bench.timing import Summary
from drexperts.benchmarks.bench_kernels import Budget, say
from drexperts.benchmarks.gpu_check import Checker, first_crops, outputs_of
from drexperts.benchmarks.gpu_images import crops_for
from drexperts.benchmarks.gpu_variants import (
    COMPILED,
    PACKAGED,
    VARIANTS,
    Captured,
    Forms,
    Head,
    Program,
    Programs,
    Reduced,
    Variant,
)
from drexperts.benchmarks.operations.check import refusals
from drexperts.benchmarks.operations.timing import Cpu, Gpu, Mode, Run, measured
from drexperts.benchmarks.random_weights import SCALE, random_model
from drexperts.benchmarks.receipt_types.model_receipt import (
    AGAIN,
    DENSE,
    HEAD,
    REDUCED,
    BatchRow,
    ModelReceipt,
    VariantCheck,
    head_lines,
)
from drexperts.benchmarks.receipt_types.receipt import GpuStates, add_receipt_option
from drexperts.export.proof.parity import Outputs
from drexperts.model.checkpoint import load_checkpoint
from drexperts.model.config import ControllerConfig, DRExpertsConfig, EncoderConfig
from drexperts.model.dr_experts import DRExperts
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import ScoreScale, sha256_of

PACKAGES = (
    "drexperts.model.config",
    "drexperts.model.backbones",
    "drexperts.model.experts",
    "drexperts.model.dr_experts",
    "drexperts.kernels",
    "drexperts.export.graph.fold",
)
TIMED, ONLY_CHECKED = "fp16", "bf16"
BATCHES = (1, 64, 8, 32)  # the most informative first
ROUNDS, QUICK_ROUNDS = 100, 5
REFERENCE_BATCH = 8
TINY = (
    EncoderConfig(image_size=64, patch_size=16, width=32, depth=2, heads=2),
    ControllerConfig(48, 16, width=48, depth=2, heads=3, embedding=24),
)

# Seconds: what making a program may take, until one has been made; what the rounds of a batch may
# take; and how long the device is kept busy before them.
MAKING, TIMING, WARMING = 60.0, 20.0, 1.0
LATE = "no time was left"
NO_CUDA = "no CUDA device"
NOTHING = 3  # exit status; 2 is that of wrong arguments
BOUNDARY = (
    "from uint8 pixels in device memory to score, weights and maps there, by device events around "
    "one call on an idle device; a captured graph copies the pixels into its buffer first"
)
TRIAL_BOUNDARY = "the CPU's clock around one call: a trial of the script, not a GPU's time"

Save = Callable[[ModelReceipt], None]


@dataclass(frozen=True)
class Options:
    """What is measured.

    without: words; a variant whose name has one is left out
    """

    preset: str = "official"
    checkpoint: Path | None = None
    images: Path | None = None
    batches: tuple[int, ...] = BATCHES
    without: tuple[str, ...] = ()
    device: str = "cuda"
    quick: bool = False

    @property
    def variants(self) -> list[Variant]:
        """The variants that are wanted, the most important first."""
        return [v for v in VARIANTS if not any(word in v.name for word in self.without)]

    def model(self) -> tuple[DRExperts, ScoreScale]:
        """The float32 model, with random weights if there is no checkpoint."""
        if self.checkpoint is not None:
            found = load_checkpoint(self.checkpoint)
            return found.model, found.scale or SCALE
        config = getattr(DRExpertsConfig, self.preset)()
        return random_model(config.with_sizes(*TINY) if self.quick else config), SCALE


@dataclass
class Batch:
    """One batch size: its programs, the variants that passed, and what each of them took."""

    size: int
    checker: Checker
    programs: Programs
    able: dict[str, Program] = field(default_factory=dict)
    made: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int | None] = field(default_factory=dict)

    def label(self, variant: Variant) -> str:
        """Such as "fp16, B64, reduced, eager"."""
        return f"{self.checker.precision}, B{self.size}, {variant.name}"

    @property
    def pixels(self) -> Tensor:
        """The crops of a call."""
        return first_crops(self.checker.pixels, self.size)


class ModelBenchmark:
    """One run. `save` is called with the receipt after every step, so that a killed run leaves one.

    folder: for packages
    """

    def __init__(
        self,
        options: Options,
        budget: Budget,
        command: str,
        folder: Path,
        save: Save = lambda _: None,
    ) -> None:
        self.options, self.budget, self.folder, self.save = options, budget, folder, save
        self.device = torch.device(options.device)
        self.timer: Cpu | Gpu = Gpu() if options.device == "cuda" else Cpu()
        self.longest = 0.0  # seconds that making a program took
        self.model, self.scale = options.model()
        pixels, self.sizes, origin = crops_for(self.model.config, options.images)
        self.pixels = pixels.to(self.device)
        self.checks: list[VariantCheck] = []
        self.rows: list[BatchRow] = []
        self.clocks: list[GpuStates] = []
        self.left_out: dict[str, str] = {}
        trial = options.quick or options.device != "cuda"
        checkpoint = options.checkpoint
        self.expected = self._expected()
        self._receipt = ModelReceipt(
            command=command,
            machine=this_machine(torch.get_num_threads()),
            source=this_source(*PACKAGES),
            trial=trial,
            complete=False,
            device=torch.cuda.get_device_name() if options.device == "cuda" else None,
            cuda=torch.version.cuda,
            preset=self.model.config.preset,
            weights="random" if checkpoint is None else sha256_of(checkpoint),
            images=origin,
            boundary=TRIAL_BOUNDARY if trial else BOUNDARY,
            reference=self._checker(TIMED).reference,
            checks=(),
            rows=(),
            clocks=(),
            left_out=self.left_out,
        )

    def receipt(self, complete: bool = False) -> ModelReceipt:
        """What was observed so far."""
        return replace(
            self._receipt,
            complete=complete,
            checks=tuple(self.checks),
            rows=tuple(self.rows),
            clocks=tuple(self.clocks),
        )

    @torch.no_grad()
    def run(self) -> ModelReceipt:
        """Check and time all batch sizes in one precision, then only check ours in the other."""
        checker = self._checker(TIMED)
        programs = self._programs(TIMED)
        for size in self.options.batches:
            if self._begin(f"{TIMED}, B{size}", programs):
                batch = Batch(size, checker, programs)
                self._check_all(batch, self.options.variants)
                if batch.able:
                    self._time(batch)
                self.save(self.receipt())
        if self.budget.left() <= 0:
            self.left_out[ONLY_CHECKED] = LATE
        else:
            self._only_check()
        receipt = self.receipt(complete=True)
        self.save(receipt)
        return receipt

    def _begin(self, label: str, programs: Programs) -> bool:
        """Prepare for a batch size, if there is time for it."""
        if self.budget.left() <= 0:
            self.left_out[label] = LATE
            return False
        programs.forget()
        self.timer.begin()
        return True

    def _only_check(self) -> None:
        """Check our forms in the other precision, with the largest batch, which has neighbours."""
        programs = self._programs(ONLY_CHECKED)
        self._begin(ONLY_CHECKED, programs)
        batch = Batch(max(self.options.batches), self._checker(ONLY_CHECKED), programs)
        self._check_all(batch, [v for v in self.options.variants if v.form != DENSE])

    @torch.no_grad()
    def _expected(self) -> Outputs:
        """The float32 model's outputs, with pooling in plain PyTorch and TF32 nowhere."""
        model = copy.deepcopy(self.model).requires_grad_(False)
        model.saliency.pooling.backend = "reference"
        whole = Reduced(model, torch.float32).to(self.device).eval()
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return outputs_of(whole, self.pixels, REFERENCE_BATCH)

    def _checker(self, precision: str) -> Checker:
        largest = max(self.options.batches)
        return Checker(precision, self.pixels, self.sizes, self.expected, self.scale, largest)

    def _programs(self, precision: str) -> Programs:
        folder = self.folder / precision
        folder.mkdir()
        return Programs(Forms.of(self.model, precision, self.device).named(), folder)

    def _check_all(self, batch: Batch, variants: Sequence[Variant]) -> None:
        """Make and check every variant. What cannot be made is left out, with the reason."""
        for variant in variants:
            label = batch.label(variant)
            reason = self.why_not(variant, batch.programs)
            if reason:
                self.left_out[label] = reason
                continue
            say(f"checking {label}")
            with refusals(self.left_out, label):
                program = self._made(batch, variant)
            if label not in self.left_out:
                self._check(batch, variant, program)
            self.save(self.receipt())

    def why_not(self, variant: Variant, programs: Programs) -> str | None:
        """Why a variant is not tried; None if it is."""
        if variant.graph and self.options.device != "cuda":
            return NO_CUDA
        needed = 0.0 if programs.has(variant) else max(MAKING, 1.2 * self.longest)
        return LATE if self.budget.left() <= min(needed, self.budget.seconds / 2) else None

    def _made(self, batch: Batch, variant: Variant) -> Program:
        """The variant's program, not captured yet."""
        new, start = not batch.programs.has(variant), time.monotonic()
        program = batch.programs.program(variant, batch.pixels)
        if new:
            batch.made[variant.name] = time.monotonic() - start
            self.longest = max(self.longest, batch.made[variant.name])
        return program

    def _check(self, batch: Batch, variant: Variant, program: Program) -> None:
        """Capture and check a program. An error is a mistake, unless memory ran out."""
        checker = batch.checker
        try:
            held = self._held(batch, variant, program)
            found = checker.check(variant, held, batch.size)
        except torch.OutOfMemoryError as error:
            self.left_out[batch.label(variant)] = _text(error)
            return
        except Exception as error:
            found = VariantCheck(
                precision=checker.precision,
                batch=batch.size,
                variant=variant.name,
                error=_text(error),
            )
        self.checks.append(found)
        if not found.mistakes(checker.reference):
            batch.able[variant.name] = held

    def _held(self, batch: Batch, variant: Variant, program: Program) -> Program:
        """What is called: the program or its graph. Notes the memory that a call of it takes."""
        pixels, held = batch.pixels, program

        def once() -> None:
            nonlocal held
            if variant.graph:
                held = self._captured(program, pixels)
            held(pixels)

        batch.peak_bytes[variant.name] = peak_bytes(self.device, once)
        return held

    def _captured(self, program: Program, pixels: Tensor) -> Captured:
        assert not isinstance(self.timer, Cpu)
        return Captured(program, pixels, self.timer)

    def _time(self, batch: Batch) -> None:
        label = f"{batch.checker.precision}, B{batch.size}"
        before, pixels = gpus(), batch.pixels
        refused: dict[str, str] = {}
        first, *_ = batch.able
        calls: dict[str, Run] = {n: partial(program, pixels) for n, program in batch.able.items()}
        calls |= {AGAIN: calls[first], **self._heads(batch, refused)}
        self._warm(calls[first])
        say(f"timing {label}")
        taken = measured(
            {name: (call, 1) for name, call in calls.items()},
            partial(self.timer.sample, mode=Mode(training=False)),
            QUICK_ROUNDS if self.options.quick else ROUNDS,
            max(0.0, min(TIMING, self.budget.left())),
            partial(refusals, refused),
        )
        if first not in taken:
            taken.pop(AGAIN, None)
        if not taken.keys() & batch.able.keys():
            self.left_out[f"{label}, times"] = "; ".join(refused.values())
            return
        row = BatchRow(
            precision=batch.checker.precision,
            batch=batch.size,
            seconds={name: tuple(times) for name, times in taken.items()},
            made=batch.made,
            peak_bytes=batch.peak_bytes,
            refused=refused,
        )
        self.rows.append(row)
        if before:
            self.clocks.append(GpuStates(label, before, gpus()))
        print("\n".join(row_lines(row)), flush=True)

    def _heads(self, batch: Batch, refused: dict[str, str]) -> dict[str, Run]:
        """The head alone, run like each variant of the reduced form that a graph holds."""
        whole = batch.programs.forms[REDUCED]
        assert isinstance(whole, Reduced)
        nothing = torch.zeros(1, device=self.device)
        heads: dict[str, nn.Module] = {HEAD: Head(whole, batch.pixels)}
        calls: dict[str, Run] = {}
        for variant in (v for v in self.options.variants if v.name in batch.able):
            held = variant.graph or self.options.device != "cuda"
            if variant.form != REDUCED or variant.maker == PACKAGED or not held:
                continue
            part = replace(variant, form=HEAD)
            if variant.maker == COMPILED and self.budget.left() < MAKING:
                refused[part.name] = LATE
                continue
            with refusals(refused, part.name):
                program = Programs(heads, self.folder).program(part, nothing)
                call = self._captured(program, nothing) if part.graph else program
                calls[part.name] = partial(call, nothing)
        return calls

    def _warm(self, call: Run) -> None:
        """Bring the device to its clocks."""
        start = time.monotonic()
        while time.monotonic() - start < (0 if self.options.quick else WARMING):
            call()
            if self.options.device == "cuda":
                torch.cuda.synchronize()


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


def status(receipt: ModelReceipt) -> int:
    """The exit status. If nothing was checked it is 1, unless the only reason was time."""
    failed = any(why not in (LATE, NO_CUDA) for why in receipt.left_out.values())
    if not receipt.checks and not failed:
        return NOTHING
    return 0 if receipt.checked_ours and not receipt.failures else 1


def row_lines(row: BatchRow) -> Iterator[str]:
    """The times of a batch size for the terminal."""
    for name, taken in row.variants.items():
        p50 = Summary.of(taken).p50
        label = f"{row.precision}, B{row.batch}, {name}"
        yield f"{label:48} {1e3 * p50:10.3f} ms {row.batch / p50:10.0f} images/s"
    yield from head_lines((row,))


def verdict(receipt: ModelReceipt) -> Iterator[str]:
    """The lines after the times: what is missing, and what failed."""
    yield from (f"left out: {label}: {why[:160]}" for label, why in receipt.left_out.items())
    for label, mistakes in receipt.failures.items():
        yield f"FAILED {label}: {'; '.join(mistakes)}"
    if not receipt.checked_ours:
        yield "none of our forms was checked"


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=("official", "paper"), default="official")
    parser.add_argument("--checkpoint", type=Path, help="default: random weights")
    parser.add_argument("--images", type=Path, help="a folder of photographs")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument(
        "--without", nargs="+", default=(), metavar="WORD", help="no variant with a WORD"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="in all (default: 8)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a trial on a tiny model")
    add_receipt_option(parser)
    return parser.parse_args(given)


def command(given: Sequence[str]) -> str:
    """The command that repeats the measurement, without paths of this machine."""
    words, shown = iter(given), ["python", "benchmarks/gpu_model.py"]
    for word in words:
        if word in ("--receipt", "--checkpoint", "--images"):
            next(words)
            shown += [] if word == "--receipt" else [word, "PATH"]
        else:
            shown.append(word)
    return shlex.join(shown)


def main(given: list[str] | None = None) -> int:
    given = sys.argv[1:] if given is None else given
    found = arguments(given)
    if found.device == "cuda" and not torch.cuda.is_available():
        say(f"{NO_CUDA}; --device cpu --quick tries the script itself")
        return NOTHING
    budget = Budget(60 * found.minutes)
    options = Options(
        found.preset,
        found.checkpoint,
        found.images,
        tuple(found.batches),
        tuple(found.without),
        found.device,
        found.quick,
    )
    path: Path | None = found.receipt
    save: Save = partial(write_json, path=path) if path else lambda _: None
    with TemporaryDirectory() as folder:
        try:
            run = ModelBenchmark(options, budget, command(given), Path(folder), save)
            receipt = run.run()
        except UserError as error:
            say(str(error))
            return NOTHING
    print("\n".join(verdict(receipt)))
    return status(receipt)


if __name__ == "__main__":
    sys.exit(main())
