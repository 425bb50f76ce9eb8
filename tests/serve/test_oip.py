"""The two models over HTTP, asked by NVIDIA's client and by hand."""

import base64
import json

import numpy as np
import pytest
from PIL import Image
from support.held_engine import HeldEngine
from support.serving import serving

from drexperts import runtime
from drexperts.runtime import Scorer

triton = pytest.importorskip("tritonclient.http")


@pytest.fixture(scope="module")
def running(toy_bundle):
    toy = runtime.load(toy_bundle, threads=1)
    scorer = Scorer(toy.manifest, toy.engine, HeldEngine(free=True), batch=4)
    with serving(scorer) as running:
        yield running


@pytest.fixture(scope="module")
def client(running):
    with triton.InferenceServerClient(f"127.0.0.1:{running.port}") as client:
        yield client


@pytest.fixture(scope="module")
def image(encode):
    return encode(Image.fromarray(np.full((32, 32), 50, np.uint8)), "PNG")


def side(client):
    return client.get_model_metadata("drexperts_crops")["inputs"][0]["shape"][-1]


def test_the_server_and_its_models_are_described(client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("drexperts", "1")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    model = client.get_model_metadata("drexperts")
    assert model["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in model["outputs"]] == ["score", "std", "weights", "error"]


@pytest.mark.parametrize("as_binary", [True, False])
def test_images_are_scored(client, image, as_binary) -> None:
    given = image if as_binary else base64.b64encode(image)
    tensor = triton.InferInput("image", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([given, given], object), binary_data=as_binary)
    wanted = [triton.InferRequestedOutput(n, binary_data=as_binary) for n in ("score", "weights")]
    found = client.infer("drexperts", [tensor], outputs=wanted, request_id="7")
    assert found.as_numpy("score").shape == (2, 1)
    np.testing.assert_allclose(found.as_numpy("score"), 50, atol=0.5)
    assert found.as_numpy("weights").shape == (2, 10)
    assert found.as_numpy("std") is None
    assert found.get_response()["id"] == "7"


@pytest.mark.parametrize("as_binary", [True, False])
def test_an_image_that_cannot_be_read_costs_its_own_row(client, image, as_binary) -> None:
    tensor = triton.InferInput("image", [3], "BYTES")
    tensor.set_data_from_numpy(np.array([image, b"text", image], object))
    names = ("score", "std", "weights", "error")
    wanted = [triton.InferRequestedOutput(name, binary_data=as_binary) for name in names]
    found = client.infer("drexperts", [tensor], outputs=wanted)
    unknown = [[False], [True], [False]]
    assert np.isnan(found.as_numpy("score")).tolist() == unknown
    assert np.isnan(found.as_numpy("weights")).all(axis=1, keepdims=True).tolist() == unknown
    first, second, third = (
        text if isinstance(text, str) else text.decode() for text in found.as_numpy("error")[:, 0]
    )
    assert (first, third) == ("", "")
    assert "it is text" in second


@pytest.mark.parametrize("as_binary", [True, False])
def test_crops_are_scored(client, as_binary) -> None:
    crops = np.full((3, 3, side(client), side(client)), 9, np.uint8)
    tensor = triton.InferInput("pixels", list(crops.shape), "UINT8")
    tensor.set_data_from_numpy(crops, binary_data=as_binary)
    found = client.infer("drexperts_crops", [tensor])
    np.testing.assert_allclose(found.as_numpy("score"), np.full((3, 1), 9.0))
    assert found.as_numpy("maps").shape == (3, 10, 4, 4)


def test_a_mistake_is_told_as_the_protocol_does(client, running, image) -> None:
    tensor = triton.InferInput("image", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([b"<b>", b"text"], object))
    with pytest.raises(triton.InferenceServerException, match="no image can be read, image 0"):
        client.infer("drexperts", [tensor])
    for path in ("/v2/models/other", "/v2/models/drexperts/versions/2", "/v2/nothing"):
        status, answer, _ = running.ask("GET", path)
        assert status == 404
        assert isinstance(answer["error"], str)


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [{"name": "x", "datatype": "UINT8", "shape": [1], "data": [1]}],
        [{"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 1, 1], "data": [1, 2, 3]}],
        [{"name": "pixels", "datatype": "BYTES", "shape": [1], "data": ["eA=="]}],
        [{"name": "pixels", "datatype": "UINT8", "shape": [3], "data": [1, 2, 3]}],
    ],
)
def test_what_the_model_does_not_take_is_refused(running, inputs) -> None:
    body = json.dumps({"inputs": inputs})
    status, answer, _ = running.ask("POST", "/v2/models/drexperts_crops/infer", body)
    assert status == 400
    assert isinstance(answer["error"], str)


def test_unknown_outputs_and_headers_are_refused(running, image) -> None:
    text = base64.b64encode(image).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    body = json.dumps({"inputs": [tensor], "outputs": [{"name": "beauty"}]})
    path = "/v2/models/drexperts/infer"
    status, answer, _ = running.ask("POST", path, body)
    assert (status, "beauty" in answer["error"]) == (400, True)
    headers = {"Inference-Header-Content-Length": "x"}
    assert running.ask("POST", path, body, headers)[0] == 400
    many = json.dumps({"inputs": [tensor | {"shape": [65], "data": [text] * 65}]})
    assert running.ask("POST", path, many)[0] == 400
