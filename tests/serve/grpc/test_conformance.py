"""NVIDIA's client over gRPC, in an environment of its own: it needs an older protobuf than ours."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.disturbed_inferences import both
from support.held_engine import HeldEngine
from support.serving import serving

from drexperts import runtime
from drexperts.runtime import Scorer
from drexperts.serve.grpc.descriptor import MESSAGES

CLIENT = Path(__file__).parents[2] / "support" / "tritonclient_grpc.py"

pytestmark = pytest.mark.slow


def run_client(*arguments):
    """What the client says to these arguments."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("there is no uv to make an environment for tritonclient[grpc]")
    command = [uv, "run", "--no-project", "--quiet", "--with", "tritonclient[grpc]>=2.60"]
    command += ["--python", "3.11", "python"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_"))}
    try:
        subprocess.run(
            [*command, "-c", "import tritonclient.grpc"],
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the environment for tritonclient[grpc] took too long to make")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"there is no environment for tritonclient[grpc]: {error.stderr}")
    done = subprocess.run(
        [*command, str(CLIENT), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_asks_and_understands(toy_bundle, encode, tmp_path) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(encode(Image.fromarray(np.full((32, 32), 50, np.uint8)), "PNG"))
    toy = runtime.load(toy_bundle, threads=1)
    scorer = Scorer(toy.manifest, toy.engine, HeldEngine(free=True), batch=4)
    with serving(scorer, grpc_port=0) as running:
        side = toy.preprocessing.crop
        said = run_client("ask", str(running.grpc_port), str(image), str(side))
    assert said["live"]
    assert said["ready"]
    assert said["outputs"] == ["score", "std", "weights", "error"]
    np.testing.assert_allclose(said["images"], [[50], [50]], atol=0.5)
    assert said["crops"] == [[9], [9], [9]]
    assert said["maps"] == [3, 10, 4, 4]
    assert said["id"] == "7"
    assert said["mistake"] == ["StatusCode.INVALID_ARGUMENT", "no image can be read"]
    assert said["errors"] == [[False, True], [False, True]]


def test_its_messages_are_ours() -> None:
    """Its generated code reads our messages and writes the same again, field by field."""
    messages = [both(raw=True), both(raw=False)]
    response = MESSAGES["ModelInferResponse"](model_name="m", model_version="1", id="7")
    output = response.outputs.add(name="score", datatype="FP32", shape=[2, 1])
    output.contents.fp32_contents.extend([1.5, 2.5])
    output.parameters["p"].double_param = 0.5
    response.raw_output_contents.append(b"xy")
    metadata = MESSAGES["ModelMetadataResponse"](name="m", versions=["1"], platform="p")
    metadata.inputs.add(name="image", datatype="BYTES", shape=[-1])
    messages += [response, metadata, MESSAGES["ServerReadyResponse"](ready=True)]
    given = [[m.DESCRIPTOR.name, m.SerializeToString(deterministic=True).hex()] for m in messages]
    said = run_client("read", json.dumps(given))
    assert [[name, text] for name, text, _ in said["read"]] == given
    assert [unknown for _, _, unknown in said["read"]] == [0] * len(given)
    for name, text in said["written"].items():
        message = MESSAGES[name].FromString(bytes.fromhex(text))
        assert message.SerializeToString(deterministic=True).hex() == text
    assert set(said["fields"]) <= set(MESSAGES)
    for name, fields in said["fields"].items():
        ours = [[f.number, f.name, f.type] for f in MESSAGES[name].DESCRIPTOR.fields]
        assert ours == fields, name
