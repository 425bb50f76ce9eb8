"""The statuses of the routes, without a socket."""

import asyncio
import threading
from concurrent.futures import Future

import pytest
from starlette.testclient import TestClient

from drexperts import runtime
from drexperts.runtime import Scorer
from drexperts.runtime.errors import (
    ClosedError,
    DeadlineError,
    ImageError,
    InternalError,
    QueueFullError,
)
from drexperts.serve.body_memory import BodyMemory
from drexperts.serve.failures import RequestError
from drexperts.serve.http import exchange
from drexperts.serve.http.app import application
from drexperts.serve.service import Service
from drexperts.serve.settings import ServeSettings


class Failing:
    """In place of a Batcher: every submission fails."""

    failure = None
    scorer: Scorer

    def __init__(self, error: Exception) -> None:
        self.error = error

    def submit(self, *_, **__) -> Future[None]:
        future: Future[None] = Future()
        future.set_exception(self.error)
        return future


@pytest.fixture(autouse=True, scope="module")
def _scorer(toy_bundle):
    Failing.scorer = runtime.load(toy_bundle, threads=1)


def client(error: Exception, **settings) -> TestClient:
    service = Service(Failing(error), ServeSettings(**settings))  # type: ignore[arg-type]
    return TestClient(application(service), "http://localhost")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ImageError("it is text"), 422, "not_an_image"),
        (QueueFullError("full"), 503, "queue_full"),
        (ClosedError("closed"), 503, "stopping"),
        (DeadlineError("late"), 504, "timed_out"),
    ],
)
def test_an_error_has_its_status(error, status, code) -> None:
    answer = client(error).post("/v1/score", content=b"x")
    assert answer.status_code == status
    said = {"code": code, "message": str(error), "request_id": answer.headers["X-Request-ID"]}
    assert answer.json() == {"error": said}
    assert ("Retry-After" in answer.headers) == (status == 503)


@pytest.mark.parametrize("error", [InternalError("a secret"), ValueError("a secret")])
def test_nothing_is_said_of_a_bug(error) -> None:
    answer = client(error).post("/v1/score", content=b"x")
    assert answer.status_code == 500
    assert "secret" not in answer.text


def test_a_body_is_limited_whether_or_not_its_length_is_announced() -> None:
    small = client(ImageError("not reached"), max_body=10)
    assert small.post("/v1/score", content=b"x" * 11).status_code == 413
    assert small.post("/v1/score", content=iter([b"x" * 6, b"x" * 6])).status_code == 413
    assert small.post("/v1/score", content=b"").status_code == 400
    assert small.post("/v1/score", content=b"x" * 10).status_code == 422


def test_a_compressed_body_is_not_taken_for_a_broken_image() -> None:
    asked = client(ImageError("not reached"))
    for encoding, status in {"gzip": 415, "gzip, identity": 415, "Identity": 422}.items():
        headers = {"Content-Encoding": encoding}
        assert asked.post("/v1/score", content=b"x", headers=headers).status_code == status
        body = asked.post("/v2/models/drexperts/infer", content=b"x", headers=headers)
        assert body.status_code == (415 if status == 415 else 400)


def test_live_is_not_ready() -> None:
    service = Service(Failing(ValueError()), ServeSettings())  # type: ignore[arg-type]
    routes = TestClient(application(service), "http://localhost")
    assert routes.get("/v2/health/live").status_code == 200
    assert routes.get("/v2/health/ready").status_code == 503
    service.warm = True
    assert routes.get("/v2/health/ready").status_code == 200


