"""Build the full-size model's engines for TensorRT for RTX, read them back, and write a receipt.

    python benchmarks/bench_engines.py [--preset official|paper] [--receipt FILE]

No GPU is needed, and none is used: the engines are built and inspected, not executed.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from drexperts.bench.provenance import head

# PYTHONSAFEPATH, which this repository asks for, leaves a script's own folder out.
from drexperts.benchmarks.bench_full_size import random_checkpoint
from drexperts.export.engines.inspection import expectation_from_graph, inspection_from_plan
from drexperts.export.engines.options import EngineOptions
from drexperts.export.engines.tensorrt_engine import engine_from_onnx
from drexperts.export.graph.attention_fusion import without_fused_attention
from drexperts.export.graph.half_products import half_products
from drexperts.export.graph.to_onnx import onnx_from_model
from drexperts.model.dr_experts import DRExperts
from drexperts.runtime.progress import SILENT
from drexperts.ui.screen import Screen

BACKEND = "tensorrt-rtx"
# Whose source the numbers speak of.
MODULES = (
    "drexperts.model.config",
    "drexperts.export",
    "drexperts.model.dr_experts",
    "drexperts.model.experts",
    "drexperts.model.backbones",
)
# Precision, compute capabilities (all that the library has but Turing's), whether attention may be
# fused.
BUILDS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("fp32", (), True),
    ("fp16", (), True),
    ("bf16", (), True),
    ("fp16", ("8.9",), True),
    ("fp16", ("8.9",), False),
    ("fp16", ("7.5",), True),
)


def built(
    model: DRExperts, precision: str, targets: tuple[str, ...], fused: bool
) -> dict[str, Any]:
    """One engine: how long it took, and what its bytes say."""
    proto = onnx_from_model(model, maps=True, precision=precision)
    if not fused:
        proto = without_fused_attention(proto)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "engine"
        start = time.perf_counter()
        options = EngineOptions(capabilities=targets)
        plan = engine_from_onnx(proto, BACKEND, out, options, SILENT)
        seconds = time.perf_counter() - start
        content = out.read_bytes()
    found = inspection_from_plan(content)
    asked = expectation_from_graph(proto).products
    return {
        "precision": precision,
        "capabilities": plan.capabilities,
        "fused_attention": fused,
        "seconds": seconds,
        "bytes": len(content),
        "weights": found.weights,
        "inspected": plan.inspected,
        "products": Counter("/".join(sorted(kinds)) for kinds in found.products.values()),
        "asked": len(asked),
        "found": len(asked.keys() & found.products.keys()),
        "attention_kernels": found.fused_attention,
        "version": plan.version,
    }


def gates(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Whether every plan was read back, and no attention was fused where that was kept off."""
    return {
        "inspected": all(row["inspected"] for row in rows),
        "unfused": not any(row["attention_kernels"] for row in rows if not row["fused_attention"]),
    }


def turing_cost(model: DRExperts) -> dict[str, float]:
    """What Turing's graph costs beside the float16 one: the largest differences of each output.

    Both run in ONNX Runtime on the CPU, on noise, flat, black-and-white and dark images.
    """
    proto = onnx_from_model(model, maps=True, precision="fp16")
    side = model.config.encoder.image_size
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, 3, side, side))
    pixels = np.concatenate(
        [noise, np.full_like(noise, 255), 255 * (noise > 127), noise // 32]
    ).astype(np.uint8)
    before, after = (outputs(graph, pixels) for graph in (proto, half_products(proto)))
    return {name: float(np.abs(after[name] - before[name]).max()) for name in before}


def outputs(proto: onnx.ModelProto, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """A graph's outputs by name, one image at a time."""
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    rows = [session.run(names, {"pixels": image[None]}) for image in pixels]
    return dict(zip(names, map(np.concatenate, zip(*rows, strict=True)), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=("official", "paper"), default="official")
    parser.add_argument("--receipt", type=Path)
    arguments = parser.parse_args()
    console = Console()
    model = random_checkpoint(arguments.preset).model
    rows = []
    with Screen().progress() as progress:
        for build in BUILDS:
            progress(f"building {build}")
            rows.append(built(model, *build))
        progress("what Turing's graph costs")
        cost = turing_cost(model)
    console.print(f"Turing's graph against the float16 one, largest differences: {cost}")
    command = f"python benchmarks/bench_engines.py --preset {arguments.preset}"
    receipt = {
        **head("engines", command, MODULES, None),
        "gates": gates(rows),
        "preset": arguments.preset,
        "rows": rows,
        "turing_cost": cost,
    }
    console.print(table(rows))
    if arguments.receipt:
        arguments.receipt.write_text(json.dumps(receipt, indent=1, allow_nan=False) + "\n")
        console.print(f"wrote {arguments.receipt}")


def table(rows: list[dict[str, Any]]) -> Table:
    """What `engines` of receipt_tables.py writes, for a terminal."""
    shown = Table("precision", "for", "build s", "MB", "products by type", "attention kernels")
    for row in rows:
        products = ", ".join(f"{n} {kind}" for kind, n in sorted(row["products"].items()))
        shown.add_row(
            row["precision"],
            " ".join(row["capabilities"]),
            f"{row['seconds']:.1f}",
            f"{row['bytes'] / 1e6:.0f}",
            products,
            str(row["attention_kernels"]),
        )
    return shown


if __name__ == "__main__":
    main()
