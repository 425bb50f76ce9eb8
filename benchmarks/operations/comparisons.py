"""What is compared: each operation's problems, and every implementation of the operation.

An implementation is called with the operands by name and returns the results. The dense attention
is compared with SDPA called twice and FlexAttention called twice, whose results are subtracted, and
with cuBLAS products around one fused kernel. torch.compile makes that kernel, and its backward
pass, of `softmax(a) - alpha softmax(b)`, so that no code of ours can make it slow.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import isqrt
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from drexperts import kernels
from drexperts.benchmarks.operations import bounds
from drexperts.benchmarks.operations.timing import Step
from drexperts.benchmarks.receipt_types.kernel_receipt import BASELINE, EAGER, OURS

Results = tuple[Tensor, ...]
Call = Callable[..., Results]

WIDTH, EXPERTS = 384, 10


@dataclass(frozen=True)
class Problem:
    """An operation, its form and its sizes."""

    operation: str
    form: str
    batch: int
    tokens: int
    dtype: torch.dtype
    width: int = WIDTH

    @property
    def label(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.operation}/{self.form}/B{self.batch}/N{self.tokens}/{dtype}"

    @property
    def shape(self) -> bounds.Shape:
        return bounds.Shape(self.batch, EXPERTS, self.tokens, self.width, self.dtype.itemsize)


@dataclass(frozen=True)
class Implementation:
    """One way to compute the operation. `build` may be slow, and may raise.

    role: see `kernel_receipt.Check`
    """

    name: str
    build: Callable[[], Call]
    role: str = BASELINE


@dataclass(frozen=True)
class Comparison:
    """A problem's operands, which are leaves for autograd, and its implementations.

    images: operands whose first dimension is the batch
    shared: operands that all images share
    exact: the definition, in the type of its operands
    """

    problem: Problem
    images: dict[str, Tensor]
    shared: dict[str, Tensor]
    exact: Call
    implementations: tuple[Implementation, ...]

    @property
    def operands(self) -> dict[str, Tensor]:
        return self.images | self.shared


def problems(cuda: bool) -> Iterator[Problem]:
    """Every problem, the most informative first; without CUDA, the module's reference forms."""
    if not cuda:
        for form, batch in product(("official", "paper"), (1, 4)):
            yield Problem("saliency", form, batch, 577, torch.float32)
        return
    sizes = [(64, 577), (1, 577), (64, 197), (1, 197), (8, 577), (32, 577), (8, 197), (32, 197)]
    for dtype, size, (operation, form) in product((torch.float16, torch.bfloat16), sizes, FORMS):
        yield Problem(operation, form, *size, dtype)