def test_a_body_that_does_not_arrive_is_given_up(monkeypatch) -> None:
    async def never():
        await asyncio.sleep(60)
        raise AssertionError

    sent = []

    async def send(message) -> None:
        sent.append(message)

    service = Service(Failing(ValueError()), ServeSettings(timeout=0.01))  # type: ignore[arg-type]
    scope: dict[str, object] = {
        "type": "http",
        "method": "POST",
        "path": "/v1/score",
        "headers": [(b"host", b"localhost")],
    }
    scope |= {"query_string": b"", "http_version": "1.1", "root_path": ""}
    monkeypatch.setattr(exchange, "_DISCARD_SECONDS", 0.01)
    asyncio.run(application(service)(scope, never, send))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/score", 405, "method_not_allowed"),
        ("POST", "/v1/score?maps=perhaps", 400, "bad_query"),
    ],
)
def test_every_error_is_json(method, path, status, code) -> None:
    answer = client(ValueError()).request(method, path, headers={"X-Request-ID": "mine"})
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["request_id"] == answer.headers["X-Request-ID"] == "mine"


@pytest.mark.parametrize("unfit", ["", "a b", "x" * 129, "\u00e9"])
def test_an_unfit_request_id_is_replaced(unfit) -> None:
    headers = {"X-Request-ID": unfit.encode("latin-1")}
    answer = client(ValueError()).get("/v2/health/live", headers=headers)
    assert len(answer.headers["X-Request-ID"]) == 32


def test_a_bug_is_in_the_log_by_its_request_id(caplog) -> None:
    client(ValueError("the cause")).post(
        "/v1/score", content=b"x", headers={"X-Request-ID": "mine"}
    )
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.fields == {"request_id": "mine"}
    assert "the cause" in caplog.text


def test_a_token_lets_in(caplog) -> None:
    guarded = client(ImageError("seen"), tokens=("a" * 16, "b" * 16))
    for given in (None, "Bearer " + "c" * 16, "Basic " + "a" * 16, "Bearer \u00e9"):
        headers = {} if given is None else {b"Authorization": given.encode("latin-1")}
        answer = guarded.post("/v1/score", content=b"x", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    for token in "ab":
        headers = {b"Authorization": b"bearer " + token.encode() * 16}
        assert guarded.post("/v1/score", content=b"x", headers=headers).status_code == 422
    assert guarded.get("/v2/health/live").status_code == 200
    assert "aaaa" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        ({}, "localhost:8000", 200),
        ({}, "127.0.0.1", 200),
        ({}, "[::1]:8000", 200),
        ({}, "10.1.2.3:8000", 200),
        ({}, "LOCALHOST", 200),
        ({}, "[::1]", 200),
        ({}, "localhost:", 200),
        ({}, "evil.example", 403),
        ({}, "", 403),
        ({}, "localhost:8000:8000", 403),
        ({}, "localhost@evil.example", 403),
        ({}, "evil.example#localhost", 403),
        ({}, "localhost.evil.example", 403),
        ({}, "localhost\\evil.example", 403),
        ({}, "[localhost", 403),
        ({"hosts": ("iqa.example",)}, "IQA.example:80", 200),
        ({"hosts": ("iqa.example",)}, "10.1.2.3", 403),
        ({"hosts": ("*",)}, "evil.example", 200),
        ({"tokens": ("a" * 16,)}, "any.example", 200),
    ],
)
def test_only_known_names_are_answered(settings, host, status) -> None:
    asked = client(ValueError(), **settings)
    assert asked.get("/v2/health/live", headers={"Host": host}).status_code == status


class Slow(Failing):
    """Each image is found unreadable after most of a request's time."""

    def submit(self, *_, timeout: float, **__) -> Future[None]:
        future: Future[None] = Future()

        def end() -> None:
            if future.set_running_or_notify_cancel():
                future.set_exception(self.error)

        threading.Timer(0.7 * timeout, end).start()
        return future


def test_the_images_of_a_request_share_its_time() -> None:
    settings = ServeSettings(timeout=0.05, queue=1)  # one image after another
    service = Service(Slow(ImageError("no image")), settings)  # type: ignore[arg-type]
    with pytest.raises(DeadlineError):
        asyncio.run(service.score_all([("a", b""), ("b", b"")]))


def test_bodies_share_a_memory() -> None:
    memory = BodyMemory(10)
    memory.take(6)
    with pytest.raises(RequestError, match="try again"):
        memory.take(5)
    memory.give(6)
    memory.take(10)
