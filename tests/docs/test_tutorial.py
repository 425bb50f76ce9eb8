"""The tutorial's commands run in order, on small pictures in place of the rated photographs."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from drexperts.cli.main import main
from drexperts.data.synthetic_set import SynthConfig, synthesise
from drexperts.export.proof.photographs import photograph

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(bash|python)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A later option of the same name counts: these make the run short.
SHORTER = {"train": "--epochs 1 --crops 1", "export": "--precision fp32"}
CLEAN = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")


def blocks(language: str) -> Iterator[str]:
    for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == language:
            yield text


def commands() -> Iterator[list[str]]:
    """The words of each `drx` command on the page."""
    for text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("drx "):
                yield shlex.split(line, comments=True)[1:]


@pytest.fixture
def a_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`livec` with rated pictures, and `photos`, as the tutorial has them."""
    for name in ("clean", "photos"):
        (tmp_path / name).mkdir()
        for number, each in enumerate(CLEAN):
            picture = photograph(each)
            picture.thumbnail((200, 200))
            picture.save(tmp_path / name / f"picture-{number}.png")
    types = ("gaussian_blur", "jpeg", "white_noise")
    synthesise(tmp_path / "clean", tmp_path / "livec", SynthConfig(types=types), workers=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_tutorial_runs(a_users_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = []
    for words in commands():
        verb, *others = words
        status = main([verb, *others, *SHORTER.get(verb, "").split()])
        assert status == 0, f"drx {shlex.join(words)}: {capsys.readouterr()}"
        done.append(verb)
    assert done == ["train", "eval", "export", "verify", "info", "score", "explain"]
    for text in blocks("python"):
        exec(compile(text, str(PAGE), "exec"), {})
    for name in re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        assert (a_users_folder / name).exists(), name
