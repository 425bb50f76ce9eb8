"""A server on a socket: what is delivered, what is dropped, and how it ends."""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from support.certificates import certificate
from support.held_engine import HeldEngine
from support.serving import serving
from support.waiting import until

from drexperts import runtime
from drexperts.runtime import Scorer
from drexperts.runtime.errors import DeviceError, UserError
from drexperts.serve import server
from drexperts.serve.http import app, connections, protocol
from drexperts.serve.settings import ServeSettings


@pytest.fixture(scope="module")
def toy(toy_bundle):
    return runtime.load(toy_bundle, threads=1)


@pytest.fixture(scope="module")
def image(encode):
    return encode(Image.fromarray(np.full((32, 32), 50, np.uint8)), "PNG")


@pytest.fixture
def engine():
    return HeldEngine(free=True)


@pytest.fixture
def running(toy, engine):
    with serving(Scorer(toy.manifest, toy.engine, engine, batch=4), max_body=100_000) as running:
        engine.hold()
        yield running
        engine.go_on()


def asked(running, image):
    """A thread that asks for a score, and the list to which it adds the answer."""
    answers: list[tuple[int, dict[str, object]]] = []
    thread = threading.Thread(
        target=lambda: answers.append(running.ask("POST", "/v1/score", image)[:2])
    )
    thread.start()
    return thread, answers


def test_an_image_has_its_score(running, engine, image) -> None:
    engine.go()
    status, row, _ = running.ask("POST", "/v1/score", image)
    assert (status, round(row["value"])) == (200, 50)


def test_what_is_too_large_is_told_so_whoever_does_not_listen(running) -> None:
    body = b"x" * 20_000_000  # more than sockets hold
    status, answer, headers = running.ask("POST", "/v1/score", body)
    assert (status, answer["error"]["code"]) == (413, "too_large")
    assert headers["Connection"] == "close"
    status, _, _ = running.ask("POST", "/v1/score", iter([body]))
    assert status == 413


