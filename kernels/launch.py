"""How each kernel is launched: a committed table per architecture, no tuning at run time.

A launch is looked up by kernel, architecture, width and size of an element, so that eager PyTorch,
torch.compile and ahead-of-time compilation run the same machine code, and so that two runs do.
Every entry says what chose it: a measurement, or the reason where none was made yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drexperts.runtime.errors import BackendError

# Compute capabilities that the kernels are compiled and checked for.
ARCHITECTURES = (80, 86, 89, 90, 100, 120)


@dataclass(frozen=True)
class Launch:
    """Warps and pipeline stages of a program, and the kernel's own block sizes by name."""

    warps: int
    stages: int
    blocks: Mapping[str, int]
    why: str

    @property
    def options(self) -> dict[str, Any]:
        """Triton's compile options. Fused multiply-adds are asked for: Triton 3.10 drops them."""
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": True,
        }


@dataclass(frozen=True)
class Rule:
    """A launch for every width up to `width` and element sizes up to `itemsize` bytes."""

    width: int
    itemsize: int
    launch: Launch


@dataclass(frozen=True)
class Specialisation:
    """One shipped form of a kernel: all that is needed to compile it without a GPU.

    Args:
        name: unique, `kernel/dtype/width/form`.
        kernel: the Triton function.
        signature: runtime arguments in order and their types, `*fp16`, `i32`.
        constants: compile-time arguments.
        aligned: runtime arguments that are divisible by 16.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...]
    launch: Launch


def nearest(arch: int) -> int:
    """The architecture of the table that serves compute capability `arch`: the next one below."""
    below = [known for known in ARCHITECTURES if known <= arch]
    if not below:
        raise BackendError(f"no launch is known below compute capability 8.0, this GPU has {arch}")
    return below[-1]


def launch_for(kernel: str, arch: int, width: int, itemsize: int) -> Launch:
    """The launch of `kernel` for tokens `width` wide of `itemsize` bytes an element."""
    for rule in TABLE[kernel][nearest(arch)]:
        if width <= rule.width and itemsize <= rule.itemsize:
            return rule.launch
    raise BackendError(f"{kernel} has no launch for width {width}: use backend='reference'")


def _everywhere(*rules: Rule) -> dict[int, tuple[Rule, ...]]:
    return dict.fromkeys(ARCHITECTURES, rules)


# 160 tokens a split: at 577 tokens four programs an image, two for each multiprocessor of an H200
# at batch 64, and partial sums of a quarter of the tokens' own bytes.
_POOL = {"SPLIT": 160}
_STREAM = Launch(
    4,
    3,
    _POOL | {"BN": 32, "BD": 128, "HOLD": 1},
    "not measured; no spills, and while a tile is worked on the next is under way (two stages give "
    "it no buffer of its own); 78 KiB, so that two programs fit a multiprocessor",
)
_STREAM_99_KIB = Launch(
    4,
    2,
    _POOL | {"BN": 16, "BD": 128, "HOLD": 1},
    "not measured; no spills, and 38 KiB, so that two programs fit a multiprocessor of 99 KiB and "
    "one loads while the other computes",
)
_NO_SPILLS = (
    "not measured; the widest tile without spills on sm_90 of 16 or 32 tokens, 4 or 8 warps"
)
_FITS_99_KIB = "not measured; 72 KiB at width 1024, the query loaded again for each tile"
_PLUGIN = "not measured; below the 48 KiB that a TensorRT plugin may count on"
_FEWEST_SPILLS = (
    "not measured; the fewest spills at width 384 of 16 or 32 tokens, 4 to 16 warps, chunks of 32 "
    "to 128"
)

# Tiles of differential attention, and why: no GPU was at hand, so ptxas (Triton 3.9) decided.
_TILE_64 = {"QUERIES": 64, "KEYS": 64}
_TILE_32 = {"QUERIES": 32, "KEYS": 32}
_TILE_16 = {"QUERIES": 16, "KEYS": 16}
_UNSPILT = "not measured; 20 bytes spilt or fewer"
_LEAST_SPILT = "not measured; among the fewest spills of the two to five tiles tried"
_ROWS_64 = "not measured; 64 rows, the fewest that a warp-group product takes, and few spills"
_LOOPED = "not measured; 24 KiB of shared memory or less, and few spills"
_PREFETCH = (
    "not measured; fetches the next tile meanwhile, without spills; 64 keys overflow Triton 3.6"
)

TABLE: dict[str, dict[int, tuple[Rule, ...]]] = {
    "differential_pooling_forward_single": {
        arch: (
            Rule(384, 2, _STREAM_99_KIB if arch in (86, 89, 120) else _STREAM),
            Rule(768, 2, Launch(8, 2, _POOL | {"BN": 16, "BD": 128, "HOLD": 1}, _NO_SPILLS)),
            Rule(384, 4, Launch(8, 2, _POOL | {"BN": 16, "BD": 64, "HOLD": 1}, _FEWEST_SPILLS)),
            Rule(1024, 4, Launch(8, 1, _POOL | {"BN": 16, "BD": 128, "HOLD": 0}, _FITS_99_KIB)),
        )
        for arch in ARCHITECTURES
    },
    "differential_pooling_forward_iterated": _everywhere(
        Rule(384, 4, Launch(4, 1, _POOL | {"BN": 16, "BD": 128, "HOLD": 0}, _NO_SPILLS)),
        Rule(1024, 4, Launch(8, 1, _POOL | {"BN": 16, "BD": 128, "HOLD": 0}, _FEWEST_SPILLS)),
    ),
    "differential_pooling_whole_single": _everywhere(
        Rule(384, 2, Launch(8, 2, _POOL | {"BN": 16, "BD": 128, "HOLD": 1}, _PLUGIN)),
        Rule(768, 2, Launch(8, 1, _POOL | {"BN": 16, "BD": 64, "HOLD": 0}, _PLUGIN)),
        Rule(384, 4, Launch(8, 1, _POOL | {"BN": 16, "BD": 64, "HOLD": 0}, _PLUGIN)),
    ),
    "differential_pooling_whole_iterated": _everywhere(
        Rule(768, 4, Launch(8, 1, _POOL | {"BN": 16, "BD": 128, "HOLD": 0}, _PLUGIN)),
    ),
    "differential_pooling_backward_single": _everywhere(
        Rule(1024, 4, Launch(8, 1, _POOL | {"BN": 16, "BD": 64}, _FEWEST_SPILLS)),
    ),
    "differential_pooling_backward_iterated": _everywhere(
        Rule(1024, 4, Launch(8, 1, _POOL | {"BN": 16, "BD": 64}, _FEWEST_SPILLS)),
    ),
    "differential_attention_short_forward": _everywhere(
        Rule(1024, 2, Launch(8, 2, {"QUERIES": 32, "KEYS": 256, "CHUNK": 64}, _UNSPILT)),
        Rule(1024, 4, Launch(8, 2, {"QUERIES": 16, "KEYS": 256, "CHUNK": 32}, _LEAST_SPILT)),
    )
    | dict.fromkeys(
        (90, 100),
        (
            Rule(1024, 2, Launch(8, 2, {"QUERIES": 64, "KEYS": 256, "CHUNK": 32}, _ROWS_64)),
            Rule(1024, 4, Launch(8, 2, {"QUERIES": 16, "KEYS": 256, "CHUNK": 32}, _LEAST_SPILT)),
        ),
    ),
    "differential_attention_sequential_forward": _everywhere(
        Rule(128, 2, Launch(4, 2, _TILE_64 | {"CHUNK": 64, "UNROLLED": 1}, _UNSPILT)),
        Rule(
            384,
            2,
            Launch(8, 2, _TILE_64 | {"KEYS": 32, "CHUNK": 128, "UNROLLED": 0}, _LOOPED),
        ),
        Rule(1024, 2, Launch(8, 2, _TILE_32 | {"CHUNK": 128, "UNROLLED": 0}, _LOOPED)),
        Rule(
            384, 4, Launch(8, 1, _TILE_16 | {"KEYS": 32, "CHUNK": 64, "UNROLLED": 0}, _LEAST_SPILT)
        ),
        Rule(1024, 4, Launch(8, 1, _TILE_16 | {"CHUNK": 128, "UNROLLED": 0}, _LEAST_SPILT)),
    )
    | dict.fromkeys(
        (80, 90, 100),
        (
            Rule(128, 2, Launch(4, 2, _TILE_64 | {"CHUNK": 64, "UNROLLED": 1}, _UNSPILT)),
            Rule(
                384,
                2,
                Launch(8, 2, _TILE_64 | {"KEYS": 32, "CHUNK": 128, "UNROLLED": 1}, _PREFETCH),
            ),
            Rule(1024, 2, Launch(8, 2, _TILE_32 | {"CHUNK": 128, "UNROLLED": 0}, _LOOPED)),
            Rule(
                384,
                4,
                Launch(8, 1, _TILE_16 | {"KEYS": 32, "CHUNK": 64, "UNROLLED": 0}, _LEAST_SPILT),
            ),
            Rule(1024, 4, Launch(8, 1, _TILE_16 | {"CHUNK": 128, "UNROLLED": 0}, _LEAST_SPILT)),
        ),
    ),
    "differential_attention_row_gradient": _everywhere(
        Rule(1024, 4, Launch(4, 1, {"QUERIES": 16, "CHUNK": 128}, _UNSPILT)),
    ),
    "differential_attention_logit_gradient": _everywhere(
        Rule(128, 2, Launch(8, 2, {"ROWS": 64, "COLUMNS": 64, "CHUNK": 64}, _UNSPILT)),
        Rule(384, 2, Launch(8, 2, {"ROWS": 64, "COLUMNS": 32, "CHUNK": 128}, _LEAST_SPILT)),
        Rule(1024, 2, Launch(8, 2, {"ROWS": 32, "COLUMNS": 32, "CHUNK": 128}, _LEAST_SPILT)),
        Rule(384, 4, Launch(8, 2, {"ROWS": 32, "COLUMNS": 32, "CHUNK": 64}, _LEAST_SPILT)),
        Rule(1024, 4, Launch(8, 2, {"ROWS": 16, "COLUMNS": 16, "CHUNK": 64}, _LEAST_SPILT)),
    )
    | dict.fromkeys(
        (90, 100),
        (
            Rule(384, 2, Launch(8, 2, {"ROWS": 64, "COLUMNS": 64, "CHUNK": 128}, _ROWS_64)),
            Rule(1024, 2, Launch(8, 2, {"ROWS": 32, "COLUMNS": 32, "CHUNK": 128}, _LEAST_SPILT)),
            Rule(384, 4, Launch(8, 2, {"ROWS": 32, "COLUMNS": 32, "CHUNK": 64}, _LEAST_SPILT)),
            Rule(1024, 4, Launch(8, 2, {"ROWS": 16, "COLUMNS": 16, "CHUNK": 64}, _LEAST_SPILT)),
        ),
    ),
    "differential_attention_value_gradient": _everywhere(
        Rule(128, 2, Launch(8, 2, _TILE_64 | {"CHUNK": 64}, _UNSPILT)),
        Rule(384, 2, Launch(8, 2, {"QUERIES": 32, "KEYS": 64, "CHUNK": 128}, _LEAST_SPILT)),
        Rule(1024, 2, Launch(8, 2, _TILE_32 | {"CHUNK": 128}, _LEAST_SPILT)),
        Rule(384, 4, Launch(8, 2, _TILE_32 | {"CHUNK": 64}, _LEAST_SPILT)),
        Rule(1024, 4, Launch(8, 2, _TILE_16 | {"CHUNK": 64}, _LEAST_SPILT)),
    ),
}
