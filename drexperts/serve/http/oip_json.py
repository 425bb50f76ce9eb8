"""The encodings of the Open Inference Protocol over HTTP: JSON, and JSON with binary data after it.

Encoded images are base64 in JSON, which cannot hold them otherwise.
"""

import base64
import binascii
import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from drexperts.serve.oip import (
    MOST_TENSORS,
    VERSION,
    InferRequest,
    InferResponse,
    OipError,
    Tensor,
    check_parameters,
    count,
)
from drexperts.serve.oip_binary import strings_of, uint8_of

# Parsed, each value and each container of JSON takes many times its bytes, and nothing else runs
# meanwhile. Crops are sent as binary data; in JSON there is place for several.
_MOST_VALUES, _MOST_CONTAINERS = 2_000_000, 10_000


@dataclass(frozen=True)
class BinaryOutputs:
    """Which outputs are wanted as binary data: some by name, and whether those not named are."""

    named: dict[str, bool]
    others: bool


def decode(body: bytes, head: int | None) -> tuple[InferRequest, BinaryOutputs]:
    """The request in a body, and which of its outputs are wanted as binary data.

    head: bytes of JSON, after which binary data follows; None if all of it is JSON

    Raises OipError for everything that is not such a request.
    """
    if head is not None and not 0 <= head <= len(body):
        raise OipError("Inference-Header-Content-Length must be 0 to the length of the body")
    document = _object(_parsed(body[:head]), "the request")
    rest = memoryview(b"" if head is None else body[head:])
    inputs = []
    for item in _list(document, "inputs"):
        tensor, rest = _input(_object(item, "an input"), rest)
        inputs.append(tensor)
    if rest:
        raise OipError(f"{len(rest)} bytes of binary data belong to no input")
    parameters = _object(document.get("parameters", {}), "parameters")
    names, named = _outputs(document)
    identity = document.get("id", "")
    if not isinstance(identity, str):
        raise OipError("id must be a string")
    others = parameters.get("binary_data_output", False) is True
    return InferRequest(identity, tuple(inputs), names), BinaryOutputs(named, others)


def encode(response: InferResponse, binary: BinaryOutputs) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON if binary data follows."""
    tail, outputs = [], []
    for tensor in response.outputs:
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if binary.named.get(tensor.name, binary.others):
            tail.append(tensor.raw())
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = _json_of(tensor)
        outputs.append(entry)
    document: dict[str, Any] = {"model_name": response.model, "model_version": VERSION}
    if response.id:
        document["id"] = response.id
    head = json.dumps(document | {"outputs": outputs}).encode()
    return head + b"".join(tail), len(head) if tail else None


def _json_of(tensor: Tensor) -> list[Any]:
    """The elements of a tensor; null in place of NaN, which JSON lacks."""
    if isinstance(tensor.data, list):
        return [item.decode("utf-8", "replace") for item in tensor.data]
    flat = tensor.data.reshape(-1)
    if np.isfinite(flat).all():
        return list(flat.tolist())
    return [element if math.isfinite(element) else None for element in flat.tolist()]


def _parsed(text: bytes) -> Any:
    containers = text.count(b"{") + text.count(b"[")
    if text.count(b",") > _MOST_VALUES or containers > _MOST_CONTAINERS:
        raise OipError("the request has too many values in JSON: send them as binary data")
    try:
        return json.loads(text, parse_constant=_not_finite)
    except (ValueError, RecursionError) as error:
        raise OipError(f"the request is not JSON: {error!s:.200}") from error


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise OipError(f"{what} must be an object")
    return value


def _list(document: dict[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    if not isinstance(value, list) or len(value) > MOST_TENSORS:
        raise OipError(f"{name} must be a list of at most {MOST_TENSORS}")
    return value


def _outputs(document: dict[str, Any]) -> tuple[tuple[str, ...] | None, dict[str, bool]]:
    if not document.get("outputs"):
        return None, {}
    named: dict[str, bool] = {}
    for item in _list(document, "outputs"):
        output = _object(item, "an output")
        parameters = _parameters(output)
        if not isinstance(output.get("name"), str) or output["name"] in named:
            raise OipError("an output needs a name of its own")
        if "binary_data" in parameters:
            named[output["name"]] = parameters["binary_data"] is True
        else:
            named[output["name"]] = False
    return tuple(named), named


def _parameters(item: dict[str, Any]) -> dict[str, Any]:
    parameters = _object(item.get("parameters", {}), "parameters")
    check_parameters(parameters)
    return parameters


def _input(item: dict[str, Any], rest: memoryview) -> tuple[Tensor, memoryview]:
    """One input, and the binary data that follows its own."""
    name, datatype, shape = item.get("name"), item.get("datatype"), item.get("shape")
    if not isinstance(name, str) or datatype not in ("UINT8", "BYTES"):
        raise OipError("an input needs a name, and the datatype UINT8 or BYTES")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise OipError("shape must be a list of whole numbers")
    elements = count(tuple(shape))
    size = _parameters(item).get("binary_data_size")
    if size is None:
        read = _bytes_of_json if datatype == "BYTES" else _array_of_json
        data = read(_flat(item.get("data"), elements))
    elif type(size) is not int or not 0 <= size <= len(rest) or "data" in item:
        raise OipError("binary_data_size must be the bytes of an input that has no data in JSON")
    else:
        own, rest = rest[:size], rest[size:]
        data = strings_of(own, elements) if datatype == "BYTES" else uint8_of(own, elements)
    if not isinstance(data, list):
        data = data.reshape(shape)
    return Tensor(name, datatype, tuple(shape), data), rest


def _flat(data: Any, elements: int) -> list[Any]:
    """The elements of nested lists, which the protocol lets be flat."""
    if not isinstance(data, list):
        raise OipError("an input needs data, or binary_data_size")
    while data and isinstance(data[0], list):
        if not all(isinstance(part, list) for part in data):
            raise OipError("data must be nested evenly")
        data = [element for part in data for element in part]
    if len(data) != elements:
        raise OipError(f"data has {len(data)} elements, its shape {elements}")
    return data


def _array_of_json(data: list[Any]) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    if not all(type(element) is int and 0 <= element < 256 for element in data):
        raise OipError("the elements of UINT8 are whole numbers from 0 to 255")
    return np.array(data, np.uint8)


def _bytes_of_json(data: list[Any]) -> list[bytes]:
    if not all(isinstance(element, str) for element in data):
        raise OipError("the elements of BYTES are strings in base64")
    try:
        return [base64.b64decode(element, validate=True) for element in data]
    except (binascii.Error, ValueError) as error:
        raise OipError(f"the elements of BYTES are strings in base64: {error}") from error
