"""OpenVINO without its telemetry: watched from outside, and by what it loads and leaves."""

import ast
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from support.openvino_engines import add_openvino_engine
from support.watching import watched

from drexperts.runtime.openvino_library import forcing_variable, openvino_version

ROOT = Path(__file__).parents[2]
OURS = (".cache/drexperts/openvino/", ".local/state/drexperts/")  # in the user's home
LOAD_AND_SCORE = """
import sys, time
import numpy as np
from drexperts import runtime
scorer = runtime.load(sys.argv[1], engine="openvino")
assert scorer.score(np.zeros((96, 96, 3), np.uint8)).error is None
time.sleep(SECONDS)
"""
BY_ITSELF = "import openvino, time; openvino.Core(); time.sleep(SECONDS)"
DRX = "import sys; from drexperts.cli.main import main; sys.exit(main(sys.argv[1:]))"

installed = pytest.mark.skipif(openvino_version() is None, reason="openvino is not installed")


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(toy_bundle, tmp_path / "bundle")
    add_openvino_engine(copy, "fp32")
    return copy


def foreign(files: list[Path], home: Path) -> list[str]:
    """The files that are outside our own folders in a home."""
    names = [path.relative_to(home).as_posix() for path in files]
    return [name for name in names if not name.startswith(OURS)]


@installed
@pytest.mark.slow
@pytest.mark.parametrize("start", ["cold", "warm"])
def test_loading_and_scoring_send_and_leave_nothing(
    tmp_path: Path, bundle: Path, start: str
) -> None:
    code = LOAD_AND_SCORE.replace("SECONDS", "5")  # telemetry sends after a while
    (tmp_path / "first").mkdir()
    calls, files = watched(tmp_path / "first", code, bundle)
    if start == "warm":
        before = tmp_path / "first" / "home"
        places = {"XDG_CACHE_HOME": before / ".cache", "XDG_STATE_HOME": before / ".local/state"}
        calls, files = watched(tmp_path, code, bundle, **{n: str(p) for n, p in places.items()})
        assert files == []
    assert (calls, foreign(files, tmp_path / "first" / "home")) == ([], [])


@installed
@pytest.mark.slow
def test_the_watch_sees_what_openvino_does_by_itself(tmp_path: Path) -> None:
    if not any(metadata.distributions(name="openvino-telemetry")):
        pytest.skip("openvino-telemetry is not installed")
    calls, files = watched(tmp_path, BY_ITSELF.replace("SECONDS", "2"))
    assert calls or foreign(files, tmp_path / "home")


@installed
@pytest.mark.slow
def test_the_command_line_sends_and_leaves_nothing(tmp_path: Path, bundle: Path) -> None:
    arguments = ("score", bundle, ROOT / "docs", "--engine", "openvino")
    calls, files = watched(tmp_path, DRX, *arguments)
    assert (calls, foreign(files, tmp_path / "home")) == ([], [])


def in_a_process(code: str, home: Path, *arguments: object) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    environment = kept | {"HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@installed
def test_its_telemetry_is_not_loaded(tmp_path: Path, bundle: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    code = LOAD_AND_SCORE.replace("SECONDS", "0") + "assert not sys.modules['openvino_telemetry']"
    in_a_process(code, home, bundle)
    files = [path for path in home.rglob("*") if path.is_file()]
    assert files
    assert foreign(files, home) == []


STAND_IN = """
import sys, types
module = types.ModuleType("openvino")
module.__version__ = "2026.9.1-1-abc-releases/2026/9"
if FIRST:
    sys.modules["openvino"], sys.modules["openvino_telemetry"] = module, types.ModuleType("t")
from drexperts.runtime.openvino_library import import_openvino, openvino_version
if not FIRST:
    sys.meta_path.insert(0, type("Finder", (), {"find_spec": lambda *_: print(
        "telemetry", sys.modules.get("openvino_telemetry", "is free"))}))
    try:
        import_openvino()
    except Exception:
        pass
    sys.modules["openvino"] = module
import_openvino()
print(openvino_version())
"""


def test_its_telemetry_cannot_be_loaded_by_the_time_of_the_import(tmp_path: Path) -> None:
    told = in_a_process(STAND_IN.replace("FIRST", "False"), tmp_path)
    assert "telemetry None" in told
    assert told.splitlines()[-1] == "2026.9.1"
    assert "has started" not in told


def test_an_application_that_imported_it_first_is_told_once(tmp_path: Path) -> None:
    told = in_a_process(STAND_IN.replace("FIRST", "True"), tmp_path)
    assert told.count("its telemetry has started") == 1


def imports_openvino(file: Path) -> bool:
    """Whether a module imports OpenVINO by a statement, past `import_openvino`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        else:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.partition(".")[0] == "openvino" for name in names):
            return True
    return False


def test_no_module_imports_it_by_itself() -> None:
    folders = [ROOT / name for name in ("runtime", "export", "kernels", "benchmarks", "examples")]
    files = [path for folder in (*folders, ROOT / "drexperts") for path in folder.rglob("*.py")]
    assert [str(path) for path in files if imports_openvino(path)] == []


@pytest.mark.parametrize("prefix", ["ONEDNN", "DNNL"])
@pytest.mark.parametrize(
    ("name", "value", "forces"),
    [
        ("DEFAULT_FPMATH_MODE", "BF16", True),
        ("DEFAULT_FPMATH_MODE", "any", True),
        ("DEFAULT_FPMATH_MODE", "strict", False),
        ("DEFAULT_FPMATH_MODE", "", False),
        ("MAX_CPU_ISA", "AVX2", True),
        ("MAX_CPU_ISA", "Default", False),
        ("MAX_CPU_ISA", "all", False),
        ("MAX_CPU_ISA", "", False),
    ],
)
def test_a_variable_that_changes_what_is_computed_is_named(
    prefix: str, name: str, value: str, forces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert forcing_variable() is None
    monkeypatch.setenv(f"{prefix}_{name}", value)
    reason = forcing_variable() or ""
    assert (f"unset {prefix}_{name}" in reason) == forces
    assert bool(reason) == forces
