"""What every kernel uses of a GPU, and what the command reports.

Triton's compiler runs in other processes, because tests of kernels replace it by the interpreter.
Here one configuration of each kernel is compiled; `make resources` compiles all of them.
"""

import functools
import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drexperts.kernels import resource_table
from drexperts.kernels.launch import ARCHITECTURES
from drexperts.runtime.errors import BackendError

Run = Callable[..., subprocess.CompletedProcess[str]]

GOLDEN = Path(__file__).parent.parent / "fixtures" / "kernel_resources.json"
# The released encoder's width in an engine's dtype, and the kernels that exist only in float32.
SAMPLE = ("fp16/384", "combine/fp32/384", "deltas/fp32/384")

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton exists for Linux only"
)
slow = pytest.mark.slow


@pytest.fixture(scope="session")
def command(compiling: Run) -> Run:
    return functools.partial(compiling, "-m", "drexperts.kernels.resource_table")


def document_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode in (resource_table.DONE, resource_table.DIFFERS), done.stderr
    return json.loads(done.stdout)


# What is shipped.


def golden_kernels() -> set[str]:
    resources = json.loads(GOLDEN.read_text())["resources"]
    return {name.partition("/")[0] for names in resources.values() for name in names}


@pytest.fixture(scope="session")
def shipped(command: Run) -> dict[str, Any]:
    sample = [part for name in SAMPLE for part in ("--kernel", name)]
    return document_of(command("--golden", str(GOLDEN), "--json", *sample))


@slow
@needs_triton
@pytest.mark.parametrize("arch", [str(arch) for arch in ARCHITECTURES])
def test_shipped_kernels_can_run_and_use_what_the_table_says(arch, shipped):
    assert shipped["failures"].get(arch, {}) == {}
    compiled = {name.partition("/")[0] for name in shipped["resources"][arch]}
    assert compiled == golden_kernels(), "a kernel was not compiled: extend SAMPLE"
    assert shipped["differences"].get(arch, {}) == {}, "is it `make golden`?"
    if arch in shipped["not compared"]:
        pytest.skip(shipped["not compared"][arch])


# What the command reports, on toy kernels.

BROKEN = """
from dataclasses import replace

from drexperts.kernels.launch import Launch
from support.toy_triton import multiplying, scaling

class OldPtx(Launch):
    @property
    def options(self):
        return super().options | {"ptx_version": 80}

def specialisations(arch):
    yield replace(scaling(), name="deadly", launch=OldPtx(4, 1, {}, ""))
    yield multiplying(256, "greedy", warps=32)
    yield replace(scaling(), name="incomplete", constants={})
"""


