"""Fixtures that the tests of several verbs share."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import miniature
from support.training_verbs import SHORT, Ended, saved_checkpoint

from drexperts.cli.main import main
from drexperts.export.bundle import export_bundle
from drexperts.model.checkpoint import load_checkpoint


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Models this small do not gain from a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """call(...): run `drx ... --json`."""

    def run(*arguments: object) -> Ended:
        status = main([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        return Ended(status, json.loads(out.splitlines()[-1]), " ".join(err.split()))

    return run


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three miniature data sets. Shared: copy one before changing it."""
    root = tmp_path_factory.mktemp("data")
    return {
        name: miniature.write(name, root / name, contents=contents, side=(72, 66))
        for name, contents in (("livec", 5), ("folder", 6), ("live", 6))
    }


@pytest.fixture
def table(data: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the folder's table of labels with its pictures."""
    shutil.copytree(data["folder"].parent, tmp_path / "folder")
    return tmp_path / "folder" / data["folder"].name


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to train from."""
    return saved_checkpoint(tmp_path_factory.mktemp("start") / "start.safetensors")


@pytest.fixture(scope="session")
def start_bundle(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of that checkpoint."""
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    export_bundle(load_checkpoint(start), folder)
    return folder


@pytest.fixture(scope="session")
def done(
    one_thread: None, data: dict[str, Path], start: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """The folder of a finished training on LIVE-C, and its command without the folder."""
    out = tmp_path_factory.mktemp("runs") / "livec"
    command = ["train", "--data", "livec", str(data["livec"]), "--init", str(start), *SHORT]
    command += ["--epochs", "2", "--crops", "2", "--tensorboard"]
    assert main([*command, "--out", str(out)]) == 0
    return out, command


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
