"""The Open Inference Protocol, version 2: its models, requests and responses, in no encoding."""

import math
import struct
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.scorer import Scorer
from drexperts.serve.failures import RequestError

VERSION = "1"  # of the models, which have no other
DTYPES = {"UINT8": "u1", "FP32": "<f4"}
MOST_TENSORS = 16  # of a request's inputs, and of its outputs
_MOST_DIMENSIONS = 8  # more would take long to multiply
_MOST_ELEMENTS = 2**31
_ELSEWHERE = ("shared_memory_region", "classification")
_CODES = {400: "bad_request", 404: "not_found", 422: "not_an_image"}

# Of each output by its name, row by row: FP32, or strings.
Outputs: TypeAlias = dict[str, NDArray[np.float32] | list[bytes]]


class OipError(RequestError):
    """A request that breaks the protocol, or that the model cannot answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(status, _CODES[status], message)


@dataclass(frozen=True)
class TensorSpec:
    """The form of a tensor: -1 is a dimension of any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelSpec:
    """What a model takes, its one input, and what it gives."""

    name: str
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of a request or a response.

    data: an array of `shape`; of BYTES a list, row by row
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: NDArray[np.generic] | list[bytes]

    def raw(self) -> bytes:
        """The data in the protocol's binary form, in which each string follows its length."""
        if isinstance(self.data, list):
            return b"".join(struct.pack("<I", len(item)) + item for item in self.data)
        return self.data.astype(DTYPES[self.datatype]).tobytes()


@dataclass(frozen=True, eq=False)
class InferRequest:
    """A request for an inference.

    outputs: the names of those that are wanted; None is all
    """

    id: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class InferResponse:
    """The answer to a request."""

    model: str
    id: str
    outputs: tuple[Tensor, ...]


def models_of(scorer: Scorer, name: str) -> dict[str, ModelSpec]:
    """The two models of a bundle: of encoded images, and of crops.

    The second has the tensors of `drx triton-repo`. The first has an error for each image, empty
    for those that were scored; the numbers of the others are NaN.
    """
    side, experts = scorer.preprocessing.crop, len(scorer.manifest.distortions)
    grid = scorer.manifest.grid or -1
    score = TensorSpec("score", "FP32", (-1, 1))
    weights = TensorSpec("weights", "FP32", (-1, experts))
    forms = {
        "score": score,
        "weights": weights,
        "maps": TensorSpec("maps", "FP32", (-1, experts, grid, grid)),
    }
    images = ModelSpec(
        name,
        TensorSpec("image", "BYTES", (-1,)),
        (
            score,
            TensorSpec("std", "FP32", (-1, 1)),
            weights,
            TensorSpec("error", "BYTES", (-1, 1)),
        ),
    )
    crops = ModelSpec(
        f"{name}_crops",
        TensorSpec("pixels", "UINT8", (-1, 3, side, side)),
        tuple(forms[output] for output in scorer.manifest.outputs),
    )
    return {model.name: model for model in (images, crops)}


def metadata(model: ModelSpec, platform: str) -> dict[str, Any]:
    """What the protocol says of a model."""
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": platform,
        "inputs": [_described(model.input)],
        "outputs": [_described(output) for output in model.outputs],
    }


def _described(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def count(shape: tuple[int, ...]) -> int:
    """The elements of a shape. Raises OipError for more than any model takes, and for none."""
    if len(shape) > _MOST_DIMENSIONS:
        raise OipError(f"a shape has at most {_MOST_DIMENSIONS} dimensions, not {len(shape)}")
    elements = math.prod(shape)
    if not shape or not 0 < elements <= _MOST_ELEMENTS or min(shape) < 1:
        raise OipError(f"the shape {list(shape)!r:.200} is empty or too large")
    return elements


def check_parameters(parameters: Container[str]) -> None:
    """Raises OipError for a tensor's parameters that say that its data is or goes elsewhere."""
    for name in _ELSEWHERE:
        if name in parameters:
            raise OipError(f"{name} is not supported: leave it out")


def check(request: InferRequest, model: ModelSpec) -> Tensor:
    """The input of a request that a model can answer. Raises OipError for another."""
    wanted = model.input
    if len(request.inputs) != 1 or request.inputs[0].name != wanted.name:
        raise OipError(f"{model.name} takes one input, {wanted.name!r}")
    given = request.inputs[0]
    fits = len(given.shape) == len(wanted.shape) and all(
        want in (-1, have) for want, have in zip(wanted.shape, given.shape, strict=True)
    )
    if given.datatype != wanted.datatype or not fits:
        raise OipError(
            f"{wanted.name!r} must be {wanted.datatype} {list(wanted.shape)}, got "
            f"{given.datatype} {list(given.shape)!r:.200}"
        )
    known = {output.name for output in model.outputs}
    unknown = [name for name in request.outputs or () if name not in known]
    if unknown:
        raise OipError(f"{model.name} has no output {unknown[0]!r:.100}: see its metadata")
    return given


def response(model: ModelSpec, request: InferRequest, outputs: Outputs) -> InferResponse:
    """The wanted outputs of a model, from all of them."""
    wanted = request.outputs or tuple(output.name for output in model.outputs)
    tensors = (
        _tensor(output, outputs[output.name]) for output in model.outputs if output.name in wanted
    )
    return InferResponse(model.name, request.id, tuple(tensors))


def _tensor(output: TensorSpec, data: NDArray[np.float32] | list[bytes]) -> Tensor:
    """An output in its shape, of which a score has one dimension that the engine's lacks."""
    if isinstance(data, list):
        return Tensor(output.name, output.datatype, (len(data), *output.shape[1:]), data)
    array = data.reshape(len(data), *(data.shape[1:] or output.shape[1:]))
    return Tensor(output.name, output.datatype, array.shape, array)
