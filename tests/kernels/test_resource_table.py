"""What every kernel uses of a GPU, and what the command finds.

Triton's compiler runs in processes of its own, because the tests of the kernels put Triton's
interpreter in its place. Every configuration takes `make resources`; here one of each kernel is
compiled.
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
# The released encoder's width in an engine's dtype, and the kernels that know only float32.
SAMPLE = ("fp16/384", "combine/fp32/384", "deltas/fp32/384")

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is made for Linux only"
)


@pytest.fixture(scope="session")
def command(compiling: Run) -> Run:
    return functools.partial(compiling, "-m", "drexperts.kernels.resource_table")


def document_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode in (resource_table.DONE, resource_table.DIFFERS), done.stderr
    return json.loads(done.stdout)


# What is shipped.


def golden_kernels() -> list[str]:
    resources = json.loads(GOLDEN.read_text())["resources"]
    return sorted({name.partition("/")[0] for names in resources.values() for name in names})


@pytest.fixture(scope="session")
def shipped(command: Run) -> dict[str, Any]:
    sample = [part for name in SAMPLE for part in ("--kernel", name)]
    return document_of(command("--golden", str(GOLDEN), "--json", *sample))


def of_kernel(texts: dict[str, Any], kernel: str) -> dict[str, Any]:
    return {name: text for name, text in texts.items() if name.partition("/")[0] == kernel}


@needs_triton
@pytest.mark.parametrize("kernel", golden_kernels())
@pytest.mark.parametrize("arch", [str(arch) for arch in ARCHITECTURES])
def test_a_shipped_kernel_can_run(arch: str, kernel: str, shipped: dict[str, Any]) -> None:
    assert of_kernel(shipped["failures"].get(arch, {}), kernel) == {}
    assert of_kernel(shipped["resources"][arch], kernel), "none was compiled: extend SAMPLE"


@needs_triton
@pytest.mark.parametrize("kernel", golden_kernels())
@pytest.mark.parametrize("arch", [str(arch) for arch in ARCHITECTURES])
def test_a_shipped_kernel_uses_what_the_table_says(
    arch: str, kernel: str, shipped: dict[str, Any]
) -> None:
    assert of_kernel(shipped["differences"].get(arch, {}), kernel) == {}, "is it `make golden`?"
    if arch in shipped["not compared"]:
        pytest.skip(shipped["not compared"][arch])


@needs_triton
def test_every_shipped_kernel_is_in_the_table(shipped: dict[str, Any]) -> None:
    known = set(golden_kernels())
    for texts in shipped["differences"].values():
        assert {name for name in texts if name.partition("/")[0] not in known} == set()


# What the command finds, on toy kernels.

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
INCOMPLETE = """
from dataclasses import replace

from support.toy_triton import scaling

def specialisations(arch):
    yield replace(scaling(), constants={})
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
    """Of kernels that cannot run, and of a table that is wrong for sm_120, and old for sm_80."""
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


@needs_triton
def test_a_table_has_every_kernel_on_every_architecture(toy_table: dict[str, Any]) -> None:
    assert toy_table["resources"].keys() == set(map(str, ARCHITECTURES))
    assert toy_table["versions"]["ptxas"].keys() == toy_table["resources"].keys()
    for rows in toy_table["resources"].values():
        assert rows.keys() == {"product/fp16", "scaled/fp16", "scaled/fp32"}
        assert rows["product/fp16"]["shared"] >= 2 * 64 * 64 * 2  # the two matrices it loads
        assert 0 < rows["scaled/fp16"]["registers"] < 64
        assert rows["scaled/fp16"]["spills"] == rows["scaled/fp16"]["shared"] == 0


@needs_triton
@pytest.mark.parametrize(("arch", "limit"), [("80", 163), ("120", 99)], ids=["sm_80", "sm_120"])
def test_too_much_shared_memory_is_found(arch: str, limit: int, findings: dict[str, Any]) -> None:
    message = findings["failures"][arch]["greedy"]
    assert f"greedy for sm_{arch} has 262144 bytes of shared memory" in message
    assert f"the limit is {limit * 1024}" in message


@needs_triton
def test_a_compiler_that_ends_its_process_is_named_and_the_others_go_on(
    findings: dict[str, Any],
) -> None:
    assert "LLVM ERROR: PTX version 8.0" in findings["failures"]["120"]["deadly"]
    assert findings["resources"]["80"]["deadly"]["registers"] > 0, "sm_80 admits PTX 8.0"
    assert findings["resources"]["120"].keys() == {"scaled/fp16", "scaled/fp32", "product/fp16"}


@needs_triton
def test_no_table_is_made_of_kernels_that_cannot_run(tmp_path: Path, command: Run) -> None:
    (tmp_path / "incomplete.py").write_text(INCOMPLETE)
    arguments = ["--module", "incomplete", "--write", str(tmp_path / "table.json")]
    done = command(*arguments, folder=tmp_path)
    assert done.returncode == resource_table.DIFFERS, done.stderr
    assert "is not written" in done.stderr
    assert not (tmp_path / "table.json").exists()


@needs_triton
def test_missing_arguments_are_found(findings: dict[str, Any]) -> None:
    message = findings["failures"]["120"]["incomplete"]
    assert "takes x, gain, n, out, BLOCK, given x, gain, n, out" in message


@needs_triton
def test_a_changed_number_is_found(findings: dict[str, Any], toy_table: dict[str, Any]) -> None:
    registers = toy_table["resources"]["120"]["scaled/fp16"]["registers"]
    message = findings["differences"]["120"]["scaled/fp16"]
    assert message.startswith(f"registers {registers}, ")
    assert f"the table: registers {registers - 1}, " in message
    assert "scaled/fp32" not in findings["differences"]["120"]


@needs_triton
@pytest.mark.parametrize("arch", ["80", "120"])
def test_a_table_without_a_shipped_kernel_or_with_another_is_found(
    arch: str, findings: dict[str, Any]
) -> None:
    assert findings["differences"][arch]["gone"] == "in the table, but not shipped"
    assert findings["differences"][arch]["product/fp16"] == "shipped, but not in the table"


@needs_triton
def test_numbers_of_another_ptxas_are_not_compared(findings: dict[str, Any]) -> None:
    assert "made by Triton" in findings["not compared"]["80"]
    assert "ptxas 11.0" in findings["not compared"]["80"]
    assert "scaled/fp16" not in findings["differences"]["80"]
    assert "120" not in findings["not compared"]


# The user's mistakes. They are found before Triton is needed.


@pytest.mark.parametrize("content", [None, "no JSON", "[]", "{}", '{"versions": 1}'])
def test_a_file_that_is_no_table(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "table.json"
    if content is not None:
        path.write_text(content)
    assert resource_table.main(["--golden", str(path)]) == resource_table.USER_MISTAKE
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("part", [("--arch", "90"), ("--kernel", "pooling")])
def test_a_part_is_not_written_as_a_table(
    part: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "table.json"
    assert resource_table.main(["--write", str(path), *part]) == resource_table.USER_MISTAKE
    assert "no --arch or --kernel" in capsys.readouterr().err
    assert not path.exists()


def test_the_interpreter_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match="TRITON_INTERPRET"):
        resource_table.all_specialisations(90)
    assert resource_table.main([]) == resource_table.USER_MISTAKE
    assert "unset it" in capsys.readouterr().err
