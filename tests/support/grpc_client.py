"""A client of both services over gRPC, made of this package's own tables of messages."""

import contextlib
import math
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from drexperts.serve.grpc.descriptor import MESSAGES
from drexperts.serve.oip_binary import strings_of

_SERVICES = {"Check": "grpc.health.v1.Health", "Watch": "grpc.health.v1.Health"}
_MESSAGES = {"Check": "HealthCheck", "Watch": "HealthCheck"}


class Client:
    """Asks over one channel. What fails raises `grpc.RpcError`."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel

    def begin(self, method: str, request: Any = None, **options: Any) -> Any:
        """A call that has begun, with its answer to come.

        request: a message, or any bytes; None is an empty message
        """
        ask = self.channel.unary_unary(path(method), response_deserializer=answer_of(method))
        return ask.future(as_bytes(request), **{"timeout": 8, **options})

    def ask(self, method: str, request: Any = None, **options: Any) -> Any:
        """The answer to a call."""
        return self.begin(method, request, **options).result()

    def watch(self, service: str = "") -> Any:
        """The answers about the health of a service, as they come."""
        request = MESSAGES["HealthCheckRequest"](service=service)
        ask = self.channel.unary_stream(path("Watch"), response_deserializer=answer_of("Watch"))
        return ask(as_bytes(request), timeout=8)


@contextlib.contextmanager
def client_of(port: int, credentials: Any = None, name: str = "127.0.0.1") -> Iterator[Client]:
    """A client of a server on this machine."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    where = f"{name}:{port}"
    with (
        grpc.insecure_channel(where, options)
        if credentials is None
        else grpc.secure_channel(where, credentials, options)
    ) as channel:
        yield Client(channel)


def path(method: str) -> str:
    return f"/{_SERVICES.get(method, 'inference.GRPCInferenceService')}/{method}"


def answer_of(method: str) -> Any:
    """The reader of a method's answer; of an unknown method, that of none."""
    kind = MESSAGES.get(f"{_MESSAGES.get(method, method)}Response")
    return None if kind is None else kind.FromString


def as_bytes(request: Any) -> bytes:
    if request is None or isinstance(request, bytes):
        return request or b""
    return bytes(request.SerializeToString())


def images_request(*images: bytes, raw: bool = True, **fields: Any) -> Any:
    """A request for the scores of encoded images."""
    message = MESSAGES["ModelInferRequest"](**{"model_name": "drexperts", **fields})
    tensor = message.inputs.add(name="image", datatype="BYTES", shape=[len(images)])
    if raw:
        parts = (struct.pack("<I", len(image)) + image for image in images)
        message.raw_input_contents.append(b"".join(parts))
    else:
        tensor.contents.bytes_contents.extend(images)
    return message


def crops_request(pixels: NDArray[np.uint8], *, raw: bool = True) -> Any:
    """A request for the scores of crops."""
    message = MESSAGES["ModelInferRequest"](model_name="drexperts_crops")
    tensor = message.inputs.add(name="pixels", datatype="UINT8", shape=pixels.shape)
    if raw:
        message.raw_input_contents.append(pixels.tobytes())
    else:
        tensor.contents.uint_contents.extend(pixels.reshape(-1).tolist())
    return message


def arrays_of(response: Any) -> dict[str, NDArray[Any]]:
    """The outputs of an inference, by their names; of BYTES an array of objects."""
    found = {}
    for index, output in enumerate(response.outputs):
        raw = response.raw_output_contents[index] if response.raw_output_contents else None
        if output.datatype == "BYTES":
            elements = math.prod(output.shape)
            given = output.contents.bytes_contents
            strings = list(given) if raw is None else strings_of(memoryview(raw), elements)
            values = np.array(strings, object)
        elif raw is not None:
            values = np.frombuffer(raw, "<f4")
        else:
            values = np.array(output.contents.fp32_contents, np.float32)
        found[output.name] = values.reshape(output.shape)
    return found
