"""How each kernel is launched: a committed table per architecture, without tuning at run time.

A launch is looked up by kernel, architecture, width and element size. Eager PyTorch, torch.compile
and ahead-of-time compilation therefore run the same machine code, and so do any two runs. Every
entry says what chose it: a measurement, or another reason if there is none yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drexperts.runtime.errors import BackendError

# Compute capabilities that the kernels are compiled and checked for.
ARCHITECTURES = (80, 86, 89, 90, 100, 120)


@dataclass(frozen=True)
class Launch:
    """A program's warps and pipeline stages, the kernel's block sizes by name, and the reason."""

    warps: int
    stages: int
    blocks: Mapping[str, int]
    why: str

    @property
    def options(self) -> dict[str, Any]:
        """Triton's compile options. Triton 3.10 no longer fuses multiply-adds by default."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


@dataclass(frozen=True)
class Rule:
    """A launch for widths up to `width` and element sizes up to `itemsize` bytes."""

    width: int
    itemsize: int
    launch: Launch


@dataclass(frozen=True)
class Specialisation:
    """One shipped form of a kernel, with all that compiling it without a GPU needs.

    Attributes:
        name: unique, `kernel/dtype/width/form`.
        kernel: the Triton function.
        signature: the runtime arguments in order, with their types such as `*fp16` or `i32`.
        constants: the compile-time arguments.
        aligned: the runtime arguments that are divisible by 16.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...]
    launch: Launch


def nearest(arch: int) -> int:
    """The newest architecture of the table that is not newer than compute capability `arch`."""
    older = [known for known in ARCHITECTURES if known <= arch]
    if not older:
        raise BackendError(f"the kernels need compute capability 8.0, this GPU has {arch / 10}")
    return older[-1]


def launch_for(kernel: str, arch: int, width: int, itemsize: int) -> Launch:
    """The launch of `kernel` for rows of `width` elements of `itemsize` bytes each."""
    for rule in TABLE[kernel][nearest(arch)]:
        if width <= rule.width and itemsize <= rule.itemsize:
            return rule.launch
    raise BackendError(f"{kernel} has no launch for width {width}: use backend='reference'")


def _everywhere(*rules: Rule) -> dict[int, tuple[Rule, ...]]:
    return dict.fromkeys(ARCHITECTURES, rules)


def _rule(width: int, itemsize: int, warps: int, stages: int, why: str, **blocks: int) -> Rule:
    return Rule(width, itemsize, Launch(warps, stages, blocks, why))


def _pool(
    width: int,
    itemsize: int,
    warps: int,
    stages: int,
    tokens: int,
    chunk: int,
    why: str,
    **rest: int,
) -> Rule:
    """A rule of differential pooling.

    With 160 tokens per split, an image of 577 tokens has four programs. At batch 64 these are two
    for each multiprocessor of an H200, and the partial sums are a quarter of the tokens' own bytes.
    """
    return _rule(width, itemsize, warps, stages, why, SPLIT=160, BN=tokens, BD=chunk, **rest)


_NARROW = _pool(
    384, 2, 4, 3, 32, 128,
    "not measured; no spills, and the next tile is loaded during the work on this one (with two "
    "stages it has no buffer of its own); 78 KiB, so that two programs fit a multiprocessor",
    HOLD=1,
)  # fmt: skip
_NARROW_99_KIB = _pool(
    384, 2, 4, 2, 16, 128,
    "not measured; no spills, and 38 KiB, so that two programs fit a multiprocessor of 99 KiB and "
    "one loads while the other computes",
    HOLD=1,
)  # fmt: skip
_NO_SPILLS = (
    "not measured; the widest tile without spills on sm_90 of 16 or 32 tokens, 4 or 8 warps"
)
_FITS_99_KIB = "not measured; 72 KiB at width 1024, the query loaded again for each tile"
_PLUGIN = "not measured; below the 48 KiB that a TensorRT plugin may count on"
_FEWEST_SPILLS = (
    "not measured; the fewest spills at width 384 of 16 or 32 tokens, 4 to 16 warps, chunks of 32 "
    "to 128"
)

# Tiles of differential attention. No GPU was at hand, so ptxas (Triton 3.9) decided.
_UNSPILT = "not measured; 20 bytes spilt or fewer"
_LEAST_SPILT = "not measured; among the fewest spills of the two to five tiles tried"
_ROWS_64 = "not measured; 64 rows, the fewest that a warp-group product takes, and few spills"
_LOOPED = "not measured; 24 KiB of shared memory or less, and few spills"
_PREFETCH = (
    "not measured; fetches the next tile meanwhile, without spills; 64 keys overflow Triton 3.6"
)


def _sequential(unrolled: int, why: str) -> tuple[Rule, ...]:
    return (
        _rule(128, 2, 4, 2, _UNSPILT, QUERIES=64, KEYS=64, CHUNK=64, UNROLLED=1),
        _rule(384, 2, 8, 2, why, QUERIES=64, KEYS=32, CHUNK=128, UNROLLED=unrolled),
        _rule(1024, 2, 8, 2, _LOOPED, QUERIES=32, KEYS=32, CHUNK=128, UNROLLED=0),
        _rule(384, 4, 8, 1, _LEAST_SPILT, QUERIES=16, KEYS=32, CHUNK=64, UNROLLED=0),
        _rule(1024, 4, 8, 1, _LEAST_SPILT, QUERIES=16, KEYS=16, CHUNK=128, UNROLLED=0),
    )


_SHORT_FLOAT32 = _rule(1024, 4, 8, 2, _LEAST_SPILT, QUERIES=16, KEYS=256, CHUNK=32)
_LOGIT_GRADIENT = (
    _rule(1024, 2, 8, 2, _LEAST_SPILT, ROWS=32, COLUMNS=32, CHUNK=128),
    _rule(384, 4, 8, 2, _LEAST_SPILT, ROWS=32, COLUMNS=32, CHUNK=64),
    _rule(1024, 4, 8, 2, _LEAST_SPILT, ROWS=16, COLUMNS=16, CHUNK=64),
)

TABLE: dict[str, dict[int, tuple[Rule, ...]]] = {
    "differential_pooling_forward_single": {
        arch: (
            _NARROW_99_KIB if arch in (86, 89, 120) else _NARROW,
            _pool(768, 2, 8, 2, 16, 128, _NO_SPILLS, HOLD=1),
            _pool(384, 4, 8, 2, 16, 64, _FEWEST_SPILLS, HOLD=1),
            _pool(1024, 4, 8, 1, 16, 128, _FITS_99_KIB, HOLD=0),
        )
        for arch in ARCHITECTURES
    },
    "differential_pooling_forward_iterated": _everywhere(
        _pool(384, 4, 4, 1, 16, 128, _NO_SPILLS, HOLD=0),
        _pool(1024, 4, 8, 1, 16, 128, _FEWEST_SPILLS, HOLD=0),
    ),
    "differential_pooling_whole_single": _everywhere(
        _pool(384, 2, 8, 2, 16, 128, _PLUGIN, HOLD=1),
        _pool(768, 2, 8, 1, 16, 64, _PLUGIN, HOLD=0),
        _pool(384, 4, 8, 1, 16, 64, _PLUGIN, HOLD=0),
    ),
    "differential_pooling_whole_iterated": _everywhere(
        _pool(768, 4, 8, 1, 16, 128, _PLUGIN, HOLD=0),
    ),
    "differential_pooling_backward_single": _everywhere(
        _pool(1024, 4, 8, 1, 16, 64, _FEWEST_SPILLS),
    ),
    "differential_pooling_backward_iterated": _everywhere(
        _pool(1024, 4, 8, 1, 16, 64, _FEWEST_SPILLS),
    ),
    "differential_attention_short_forward": _everywhere(
        _rule(1024, 2, 8, 2, _UNSPILT, QUERIES=32, KEYS=256, CHUNK=64), _SHORT_FLOAT32
    )
    | dict.fromkeys(
        (90, 100),
        (_rule(1024, 2, 8, 2, _ROWS_64, QUERIES=64, KEYS=256, CHUNK=32), _SHORT_FLOAT32),
    ),
    "differential_attention_sequential_forward": _everywhere(*_sequential(0, _LOOPED))
    | dict.fromkeys((80, 90, 100), _sequential(1, _PREFETCH)),
    "differential_attention_row_gradient": _everywhere(
        _rule(1024, 4, 4, 1, _UNSPILT, QUERIES=16, CHUNK=128),
    ),
    "differential_attention_logit_gradient": _everywhere(
        _rule(128, 2, 8, 2, _UNSPILT, ROWS=64, COLUMNS=64, CHUNK=64),
        _rule(384, 2, 8, 2, _LEAST_SPILT, ROWS=64, COLUMNS=32, CHUNK=128),
        *_LOGIT_GRADIENT,
    )
    | dict.fromkeys(
        (90, 100),
        (_rule(384, 2, 8, 2, _ROWS_64, ROWS=64, COLUMNS=64, CHUNK=128), *_LOGIT_GRADIENT),
    ),
    "differential_attention_value_gradient": _everywhere(
        _rule(128, 2, 8, 2, _UNSPILT, QUERIES=64, KEYS=64, CHUNK=64),
        _rule(384, 2, 8, 2, _LEAST_SPILT, QUERIES=32, KEYS=64, CHUNK=128),
        _rule(1024, 2, 8, 2, _LEAST_SPILT, QUERIES=32, KEYS=32, CHUNK=128),
        _rule(384, 4, 8, 2, _LEAST_SPILT, QUERIES=32, KEYS=32, CHUNK=64),
        _rule(1024, 4, 8, 2, _LEAST_SPILT, QUERIES=16, KEYS=16, CHUNK=64),
    ),
}
