"""What a request of any protocol has: an id, somebody who is told of its end, and a log line."""

import logging
import re
import uuid
from collections.abc import Callable, Iterable
from typing import TypeAlias

from drexperts.runtime.quoting import printable, shortened

_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_log = logging.getLogger("drexperts.serve")

# Called at the end of each request with its route, its outcome and its seconds.
OnRequest: TypeAlias = Callable[[str, str, float], object]


def id_of(given: Iterable[bytes]) -> str:
    """The id that the client gave, if it is one that can be logged; a new one otherwise."""
    values = list(given)
    if len(values) == 1 and _ID.fullmatch(values[0]):
        return values[0].decode("ascii")
    return uuid.uuid4().hex


def log_request(
    request_id: str,
    *,
    method: str,
    path: str,
    status: int | str,
    outcome: str,
    received: int,
    seconds: float,
    client: str | None,
) -> None:
    """Log the end of a request, of any protocol.

    outcome: "ok", or the code of the error
    received: bytes
    client: its address
    """
    fields = {
        "request_id": request_id,
        "method": method,
        "path": printable(shortened(path, 200)),
        "status": status,
        "outcome": outcome,
        "bytes": received,
        "seconds": round(seconds, 6),
        "client": client,
    }
    _log.info("request", extra={"fields": fields})
