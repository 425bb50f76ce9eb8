"""The encodings of the Open Inference Protocol: what is read, and that nothing else is."""

import base64
import copy
import json
import random
import struct

import numpy as np
import pytest
from support.scrambling import scrambled

from drexperts.serve.http.oip_json import BinaryOutputs, decode, encode
from drexperts.serve.oip import InferResponse, OipError, Tensor

JSON = {
    "id": "7",
    "inputs": [{"name": "x", "datatype": "UINT8", "shape": [2, 2], "data": [[1, 2], [3, 4]]}],
    "outputs": [{"name": "score", "parameters": {"binary_data": True}}, {"name": "maps"}],
    "parameters": {"binary_data_output": True},
}
BINARY = {
    "inputs": [
        {
            "name": "image",
            "datatype": "BYTES",
            "shape": [2],
            "parameters": {"binary_data_size": 11},
        },
        {"name": "x", "datatype": "UINT8", "shape": [3], "parameters": {"binary_data_size": 3}},
    ]
}
TAIL = struct.pack("<I", 2) + b"ab" + struct.pack("<I", 1) + b"c" + bytes([7, 8, 9])
JUNK: tuple[object, ...] = (
    None,
    True,
    -1,
    0,
    2,
    2**70,
    1e300,
    "",
    "x",
    [],
    [[]],
    {},
    [None],
    {"a": []},
    [1, [2]],
)


def binary(document=BINARY, tail=TAIL):
    head = json.dumps(document).encode()
    return head + tail, len(head)


def of_json(**changes):
    return json.dumps(JSON | {"inputs": [JSON["inputs"][0] | changes]}).encode()  # type: ignore


def test_json_is_read_flat_or_nested() -> None:
    for data in ([[1, 2], [3, 4]], [1, 2, 3, 4]):
        request, wanted = decode(of_json(data=data), None)
        np.testing.assert_array_equal(request.inputs[0].data, [[1, 2], [3, 4]])
    assert (request.id, request.outputs) == ("7", ("score", "maps"))
    assert wanted == BinaryOutputs({"score": True, "maps": False}, True)


def test_binary_data_is_read() -> None:
    request, _ = decode(*binary())
    images, pixels = request.inputs
    assert images.data == [b"ab", b"c"]
    assert list(pixels.data) == [7, 8, 9]


def test_bytes_in_json_are_base64() -> None:
    text = base64.b64encode(b"\xff\xd8").decode()
    request, _ = decode(of_json(datatype="BYTES", shape=[1], data=[text]), None)
    assert request.inputs[0].data == [b"\xff\xd8"]


@pytest.mark.parametrize(
    ("body", "head", "reason"),
    [
        (b"", None, "not JSON"),
        (b"[" * 9_000, None, "not JSON"),
        (b"1" * 5000, None, "not JSON"),
        (b'{"inputs": [NaN]}', None, "not JSON"),
        (b"\xff", None, "not JSON"),
        (b"[]", None, "must be an object"),
        (b"{}", 3, "Inference-Header"),
        (b'{"inputs": []}x', 14, "belong to no input"),
        (of_json(data=[1, 2, 3]), None, "3 elements"),
        (of_json(data=[1, 2, 3, 256]), None, "0 to 255"),
        (of_json(data=[1, 2, 3, True]), None, "0 to 255"),
        (of_json(data=[1, 2, 3, 1.0]), None, "0 to 255"),
        (of_json(data=[[1, 2], 3, 4]), None, "evenly"),
        (of_json(datatype="FP32"), None, "datatype"),
        (of_json(datatype=[]), None, "datatype"),
        (of_json(shape=[2**40, 2**40]), None, "too large"),
        (of_json(shape=[-2, -2]), None, "too large"),
        (of_json(shape=[]), None, "empty"),
        (of_json(shape=[9] * 200_000), None, "8 dimensions"),
        (b'{"inputs": [' + b"0," * 2_000_001 + b"0]}", None, "too many values"),
        (b'{"inputs": [' + b"{}" * 10_001 + b"]}", None, "too many values"),
        (of_json(shape=[True, 4]), None, "whole numbers"),
        (of_json(parameters={"shared_memory_region": "a"}), None, "not supported"),
        (of_json(parameters={"binary_data_size": 4}), None, "no data in JSON"),
        (of_json(datatype="BYTES", shape=[1], data=["\u00e9"]), None, "base64"),
        (*binary(tail=TAIL[:-1]), "no data in JSON"),
        (*binary(tail=TAIL + b"x"), "belong to no input"),
        (*binary(tail=struct.pack("<I", 2**32 - 1) + TAIL[4:]), "ends after"),
    ],
)
def test_what_is_malformed_is_refused(body, head, reason) -> None:
    with pytest.raises(OipError, match=reason):
        decode(body, head)


def changed(document, rng):
    """A document of which one value is junk, or gone."""
    document = copy.deepcopy(document)
    places = []

    def visit(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                visit(node[key])

    visit(document)
    node, key = rng.choice(places)
    if isinstance(node, dict) and rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(JUNK)
    return document


@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_is_read_or_refused(seed) -> None:
    rng = random.Random(seed)
    refused = 0
    for case in range(1000):
        document = changed(JSON if case % 2 else BINARY, rng)
        body, head = binary(document, b"" if case % 2 else TAIL)
        if case % 3 == 0:
            body = scrambled(body, rng)
        given = rng.choice((head, None, rng.randint(-1, len(body) + 1)))
        try:
            request, _ = decode(body, given)
        except OipError:
            refused += 1
            continue
        for tensor in request.inputs:
            assert len(tensor.data) == tensor.shape[0] or tensor.datatype == "BYTES"
    assert 0 < refused < 1000


def test_a_response_has_json_and_binary_data() -> None:
    score = Tensor("score", "FP32", (2, 1), np.array([[1], [2]], np.float32))
    maps = Tensor("maps", "FP32", (2,), np.array([3, 4], np.float32))
    response = InferResponse("m", "7", (score, maps))
    body, head = encode(response, BinaryOutputs({"maps": True}, False))
    assert head is not None
    document = json.loads(body[:head])
    assert (document["model_name"], document["id"]) == ("m", "7")
    assert document["outputs"][0]["data"] == [1.0, 2.0]
    assert document["outputs"][1]["parameters"] == {"binary_data_size": 8}
    assert np.frombuffer(body[head:], "<f4").tolist() == [3, 4]
    body, head = encode(response, BinaryOutputs({}, False))
    assert head is None
    assert json.loads(body)["outputs"][1]["data"] == [3.0, 4.0]


def test_what_json_lacks_is_null_and_strings_have_their_length() -> None:
    score = Tensor("score", "FP32", (2, 1), np.array([[np.nan], [2]], np.float32))
    error = Tensor("error", "BYTES", (2, 1), ["é".encode(), b""])
    response = InferResponse("m", "", (score, error))
    body, head = encode(response, BinaryOutputs({}, False))
    assert head is None
    assert [output["data"] for output in json.loads(body)["outputs"]] == [[None, 2.0], ["é", ""]]
    body, head = encode(response, BinaryOutputs({}, True))
    assert body[head:] == score.raw() + b"\x02\x00\x00\x00" + "é".encode() + b"\x00\x00\x00\x00"
    assert np.isnan(np.frombuffer(score.raw(), "<f4")).tolist() == [True, False]
