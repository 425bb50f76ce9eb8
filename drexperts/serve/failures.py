"""What a request that fails is answered with."""

from collections.abc import Mapping
from typing import NamedTuple

from starlette.exceptions import HTTPException

from drexperts.runtime.errors import (
    ClosedError,
    DeadlineError,
    DeviceError,
    DrexpertsError,
    ImageError,
    QueueFullError,
)

_NOTHING: Mapping[str, str] = {}
CLOSE = {"Connection": "close"}  # of answers to what is not read to its end


class Answer(NamedTuple):
    """The answer to a request that fails.

    code: names the error, for programs
    message: says what to do, for people
    """

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = _NOTHING


class RequestError(DrexpertsError):
    """A request that cannot be answered, and the answer that says so."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] = _NOTHING
    ) -> None:
        super().__init__(message)
        self.answer = Answer(status, code, message, headers)


class ClientGoneError(DrexpertsError):
    """The client closed the connection: nobody reads an answer."""


# Everything else is a failure of ours, of which nothing is said but the request's id in the log.
_KNOWN: tuple[tuple[type[DrexpertsError], int, str], ...] = (
    (ImageError, 422, "not_an_image"),
    (QueueFullError, 503, "queue_full"),
    (ClosedError, 503, "stopping"),
    (DeadlineError, 504, "timed_out"),
)
_OF_STATUS = {404: "not_found", 405: "method_not_allowed"}
GONE = 499  # in the log and the metrics only, as in nginx's


def answer_of(error: Exception) -> Answer:
    """What a request is answered with that failed with this error."""
    if isinstance(error, RequestError):
        return error.answer
    if isinstance(error, HTTPException):
        code = _OF_STATUS.get(error.status_code, "invalid")
        return Answer(error.status_code, code, error.detail, error.headers or _NOTHING)
    for kind, status, code in _KNOWN:
        if isinstance(error, kind):
            again = {"Retry-After": "1"} if status == 503 else _NOTHING
            return Answer(status, code, str(error), again)
    if isinstance(error, DeviceError):
        failed = "the engine failed: try again, or another replica"
        return Answer(503, "engine_failed", failed, {"Retry-After": "5"})
    return Answer(500, "internal", "the server failed: its log says why, by the request's id")
