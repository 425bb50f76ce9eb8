"""Write the README's measured tables from the committed receipts, so that they cannot drift.

python benchmarks/readme_table.py
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECEIPT = ROOT / "benchmarks" / "receipts" / "full-size-official.json"
SECTION = re.compile(r"(?<=<!-- measured -->\n).*(?=<!-- end of measured -->)", re.DOTALL)
HEAD_RECEIPT = RECEIPT.with_name("kernels-cpu.json")
HEAD_SECTION = re.compile(r"(?<=<!-- head -->\n).*(?=<!-- end of head -->)", re.DOTALL)

ENGINES_RECEIPT = RECEIPT.with_name("engines-rtx.json")
ENGINES_SECTION = re.compile(r"(?<=<!-- engines -->\n).*(?=<!-- end of engines -->)", re.DOTALL)

TRAINING_RECEIPT = RECEIPT.with_name("training-official.json")
TRAINING_SECTION = re.compile(r"(?<=<!-- training -->\n).*(?=<!-- end of training -->)", re.DOTALL)


def measured(report: dict[str, Any]) -> str:
    """The tables for a report of `drx bench`, as Markdown."""
    machine = report["machine"]
    versions = machine["versions"]
    runtime = versions.get("onnxruntime") or versions["onnxruntime-gpu"]
    rows = [row for entry in report["batches"] for row in batch_rows(entry)]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores; ONNX Runtime {runtime}, CPU provider; "
        f"PyTorch {versions['torch']}; preset `{report['bundle']['preset']}`.",
        "",
        "| batch | | p50 ms | p90 ms | times the engine |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in figures(report).items()),
    ]
    return "\n".join(["", *lines, "", ""])


def head(report: dict[str, Any]) -> str:
    """The expert head's CLS row against its dense form, for a report of `bench_kernels.py`."""
    machine = report["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores; PyTorch {machine['versions']['torch']}, "
        "float32, preset `official`.",
        "",
        "| images | | CLS row, p50 ms | all rows, p50 ms | ratio |",
        "|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        images = row["problem"].split("/")[2].removeprefix("B")
        work = {"forward": "forward", "forward+backward": "training step"}[
            row["mode"].split(",")[0]
        ]
        ours, dense = (1e3 * row["times"][name]["p50"] for name in ("CLS row", "dense eager"))
        ratio = row["ratio"]["dense eager"]
        shown = f"{ratio['p50']:.0f} ({ratio['p20']:.0f}-{ratio['p80']:.0f})"
        lines.append(f"| {images} | {work} | {ours:.1f} | {dense:.0f} | {shown} |")
    return "\n".join(["", *lines, "", ""])


def engines(report: dict[str, Any]) -> str:
    """The engines for TensorRT for RTX, for a receipt of `bench_engines.py`."""
    machine = report["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, no GPU; TensorRT for RTX "
        f"{report['rows'][0]['version']}, preset `{report['preset']}`, batch 1:8:64. Built and "
        "inspected, not executed.",
        "",
        "| precision | for capability | build s | MB | products, by type | fused attentions |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(row["products"].items()))
        found = f"{row['found']} of {row['asked']} asked: {kinds}"
        precision = row["precision"] + ", kept from fusing" * (not row["fused_attention"])
        size, targets = f"{row['bytes'] / 1e6:.0f}", ", ".join(row["capabilities"])
        fused = row["attention_kernels"]
        lines.append(
            f"| {precision} | {targets} | {row['seconds']:.1f} | {size} | {found} | {fused} |"
        )
    return "\n".join(["", *lines, "", ""])


def training(report: dict[str, Any]) -> str:
    """A training step and what it consists of, for a receipt of `drx bench --train`."""
    machine, batch = report["machine"], report["batch"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores; PyTorch {machine['versions']['torch']}, "
        f"preset `{report['preset']}`, {batch} crops.",
        "",
        "| | type | p50 s | p90 s | times ours | peak MB | times ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, times in report["step"].items():
        ratio, peak = report["ratio"].get(name), report["peak_bytes"][name] / 1e6
        shown = f"{ratio['p50']:.2f} ({ratio['p20']:.2f}-{ratio['p80']:.2f})" if ratio else ""
        more = f"{report['peak_ratio'][name]:.2f}" if ratio else ""
        kind, p50, p90 = report["amp"][name], times["p50"], times["p90"]
        lines.append(f"| {name} | {kind} | {p50:.2f} | {p90:.2f} | {shown} | {peak:.0f} | {more} |")
    parts = {name: times["p50"] for name, times in report["parts"].items()}
    whole = sum(parts.values())
    split = ", ".join(f"{name} {part / whole:.0%}" for name, part in parts.items())
    data = report["data"]["p50"] / report["step"]["ours"]["p50"]
    p50 = {name: times["p50"] for name, times in report["step"].items()}
    faster = {name: f"{p50[name] / p50['ours, fp32']:.2f}" for name in ("released", "dense")}
    lines += [
        "",
        f"Of our step: {split}. Making a batch of JPEGs takes one core {data:.0%} of it. In "
        f"float32, too, ours is {faster['released']} times as fast as `released` and "
        f"{faster['dense']} times as `dense`, by their medians.",
    ]
    return "\n".join(["", *lines, "", ""])


def figures(report: dict[str, Any]) -> dict[str, str]:
    """What is measured once: start, memory, an image from its bytes."""
    cold, image = report["cold_start"], report["image"]
    crops = image["crops"]
    return {
        "`runtime.load`": f"{cold['load_s']:.1f} s",
        "first inference": f"{cold['first_inference_s']:.1f} s",
        "resident after it": f"{cold['resident_bytes'] / 1e6:.0f} MB",
        f"a 1024x768 JPEG to {crops} crops": f"{1e3 * image['preprocess']['p50']:.1f} ms",
        f"and to its Score, {crops} crops": f"{image['image_e2e']['p50']:.2f} s",
    }


def batch_rows(entry: dict[str, Any]) -> list[str]:
    """A row of the table for each contender at one batch size."""
    rows = []
    for name, times in entry["latency"].items():
        ratio = entry["ratio"].get(name)
        shown = f"{ratio['p50']:.2f} ({ratio['p20']:.2f}-{ratio['p80']:.2f})" if ratio else ""
        p50, p90 = 1e3 * times["p50"], 1e3 * times["p90"]
        rows.append(f"| {entry['batch']} | {name} | {p50:.0f} | {p90:.0f} | {shown} |")
    return rows


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    for section, receipt, table in (
        (SECTION, RECEIPT, measured),
        (HEAD_SECTION, HEAD_RECEIPT, head),
        (ENGINES_SECTION, ENGINES_RECEIPT, engines),
        (TRAINING_SECTION, TRAINING_RECEIPT, training),
    ):
        made = table(json.loads(receipt.read_text()))
        text = section.sub(lambda _, made=made: made, text)
    readme.write_text(text)


if __name__ == "__main__":
    main()
