"""How a server with gRPC begins and ends, and what it needs."""

import contextlib
import http.client
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support.grpc_client import arrays_of, client_of, images_request

from drexperts.runtime.errors import MissingDependencyError, UserError
from drexperts.serve import ServeSettings, serve
from drexperts.serve.listening import listen


def test_a_port_that_is_taken_is_told_first(toy_bundle) -> None:
    with contextlib.closing(listen("127.0.0.1", 0)) as taken:
        settings = ServeSettings(port=0, grpc_port=taken.getsockname()[1])
        with pytest.raises(UserError, match="choose another port"):
            serve(toy_bundle, settings)
    with pytest.raises(UserError, match="65536"):
        ServeSettings(grpc_port=65536)


@pytest.mark.parametrize("library", ["grpc", "google.protobuf"])
def test_what_is_missing_is_named(toy_bundle, monkeypatch, library) -> None:
    for name in list(sys.modules):
        if name.startswith(("drexperts.serve.grpc", library)):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match=f"{library}.*install"):
        serve(toy_bundle, ServeSettings(port=0, grpc_port=0))


@pytest.mark.slow
def test_the_command_serves_both_until_a_signal(toy_bundle, encode) -> None:
    image = encode(Image.fromarray(np.full((32, 32), 50, np.uint8)), "PNG")
    command = [sys.executable, "-m", "drexperts.cli.main", "serve", str(toy_bundle)]
    command += ["--port", "0", "--grpc-port", "0", "--log-json"]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process,
        contextlib.ExitStack() as ending,
    ):
        ending.callback(process.kill)
        assert process.stderr is not None
        port, grpc_port = (
            next(
                int(line.rsplit(":", 1)[1]) for line in process.stderr if f" at {scheme}://" in line
            )
            for scheme in ("http", "grpc")
        )
        with client_of(grpc_port) as client:
            response = client.ask("ModelInfer", images_request(image), wait_for_ready=True)
            assert arrays_of(response)["score"].round() == 50
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as over_http:
                over_http.request("GET", "/metrics")
                counted = over_http.getresponse().read().decode()
            process.send_signal(signal.SIGTERM)
            _, rest = process.communicate(timeout=20)
    assert process.returncode == 0
    assert '"path": "/inference.GRPCInferenceService/ModelInfer"' in rest
    assert "Traceback" not in rest
    assert 'drx_requests_total{outcome="ok",route="ModelInfer"} 1.0' in counted