def comparison_of(problem: Problem, device: torch.device) -> Comparison:
    """The comparison on random operands, the same on every call.

    Raises ImportError for a library that is missing.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, deviation: float = 1.0, mean: float = 0.0) -> Tensor:
        values = torch.randn(shape, generator=generator, device=device) * deviation + mean
        return values.to(problem.dtype).requires_grad_()

    return COMPARISONS[problem.operation](problem, normal)


def forward_step(call: Call, comparison: Comparison) -> Step:
    """The forward pass of a call, without a graph for gradients."""
    operands = comparison.operands

    def step() -> list[Tensor | None]:
        with torch.no_grad():
            return list(call(**operands))

    return step


def training_step(call: Call, comparison: Comparison, gradients: list[Tensor]) -> Step:
    """The forward and backward pass, which return the results and the gradient of every operand.

    gradients: of the results; a call that returns fewer results uses the first ones. They are made
        outside, so that the step can be captured as a CUDA graph.
    """
    operands, leaves = comparison.operands, list(comparison.operands.values())

    def step() -> list[Tensor | None]:
        results = call(**operands)
        given = gradients[: len(results)]
        return [*results, *torch.autograd.grad(results, leaves, given, allow_unused=True)]

    return step


def _pooling(problem: Problem, normal: Callable[..., Tensor]) -> Comparison:
    batch, tokens, width = problem.batch, problem.tokens, problem.width
    images = {
        "tokens": normal(batch, tokens, width),
        "query": normal(batch, EXPERTS, width, deviation=2 * width**-0.5),
        "distortion_logits": normal(batch, EXPERTS, tokens, deviation=2.0),
    }
    shared = {
        "alpha": normal(EXPERTS, deviation=0.2, mean=0.5),
        "norm_weight": normal(width, deviation=0.1, mean=1.0),
        "norm_bias": normal(width, deviation=0.1),
    }
    pooling = partial(kernels.differential_pooling, iterated=problem.form == "iterated")
    reference = partial(pooling, backend="reference")
    implementations = (
        Implementation("triton", lambda: partial(pooling, backend="triton"), OURS),
        Implementation(
            "triton, no maps", lambda: _without_maps(partial(pooling, backend="triton")), OURS
        ),
        Implementation("reference eager", lambda: reference, EAGER),
        Implementation("torch.compile", lambda: _compiled(reference)),
    )
    return Comparison(problem, images, shared, reference, implementations)


def _without_maps(pooling: Callable[..., Any]) -> Call:
    return lambda **operands: pooling(**operands, return_maps=False)[:1]


def _attention(problem: Problem, normal: Callable[..., Tensor]) -> Comparison:
    shape = (problem.batch, EXPERTS, problem.tokens, problem.width)
    images = {name: normal(*shape) for name in ("q1", "k1", "q2", "k2", "v")}
    shared = {"alpha": normal(deviation=0.0, mean=0.5)}
    reference = _attention_by("reference")
    forced = (
        Implementation(f"SDPA twice, {name}", partial(_forced_sdpa, backend))
        for name, backend in SDPA.items()
    )
    implementations = (
        Implementation("triton", lambda: _attention_by("triton"), OURS),
        Implementation("reference eager", lambda: reference, EAGER),
        *forced,
        Implementation("cuBLAS + fused softmax-subtract", _cublas_around_softmax),
        Implementation("torch.compile", lambda: _compiled(reference)),
        Implementation("FlexAttention twice", _flex_twice),
    )
    return Comparison(problem, images, shared, reference, implementations)


def _attention_by(backend: str) -> Call:
    return lambda **operands: (kernels.differential_attention(**operands, backend=backend),)


def _forced_sdpa(backend: SDPBackend) -> Call:
    twice = _attention_by("sdpa")

    def call(**operands: Tensor) -> Results:
        with sdpa_kernel(backend):
            return twice(**operands)

    return call


def _flex_twice() -> Call:
    from torch.nn.attention.flex_attention import flex_attention

    flex = _compiled(flex_attention)

    def call(q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor, alpha: Tensor) -> Results:
        return (flex(q1, k1, v) - alpha * flex(q2, k2, v),)

    return call


def _cublas_around_softmax() -> Call:
    difference = _compiled(_softmax_difference)

    def call(q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor, alpha: Tensor) -> Results:
        scale = q1.shape[-1] ** -0.5
        return (difference(q1 @ k1.mT, q2 @ k2.mT, alpha, scale) @ v,)

    return call


def _softmax_difference(first: Tensor, second: Tensor, alpha: Tensor, scale: float) -> Tensor:
    return torch.softmax(scale * first, -1) - alpha * torch.softmax(scale * second, -1)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # One graph of fixed shapes or an error, so that no part of a baseline runs as eager code.
    return torch.compile(function, fullgraph=True, dynamic=False)


def _saliency(problem: Problem, normal: Callable[..., Tensor]) -> Comparison:
    """The model's module: its CLS row against every row, as the equation is written."""
    from drexperts.model.backbones import Prior
    from drexperts.model.experts import DistortionSaliency

    config = _config(problem)
    coarse, controller = config.controller.grid**2, config.controller
    images = {
        "tokens": normal(problem.batch, problem.tokens, problem.width),
        "embedding": normal(problem.batch, 1 + coarse, controller.embedding),
        "hidden": normal(problem.batch, coarse, controller.width),
    }
    prompts = normal(EXPERTS, controller.embedding)
    torch.manual_seed(0)
    module = DistortionSaliency(config).to(prompts.device, problem.dtype)
    shared = {"prompts": prompts} | dict(module.named_parameters())

    def row(tokens: Tensor, embedding: Tensor, hidden: Tensor, prompts: Tensor, **_: Tensor) -> Any:
        return module(tokens, Prior(embedding, hidden), prompts)

    def dense(
        tokens: Tensor, embedding: Tensor, hidden: Tensor, prompts: Tensor, **_: Tensor
    ) -> Results:
        given = (tokens, Prior(embedding, hidden), prompts)
        features, maps = module.forward_dense(*given, backend="reference")
        return features[:, :, 0], maps

    def whole(
        tokens: Tensor, embedding: Tensor, hidden: Tensor, prompts: Tensor, **parameters: Tensor
    ) -> Any:
        given = (tokens, Prior(embedding, hidden), prompts)
        return torch.func.functional_call(module, parameters, given)

    implementations = [
        Implementation("CLS row", lambda: row, OURS),
        Implementation("dense eager", lambda: dense, EAGER),
    ]
    if prompts.is_cuda:
        implementations.append(Implementation("CLS row, reference", lambda: _by_reference(row)))
    return Comparison(problem, images, shared, _by_reference(whole), tuple(implementations))


def _by_reference(call: Call) -> Call:
    """A call of the module that pools by the reference, whatever the device is."""
    from drexperts.model import experts

    reference = partial(kernels.differential_pooling, backend="reference")

    def chosen(**operands: Tensor) -> Results:
        with patch.object(experts, "differential_pooling", reference):
            return call(**operands)

    return chosen


def _config(problem: Problem) -> Any:
    from drexperts.model.config import ControllerConfig, DRExpertsConfig, EncoderConfig

    grid = isqrt(problem.tokens - 1)
    encoder = EncoderConfig(image_size=16 * grid, width=problem.width, heads=1)
    return DRExpertsConfig.preset_named(problem.form).with_sizes(encoder, ControllerConfig())


SDPA = {
    "MATH": SDPBackend.MATH,
    "EFFICIENT": SDPBackend.EFFICIENT_ATTENTION,
    "FLASH": SDPBackend.FLASH_ATTENTION,
    "CUDNN": SDPBackend.CUDNN_ATTENTION,
}
FORMS = (
    ("pooling", "single"),
    ("attention", "dense"),
    ("pooling", "iterated"),
    ("saliency", "official"),
    ("saliency", "paper"),
)
COMPARISONS = {"pooling": _pooling, "attention": _attention, "saliency": _saliency}
