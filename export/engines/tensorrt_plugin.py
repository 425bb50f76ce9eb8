"""The pooling node as a plugin of NVIDIA's TensorRT: our Triton kernel in the engine, as PTX.

It is a quickly deployable plugin compiled ahead of time: TensorRT asks for the kernel while it
builds, and the engine needs neither this module nor Python. The definition has passed TensorRT's
own checks and the PTX has passed ptxas; no engine that holds it has been built or executed yet.

TensorRT calls the definition from C++: it prints exceptions raised here on stderr, and the build
returns no engine.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from drexperts.export.graph.to_onnx import DOMAIN, OP
from drexperts.kernels.aot import need_compiler
from drexperts.kernels.differential_pooling_triton import EXPERTS, plugin_specialisation
from drexperts.kernels.launch import ARCHITECTURES
from drexperts.kernels.plugin_ptx import PluginKernel, plugin_ptx
from drexperts.runtime.errors import BackendError, InternalError
from drexperts.runtime.wording import remedy

PLUGIN = f"{DOMAIN}::{OP}"

# The types that tokens can have, by TensorRT's names. All other tensors are float32.
_TOKENS = {"HALF": torch.float16, "BF16": torch.bfloat16, "FLOAT": torch.float32}
_COMBINATIONS = "FP16|BF16|FP32" + ", FP32" * 7

_architecture: int  # the last one given to `register`


@dataclass(frozen=True)
class Form:
    """The properties of a pooling node that are compiled into its kernel.

    Attributes:
        queries, alphas: 1, or one per expert.
        epsilon: of the LayerNorm, which is `iterated` or applied once.
    """

    tokens: torch.dtype
    width: int
    queries: int
    alphas: int
    epsilon: float
    iterated: bool


def register(capability: str) -> None:
    """Make TensorRT's parser turn pooling nodes into plugin layers, for the rest of the process.

    Later calls change the target of the engines built after them.

    Args:
        capability: the compute capability that the engine is for, such as "8.9"; "8.0" for an
            engine that is to run on all later GPUs.

    Raises:
        BackendError: there is no kernel for it, or Triton's compiler is not available.
    """
    global _architecture
    need_compiler()
    _architecture = _architecture_of(capability)
    _define()


def plugin_layers(network: Any) -> int:
    """The number of plugin layers of a parsed network; the parser falls back silently.

    Plugins have the type PLUGIN_V3. No other node of our graph can become one, since the others are
    standard operators.
    """
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return sum(layer.type.name == "PLUGIN_V3" for layer in layers)


@functools.cache
def kernel_of(form: Form, architecture: int) -> PluginKernel:
    """The kernel for a pooling node; TensorRT asks again for every profile it tries.

    Raises:
        BackendError: the launch table has nothing for tokens of that width and dtype.
    """
    spec = plugin_specialisation(
        architecture, form.tokens, form.width, form.iterated, alphas=form.alphas
    )
    constants = {**spec.constants, "Q": form.queries, "EPS": form.epsilon}
    return plugin_ptx(replace(spec, constants=constants), architecture)


def _architecture_of(capability: str) -> int:
    made_for = {f"{arch // 10}.{arch % 10}": arch for arch in ARCHITECTURES}
    if capability not in made_for:
        raise BackendError(
            f"our kernels support compute capability {', '.join(made_for)}, not {capability}: "
            f"pass {remedy('--plugin off', 'plugin=off')}"
        )
    return made_for[capability]


@functools.cache
def _define() -> None:
    """Register the definition with TensorRT, which accepts one per process."""
    _define_outputs()
    _define_types()
    _define_kernel()


def _define_outputs() -> None:
    """TensorRT takes inputs, attributes and the number of outputs from names and annotations.

    Attributes are arrays because TensorRT 10 converts scalars in a way that NumPy 2.4 refuses.
    """
    import tensorrt.plugin as trtp

    def outputs(
        tokens: trtp.TensorDesc,
        query: trtp.TensorDesc,
        logits: trtp.TensorDesc,
        alpha: trtp.TensorDesc,
        weight: trtp.TensorDesc,
        bias: trtp.TensorDesc,
        epsilon: NDArray[np.float32],
        iterated: NDArray[np.int32],
    ) -> tuple[trtp.TensorDesc, trtp.TensorDesc]:
        batch, _, width = tokens.shape_expr
        pooled = trtp.from_shape_expr((batch, logits.shape_expr[1], width), query.dtype)
        return pooled, logits.like()

    trtp.register(PLUGIN)(outputs)


def _define_types() -> None:
    import tensorrt.plugin as trtp

    def types(  # type: ignore[no-untyped-def]
        tokens, query, logits, alpha, weight, bias, outputs
    ) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination(_COMBINATIONS, "LINEAR")]

    trtp.autotune(PLUGIN)(types)


def _define_kernel() -> None:
    """The kernel's arguments are the inputs, the number of tokens and the outputs."""
    import tensorrt.plugin as trtp

    def kernel(  # type: ignore[no-untyped-def]
        tokens, query, logits, alpha, weight, bias, epsilon, iterated, outputs, tactic
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        form = _form(tokens, query, logits, alpha, float(epsilon[0]), bool(iterated[0]))
        made = kernel_of(form, _architecture)
        batch, n, _ = tokens.shape_expr
        launch = trtp.KernelLaunchParams(batch, block_x=made.block_x, shared_mem=made.shared)
        return made.symbol, made.ptx, launch, trtp.SymIntExprs.from_tuple([trtp.SymInt32(n)])

    trtp.aot_impl(PLUGIN)(kernel)


def _form(tokens: Any, query: Any, logits: Any, alpha: Any, epsilon: float, iterated: bool) -> Form:
    """What the kernel is compiled for, from TensorRT's descriptions of the inputs."""
    sizes = {
        "width": tokens.shape_expr[2],
        "experts": logits.shape_expr[1],
        "queries": query.shape_expr[1],
        "alphas": alpha.shape_expr[0],
    }
    left_open = [name for name, size in sizes.items() if not size.is_constant]
    if left_open:
        raise InternalError(f"the graph does not fix a pooling node's {', '.join(left_open)}")
    width, experts, queries, alphas = (size.constant_value() for size in sizes.values())
    if experts != EXPERTS or not {queries, alphas} <= {1, EXPERTS}:
        raise InternalError(
            f"a pooling node has {experts} experts, {queries} queries and {alphas} alphas"
        )
    return Form(_TOKENS[tokens.dtype.name], width, queries, alphas, epsilon, iterated)
