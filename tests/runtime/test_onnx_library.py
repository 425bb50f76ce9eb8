"""Nothing is sent anywhere: watched from outside, because what a library promises may not hold."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.watching import watched

ROOT = Path(__file__).parents[2]
LOAD_AND_SCORE = """
import sys, time
import numpy as np
from drexperts import runtime
runtime.load(sys.argv[1], device="cpu").score(np.zeros((96, 96, 3), np.uint8))
time.sleep(12)  # telemetry looks names up after a while
"""
DRX = "import sys; from drexperts.cli.main import main; sys.exit(main(sys.argv[1:]))"
LIBRARIES = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        print(name, "is not installed")
"""


@pytest.mark.slow
def test_loading_and_scoring_send_and_leave_nothing(tmp_path: Path, toy_bundle: Path) -> None:
    assert watched(tmp_path, LOAD_AND_SCORE, toy_bundle) == ([], [])


@pytest.mark.slow
def test_the_watch_sees_what_is_left_when_telemetry_is_on(tmp_path: Path, toy_bundle: Path) -> None:
    """With the application's own choice, which is left alone."""
    code = LOAD_AND_SCORE.replace("12", "0")
    assert watched(tmp_path, code, toy_bundle, ORT_DISABLE_TELEMETRY="0")[1] != []


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["score", "info"])
def test_the_command_line_sends_and_leaves_nothing(
    tmp_path: Path, toy_bundle: Path, verb: str
) -> None:
    images = [ROOT / "docs"] if verb == "score" else []
    assert watched(tmp_path, DRX, verb, toy_bundle, *images) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("drexperts.export.bundle", "drexperts.export.engines.build", "polygraphy.backend.onnxrt"),
        ("drexperts.training", "drexperts.evaluation", "huggingface_hub", "timm", "open_clip"),
        ("drexperts.bench.bundle", "tensorrt_rtx", "tensorrt"),
    ],
)
def test_importing_what_the_other_verbs_use_sends_nothing(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    assert watched(tmp_path, LIBRARIES, *names) == ([], [])


def in_a_process(code: str, **settings: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env=kept | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


STAND_IN = """
import os, sys, types
module = types.ModuleType("onnxruntime")
module.disable_telemetry_events = lambda: print("disabled")
if FIRST:
    sys.modules["onnxruntime"] = module
from drexperts.runtime.onnx_library import import_onnxruntime
sys.modules["onnxruntime"] = module
import_onnxruntime(), import_onnxruntime()
print(os.environ.get("ORT_DISABLE_TELEMETRY"))
"""


def test_the_variable_is_set_before_the_import() -> None:
    told = in_a_process(STAND_IN.replace("FIRST", "False"))
    assert told.splitlines() == ["disabled", "disabled", "1"]


@pytest.mark.parametrize("choice", ["0", ""])
@pytest.mark.parametrize("first", ["True", "False"])
def test_the_choice_of_an_application_is_left_alone(choice: str, first: str) -> None:
    code = STAND_IN.replace("FIRST", first)
    assert in_a_process(code, ORT_DISABLE_TELEMETRY=choice) == f"{choice}\n"


def test_an_application_that_imported_it_first_is_told_once() -> None:
    told = in_a_process(STAND_IN.replace("FIRST", "True"))
    assert told.count("set ORT_DISABLE_TELEMETRY=1") == 1
    assert "None" in told.splitlines()


def imports_onnxruntime(file: Path) -> bool:
    """Whether importing a module imports ONNX Runtime, perhaps before drexperts."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        else:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.partition(".")[0] == "onnxruntime" for name in names):
            return True
    return False


def test_no_module_imports_it_by_itself() -> None:
    folders = [ROOT / name for name in ("runtime", "export", "kernels", "benchmarks", "examples")]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    files += [path for path in (ROOT / "drexperts").rglob("*.py")]
    assert [str(path) for path in files if imports_onnxruntime(path)] == []
