"""The log of a server: what is written, and that nobody waits for whoever reads it."""

import contextlib
import json
import logging
import os

import pytest

from drexperts.serve import logs


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    with contextlib.ExitStack() as ending:
        ending.callback(os.close, writing)
        yield reading, writing
        with contextlib.suppress(OSError):  # a test may have closed it
            os.close(reading)


def record(message):
    return logging.LogRecord("drexperts", logging.INFO, "", 0, message, None, None)


def read_lines(descriptor, count):
    """So many lines, and the rest of what was read with them."""
    text = b""
    while text.count(b"\n") < count:
        text += os.read(descriptor, 2**16)
    return text.decode().splitlines()


def test_an_event_is_a_line_of_json_with_its_fields(pipe) -> None:
    writer = logs.LogWriter(pipe[1])
    writer.setFormatter(logs._Json())
    event = record("request\n\u00e9\ud800")
    event.fields = {"status": 200}
    writer.handle(event)
    writer.flush()
    (line,) = read_lines(pipe[0], 1)
    found = json.loads(line)
    assert (found["event"], found["level"], found["status"]) == (event.msg, "info", 200)
    writer.close()


def test_a_path_is_not_taken_for_other_fields() -> None:
    event = record("request")
    event.fields = {"path": "/a status=200", "status": 404}
    assert logs._Text().format(event).endswith(' request path="/a status=200" status=404')


def test_lines_of_a_log_that_is_not_read_are_dropped_and_counted(pipe, monkeypatch) -> None:
    monkeypatch.setattr(logs, "_MOST_LINES", 3)
    monkeypatch.setattr(logs, "_PATIENCE", 0.05)
    writer = logs.LogWriter(pipe[1])
    for _ in range(20):
        writer.handle(record("x" * 30_000))
    writer.flush()
    kept = 20 - writer._dropped
    assert 3 <= kept < 20
    lines = read_lines(pipe[0], kept)
    assert len(lines) == kept
    writer.flush()
    writer.handle(record("again"))
    assert read_lines(pipe[0], 2) == [f"{20 - kept} lines were not logged", "again"]
    writer.close()


def test_a_log_that_nobody_can_read_is_no_error(pipe) -> None:
    os.close(pipe[0])
    for descriptor in (pipe[1], None):
        writer = logs.LogWriter(descriptor)
        writer.handle(record("x"))
        writer.flush()
        writer.close()
        assert not writer._thread.is_alive()


def test_a_server_without_standard_error_has_a_log(monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    with logs.logging_to_stderr(True):
        logging.getLogger("drexperts.serve").info("x")
