"""The log of a server: one line per event, as text or JSON, on standard error."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from drexperts.runtime.quoting import printable, shortened

_LEVELS = {"drexperts": logging.INFO, "uvicorn": logging.WARNING, "grpc": logging.WARNING}
_log = logging.getLogger("drexperts.serve")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_event(record) | _fields(record) | self._trace(record))

    def _trace(self, record: logging.LogRecord) -> dict[str, str]:
        return {"trace": self.formatException(record.exc_info)} if record.exc_info else {}


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event = _event(record)
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        line = f"{event['time']} {event['level']} {event['event']}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


@contextmanager
def logging_to_stderr(as_json: bool) -> Iterator[None]:
    """Until the end of the `with`, write what this package and its servers log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Text())
    loggers = [logging.getLogger(name) for name in _LEVELS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger, level in zip(loggers, _LEVELS.values(), strict=True):
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


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


def _event(record: logging.LogRecord) -> dict[str, Any]:
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "fields", {})
