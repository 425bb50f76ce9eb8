"""The GPU suite's receipts in one document and one page."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drexperts.bench.provenance import head

MODULES = ("drexperts.model.dr_experts", "drexperts.model.experts", "drexperts.kernels")
SHOWN = 160  # characters of a reason; the receipt has it whole

Report = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Args:
        receipt: the file's name, None where there is none.
        why: it did not end by itself, or did not begin; None where it did.
        seconds: it took.
        broken: it ended by an error, which is a red gate of its own.
    """

    part: str
    receipt: str | None
    why: str | None
    seconds: float
    broken: bool = False


def summarise(
    outcomes: Sequence[Outcome], out: Path, trial: bool, clocks: Sequence[object]
) -> Report:
    """One document over all parts, without the samples."""
    kind = "gpu-suite-trial" if trial else "gpu-suite"
    parts = {outcome.part: _part(outcome, out) for outcome in outcomes}
    return {
        **head(kind, "bash benchmarks/gpu_suite.sh OUT", MODULES, None),
        "gates": {
            f"{name}: {gate}": green
            for name, part in parts.items()
            for gate, green in part["gates"].items()
        },
        "clocks": list(clocks),
        "parts": parts,
    }


def _part(outcome: Outcome, out: Path) -> Report:
    report, unreadable = read_receipt(out / outcome.receipt) if outcome.receipt else ({}, None)
    broken = {"did not break": False} if outcome.broken else {}
    return asdict(outcome) | {
        "why": outcome.why or unreadable,
        "gates": report.get("gates", {}) | broken,
        "left_out": report.get("left_out", {}),
        "rows": list(_rows(report)),
    }


def read_receipt(path: Path) -> tuple[Report, str | None]:
    """A receipt, or why there is none: its writer may have been killed while it wrote."""
    try:
        report: Report = json.loads(path.read_text())
    except ValueError as error:
        return {}, f"{path.name} cannot be read: {error}"
    return report, None


def _rows(report: Report) -> Iterator[Report]:
    """The medians of a receipt: of a kernel's rows, or of the whole model's batches."""
    for row in (*report.get("rows", ()), *report.get("batches", ())):
        yield {
            "what": f"{row['problem']}, {row['mode']}" if "problem" in row else _batch(row),
            "bound_s": row.get("bound"),
            "images": row.get("batch"),
            "p50_s": {name: times["p50"] for name, times in row["latency"].items()},
            "over_first": {name: ratio["p50"] for name, ratio in row["ratio"].items()},
            "head_share": {n: part["share"]["p50"] for n, part in row.get("head", {}).items()},
            "peak_bytes": row.get("peak_bytes", {}),
            "refused": row["refused"],
        }


def _batch(row: Report) -> str:
    return f"whole model, {row['precision']}, B{row['batch']}"


def status(report: Report) -> int:
    """The exit status: 0 all gates are green, 1 one is red, 2 nothing was judged."""
    if not report["gates"]:
        return 2
    return 0 if all(report["gates"].values()) else 1


def write_summary(report: Report, out: Path) -> None:
    """summary.json and summary.md."""
    (out / "summary.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    (out / "summary.md").write_text("\n".join(markdown(report)) + "\n")


def markdown(report: Report) -> Iterator[str]:
    """The page's lines."""
    trial = report["kind"].endswith("trial")
    yield "# TRIAL on a CPU: no figure here is a GPU's" if trial else "# GPU suite"
    gpus = [f"{gpu['name']}, driver {gpu['driver_version']}" for gpu in report["machine"]["gpus"]]
    versions = ", ".join(f"{n} {v}" for n, v in report["machine"]["versions"].items())
    yield f"\n{'; '.join(gpus) or 'no GPU'}; {versions}; source {report['source']['sha256'][:12]}\n"
    red = [name for name, green in report["gates"].items() if not green]
    yield f"{len(report['gates']) - len(red)} gates green, {len(red)} red"
    yield from (f"- RED {name}" for name in red)
    for name, part in report["parts"].items():
        yield f"\n## {name}, {part['seconds']:.0f} s\n"
        yield f"{part['receipt'] or 'no receipt'}{'; ' + part['why'] if part['why'] else ''}"
        for row in part["rows"]:
            yield from _table(row)
        yield from (f"- left out: {n}: {why[:SHOWN]}" for n, why in part["left_out"].items())


def _table(row: Report) -> Iterator[str]:
    bound = f", bound {1e6 * row['bound_s']:.1f} us" if row["bound_s"] else ""
    yield f"\n### {row['what']}{bound}\n"
    yield "| contender | p50 | of the first | images/s | peak MB |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, seconds in row["p50_s"].items():
        rate = f"{row['images'] / seconds:.0f}" if row["images"] else ""
        peak = row["peak_bytes"].get(name)
        memory = f"{peak / 1e6:.0f}" if peak is not None else ""
        ratio = f"{row['over_first'][name]:.2f}" if name in row["over_first"] else ""
        yield f"| {name} | {1e3 * seconds:.4f} ms | {ratio} | {rate} | {memory} |"
    yield from (f"- the head is {s:.1%} of {name}" for name, s in row["head_share"].items())
    yield from (f"- not timed: {n}: {why[:SHOWN]}" for n, why in row["refused"].items())
