"""Hints of what to install, which must work as they are printed."""

import ast
import json
import re
import shutil
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from drexperts.cli.dispatch import _EXTRAS, parser
from drexperts.export.engines.options import LIBRARIES
from drexperts.runtime.installing import install_command
from drexperts.runtime.manifest import TENSORRT_BACKENDS

ROOT = Path(__file__).parents[2]
OPTIONAL: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
SOURCES = [
    path
    for folder in ("drexperts", "runtime", "export", "kernels", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
]


class Recorded:
    """What an installer wrote about drexperts."""

    def __init__(self, origin: dict[str, Any] | None, installer: str = "pip") -> None:
        self.files = {"INSTALLER": f"{installer}\n"}
        if origin is not None:
            self.files["direct_url.json"] = json.dumps(origin)

    def read_text(self, name: str) -> str | None:
        return self.files.get(name)


@pytest.fixture
def active(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This environment is the one that `pip` and `uv pip` install into."""
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    monkeypatch.setattr(shutil, "which", lambda name: str(Path(sys.executable).parent / name))
    return monkeypatch


def record(monkeypatch: pytest.MonkeyPatch, *found: Recorded) -> None:
    monkeypatch.setattr(metadata, "distributions", lambda name: iter(found))


def archive(path: Path) -> dict[str, Any]:
    return {"url": path.as_uri(), "archive_info": {}}


def test_a_wheel_and_a_checkout_are_named_again(active: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "my wheels" / "drexperts-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    record(active, Recorded(archive(wheel)))
    assert install_command("cpu") == f'pip install "{wheel}[cpu]"'
    record(active, Recorded({"url": tmp_path.as_uri(), "dir_info": {"editable": True}}, "uv"))
    assert install_command("cpu") == f'uv pip install -e "{tmp_path}[cpu]"'
    record(active, Recorded({"url": tmp_path.as_uri(), "dir_info": {}}))
    assert install_command("export") == f'pip install "{tmp_path}[export]"'


def test_a_repository_and_an_address_are_named_again(active: pytest.MonkeyPatch) -> None:
    where = "https://example.org/drexperts"
    version = {"vcs": "git", "requested_revision": "main", "commit_id": "0123abc"}
    record(active, Recorded({"url": where, "vcs_info": version}))
    assert install_command("cli") == f'pip install "drexperts[cli] @ git+{where}@0123abc"'
    record(active, Recorded({"url": f"{where}.whl", "archive_info": {}}))
    assert install_command("cli") == f'pip install "drexperts[cli] @ {where}.whl"'


def test_an_index_that_has_it_is_asked_again(active: pytest.MonkeyPatch) -> None:
    record(active, Recorded(None))
    assert install_command("cli") == 'pip install "drexperts[cli]"'


def test_what_a_lost_wheel_brought_is_named_itself(
    active: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record(active, Recorded(archive(tmp_path / "gone.whl")))
    assert install_command("cpu") == f'pip install "{OPTIONAL["cpu"][0]}"'
    whole = install_command("export")
    for requirement in (*OPTIONAL["train"], *OPTIONAL["export"]):
        assert (f'"{requirement}"' in whole) == ("drexperts" not in requirement)


def test_metadata_of_a_checkout_in_the_path_is_passed_over(
    active: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unrecorded = Recorded(None)
    unrecorded.files.clear()
    installed = Recorded({"url": tmp_path.as_uri(), "dir_info": {"editable": True}}, "uv")
    record(active, unrecorded, installed)
    assert install_command("cpu") == f'uv pip install -e "{tmp_path}[cpu]"'


def test_another_environment_than_the_active_one_is_named(
    active: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIRTUAL_ENV")
    monkeypatch.setattr(sys, "executable", "/my env/bin/python")
    record(active, Recorded(None, "uv"))
    assert install_command("cpu").startswith("uv pip install --python '/my env/bin/python' \"")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    record(active, Recorded(None, "pip"))
    assert install_command("cpu").startswith("'/my env/bin/python' -m pip install \"")


def test_every_hint_in_the_source_names_an_extra_that_exists() -> None:
    """The arguments of `install_command`; those that are not written out come from tables."""
    named = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "install_command":
                (argument,) = node.args
                named |= {argument.value} if isinstance(argument, ast.Constant) else set()
    (verbs,) = (
        action
        for action in parser()._actions
        if hasattr(action, "choices") and isinstance(action.choices, dict)
    )
    assert isinstance(verbs.choices, dict)
    named |= {verb.get_default("extra") for verb in verbs.choices.values()}
    named |= {library.extra for library in LIBRARIES.values()} | set(TENSORRT_BACKENDS)
    named |= set(_EXTRAS.values())
    assert {"cpu", "cli", "export", "heif", "tensorboard", "report"} <= named
    assert named <= set(OPTIONAL)


def test_nothing_names_an_index_that_has_no_drexperts() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.*")]
    for path in (*SOURCES, *pages):
        text = path.read_text(encoding="utf-8")
        if path.name not in ("installing.py", "CHANGELOG.md"):
            assert re.search(r"""pip install[^\n`]* ["']?drexperts\b""", text) is None, path


def test_every_extra_that_a_page_names_exists() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "examples/README.md"]
    found = [
        extras
        for path in pages
        for extras in re.findall(
            r"""pip install[^\n`]*\[([\w,-]+)\]["']""", path.read_text("utf-8")
        )
    ]
    assert len(found) > 10
    assert {extra for extras in found for extra in extras.split(",")} <= set(OPTIONAL)
