"""Roofline bounds of the operations: the least time that memory and arithmetic allow.

    bound = max(bytes / bandwidth, products / matmul rate, other FLOP / vector rate)

Each operand is read once and each result written once; a backward pass reads the operands and the
results' gradients and writes the operands'. A product [m, k] x [k, n] is 2 m k n FLOP. Operands
that stay in the L2 cache can beat the memory term, so hot times may lie below the bound.
"""

from dataclasses import dataclass

# The least FLOP per token element and expert of the iterated LayerNorm, with its repetitions
# collapsed onto the raw tokens; computed one after another in registers, they take 11.
COLLAPSED_NORM = 5


@dataclass(frozen=True)
class Peaks:
    """What a device can do at most, and where the figures are from.

    matmul: FLOP/s of dense 16-bit products with float32 accumulation
    bandwidth: bytes/s of device memory
    vector: FLOP/s in float32 outside the matrix units
    """

    matmul: float
    bandwidth: float
    vector: float
    source: str


_MEASURED = "assumed: what an 8192^3 bfloat16 product and a large copy reach; vector nominal"
_NOMINAL = "assumed: the vendor's data sheet, boost clock"

PEAKS = {
    "NVIDIA H200": Peaks(790e12, 4.3e12, 67e12, _MEASURED),
    "NVIDIA H100 80GB HBM3": Peaks(790e12, 3.0e12, 67e12, _MEASURED),
    "NVIDIA A100-SXM4-80GB": Peaks(312e12, 2.04e12, 19.5e12, _NOMINAL),
    "NVIDIA GeForce RTX 4090": Peaks(165e12, 1.0e12, 82e12, _NOMINAL),
    "NVIDIA L4": Peaks(121e12, 0.3e12, 30e12, _NOMINAL),
}


@dataclass(frozen=True)
class Shape:
    """Images, experts, tokens per image with CLS, width of a token, bytes per element."""

    batch: int
    experts: int
    tokens: int
    width: int
    itemsize: int


@dataclass(frozen=True)
class Work:
    """Bytes to move, FLOP in matrix products, and FLOP elsewhere."""

    bytes: float
    products: float
    vector: float = 0.0

    def seconds(self, peaks: Peaks) -> float:
        """The roofline bound."""
        return max(
            self.bytes / peaks.bandwidth,
            self.products / peaks.matmul,
            self.vector / peaks.vector,
        )


def bound(
    operation: str, form: str, shape: Shape, training: bool, peaks: Peaks | None
) -> float | None:
    """The least seconds of a forward pass, or of a training step; None where it is not known."""
    if peaks is None:
        return None
    if operation == "attention":
        passes = [attention_forward(shape), attention_backward(shape)]
    elif operation == "pooling":
        iterated = form == "iterated"
        passes = [pooling_forward(shape, iterated), pooling_backward(shape, iterated)]
    elif form == "official" and not training:
        passes = [cls_head(shape)]
    else:
        return None
    return sum(work.seconds(peaks) for work in passes[: 1 + training])


def attention_forward(shape: Shape, products: int = 4) -> Work:
    """(softmax(s Q1 K1^T) - alpha softmax(s Q2 K2^T)) V for all rows; five operands, one result.

    Four [N, N, d] products of 2 N^2 d FLOP each: two online softmaxes need one per branch with its
    keys and one with V. With whole rows of scores at hand, three are enough.
    """
    return _attention(shape, tensors=6, products=products)


def attention_backward(shape: Shape, products: int = 8) -> Work:
    """Five operands, the result's gradient, and five gradients.

    Eight products: both scores again, dP = G V^T, dV, and two each for dQ and dK. Without atomics
    dQ comes from one kernel and dK, dV from another, which takes eleven.
    """
    return _attention(shape, tensors=11, products=products)


def _attention(shape: Shape, tensors: int, products: int) -> Work:
    elements = shape.batch * shape.experts * shape.tokens * shape.width
    return Work(tensors * elements * shape.itemsize, products * 2 * elements * shape.tokens)


def pooling_forward(shape: Shape, iterated: bool) -> Work:
    """From tokens, and a query and logits per expert, to the pooled tokens and the maps.

    Two products per expert, one with and one by the tokens; if iterated, the norms' arithmetic too.
    """
    results = _rows(shape) + _logits(shape)
    return _pooling(shape, _pooling_operands(shape) + results, 2, iterated)


def pooling_backward(shape: Shape, iterated: bool) -> Work:
    """Operands, gradients of pooled tokens and maps, and gradients of the operands.

    Five products per expert: the logits again, the gradient of the maps, two for that of the tokens
    and one for that of the query. If iterated, the norms are recomputed at least.
    """
    results = _rows(shape) + _logits(shape)
    return _pooling(shape, 2 * _pooling_operands(shape) + results, 5, iterated)


def _pooling_operands(shape: Shape) -> int:
    tokens = shape.batch * shape.tokens * shape.width
    return tokens + _rows(shape) + _logits(shape)


def _pooling(shape: Shape, elements: int, products: int, iterated: bool) -> Work:
    each = shape.batch * shape.experts * shape.tokens * shape.width
    vector = normalisation(shape, COLLAPSED_NORM) if iterated else 0.0
    return Work(elements * shape.itemsize, products * 2 * each, vector)


def normalisation(shape: Shape, flop: float) -> float:
    """FLOP of one LayerNorm of every token for every expert, at `flop` per element."""
    return flop * shape.batch * shape.experts * shape.tokens * shape.width


def cls_head(shape: Shape, grid: int = 49) -> Work:
    """The module's CLS row, tokens to distortion features, in one read of the tokens.

    It reads six [d, d] projections, the tokens, the controller's grid of 49 and a vector per expert
    in the operands' type, and writes results in float32. Products: four projections per expert, two
    of the CLS token, logits and pooling. This is the released form with its single norm; the
    paper's form reads more.
    """
    experts, width = shape.experts, shape.width
    image = (shape.tokens + grid + 3 * experts) * width
    products = 2 * width * (4 * experts * width + 2 * width + 2 * experts * shape.tokens)
    return Work(shape.itemsize * (6 * width**2 + shape.batch * image), shape.batch * products)


def _rows(shape: Shape) -> int:
    return shape.batch * shape.experts * shape.width


def _logits(shape: Shape) -> int:
    return shape.batch * shape.experts * shape.tokens
