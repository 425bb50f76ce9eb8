"""Downloads from the hub: revision, token and hash. The hub is a stand-in on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from drexperts.model import downloads
from drexperts.model.downloads import PINS, Pin, fetch
from drexperts.runtime.errors import WeightsError

COMMIT, OTHER = "1" * 40, "2" * 40
PINNED = "weblzw/daclip-uir-ViT-B-32-irsde"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Hub:
    """What is asked of the hub, and the file that it gives."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.content = folder, [], b"weights"  # type: ignore[var-annotated]

    def __call__(self, repository: str, filename: str, **options: Any) -> str:
        self.asked.append((repository, filename, options))
        commit = COMMIT if options["revision"] == "main" else options["revision"]
        path = self.folder / commit / filename
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.content)
        return str(path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    made = Hub(tmp_path)
    monkeypatch.setattr(downloads, "hf_hub_download", made)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


def records(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "drexperts" / "downloads.json"


def test_the_first_download_is_recorded_and_said_once(hub, tmp_path):
    notes: list[str] = []
    for _ in range(2):
        assert fetch("a/b", "w.bin", notes.append).read_bytes() == b"weights"
    (note,) = notes
    assert COMMIT in note
    assert sha256(b"weights") in note
    recorded = json.loads(records(tmp_path).read_text())
    assert recorded == {"a/b/w.bin": [COMMIT, sha256(b"weights")]}
    # The second time asks for the commit of the first, not for what `main` has become.
    assert [options for *_, options in hub.asked] == [
        {"revision": "main", "token": False},
        {"revision": COMMIT, "token": False},
    ]


def test_without_a_home_nothing_is_recorded_and_that_is_said(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    notes: list[str] = []
    assert fetch("a/b", "w.bin", notes.append).read_bytes() == b"weights"
    assert "could not be recorded" in notes[0]
    assert "set HOME" in notes[0]
    assert list(tmp_path.rglob("downloads.json")) == []


@pytest.mark.parametrize("repository", ["a/b", PINNED])
def test_another_file_at_the_same_revision_is_refused(repository, hub):
    fetch(repository, "w.bin", print)
    hub.content = b"others"
    with pytest.raises(WeightsError) as caught:
        fetch(repository, "w.bin", print)
    for named in (sha256(b"weights"), sha256(b"others"), "w.bin", "Remove"):
        assert named in str(caught.value)


def test_pinned_repositories_have_their_revision(hub):
    assert all(len(pin.revision) == 40 for pin in PINS.values())
    fetch(PINNED, "w.bin", print)
    assert hub.asked[0][2]["revision"] == PINS[PINNED].revision


def test_a_pinned_hash_is_held_from_the_first_download_on(hub, monkeypatch, tmp_path):
    monkeypatch.setitem(PINS, "a/b", Pin(OTHER, sha256(b"weights")))
    notes: list[str] = []
    fetch("a/b", "w.bin", notes.append)
    assert notes == []
    hub.content = b"others"
    with pytest.raises(WeightsError, match=sha256(b"others")):
        fetch("a/b", "w.bin", notes.append)


def test_a_new_pinned_revision_is_recorded_anew(hub, monkeypatch, tmp_path):
    fetch("a/b", "w.bin", print)
    monkeypatch.setitem(PINS, "a/b", Pin(OTHER))
    hub.content = b"newer"
    fetch("a/b", "w.bin", print)
    assert json.loads(records(tmp_path).read_text())["a/b/w.bin"] == [OTHER, sha256(b"newer")]


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": ["x"' + "[" * 9000, "\0"])
def test_damaged_records_are_named(text, hub, tmp_path):
    records(tmp_path).parent.mkdir(parents=True)
    records(tmp_path).write_text(text)
    with pytest.raises(WeightsError, match=r"downloads\.json"):
        fetch("a/b", "w.bin", print)


def test_a_record_that_cannot_be_written_is_said(hub, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    notes: list[str] = []
    with pytest.raises(WeightsError, match=r"downloads\.json"):
        fetch("a/b", "w.bin", notes.append)


@pytest.fixture
def loopback() -> Any:
    """A hub on 127.0.0.1, and the headers of each request that it got."""
    seen: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(200)
            self.send_header("ETag", f'"{sha256(b"weights")}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "7")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(b"weights")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_the_library_sends_no_token_and_gets_the_revision(loopback, tmp_path):
    """Through huggingface_hub itself, with a token in the environment."""
    address, seen = loopback
    code = (
        "from drexperts.model.downloads import fetch\n"
        "print(fetch('a/b', 'w.bin', print).read_bytes())\n"
        f"print(fetch('{PINNED}', 'w.bin', print).read_bytes())"
    )
    environment = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path)}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.count("b'weights'") == 2, done.stderr
    assert {header for _, header in seen} == {None}
    assert any(path == f"/{PINNED}/resolve/{PINS[PINNED].revision}/w.bin" for path, _ in seen)
