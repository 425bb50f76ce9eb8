"""The statuses of the routes, without a socket."""

import asyncio
from concurrent.futures import Future

import pytest
from starlette.testclient import TestClient

from drexperts.runtime.errors import (
    ClosedError,
    DeadlineError,
    ImageError,
    InternalError,
    QueueFullError,
)
from drexperts.serve.app import application
from drexperts.serve.service import Service
from drexperts.serve.settings import ServeSettings


class Failing:
    """In place of a Batcher: every submission fails."""

    failure = None

    def __init__(self, error: Exception) -> None:
        self.error = error

    def submit(self, *_, **__) -> Future[None]:
        future: Future[None] = Future()
        future.set_exception(self.error)
        return future


def client(error: Exception, **settings) -> TestClient:
    service = Service(Failing(error), ServeSettings(**settings))  # type: ignore[arg-type]
    return TestClient(application(service), raise_server_exceptions=False)


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
    assert answer.json() == {"error": {"code": code, "message": str(error)}}
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


def test_live_is_not_ready() -> None:
    service = Service(Failing(ValueError()), ServeSettings())  # type: ignore[arg-type]
    routes = TestClient(application(service))
    assert routes.get("/v2/health/live").status_code == 200
    assert routes.get("/v2/health/ready").status_code == 503
    service.warm = True
    assert routes.get("/v2/health/ready").status_code == 200


def test_a_body_that_does_not_arrive_is_given_up() -> None:
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
        "headers": [],
    }
    scope |= {"query_string": b"", "http_version": "1.1", "root_path": ""}
    asyncio.run(application(service)(scope, never, send))
    assert sent[0]["status"] == 408
