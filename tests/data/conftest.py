"""Miniature data sets."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import miniature


@pytest.fixture(scope="session")
def _originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("miniatures")

    def original(name: str) -> Path:
        if not (folder / name).exists():
            miniature.write(name, folder / name, contents=2, side=(16, 16))
        return folder / name

    return original


@pytest.fixture
def miniatures(_originals: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A data set that a test may damage."""
    return lambda name: Path(shutil.copytree(_originals(name), tmp_path / name))
