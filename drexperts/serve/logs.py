"""The log of a server: one line per event, as text or JSON, on standard error."""

import contextlib
import io
import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

_LEVELS = {"drexperts": logging.INFO, "uvicorn": logging.WARNING, "grpc": logging.WARNING}
_MOST_LINES = 10_000  # that wait to be written
_PATIENCE = 1.0  # seconds, for what is left at the end


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_event(record) | _fields(record) | self._trace(record))

    def _trace(self, record: logging.LogRecord) -> dict[str, str]:
        return {"trace": self.formatException(record.exc_info)} if record.exc_info else {}


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event = _event(record)
        fields = "".join(f" {name}={_quoted(value)}" for name, value in _fields(record).items())
        line = f"{event['time']} {event['level']} {event['event']}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class LogWriter(logging.Handler):
    """Writes lines in a thread of its own, so that a log that is not read stops no request.

    Lines that cannot be written are dropped. So are those beyond the ones that may wait, and the
    next line says how many.
    """

    def __init__(self, descriptor: int | None) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._dropped = 0
        self._lines: queue.Queue[str | None] = queue.Queue(_MOST_LINES)
        self._thread = threading.Thread(target=self._write_all, name="drexperts-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._dropped:
                dropped = _warning(f"{self._dropped} lines were not logged")
                self._lines.put_nowait(self.format(dropped))
                self._dropped = 0
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Wait until everything is written, but not for long."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, _PATIENCE)

    def close(self) -> None:
        """Write what is left, but not for long."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_PATIENCE)
        self._thread.join(_PATIENCE)
        super().close()

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError):
                self._write(f"{line}\n".encode("utf-8", "backslashreplace"))
            self._lines.task_done()

    def _write(self, line: bytes) -> None:
        """Not through a stream, whose lock a thread would still have when Python ends."""
        while line and self._descriptor is not None:
            line = line[os.write(self._descriptor, line) :]


@contextmanager
def logging_to_stderr(as_json: bool) -> Iterator[LogWriter]:
    """Until the end of the `with`, write what this package and its servers log to stderr."""
    handler = LogWriter(_descriptor())
    handler.setFormatter(_Json() if as_json else _Text())
    loggers = [logging.getLogger(name) for name in _LEVELS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger, level in zip(loggers, _LEVELS.values(), strict=True):
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield handler
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        handler.close()


def _descriptor() -> int | None:
    """That of standard error, if there is one."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, ValueError, io.UnsupportedOperation):
        return None


def _warning(message: str) -> logging.LogRecord:
    return logging.LogRecord("drexperts", logging.WARNING, "", 0, message, None, None)


def _quoted(value: object) -> object:
    """Text that looks like other fields, in quotes."""
    return json.dumps(value) if isinstance(value, str) and set(value) & set(' ="') else value


def _event(record: logging.LogRecord) -> dict[str, Any]:
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "fields", {})
