"""Requests for inferences over gRPC, whole and disturbed."""

import random
from typing import Any

import numpy as np

from support.grpc_client import crops_request, images_request

PIXELS = np.arange(12, dtype=np.uint8).reshape(1, 3, 2, 2)
_LARGE = 2**63 - 1


def both(raw: bool) -> Any:
    """A request with an input of each datatype."""
    message = images_request(b"ab", b"", raw=raw, id="7", model_version="1")
    other = crops_request(PIXELS, raw=raw)
    message.inputs.extend(other.inputs)
    message.raw_input_contents.extend(other.raw_input_contents)
    message.outputs.add(name="score")
    message.outputs.add(name="maps").parameters["binary_data"].bool_param = True
    message.parameters["priority"].int64_param = 3
    return message


def disturbed(rng: random.Random) -> bytes:
    """A request of which one thing is junk, gone or new."""
    message = both(raw=rng.random() < 0.5)
    tensor = rng.choice(message.inputs)
    raw = message.raw_input_contents
    action = rng.randrange(8)
    if action == 0:
        tensor.datatype = rng.choice(["", "FP32", "uint8", "BYTES", "UINT8", "\x00"])
    elif action == 1:
        tensor.shape[:] = rng.choice(
            [[], [0], [-1], [2], [3, 2, 2], [1] * 40, [_LARGE], [_LARGE, 4]]
        )
    elif action == 2:
        field = rng.choice(tensor.contents.DESCRIPTOR.fields).name
        value = b"x" if field == "bytes_contents" else 1
        getattr(tensor.contents, field).append(value)
    elif action == 3:
        tensor.ClearField(rng.choice(["name", "datatype", "shape", "contents"]))
    elif action == 4:
        raw.append(rng.randbytes(rng.randrange(20)))
    elif action == 5 and raw:
        raw[rng.randrange(2)] = rng.randbytes(rng.randrange(20))
    elif action == 6:
        name = rng.choice(["shared_memory_region", "classification", "other"])
        holder = rng.choice([*message.inputs, *message.outputs, message])
        holder.parameters[name].string_param = "x"
    else:
        message.outputs.add(name=rng.choice(["", "score", "beauty", "x" * 10_000]))
    return bytes(message.SerializeToString())
