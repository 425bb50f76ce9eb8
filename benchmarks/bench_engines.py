"""Build the full-size model's engines for TensorRT for RTX, and read them back.

    python benchmarks/bench_engines.py [--preset official|paper] [--receipt FILE]

No GPU is needed, and none is used: the engines are built and inspected, not executed.
"""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from drexperts.bench.json_files import write_json
from drexperts.bench.provenance import this_machine, this_source
from drexperts.benchmarks.random_weights import random_checkpoint
from drexperts.benchmarks.receipt_types.engine_receipt import EngineBuild, EngineReceipt, parts
from drexperts.benchmarks.receipt_types.receipt import add_receipt_option, markdown
from drexperts.export.engines.inspection import expectation_from_graph, inspection_from_plan
from drexperts.export.engines.options import EngineOptions
from drexperts.export.engines.tensorrt_engine import engine_from_onnx
from drexperts.export.graph.attention_fusion import without_fused_attention
from drexperts.export.graph.half_products import half_products
from drexperts.export.graph.to_onnx import onnx_from_model
from drexperts.model.dr_experts import DRExperts
from drexperts.runtime.onnx_library import import_onnxruntime
from drexperts.runtime.progress import SILENT
from drexperts.ui.screen import Screen

BACKEND = "tensorrt-rtx"
PACKAGES = (
    "drexperts.export",
    "drexperts.model.config",
    "drexperts.model.dr_experts",
    "drexperts.model.experts",
    "drexperts.model.backbones",
)
# Precision, compute capabilities (none for all that the library supports except Turing's), and
# whether attention may be fused.
BUILDS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("fp32", (), True),
    ("fp16", (), True),
    ("bf16", (), True),
    ("fp16", ("8.9",), True),
    ("fp16", ("8.9",), False),
    ("fp16", ("7.5",), True),
)


def built(
    model: DRExperts, precision: str, capabilities: tuple[str, ...], fused: bool
) -> EngineBuild:
    """Build one engine, and read back what it consists of."""
    proto = onnx_from_model(model, maps=True, precision=precision)
    if not fused:
        proto = without_fused_attention(proto)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "engine"
        start = time.perf_counter()
        options = EngineOptions(capabilities=capabilities)
        plan = engine_from_onnx(proto, BACKEND, out, options, SILENT)
        seconds = time.perf_counter() - start
        content = out.read_bytes()
    found = inspection_from_plan(content)
    asked = expectation_from_graph(proto).products
    return EngineBuild(
        precision=precision,
        capabilities=plan.capabilities,
        fused_attention=fused,
        seconds=seconds,
        bytes=len(content),
        weights=found.weights,
        inspected=plan.inspected,
        products=dict(Counter("/".join(sorted(each)) for each in found.products.values())),
        asked=len(asked),
        found=len(asked.keys() & found.products.keys()),
        attention_kernels=found.fused_attention,
        version=plan.version,
    )


def turing_cost(model: DRExperts) -> dict[str, float]:
    """The largest difference of each output between Turing's graph and the float16 one.

    Both run in ONNX Runtime on the CPU, on noise, flat, black-and-white and dark images.
    """
    proto = onnx_from_model(model, maps=True, precision="fp16")
    side = model.config.encoder.image_size
    noise = np.random.default_rng(0).integers(0, 256, (2, 3, side, side))
    images = [noise, np.full_like(noise, 255), 255 * (noise > 127), noise // 32]
    pixels = np.concatenate(images).astype(np.uint8)
    before, after = (outputs(graph, pixels) for graph in (proto, half_products(proto)))
    return {name: float(np.abs(after[name] - before[name]).max()) for name in before}


def outputs(proto: onnx.ModelProto, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """A graph's outputs by name, one image at a time."""
    session = import_onnxruntime().InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    rows = [session.run(names, {"pixels": image[None]}) for image in pixels]
    return dict(zip(names, map(np.concatenate, zip(*rows, strict=True)), strict=True))


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=("official", "paper"), default="official")
    add_receipt_option(parser)
    arguments = parser.parse_args(given)
    model = random_checkpoint(arguments.preset).model
    builds = []
    with Screen().progress() as progress:
        for build in BUILDS:
            progress(f"building {build}")
            builds.append(built(model, *build))
        progress("what Turing's graph costs")
        cost = turing_cost(model)
    receipt = EngineReceipt(
        command=f"python benchmarks/bench_engines.py --preset {arguments.preset}",
        machine=this_machine(),
        source=this_source(*PACKAGES),
        preset=arguments.preset,
        builds=tuple(builds),
        turing_cost=cost,
    )
    print(markdown(parts(receipt)))
    print(f"Turing's graph against the float16 one, largest differences: {cost}")
    if arguments.receipt:
        write_json(receipt, arguments.receipt)


if __name__ == "__main__":
    main()
