"""NVIDIA's client over gRPC as a program, for an environment in which this package is not.

ask PORT IMAGE SIDE: asks a server, and prints what it was told
read MESSAGES: reads messages (name and hexadecimal bytes) and prints them as it writes them, with
    the fields that it knows of all that we have, too
"""

import json
import sys

import numpy as np
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]
from tritonclient import grpc as triton  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2  # type: ignore[import-untyped]


def ask(port, image, side):
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        images = triton.InferInput("image", [2], "BYTES")
        with open(image, "rb") as file:
            encoded = file.read()
        images.set_data_from_numpy(np.array([encoded, encoded], object))
        wanted = [triton.InferRequestedOutput("score")]
        scored = client.infer("drexperts", [images], outputs=wanted, request_id="7")
        pixels = np.full((3, 3, int(side), int(side)), 9, np.uint8)
        crops = triton.InferInput("pixels", list(pixels.shape), "UINT8")
        crops.set_data_from_numpy(pixels)
        cut = client.infer("drexperts_crops", [crops])
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready() and client.is_model_ready("drexperts", "1"),
            "outputs": [output.name for output in client.get_model_metadata("drexperts").outputs],
            "images": scored.as_numpy("score").tolist(),
            "id": scored.get_response().id,
            "crops": cut.as_numpy("score").tolist(),
            "maps": list(cut.as_numpy("maps").shape),
            "errors": errors(client, encoded),
            "mistake": mistake(client),
        }


def errors(client, encoded):
    """Whether there is one, for an image and what is none."""
    images = triton.InferInput("image", [2], "BYTES")
    images.set_data_from_numpy(np.array([encoded, b"text"], object))
    found = client.infer("drexperts", [images])
    texts = found.as_numpy("error")[:, 0]
    return [[bool(text) for text in texts], np.isnan(found.as_numpy("score")[:, 0]).tolist()]


def mistake(client):
    text = triton.InferInput("image", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"text"], object))
    try:
        client.infer("drexperts", [text])
    except triton.InferenceServerException as error:
        return [error.status(), error.message()[:20]]
    return None


def read(messages):
    found = []
    for name, text in json.loads(messages):
        message = getattr(service_pb2, name).FromString(bytes.fromhex(text))
        unknown = len(UnknownFieldSet(message))
        found.append([name, message.SerializeToString(deterministic=True).hex(), unknown])
    return {"read": found, "written": written(), "fields": fields()}


def written():
    """A message with every kind of contents and parameters."""
    request = service_pb2.ModelInferRequest(model_name="m", model_version="1", id="7")
    tensor = request.inputs.add(name="x", datatype="UINT8", shape=[2, -1])
    for field in tensor.contents.DESCRIPTOR.fields:
        one = b"x" if field.name == "bytes_contents" else 1
        getattr(tensor.contents, field.name).extend([one, one])
    tensor.parameters["a"].bool_param = True
    tensor.parameters["b"].string_param = "x"
    request.parameters["c"].int64_param = -1
    request.outputs.add(name="y").parameters["d"].double_param = 0.5
    request.raw_input_contents.extend([b"", b"xy"])
    return {"ModelInferRequest": request.SerializeToString(deterministic=True).hex()}


def fields():
    """Number, name and type of each field of messages that we have under the same name."""
    names = ["ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata"]
    names = [name + end for name in (*names, "ModelInfer") for end in ("Request", "Response")]
    names += ["InferParameter", "InferTensorContents"]
    known = {name: getattr(service_pb2, name).DESCRIPTOR for name in names}
    return {
        name: [[field.number, field.name, field.type] for field in descriptor.fields]
        for name, descriptor in known.items()
    }


if __name__ == "__main__":
    print(json.dumps(ask(*sys.argv[2:]) if sys.argv[1] == "ask" else read(*sys.argv[2:])))
