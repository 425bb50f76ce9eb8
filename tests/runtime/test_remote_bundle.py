"""Bundles at URLs: what is downloaded, when, and what becomes of what went wrong."""

import errno
import logging
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.command_line import change_engine
from support.memory_bucket import memory_bucket

from drexperts import runtime
from drexperts.runtime import UserError, remote_bundle
from drexperts.runtime.errors import BundleError, ChangedFileError, ConfigError
from drexperts.runtime.inputs import remote
from drexperts.runtime.manifest import digest, read_manifest

URL = "memory://bucket/bundle"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "drexperts" / "bundles"


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))


@pytest.fixture
def memory(bundle: Path) -> Iterator[Any]:
    with memory_bucket() as system:
        upload(system, bundle)
        yield system


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were opened at a URL, in order."""
    names = list[str]()

    def noted(address: str) -> Any:
        names.append(address.rpartition("/")[2])
        return remote.opened(address)

    monkeypatch.setattr(remote_bundle, "opened", noted)
    return names


def upload(system: Any, bundle: Path) -> None:
    for file in bundle.iterdir():
        system.pipe(f"/bucket/bundle/{file.name}", file.read_bytes())


def test_a_bundle_is_downloaded_once_and_scores_as_a_local_one(
    memory: Any, bundle: Path, cache: Path, asked: list[str], photo: Callable[..., Image.Image]
) -> None:
    memory.pipe("/bucket/bundle/notes.txt", b"not needed")
    here, there = runtime.load(bundle, threads=1), runtime.load(URL, threads=1)
    image = photo(40, 40)
    assert there.score(image).as_row() == here.score(image).as_row()
    assert asked == ["manifest.json", "model.onnx"]
    (folder,) = cache.iterdir()
    assert f"sha256:{folder.name}" == digest(read_manifest(bundle))
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", "model.onnx"]
    assert folder.stat().st_mode & 0o777 == 0o700
    runtime.load(f"{URL}/", threads=1)
    assert asked[2:] == ["manifest.json"]
    again = pickle.loads(pickle.dumps(there))
    assert again.score(image).value == here.score(image).value


def test_chains_of_urls(memory: Any, bundle: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "root"), "zip", bundle)
    shutil.make_archive(str(tmp_path / "folder"), "zip", tmp_path, "bundle")
    chains = (
        f"zip://::{tmp_path}/root.zip",
        f"zip://bundle/::{tmp_path}/folder.zip",
        f"simplecache::{URL}",
    )
    for url in chains:
        assert runtime.load(url, threads=1).manifest == read_manifest(bundle)


def test_a_changed_bundle_is_downloaded_and_the_old_one_stays(
    memory: Any, bundle: Path, cache: Path, asked: list[str]
) -> None:
    runtime.load(URL)
    change_engine(bundle, max_batch=4)
    upload(memory, bundle)
    assert runtime.load(URL).engine.max_batch == 4
    assert asked == ["manifest.json", "model.onnx"] * 2
    assert len(list(cache.iterdir())) == 2


def test_a_pinned_digest_is_held_to(
    memory: Any, bundle: Path, cache: Path, asked: list[str]
) -> None:
    pinned = digest(read_manifest(bundle))
    with pytest.raises(ConfigError, match="is not a digest"):
        runtime.load(URL, digest="../../sha256")
    with pytest.raises(BundleError, match=r"has the digest sha256:.*, not sha256:000"):
        runtime.load(URL, digest="sha256:" + 64 * "0")
    assert not cache.exists()
    runtime.load(URL, digest=pinned)
    asked.clear()
    memory.store.clear()
    runtime.load(URL, digest=pinned)  # what is here is what is pinned
    assert not asked
    (cache / pinned.removeprefix("sha256:") / "manifest.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match=r"manifest.json' was not found; check"):
        runtime.load(URL, digest=pinned)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b", "manifest.json", ".."])
def test_names_that_leave_the_folder_are_refused(
    name: str, memory: Any, bundle: Path, cache: Path
) -> None:
    manifest = (bundle / "manifest.json").read_text().replace('"model.onnx"', f'"{name}"')
    memory.pipe("/bucket/bundle/manifest.json", manifest.encode())
    with pytest.raises(BundleError, match=r"'memory://.*manifest\.json' cannot be used"):
        runtime.load(URL)
    assert not cache.exists()


@pytest.mark.parametrize("file", ["manifest.json", "model.onnx"])
def test_a_cache_that_was_tampered_with_is_downloaded_anew(
    file: str, memory: Any, bundle: Path, cache: Path
) -> None:
    pinned = digest(read_manifest(bundle))
    runtime.load(URL, digest=pinned)
    kept = next(cache.iterdir()) / file
    for content in (b"", kept.read_bytes()[:-1], kept.read_bytes() + b" \n"):
        kept.write_bytes(content)
        runtime.load(URL, digest=pinned)
    assert read_manifest(kept.parent, pinned)
    assert kept.name == "manifest.json" or kept.read_bytes() == (bundle / file).read_bytes()


def test_a_file_that_is_not_the_recorded_one_is_never_kept(
    memory: Any, bundle: Path, cache: Path
) -> None:
    memory.pipe("/bucket/bundle/model.onnx", b"another")
    with pytest.raises(ChangedFileError, match=r"upload the bundle again, its manifest last"):
        runtime.load(URL)
    assert [file.name for file in next(cache.iterdir()).iterdir()] == ["manifest.json"]
    memory.rm("/bucket/bundle/model.onnx")
    with pytest.raises(ChangedFileError, match=r"model\.onnx' was not found"):
        runtime.load(URL)
    memory.rm("/bucket/bundle/manifest.json")
    with pytest.raises(BundleError, match=r"is not a bundle.*check the address"):
        runtime.load(URL)


def test_files_that_are_too_large_are_not_read_to_their_end(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_bundle, "MAX_ENGINE_BYTES", 100)
    with pytest.raises(UserError, match="more than 100 bytes"):
        runtime.load(URL)


def test_an_engine_that_is_not_trusted_is_not_downloaded(
    memory: Any, bundle: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.loading, "check_allowed", refuse)
    with pytest.raises(BundleError, match="not built here"):
        runtime.load(URL)
    assert asked == ["manifest.json"]


def refuse(*_: Any, **__: Any) -> None:
    raise runtime.errors.NotTakenError("it was not built here")


def test_two_at_once(memory: Any, cache: Path) -> None:
    errors = list[BaseException]()

    def load() -> None:
        try:
            runtime.load(URL, threads=1)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=load) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(list(next(cache.iterdir()).iterdir())) == 2


def test_the_oldest_bundles_leave_a_full_cache(
    memory: Any, bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_bundle, "_MOST_BUNDLES", 2)
    cache.mkdir(parents=True)
    (cache / "a file of another program").touch()
    for batch in (1, 2, 3):
        change_engine(bundle, max_batch=batch)
        upload(memory, bundle)
        runtime.load(URL)
    assert sum(path.is_dir() for path in cache.iterdir()) == 2
    assert runtime.load(URL, digest=digest(read_manifest(bundle))).engine.max_batch == 3


def test_a_cache_that_cannot_be_written(
    memory: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.parent.write_bytes(b"no folder")
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        runtime.load(URL)


def test_a_cache_that_can_only_be_read(
    memory: Any, bundle: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.load(URL)
    asked.clear()

    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(remote_bundle, "written_whole", refused)
    runtime.load(URL)
    runtime.load(URL, digest=digest(read_manifest(bundle)))
    assert asked == ["manifest.json"]


def test_what_killed_downloads_left_is_removed(memory: Any, cache: Path, bundle: Path) -> None:
    folder = cache / digest(read_manifest(bundle)).removeprefix("sha256:")
    folder.mkdir(parents=True)
    for name, age in {"0a": 7200, "0b": 60}.items():
        part = folder / f".model.onnx.part-{name}"
        part.write_bytes(b"half")
        os.utime(part, (time.time() - age,) * 2)
    runtime.load(URL)
    there = sorted(file.name for file in folder.iterdir())
    assert there == [".model.onnx.part-0b", "manifest.json", "model.onnx"]


class Cutting(SimpleHTTPRequestHandler):
    """A server of files that ends the connection within the body of one, as often as it is told."""

    cuts = 0

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        data = source.read()
        if self.path.endswith(".onnx") and Cutting.cuts:
            Cutting.cuts -= 1
            data = data[: len(data) // 2]
            self.close_connection = True
        outputfile.write(data)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Cutting, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_connection_that_is_cut_leaves_nothing_half(
    bundle: Path, cache: Path, photo: Callable[..., Image.Image], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http:// with aiohttp")
    caplog.set_level(logging.INFO, "drexperts")
    with served(bundle) as url:
        Cutting.cuts = 1
        with pytest.raises(UserError, match=r"cannot read 'http://.*model\.onnx'.*try again"):
            runtime.load(url)
        assert [file.name for file in next(cache.iterdir()).iterdir()] == ["manifest.json"]
        there = runtime.load(url, threads=1)
    assert there.score(photo(40, 40)).error is None
    assert f"downloading {url}/model.onnx" in caplog.text
    with pytest.raises(UserError, match="check the address and the connection"):
        runtime.load(url)  # the server is gone
    runtime.load(url, digest=digest(there.manifest), threads=1)
