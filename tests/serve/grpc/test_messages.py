"""The encodings over gRPC: what is read, and that nothing else is."""

import math
import random
import struct

import numpy as np
import pytest
from support.disturbed_inferences import PIXELS, both, disturbed
from support.grpc_client import arrays_of, crops_request, images_request
from support.scrambling import scrambled

from drexperts.serve.grpc.descriptor import MESSAGES
from drexperts.serve.grpc.messages import decode, encode
from drexperts.serve.oip import InferResponse, OipError, Tensor

WHOLE = 2**63 - 1


def changed(**fields):
    """The bytes of a request for crops whose input has other fields."""
    message = crops_request(PIXELS, raw=False)
    for name, value in fields.items():
        if name == "contents":
            message.inputs[0].contents.CopyFrom(MESSAGES["InferTensorContents"](**value))
        elif name == "shape":
            message.inputs[0].shape[:] = value
        else:
            setattr(message.inputs[0], name, value)
    return message.SerializeToString()


def with_raw(*contents, message=None):
    """The bytes of a request of both datatypes with other raw contents."""
    message = message or both(raw=True)
    del message.raw_input_contents[:]
    message.raw_input_contents.extend(contents)
    return message.SerializeToString()


@pytest.mark.parametrize("raw", [True, False])
def test_a_request_is_read(raw) -> None:
    asked = decode(both(raw).SerializeToString())
    assert (asked.model, asked.version, asked.raw) == ("drexperts", "1", raw)
    assert (asked.request.id, asked.request.outputs) == ("7", ("score", "maps"))
    images, pixels = asked.request.inputs
    assert images.data == [b"ab", b""]
    np.testing.assert_array_equal(pixels.data, PIXELS)


def test_without_outputs_all_are_wanted() -> None:
    assert decode(images_request(b"x").SerializeToString()).request.outputs is None


def elsewhere(of):
    message = both(raw=True)
    getattr(message, of)[0].parameters["shared_memory_region"].string_param = "a"
    return message.SerializeToString()


def twice():
    message = both(raw=True)
    message.outputs.add(name="score")
    return message.SerializeToString()


def many():
    message = MESSAGES["ModelInferRequest"]()
    for _ in range(17):
        message.inputs.add()
    return message.SerializeToString()


STRINGS = struct.pack("<I", 2) + b"ab" + struct.pack("<I", 0)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\xff", "does not end"),
        (b"\x0b", "unknown kind"),
        (b"\x2a\x00" * 5000, "more than 4096 fields"),
        (b"\x2a\xd0\x0f" + b"\x22\x00" * 1000, "datatype"),
        (b"\x2a\x90\x4e" + b"\x22\x00" * 5000, "more than 4096 fields"),
        (b"\x0a\x01\xff", "not a ModelInferRequest"),  # text that is not UTF-8
        (b"\x2a\x7f", "ends after it"),  # an input that ends after the message
        (many(), "at most 16"),
        (twice(), "name of its own"),
        (elsewhere("inputs"), "not supported"),
        (elsewhere("outputs"), "not supported"),
        (changed(datatype="FP32"), "datatype"),
        (changed(datatype=""), "datatype"),
        (changed(shape=[]), "empty"),
        (changed(shape=[0]), "empty"),
        (changed(shape=[-3, -4]), "too large"),
        (changed(shape=[WHOLE, WHOLE]), "too large"),
        (changed(shape=[13]), "12 elements"),
        (changed(shape=[1] * 9), "at most 8 dimensions"),
        (changed(contents={}), "0 elements"),
        (changed(contents={"uint_contents": [256] * 12}), "0 to 255"),
        (changed(contents={"int_contents": [1] * 12}), "not int_contents"),
        (changed(contents={"uint_contents": [1] * 12, "fp32_contents": [1]}), "not fp32_contents"),
        (with_raw(STRINGS), "one for each input"),
        (with_raw(STRINGS, b"x" * 11), "11 bytes"),
        (with_raw(STRINGS, b"x" * 13), "13 bytes"),
        (with_raw(STRINGS[:-1], b"x" * 12), "ends after"),
        (with_raw(STRINGS * 2, b"x" * 12), "other elements"),
        (with_raw(b"", b"x" * 12), "other elements"),
        (with_raw(b"\xff" * 4, b"x" * 12), "ends after"),
        (with_raw(STRINGS, b"x" * 12, message=both(raw=False)), "not both"),
    ],
)
def test_what_is_malformed_is_refused(message, reason) -> None:
    with pytest.raises(OipError, match=reason):
        decode(message)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_is_read_or_refused(seed) -> None:
    rng = random.Random(seed)
    refused = 0
    for case in range(1000):
        message = disturbed(rng)
        if case % 2:
            message = scrambled(message, rng)
        try:
            request = decode(message).request
        except OipError:
            refused += 1
            continue
        for tensor in request.inputs:
            assert np.size(tensor.data) == math.prod(tensor.shape)
    assert 0 < refused < 1000


@pytest.mark.parametrize("raw", [True, False])
def test_a_response_is_as_the_request_was(raw) -> None:
    score = Tensor("score", "FP32", (2, 1), np.array([[1], [2]], np.float32))
    maps = Tensor("maps", "FP32", (1, 2), np.array([[3, np.nan]], np.float32))
    message = encode(InferResponse("m", "7", (score, maps)), raw)
    response = MESSAGES["ModelInferResponse"].FromString(message)
    assert (response.model_name, response.model_version, response.id) == ("m", "1", "7")
    assert [output.datatype for output in response.outputs] == ["FP32", "FP32"]
    assert bool(response.raw_output_contents) == raw
    np.testing.assert_array_equal(arrays_of(response)["score"], score.data)
    np.testing.assert_array_equal(arrays_of(response)["maps"], maps.data)
