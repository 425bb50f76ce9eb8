"""What tests of several verbs need."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drexperts.cli.main import main


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    """call(...): the status, the last line of stdout as JSON, and stderr of `drx ... --json`."""

    def run(*arguments: str | Path) -> tuple[int, Any, str]:
        status = main([*[os.fspath(argument) for argument in arguments], "--json"])
        out, err = capsys.readouterr()
        return status, json.loads(out.splitlines()[-1]), err

    return run


@pytest.fixture
def photos(tmp_path: Path, photo: Callable[..., Image.Image]) -> Path:
    """A folder with three photographs, one of them in a sub-folder, and a broken file."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(["a.png", "b.png", "sub/a.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photo(60, 40, seed).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"junk")
    return folder


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the toy bundle, to be changed."""
    return Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
