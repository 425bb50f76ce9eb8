"""A copy in memory that stays what was hashed."""

import hashlib
import os
import sys

import pytest

from drexperts.runtime.sealed import sealed_copy

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has sealed memory")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(range(256)) * 5000)
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@needs_linux
def test_the_copy_cannot_be_changed(file):
    content = file.read_bytes()
    with sealed_copy(file, sha256(file)) as copy:
        file.write_bytes(b"another")
        assert copy is not None
        with open(copy.path, "r+b", buffering=0) as again:
            for change in (lambda: again.write(b"x"), lambda: again.truncate(0)):
                with pytest.raises(PermissionError):
                    change()
        with pytest.raises(TypeError):
            copy.content[0] = 1
        with open(copy.path, "rb") as again:
            assert again.read() == copy.content[:] == content


@needs_linux
def test_nothing_stays_open(file):
    before = os.listdir("/proc/self/fd")
    with sealed_copy(file, sha256(file)) as copy:
        assert copy is not None
    with sealed_copy(file, "0" * 64) as none:
        assert none is None
    assert os.listdir("/proc/self/fd") == before
    assert copy.content.closed


def test_no_copy_of_another_file(file, tmp_path):
    (tmp_path / "empty").touch()
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe")  # to open it would wait for its writer
    with open(tmp_path / "huge", "wb") as sparse:
        sparse.truncate(2**40)
    digest = sha256(file)
    file.write_bytes(b"changed")
    for name in (file.name, "empty", "absent", "", "pipe", "huge"):
        with sealed_copy(tmp_path / name, digest) as copy:
            assert copy is None


def test_no_copy_where_there_is_no_such_memory(file, monkeypatch):
    def refused(*_):
        raise OSError("not permitted")

    monkeypatch.setattr(os, "memfd_create", refused, raising=False)
    with sealed_copy(file, sha256(file)) as copy:
        assert copy is None