@pytest.fixture(scope="session")
def toy_table(tmp_path_factory: pytest.TempPathFactory, command: Run) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("table") / "table.json"
    done = command("--module", "support.toy_triton", "--write", str(path))
    assert done.returncode == resource_table.DONE, done.stderr
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def findings(
    tmp_path_factory: pytest.TempPathFactory, toy_table: dict[str, Any], command: Run
) -> dict[str, Any]:
    """For kernels that cannot run, with a table that is wrong for sm_120 and old for sm_80."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "broken.py").write_text(BROKEN)
    wrong = json.loads(json.dumps(toy_table))
    wrong["versions"]["ptxas"]["80"] = "11.0"
    for arch in ("80", "120"):
        wrong["resources"][arch]["scaled/fp16"]["registers"] -= 1
        wrong["resources"][arch]["gone"] = wrong["resources"][arch].pop("product/fp16")
    (folder / "wrong.json").write_text(json.dumps(wrong))
    arguments = ["--module", "support.toy_triton", "--module", "broken"]
    arguments += ["--arch", "80", "--arch", "120"]
    done = command(*arguments, "--golden", str(folder / "wrong.json"), "--json", folder=folder)
    assert done.returncode == resource_table.DIFFERS, done.stderr
    return json.loads(done.stdout)


@slow
@needs_triton
def test_a_table_has_every_kernel_on_every_architecture(toy_table):
    assert toy_table["resources"].keys() == set(map(str, ARCHITECTURES))
    assert toy_table["versions"]["ptxas"].keys() == toy_table["resources"].keys()
    for rows in toy_table["resources"].values():
        assert rows.keys() == {"product/fp16", "scaled/fp16", "scaled/fp32"}
        assert rows["product/fp16"]["shared"] >= 2 * 64 * 64 * 2  # the two matrices it loads
        assert 0 < rows["scaled/fp16"]["registers"] < 64
        assert rows["scaled/fp16"]["spills"] == rows["scaled/fp16"]["shared"] == 0


@slow
@needs_triton
@pytest.mark.parametrize(("arch", "limit"), [("80", 163), ("120", 99)], ids=["sm_80", "sm_120"])
def test_too_much_shared_memory_is_found(arch, limit, findings):
    message = findings["failures"][arch]["greedy"]
    assert f"sm_{arch}" in message
    assert "262144" in message
    assert str(limit * 1024) in message


@slow
@needs_triton
def test_a_kernel_that_ends_the_compiler_is_named_and_the_others_are_compiled(findings):
    assert "LLVM ERROR: PTX version 8.0" in findings["failures"]["120"]["deadly"]
    assert findings["resources"]["80"]["deadly"]["registers"] > 0, "sm_80 accepts PTX 8.0"
    assert findings["resources"]["120"].keys() == {"scaled/fp16", "scaled/fp32", "product/fp16"}


def test_no_table_is_written_if_a_kernel_cannot_run(tmp_path, monkeypatch, capsys):
    failed = resource_table.Report({}, {"80": {}}, {"80": {"toy": "InternalError"}}, {}, {})
    monkeypatch.setattr(resource_table, "_checked", lambda arguments: failed)
    path = tmp_path / "table.json"
    assert resource_table.main(["--write", str(path)]) == resource_table.DIFFERS
    assert str(path) in capsys.readouterr().err
    assert not path.exists()


@slow
@needs_triton
def test_missing_arguments_are_named(findings):
    assert "BLOCK" in findings["failures"]["120"]["incomplete"]


@slow
@needs_triton
def test_a_changed_number_is_found(findings, toy_table):
    registers = toy_table["resources"]["120"]["scaled/fp16"]["registers"]
    message = findings["differences"]["120"]["scaled/fp16"]
    assert message.startswith(f"registers {registers}, ")
    assert f"the table: registers {registers - 1}, " in message
    assert "scaled/fp32" not in findings["differences"]["120"]


@slow
@needs_triton
@pytest.mark.parametrize("arch", ["80", "120"])
def test_missing_and_superfluous_rows_are_found(arch, findings):
    assert findings["differences"][arch]["gone"] == "in the table, but not shipped"
    assert findings["differences"][arch]["product/fp16"] == "shipped, but not in the table"


@slow
@needs_triton
def test_numbers_of_another_ptxas_are_not_compared(findings):
    assert "ptxas 11.0" in findings["not compared"]["80"]
    assert "scaled/fp16" not in findings["differences"]["80"]
    assert "120" not in findings["not compared"]


# The user's mistakes, which need no compiler.


@pytest.mark.parametrize("content", [None, "no JSON", "[]", "{}", '{"versions": 1}'])
def test_a_file_without_a_table_is_named(content, tmp_path, capsys):
    path = tmp_path / "table.json"
    if content is not None:
        path.write_text(content)
    assert resource_table.main(["--golden", str(path)]) == resource_table.USER_MISTAKE
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("part", [("--arch", "90"), ("--kernel", "pooling")])
def test_a_part_is_not_written_as_a_table(part, tmp_path, capsys):
    path = tmp_path / "table.json"
    assert resource_table.main(["--write", str(path), *part]) == resource_table.USER_MISTAKE
    assert part[0] in capsys.readouterr().err
    assert not path.exists()


def test_the_interpreter_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match="TRITON_INTERPRET"):
        resource_table.all_specialisations(90)
    assert resource_table.main([]) == resource_table.USER_MISTAKE
    assert "TRITON_INTERPRET" in capsys.readouterr().err
