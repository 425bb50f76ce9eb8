"""The receipt of `bench_engines.py`, and its table."""

from collections.abc import Iterator
from dataclasses import dataclass

from drexperts.benchmarks.receipt_types.receipt import Part, Receipt, machine_line
from drexperts.ui.markdown import Table


@dataclass(frozen=True, kw_only=True)
class EngineBuild:
    """One engine that was built and read back.

    capabilities: compute capabilities that it was built for
    fused_attention: whether attention was allowed to be fused
    seconds: the build took
    weights: bytes of weights; None if not known
    inspected: whether the engine's layers could be read back
    products: how many matrix products run in each combination of types
    asked, found: matrix products in the graph, and those of them that were found in the engine
    attention_kernels: fused attentions in the engine
    """

    precision: str
    capabilities: tuple[str, ...]
    fused_attention: bool
    seconds: float
    bytes: int
    weights: int | None
    inspected: bool
    products: dict[str, int]
    asked: int
    found: int
    attention_kernels: int
    version: str


@dataclass(frozen=True, kw_only=True)
class EngineReceipt(Receipt):
    """What `bench_engines.py` observed.

    turing_cost: the largest difference of each output between the float16 graph and the one that is
        made of it for Turing, both in ONNX Runtime
    """

    preset: str
    builds: tuple[EngineBuild, ...]
    turing_cost: dict[str, float]

    @property
    def failures(self) -> list[str]:
        """What was asked of the engines and does not hold."""
        unread = [b.precision for b in self.builds if not b.inspected]
        fused = [b.precision for b in self.builds if b.attention_kernels and not b.fused_attention]
        found = [f"the {precision} engine could not be read back" for precision in unread]
        return [*found, *(f"attention is fused in the {p} engine, unasked" for p in fused)]


def parts(receipt: EngineReceipt) -> Iterator[Part]:
    """A row per engine."""
    library = f"TensorRT for RTX {receipt.builds[0].version}"
    what = f"{library}, preset `{receipt.preset}`, batch 1:8:64"
    yield machine_line(receipt.machine, "no GPU", what) + " Built and inspected, not executed."
    headings = ("precision", "for capability", "build s", "MB", "products, by type")
    yield Table((*headings, "fused attentions"), [_cells(build) for build in receipt.builds])
    yield from (f"**Failed: {failure}.**" for failure in receipt.failures)


def _cells(build: EngineBuild) -> tuple[str, ...]:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(build.products.items()))
    return (
        build.precision + ", kept from fusing" * (not build.fused_attention),
        ", ".join(build.capabilities),
        f"{build.seconds:.1f}",
        f"{build.bytes / 1e6:.0f}",
        f"{build.found} of {build.asked} asked: {kinds}",
        str(build.attention_kernels),
    )
