"""Compiled models that are kept: used if they are what was noted, and otherwise not missed."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.openvino_engines import add_openvino_engine

from drexperts import runtime
from drexperts.runtime import openvino_cache, openvino_session
from drexperts.runtime.cpus import cpu_capability
from drexperts.runtime.manifest import sha256_of
from drexperts.runtime.openvino_cache import CompiledModels

pytest.importorskip("openvino")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bundle(toy_bundle, tmp_path):
    copy = shutil.copytree(toy_bundle, tmp_path / "bundle")
    add_openvino_engine(copy, "fp32")
    return copy


@pytest.fixture
def compiled(monkeypatch):
    """How many models were compiled from their file."""
    counts = [0]
    original = openvino_session.compiled_model

    def counting(*arguments):
        counts[0] += 1
        return original(*arguments)

    monkeypatch.setattr(openvino_session, "compiled_model", counting)
    return counts


def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "drexperts" / "openvino"


def notes(tmp_path: Path) -> Path:
    return tmp_path / "state" / "drexperts" / "openvino-compiled"


def only(tmp_path: Path) -> Path:
    (file,) = folder(tmp_path).iterdir()
    return file


def scores(bundle, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    with runtime.load(bundle, engine="openvino", **options) as scorer:
        found = scorer.session.run(pixels)
        return b"".join(array.tobytes() for array in found.values()), scorer.session.description


def test_the_second_start_compiles_nothing_and_scores_the_same(bundle, compiled, tmp_path):
    first = scores(bundle)
    assert only(tmp_path).suffix == ".blob"
    assert scores(bundle) == first
    assert compiled == [1]


def test_it_serves_any_number_of_threads_and_streams(bundle, compiled):
    scores(bundle, threads=2)
    for threads, streams in ((1, 1), (2, 2)):
        with runtime.load(bundle, threads=threads, streams=streams) as scorer:
            session: Any = scorer.session
            told = session.options
        assert (told["INFERENCE_NUM_THREADS"], told["NUM_STREAMS"]) == (str(threads), str(streams))
    assert compiled == [1]


@pytest.mark.skipif(sys.platform == "win32", reason="needs Unix permissions")
def test_only_its_user_can_enter_the_folder(bundle, tmp_path):
    scores(bundle)
    assert stat.S_IMODE(folder(tmp_path).stat().st_mode) == 0o700


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def changed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def replaced_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "damage", [cut, changed, Path.unlink, replaced_by_folder, lambda file: file.write_bytes(b"")]
)
def test_another_file_than_was_noted_is_not_opened(bundle, compiled, tmp_path, damage, monkeypatch):
    before = scores(bundle)
    damage(only(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr("openvino.Core.import_model", None)  # which must not be asked
        assert scores(bundle) == before
    assert compiled == [2]
    if damage is not replaced_by_folder:
        assert scores(bundle) == before
        assert compiled == [2]


@pytest.mark.parametrize("text", [None, "", "\xff", "one word\n", "a b c\n"])
def test_without_a_note_it_is_not_opened(bundle, compiled, tmp_path, text):
    before = scores(bundle)
    notes(tmp_path).unlink()
    if text is not None:
        notes(tmp_path).write_text(text)
    assert scores(bundle) == before
    assert compiled == [2]


def test_noted_bytes_that_openvino_refuses_are_compiled_anew(bundle, compiled, tmp_path, capfd):
    """As it does with those of another version, or of another kind of CPU."""
    before = scores(bundle)
    file = only(tmp_path)
    file.write_bytes(b"meta=1.0;ov=2025.0.0;isa=Abacus" + file.read_bytes())
    notes(tmp_path).write_text(f"{file.name} {sha256_of(file)}\n")
    assert scores(bundle) == before
    assert compiled == [2]
    assert scores(bundle) == before
    assert compiled == [2]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("place", ["cache", "state"])
def test_a_place_that_cannot_be_written_is_no_error(bundle, compiled, tmp_path, place):
    (tmp_path / place).write_text("a file where a folder should be")
    assert scores(bundle) == scores(bundle)
    assert compiled == [2]


def test_a_kept_model_with_other_products_is_compiled_anew(bundle, compiled, tmp_path, monkeypatch):
    before = scores(bundle)
    with monkeypatch.context() as patched:
        patched.setattr(openvino_cache, "products", lambda _: {"bf16": 2})
        assert scores(bundle) == before
    assert compiled == [2]
    assert scores(bundle) == before
    assert compiled == [2]


def test_without_a_home_nothing_is_kept(bundle, compiled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert scores(bundle) == scores(bundle)
    assert compiled == [2]
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_a_changed_engine_is_refused_although_its_compiled_model_is_kept(bundle):
    scores(bundle)
    (engine,) = (each for each in runtime.read_manifest(bundle).engines if each.products)
    with open(bundle / engine.file, "ab") as stream:
        stream.write(b"\0")
    with pytest.raises(runtime.ChangedFileError, match="SHA-256"):
        runtime.load(bundle)


def test_what_an_engine_was_compiled_to_before_is_dropped(bundle, tmp_path):
    scores(bundle)
    now = only(tmp_path)
    engine, end = now.name[:16], f"{'0' * 16}.blob"
    before = now.with_name(f"{engine}-{cpu_capability()}-{end}")
    others = [
        now.with_name(f"{'1' * 16}-{cpu_capability()}-{end}"),
        now.with_name(f"{engine}-{cpu_capability()}-more-{end}"),  # of another kind of CPU
    ]
    for file in (before, *others):
        file.write_bytes(b"of another version")
    now.unlink()
    scores(bundle)
    assert set(folder(tmp_path).iterdir()) == {now, *others}
    assert [line.split()[0] for line in notes(tmp_path).read_text().splitlines()] == [now.name]


def test_the_oldest_are_dropped_beyond_the_limit(bundle, tmp_path, monkeypatch):
    scores(bundle)
    now = only(tmp_path)
    size = now.stat().st_size
    monkeypatch.setattr(openvino_cache, "_MOST_BYTES", 3 * size)
    now.unlink()
    for age in range(1, 5):
        file = now.with_name(f"{age}.blob")
        file.write_bytes(bytes(size))
        os.utime(file, (1e9 - age, 1e9 - age))
    scores(bundle)
    assert {file.name for file in folder(tmp_path).iterdir()} == {now.name, "1.blob", "2.blob"}


def test_the_oldest_are_dropped_beyond_the_number(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_cache, "_MOST_MODELS", 2)
    scores(bundle)
    now = only(tmp_path)
    now.unlink()
    for age in range(1, 4):
        file = now.with_name(f"{age}.blob")
        file.touch()
        os.utime(file, (1e9 - age, 1e9 - age))
    scores(bundle)
    assert {file.name for file in folder(tmp_path).iterdir()} == {now.name, "1.blob"}


def test_names_differ_with_all_that_a_compiled_model_depends_on():
    keys = [
        CompiledModels("a" * 64, "x", version="1"),
        CompiledModels("b" * 64, "x", version="1"),
        CompiledModels("a" * 64, "x", version="2"),
        CompiledModels("a" * 64, "y", version="1"),
    ]
    assert len({key.name for key in keys}) == 4


LOAD = """
import sys
from drexperts import runtime
assert runtime.load(sys.argv[1]).engine.backend == "openvino"
"""


def test_processes_may_start_together(bundle, compiled, tmp_path):
    command = [sys.executable, "-P", "-c", LOAD, str(bundle)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    told = [each.communicate()[1] for each in started]
    assert [(each.returncode, text) for each, text in zip(started, told, strict=True)] == (
        [(0, b"")] * 3
    )
    only(tmp_path)
    scores(bundle)
    assert compiled == [0]
