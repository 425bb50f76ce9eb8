"""How the command ends when its engine fails or hangs: what its supervisor and its clients see."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.waiting import until

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "support" / "faulty_engines.py"


class Command:
    """A running command, and how to ask it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        assert process.stderr is not None
        line = next(line for line in process.stderr if " at http" in line)
        self.port = int(line.rsplit(":", 1)[1])
        until(lambda: self.ask("GET", "/v2/health/ready")[0] == 200)

    def ask(self, method, path, body=None):
        """The status and the body of an answer; (None, b"") if there is none."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(client):
            try:
                client.request(method, path, body)
                answer = client.getresponse()
                return answer.status, answer.read()
            except ConnectionError:
                return None, b""

    def hang(self, image):
        """A thread whose request hangs in the engine, and the list to which it adds the answer."""
        answers: list[tuple[int | None, bytes]] = []
        thread = threading.Thread(
            target=lambda: answers.append(self.ask("POST", "/v1/score", image))
        )
        thread.start()
        until(lambda: b"drx_pending_crops 1.0" in self.ask("GET", "/metrics")[1])
        return thread, answers


@pytest.fixture
def started(toy_bundle):
    with contextlib.ExitStack() as ending:

        def start(how, *options):
            words = [how, "serve", str(toy_bundle), "--port", "0", *options]
            environment = os.environ | {"PYTHONSAFEPATH": "1"}
            process = ending.enter_context(
                subprocess.Popen(
                    [sys.executable, str(SCRIPT), *words],
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
            ending.callback(process.kill)
            return Command(process)

        yield start


@pytest.fixture(scope="module")
def white(encode):
    return encode(Image.fromarray(np.full((32, 32), 255, np.uint8)), "PNG")


def test_an_engine_that_fails_for_good_is_told_to_the_supervisor(started, white) -> None:
    command = started("fails")
    status, body = command.ask("POST", "/v1/score", white)
    assert (status, json.loads(body)["error"]["code"]) == (503, "engine_failed")
    assert b"GPU" not in body
    _, log = command.process.communicate(timeout=20)
    assert command.process.returncode == 2
    assert "the GPU is lost" in log


def test_an_engine_that_hangs_does_not_keep_the_process(started, white) -> None:
    command = started("hangs", "--drain", "0.3")
    thread, answers = command.hang(white)
    command.process.send_signal(signal.SIGTERM)
    thread.join()
    ((status, body),) = answers
    assert (status, json.loads(body)["error"]["code"]) == (503, "stopping")
    _, log = command.process.communicate(timeout=20)
    assert command.process.returncode == 75
    assert "the process ends without it" in log


def test_a_signal_while_it_starts_is_no_failure(toy_bundle) -> None:
    words = [sys.executable, "-m", "drexperts.cli.main", "serve", str(toy_bundle), "--port", "0"]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "using " in line)  # the engine is loading
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, line


def test_a_second_signal_ends_the_process_at_once(started, white) -> None:
    command = started("hangs", "--drain", "600")
    thread, answers = command.hang(white)
    command.process.send_signal(signal.SIGTERM)
    until(lambda: command.ask("GET", "/v2/health/live")[0] is None)
    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(20) == 128 + signal.SIGTERM
    thread.join()
    assert answers == [(None, b"")]
