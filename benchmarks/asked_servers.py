"""Servers in processes of their own, and a client that asks them, for `bench_serve.py`."""

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from subprocess import PIPE
from typing import Any

HOST = "127.0.0.1"
HERE = Path(__file__).resolve().parent
LITSERVE = "litserve==0.2.19"


class Server:
    """A server on this machine, and the client that asks it.

    path, kind: of a request for a score, and the type of its body
    body: a file with the body
    """

    def __init__(
        self, port: int, client: "subprocess.Popen[str]", path: str, kind: str, body: Path
    ) -> None:
        self._port, self._client = port, client
        self._request = {"host": HOST, "port": port, "path": path, "kind": kind, "file": str(body)}

    def ask(self, count: int, **more: Any) -> dict[str, Any]:
        """Ask for so many scores; see `serve_client.Asked`, and `Answered` for what returns."""
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        print(json.dumps(self._request | {"count": count} | more), file=self._client.stdin)
        self._client.stdin.flush()
        found: dict[str, Any] = json.loads(self._client.stdout.readline())
        return found

    def scored(self, count: int, connections: int = 1) -> dict[str, Any]:
        """As `ask`. Raises RuntimeError unless all are scored."""
        found = self.ask(count, connections=connections)
        if set(found["statuses"]) != {200}:
            raise RuntimeError(f"not all were scored: {set(found['statuses'])}")
        return found

    def engine_work(self) -> tuple[int, int]:
        """The crops and the calls of the engine so far, as `drx serve` counts them."""
        _, text = self.get("/metrics")
        names = "drx_crops_total", "drx_engine_calls_total"
        crops, calls = (re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0] for name in names)
        return int(float(crops)), int(float(calls))

    def get(self, path: str) -> tuple[int, str]:
        """A status, 0 if nothing listens, and a body."""
        try:
            with contextlib.closing(http.client.HTTPConnection(HOST, self._port)) as connection:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
        except ConnectionError:
            return 0, ""


@contextlib.contextmanager
def drx_serve(bundle: Path, queue: int, image: Path) -> Iterator[Server]:
    """`drx serve`, once it is ready."""
    port = _free_port()
    options = ["--port", str(port), "--queue", str(queue)]
    command = [sys.executable, "-P", "-m", "drexperts.cli.main", "serve", str(bundle), *options]
    request = {"path": "/v1/score", "kind": "image/jpeg", "body": image}
    with _running(command, port, "/v2/health/ready", **request) as server:
        yield server


@contextlib.contextmanager
def litserve(bundle: Path, image: Path) -> Iterator[Server]:
    """The same Scorer behind LitServe, in an environment of its own, with equal engines.

    It takes no raw bodies: the image is in JSON.
    """
    port = _free_port()
    ours = f"drexperts[cpu,openvino] @ {HERE.parent.as_uri()}"
    engines = (f"onnxruntime=={version('onnxruntime-gpu')}", f"openvino=={version('openvino')}")
    wanted = [word for name in (LITSERVE, ours, *engines) for word in ("--with", name)]
    script = [str(HERE / "serve_with_litserve.py"), str(bundle), str(port)]
    command = ["uv", "run", "--no-project", "-p", sys.executable, *wanted, "python", *script]
    body = image.with_suffix(".json")
    body.write_text(json.dumps({"image": base64.b64encode(image.read_bytes()).decode()}))
    request = {"path": "/predict", "kind": "application/json", "body": body}
    with _running(command, port, "/health", **request) as server:
        yield server


@contextlib.contextmanager
def _running(command: list[str], port: int, ready: str, **request: Any) -> Iterator[Server]:
    """A server and a client. Raises RuntimeError if the server ends by itself.

    It has a process group of its own, so that its workers end with it, but not a session: Linux
    shares out the CPU by sessions where more programs run than there are cores.

    ready: a path that is answered with 200 once it can be asked
    """
    ask = [sys.executable, "-I", str(HERE / "serve_client.py")]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=log, stderr=log, process_group=0) as process,
        subprocess.Popen(ask, stdin=PIPE, stdout=PIPE, text=True) as client,
    ):
        try:
            server = Server(port, client, **request)
            while server.get(ready)[0] != 200:
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(f"the server ended: {log.read()[-2000:]}")
                time.sleep(0.1)
            yield server
        finally:
            client.terminate()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


def _free_port() -> int:
    """A port that nothing listened on a moment ago."""
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])
