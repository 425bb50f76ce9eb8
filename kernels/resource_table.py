"""What every shipped kernel uses of a GPU, compared with a committed table.

    python -m drexperts.kernels.resource_table                   compile and check every kernel
    python -m drexperts.kernels.resource_table --golden FILE     and compare with a table
    python -m drexperts.kernels.resource_table --write FILE      write that table anew

The table holds registers, spilled bytes and shared memory, so that a change to a kernel shows what
it costs.
"""

import argparse
import functools
import importlib
import json
import os
import queue
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from drexperts.kernels.aot import check, compile_specialisation, need_compiler
from drexperts.kernels.launch import ARCHITECTURES, Specialisation
from drexperts.runtime.errors import InternalError, UserError

OPERATIONS = (
    "drexperts.kernels.differential_pooling_triton",
    "drexperts.kernels.differential_attention_triton",
)

DONE, DIFFERS, USER_MISTAKE = 0, 1, 2

Numbers = dict[str, dict[str, dict[str, int]]]  # by architecture, specialisation, resource
Texts = dict[str, dict[str, str]]  # by architecture, specialisation
Names = dict[int, list[str]]  # by architecture


@dataclass(frozen=True)
class Report:
    """What was compiled, what failed, and what differs from a table.

    not_compared: architectures whose numbers in the table were made by other versions, and why
    """

    versions: dict[str, Any]
    resources: Numbers
    failures: Texts
    not_compared: dict[str, str]
    differences: Texts

    def as_json(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {name.replace("_", " "): value for name, value in vars(self).items()}


def all_specialisations(
    arch: int, modules: Iterable[str] = OPERATIONS
) -> dict[str, Specialisation]:
    """Every shipped form of every kernel for an architecture, by name.

    Args:
        modules: each has a function `specialisations(arch)`.

    Raises:
        BackendError: Triton's compiler is not available.
        InternalError: two specialisations have the same name.
    """
    need_compiler()
    found: dict[str, Specialisation] = {}
    for module in modules:
        for spec in importlib.import_module(module).specialisations(arch):
            if spec.name in found:
                raise InternalError(f"two specialisations are named {spec.name}")
            found[spec.name] = spec
    return found


@dataclass(frozen=True)
class _Job:
    arch: int
    name: str
    modules: tuple[str, ...]


class _Worker:
    """A process that compiles job after job and is replaced if LLVM ends it."""

    def __init__(self, context: BaseContext) -> None:
        self._context = context
        self._output = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self._start()

    def _start(self) -> None:
        given = (self._output.name,)
        self._process = ProcessPoolExecutor(1, self._context, _redirect_output, given)

    def resources(self, job: _Job) -> dict[str, int] | str:
        """The job's numbers, or why there are none."""
        try:
            return self._process.submit(_measure, job).result()
        except BrokenProcessPool:
            self._start()
            printed = Path(self._output.name).read_text(errors="replace").strip().splitlines()
            return f"the compiler ended its process: {printed[-1] if printed else 'no output'}"

    def end(self) -> None:
        self._process.shutdown()
        self._output.close()


def _redirect_output(path: str) -> None:
    """In a worker: keep what it and LLVM print, to report it if the process ends."""
    with open(path, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _measure(job: _Job) -> dict[str, int] | str:
    """In a worker: exceptions become text, because Triton's own cannot be pickled."""
    try:
        spec = _cached_specialisations(job.arch, job.modules)[job.name]
        compiled = compile_specialisation(spec, job.arch)
        check(compiled, job.arch)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    used = compiled.resources
    return {"registers": used.registers, "spills": used.spill_stores, "shared": compiled.shared}


_cached_specialisations = functools.lru_cache(all_specialisations)


def _measured(jobs: list[_Job]) -> Iterator[tuple[_Job, dict[str, int] | str]]:
    """Every job with its outcome, in order, compiled on all cores that this process may use."""
    count = min(len(jobs), len(os.sched_getaffinity(0)))
    context = get_context("forkserver")
    context.set_forkserver_preload(list(jobs[0].modules))  # Triton is imported once for all
    workers = [_Worker(context) for _ in range(count)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def outcome(job: _Job) -> dict[str, int] | str:
        worker = idle.get()
        try:
            return worker.resources(job)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(count) as threads:
        yield from zip(jobs, threads.map(outcome, jobs), strict=True)
    for worker in workers:
        worker.end()


def _versions(archs: Iterable[int]) -> dict[str, Any]:
    import triton
    from triton.backends.nvidia.compiler import get_ptxas

    ptxas = {str(arch): get_ptxas(arch).version for arch in archs}
    return {"triton": triton.__version__, "ptxas": ptxas}


def _uncomparable(golden: dict[str, Any], versions: dict[str, Any]) -> dict[str, str]:
    """Architectures whose numbers in the table were made by other versions, with the reason."""
    reasons = {}
    for arch, ptxas in versions["ptxas"].items():
        made_by = golden["versions"]["triton"], golden["versions"]["ptxas"].get(arch, ptxas)
        if made_by != (versions["triton"], ptxas):
            reasons[arch] = (
                f"the table was made by Triton {made_by[0]} and ptxas {made_by[1]}, "
                f"these are {versions['triton']} and {ptxas}"
            )
    return reasons


def _differences(
    golden: Numbers, resources: Numbers, not_compared: Mapping[str, str], shipped: Names
) -> Texts:
    """How the kernels differ from the table; by name only for architectures not compared."""
    found: Texts = {}
    for arch, now in resources.items():
        was, names = golden.get(arch, {}), shipped[int(arch)]
        texts = dict.fromkeys(was.keys() - set(names), "in the table, but not shipped")
        texts |= dict.fromkeys(set(names) - was.keys(), "shipped, but not in the table")
        if arch not in not_compared:
            changed = [name for name in was.keys() & now.keys() if was[name] != now[name]]
            texts |= {name: f"{_row(now[name])}; the table: {_row(was[name])}" for name in changed}
        found |= {arch: dict(sorted(texts.items()))} if texts else {}
    return found


def _row(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


def _read_golden(path: Path) -> dict[str, Any]:
    try:
        golden = json.loads(path.read_text())
        if golden["versions"].keys() >= {"triton", "ptxas"} and golden["resources"]:
            return golden
    except (ValueError, TypeError, AttributeError, KeyError):
        pass
    raise UserError(f"{path} is not a table of resources: write one with --write")


def _write_golden(report: Report, path: Path) -> None:
    """Write one line per specialisation, so that a change of one is a change of one line."""
    table = {"versions": report.versions, "resources": report.resources}
    text = json.dumps(table, indent=1, sort_keys=True)
    path.write_text(re.sub(r"\{[^{}]*\}", lambda flat: " ".join(flat[0].split()), text) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drexperts.kernels.resource_table",
        description="Compile every shipped kernel without a GPU and check what it would use.",
        epilog="Exit status: 0 done, 1 a kernel cannot run or differs, 2 your mistake",
    )
    add = parser.add_argument
    add("--arch", type=int, action="append", choices=ARCHITECTURES, help="repeat for several")
    add("--kernel", action="append", default=[], metavar="TEXT", help="only names that contain it")
    add("--module", action="append", help="a module with specialisations(arch) (default: ours)")
    add("--json", action="store_true", help="print a JSON document as the last line of stdout")
    table = parser.add_mutually_exclusive_group()
    table.add_argument("--golden", type=Path, metavar="FILE", help="compare with this table")
    table.add_argument("--write", type=Path, metavar="FILE", help="write this table anew")
    return parser


def _checked(arguments: argparse.Namespace) -> Report:
    """Compile and compare everything that was asked for."""
    archs = tuple(dict.fromkeys(arguments.arch or ARCHITECTURES))
    modules = tuple(arguments.module or OPERATIONS)
    if arguments.write and (arguments.arch or arguments.kernel):
        raise UserError(
            "--write needs every architecture and kernel: leave out --arch and --kernel"
        )
    golden = _read_golden(arguments.golden) if arguments.golden else None
    shipped = {arch: list(all_specialisations(arch, modules)) for arch in archs}
    versions = _versions(archs)
    resources, failures = _compiled(_jobs(shipped, modules, arguments.kernel))
    if golden is None:
        return Report(versions, resources, failures, {}, {})
    skipped = _uncomparable(golden, versions)
    differences = _differences(golden["resources"], resources, skipped, shipped)
    return Report(versions, resources, failures, skipped, differences)


def _jobs(shipped: Names, modules: tuple[str, ...], wanted: list[str]) -> list[_Job]:
    jobs = [
        _Job(arch, name, modules)
        for arch, names in shipped.items()
        for name in names
        if any(part in name for part in wanted or [""])
    ]
    if not jobs:
        raise UserError(f"no kernel has {' or '.join(wanted)} in its name")
    return jobs


def _compiled(jobs: list[_Job]) -> tuple[Numbers, Texts]:
    """The resources of the kernels that compiled, and why the others did not."""
    resources: Numbers = {str(job.arch): {} for job in jobs}
    failures: Texts = {}
    screen, outcomes = Console(stderr=True), _measured(jobs)
    hidden = not screen.is_terminal
    for job, outcome in track(outcomes, "compiling", len(jobs), console=screen, disable=hidden):
        if isinstance(outcome, str):
            failures.setdefault(str(job.arch), {})[job.name] = outcome
        else:
            resources[str(job.arch)][job.name] = outcome
    return resources, failures


def _show(report: Report, console: Console) -> None:
    table = Table("kernel", *(f"sm_{arch}" for arch in report.resources))
    table.title = "registers / spilled bytes / KiB of shared memory"
    found: list[Mapping[str, Any]] = [*report.resources.values(), *report.failures.values()]
    for name in dict.fromkeys(name for texts in found for name in texts):
        table.add_row(name, *(_cell(numbers.get(name)) for numbers in report.resources.values()))
    console.print(table)
    for kind in (report.failures, report.differences):
        for arch, texts in kind.items():
            for name, text in texts.items():
                console.print(f"sm_{arch} {name}: {text}", soft_wrap=True)
    for arch, reason in report.not_compared.items():
        count = len(report.resources[arch])
        console.print(f"sm_{arch}: {count} configurations not compared: {reason}", soft_wrap=True)


def _cell(numbers: Mapping[str, int] | None) -> str:
    if numbers is None:
        return "-"
    return f"{numbers['registers']} / {numbers['spills']} / {numbers['shared'] / 1024:.0f}"


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        report = _checked(arguments)
        if arguments.write and report.failures:
            print(f"{arguments.write} is not written: a kernel cannot run", file=sys.stderr)
        elif arguments.write:
            _write_golden(report, arguments.write)
    except (UserError, OSError, ModuleNotFoundError) as error:
        print(f"{_parser().prog}: {error}", file=sys.stderr)
        return USER_MISTAKE
    width = None if sys.stdout.isatty() else 200  # a log may be wide
    _show(report, Console(stderr=arguments.json, width=width, markup=False, highlight=False))
    if arguments.json:
        print(json.dumps(report.as_json()))
    return DIFFERS if report.failures or report.differences else DONE


if __name__ == "__main__":
    sys.exit(main())