def test_what_is_too_large_is_not_asked_for(running) -> None:
    with running.connect() as client:
        client.sendall(
            b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        said = b"".join(iter(lambda: client.recv(4096), b""))
    assert said.startswith(b"HTTP/1.1 413")


def test_a_client_that_leaves_takes_its_work_along(running, engine, image) -> None:
    thread, answers = asked(running, image)
    engine.wait_entered()
    with running.connect() as client:
        head = f"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n\r\n"
        client.sendall(head.encode() + image)
        until(lambda: running.service.batcher.pending_crops == 2)
    until(lambda: running.service.batcher.pending_crops == 1)
    engine.go()
    thread.join()
    assert answers[0][0] == 200
    assert len(engine.batches[-1]) == 1


def test_a_connection_without_a_request_is_closed(running, monkeypatch) -> None:
    monkeypatch.setattr(protocol, "_HEAD_SECONDS", 0.05)
    with running.connect() as silent, running.connect() as slow:
        slow.sendall(b"POST /v1/score HT")
        assert silent.recv(100) == slow.recv(100) == b""


def test_an_idle_connection_makes_room(running, monkeypatch) -> None:
    monkeypatch.setattr(protocol, "most_connections", lambda also_refused=False: 2)
    with running.connect() as first, running.connect() as second:
        assert running.ask("GET", "/v2/health/live")[0] == 200
        with contextlib.suppress(ConnectionError):
            assert first.recv(100) == b""
        second.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert second.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_more_connections_than_there_may_be_are_told_so(running, monkeypatch) -> None:
    most = {False: 2, True: 3}
    monkeypatch.setattr(protocol, "most_connections", lambda also_refused=False: most[also_refused])
    monkeypatch.setattr(protocol, "_REFUSED_SECONDS", 0.05)
    head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
    with running.connect() as first, running.connect() as second:
        for busy in (first, second):
            busy.sendall(head)
        connected = running.server.server_state.connections
        until(lambda: len(connected) == 2 and all(each.cycle for each in tuple(connected)))
        third = running.connect()
        said = b"".join(iter(lambda: third.recv(4096), b""))
        third.close()
        assert said.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nRetry-After: 1\r\n" in said
    until(lambda: not running.server.server_state.connections)
    assert running.ask("GET", "/v2/health/live")[0] == 200


def test_far_more_connections_are_closed_at_once(running, monkeypatch) -> None:
    monkeypatch.setattr(protocol, "most_connections", lambda also_refused=False: 0)
    with running.connect() as client, contextlib.suppress(ConnectionError):
        assert client.recv(100) == b""


def test_connections_leave_descriptors_for_others(monkeypatch) -> None:
    resource = pytest.importorskip("resource")
    for soft, most in {10**6: 1024, resource.RLIM_INFINITY: 1024, 1024: 768, 20: 16}.items():
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert connections.most_connections() == most
        assert connections.most_connections(also_refused=True) == most + 128


def test_a_client_that_does_not_take_its_answer_is_left(toy, monkeypatch, image) -> None:
    monkeypatch.setattr(protocol, "_TAKE_SECONDS", 0.05)
    asked = POST + f"Content-Length: {len(image)}\r\n\r\n".encode() + image
    with serving(Scorer(toy.manifest, toy.engine, HeldEngine(free=True), batch=4)) as running:
        monkeypatch.setattr(app, "row_of", lambda *_: "x" * 30_000_000)  # more than sockets hold
        with running.connect() as client:
            client.sendall(asked)
            assert client.recv(12) == b"HTTP/1.1 200"
            until(lambda: not running.server.server_state.connections)


def test_a_client_that_takes_its_answer_slowly_gets_it(toy, monkeypatch, image) -> None:
    monkeypatch.setattr(protocol, "_TAKE_SECONDS", 0.05)
    monkeypatch.setattr(protocol, "_TAKE_BYTES", 0)
    monkeypatch.setattr(app, "row_of", lambda *_: "x" * 30_000_000)
    close = b"Connection: close\r\n"
    asked = POST + close + f"Content-Length: {len(image)}\r\n\r\n".encode() + image
    with (
        serving(Scorer(toy.manifest, toy.engine, HeldEngine(free=True), batch=4)) as running,
        running.connect() as client,
    ):
        client.sendall(asked)
        found = client.recv(12)
        time.sleep(0.2)  # several times as long as it has for a part
        found += b"".join(iter(lambda: client.recv(10**6), b""))
    assert len(found) > 30_000_000


def test_an_answer_does_not_wait_for_acknowledgements(running) -> None:
    with running.connect():
        until(lambda: running.server.server_state.connections)
        (protocol,) = running.server.server_state.connections
        ours = protocol.transport.get_extra_info("socket")
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_requests_in_flight_are_answered_before_the_end(running, engine, image) -> None:
    thread, answers = asked(running, image)
    engine.wait_entered()
    running.server.end()
    assert not running.service.ready
    engine.go()
    thread.join()
    assert answers[0][0] == 200


def test_the_drain_ends(toy, engine, image) -> None:
    scorer = Scorer(toy.manifest, toy.engine, engine, batch=4)
    with serving(scorer, drain=0.1) as running:
        engine.hold()
        thread, answers = asked(running, image)
        engine.wait_entered()
        running.server.end()
        thread.join()
        engine.go_on()
    status, answer = answers[0]
    assert status == 503
    assert answer["error"]["code"] == "stopping"


def test_it_is_live_before_it_is_ready(toy, engine) -> None:
    engine.hold()
    scorer = Scorer(toy.manifest, toy.engine, engine, batch=4)
    with serving(scorer, wait=False) as running:
        engine.wait_entered()
        assert running.ask("GET", "/v2/health/live")[0] == 200
        status, answer, _ = running.ask("GET", "/v2/health/ready")
        assert (status, answer) == (503, {"ready": False})
        engine.go_on()
        until(lambda: running.ask("GET", "/v2/health/ready")[0] == 200)


POST = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\r\n\r\n", b"400"),
        (b"GET / HTTP/9\r\n\r\n", b"400"),
        (POST + b"Content-Length: -1\r\n\r\n", b"400"),
        (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n", b"501"),
        (POST + b"A: " + b"x" * 100_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"431"),
        (b"POST /v1/score HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"400"),
        (POST + b"Content-Length: 0\r\nConnection: close\r\n\r\n", b"400"),
        (POST + b"Content-Length: 4\r\nConnection: close\r\n\r\ntext", b"422"),
        (POST + b"Content-Length: 4\r\n\r\ntext, and\r\n\r\n", b"422"),
        (
            POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            b"2\r\nte\r\n2\r\nxt\r\n0\r\n\r\n",
            b"422",
        ),
    ],
)
def test_whatever_is_sent_is_answered(running, sent, status) -> None:
    with running.connect() as client:
        client.sendall(sent)
        said = b"".join(iter(lambda: client.recv(4096), b""))
    assert said.split()[1] == status
    assert b'"error"' in said


def test_a_head_that_does_not_end_is_told_so_too(running) -> None:
    with running.connect() as client:
        client.sendall(POST + b"A: " + b"x" * 40_000)
        said = b"".join(iter(lambda: client.recv(4096), b""))
    assert said.startswith(b"HTTP/1.1 431")
    assert b"headers_too_large" in said


def test_a_connection_is_used_again(running, engine, image) -> None:
    engine.go()
    asked: list[tuple[str, str, bytes | None]] = [
        ("GET", "/v2/health/live", None),
        ("GET", "/nowhere", None),
        ("HEAD", "/v1/score", None),
        ("POST", "/v1/score", b"text"),
        ("POST", "/v1/score", b""),
        ("POST", "/v1/score", image),
    ]
    with serving_at(running.port) as connection:
        connection.connect()
        first, statuses = connection.sock, []
        for method, path, body in asked:
            connection.request(method, path, body)
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
            assert connection.sock is first  # http.client drops it where the server closes
    assert statuses == [200, 404, 405, 422, 400, 200]


def test_a_request_that_hides_another_is_not_read_further(running) -> None:
    lengths = b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    with running.connect() as client:
        client.sendall(POST + lengths + b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        said = b"".join(iter(lambda: client.recv(4096), b""))
    assert said.startswith(b"HTTP/1.1 400")
    assert said.count(b"HTTP/1.1") == 1
    assert b"two_lengths" in said


def test_requests_in_a_row_are_answered_in_their_order(running, engine, image) -> None:
    engine.go(2)
    head = POST + f"Content-Length: {len(image)}\r\n\r\n".encode()
    with running.connect() as client:
        client.sendall((head + image) * 2 + POST + b"Connection: close\r\n\r\n")
        said = b"".join(iter(lambda: client.recv(4096), b""))
    assert [part[:3] for part in said.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"400"]


def test_a_body_that_ends_early_is_nobodys(running) -> None:
    with running.connect() as client:
        client.sendall(POST + b"Content-Length: 1000\r\n\r\nonly this")
        until(lambda: running.server.server_state.tasks)
    until(lambda: not running.server.server_state.tasks)
    assert running.service.batcher.pending_crops == 0


@pytest.mark.slow
def test_tls_is_spoken(toy, engine, tmp_path) -> None:
    cert, key = certificate(tmp_path)
    scorer = Scorer(toy.manifest, toy.engine, engine, batch=4)
    with serving(scorer, tls_cert=cert, tls_key=key) as running:
        context = ssl.create_default_context(cafile=str(cert))
        with (
            running.connect() as plain,
            context.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200")


def test_an_engine_that_fails_for_good_ends_the_server(running, engine, image) -> None:
    lost = DeviceError("the GPU is lost")
    engine.fail_next(lost, calls=3)
    engine.go_on()
    statuses = [running.ask("POST", "/v1/score", image)[0]]
    assert statuses == [503]
    until(lambda: running.server.should_exit)
    assert running.server.failure is lost


def test_an_engine_that_fails_its_test_ends_the_server(toy, engine) -> None:
    engine.fail_next(DeviceError("no"))
    with serving(Scorer(toy.manifest, toy.engine, engine, batch=4)) as running:
        assert isinstance(running.server.failure, DeviceError)
        assert not running.service.ready


def test_it_does_not_listen_to_others_by_mistake(toy_bundle) -> None:
    with pytest.raises(UserError, match="--token-file"):
        server.serve(toy_bundle, ServeSettings(host="0.0.0.0", port=0))


def test_a_certificate_is_looked_at_first(toy_bundle, tmp_path) -> None:
    (tmp_path / "cert").write_text("none")
    settings = ServeSettings(port=0, tls_cert=tmp_path / "cert", tls_key=tmp_path / "cert")
    with pytest.raises(UserError, match="cannot be used"):
        server.serve(toy_bundle, settings)
    with pytest.raises(UserError, match="--tls-key"):
        ServeSettings(tls_cert=tmp_path / "cert")


@pytest.mark.slow
def test_the_command_serves_until_a_signal(toy_bundle, image) -> None:
    command = [sys.executable, "-m", "drexperts.cli.main", "serve", str(toy_bundle), "--log-json"]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    with (
        subprocess.Popen(
            [*command, "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment
        ) as process,
        contextlib.ExitStack() as ending,
    ):
        ending.callback(process.kill)
        assert process.stderr is not None
        line = next(line for line in process.stderr if " at http" in line)
        with serving_at(line.rsplit(":", 1)[1]) as connection:
            connection.request("POST", "/v1/score", image, {"X-Request-ID": "mine"})
            assert connection.getresponse().status == 200
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=20)
        assert process.returncode == 0
    events = [json.loads(line) for line in rest.splitlines() if line.startswith("{")]
    (event,) = [event for event in events if event["event"] == "request"]
    assert (event["request_id"], event["status"]) == ("mine", 200)


def serving_at(port):
    return contextlib.closing(http.client.HTTPConnection("127.0.0.1", int(port), timeout=10))
