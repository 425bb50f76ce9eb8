"""The encodings of the Open Inference Protocol over gRPC: typed contents, and raw bytes."""

from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from drexperts.serve.grpc.descriptor import MESSAGES
from drexperts.serve.grpc.fields import check_fields
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

_CONTENTS = {"BYTES": "bytes_contents", "UINT8": "uint_contents"}


class Inference(NamedTuple):
    """A request for an inference as it was asked for.

    raw: whether its data was raw bytes, as that of the response then is
    """

    model: str
    version: str
    request: InferRequest
    raw: bool


def parsed(name: str, message: bytes) -> Any:
    """The message of this name in these bytes. Raises OipError for other bytes."""
    kind = MESSAGES[name]
    check_fields(message, kind.DESCRIPTOR)
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise OipError(f"the message is not a {name}") from error


def decode(message: bytes) -> Inference:
    """The request in a ModelInferRequest. Raises OipError for everything that is not one."""
    infer = parsed("ModelInferRequest", message)
    inputs, raw = infer.inputs, infer.raw_input_contents
    if len(inputs) > MOST_TENSORS or len(infer.outputs) > MOST_TENSORS:
        raise OipError(f"inputs and outputs are at most {MOST_TENSORS} each")
    if raw and len(raw) != len(inputs):
        raise OipError(
            f"raw_input_contents are {len(raw)} and inputs {len(inputs)}: give one for each input"
        )
    tensors = tuple(
        _tensor(given, raw[index] if raw else None) for index, given in enumerate(inputs)
    )
    request = InferRequest(infer.id, tensors, _names(infer.outputs))
    return Inference(infer.model_name, infer.model_version, request, bool(raw))


def encode(response: InferResponse, raw: bool) -> bytes:
    """The ModelInferResponse of a response."""
    message = MESSAGES["ModelInferResponse"](
        model_name=response.model, model_version=VERSION, id=response.id
    )
    for tensor in response.outputs:
        output = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            message.raw_output_contents.append(tensor.raw())
        elif isinstance(tensor.data, list):
            output.contents.bytes_contents.extend(tensor.data)
        else:
            output.contents.fp32_contents.extend(tensor.data.reshape(-1).tolist())
    return bytes(message.SerializeToString())


def _names(outputs: Any) -> tuple[str, ...] | None:
    for output in outputs:
        check_parameters(output.parameters)
    names = tuple(output.name for output in outputs)
    if len(set(names)) < len(names):
        raise OipError("an output needs a name of its own")
    return names or None


def _tensor(given: Any, raw: bytes | None) -> Tensor:
    if given.datatype not in _CONTENTS:
        raise OipError("an input needs the datatype UINT8 or BYTES")
    check_parameters(given.parameters)
    shape = tuple(given.shape)
    elements = count(shape)
    if raw is None:
        read = _strings if given.datatype == "BYTES" else _uint8
        data = read(_contents(given, elements))
    elif given.contents.ListFields():
        raise OipError("an input has raw_input_contents or contents, not both")
    elif given.datatype == "BYTES":
        data = strings_of(memoryview(raw), elements)
    else:
        data = uint8_of(memoryview(raw), elements)
    if not isinstance(data, list):
        data = data.reshape(shape)
    return Tensor(given.name, given.datatype, shape, data)


def _contents(given: Any, elements: int) -> Any:
    """The only contents of an input, which are those of its datatype."""
    wanted = _CONTENTS[given.datatype]
    for field, _ in given.contents.ListFields():
        if field.name != wanted:
            raise OipError(f"the contents of {given.datatype} are {wanted}, not {field.name}")
    contents = getattr(given.contents, wanted)
    if len(contents) != elements:
        raise OipError(f"{wanted} has {len(contents)} elements, its shape {elements}")
    return contents


def _strings(contents: Any) -> list[bytes]:
    return list(contents)


def _uint8(contents: Any) -> NDArray[np.uint8]:
    values = np.fromiter(contents, np.uint32, len(contents))
    if values.max() > 255:
        raise OipError("the elements of UINT8 are whole numbers from 0 to 255")
    return values.astype(np.uint8)
