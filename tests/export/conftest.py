"""A tiny model, its graphs and its bundle, made once for all tests of the export."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from support.tiny_graphs import tiny_graph

from drexperts.export import export_bundle
from drexperts.export.proof.photographs import photograph
from drexperts.model.checkpoint import Checkpoint, save_checkpoint
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing


@pytest.fixture(scope="session")
def graph_of(tiny, random_model):
    """graph_of(preset, precision): with maps, of random weights. Shared: copy before changing."""
    return partial(tiny_graph, tiny, random_model)


@pytest.fixture(scope="session")
def checkpoint(tiny, random_model):
    scale = ScoreScale(0.0, 100.0, higher_is_better=True)
    return Checkpoint(random_model(tiny()), scale, Preprocessing(64, 64, 128, 2))


@pytest.fixture(scope="session")
def checkpoint_file(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_checkpoint(checkpoint, path)
    return path


@pytest.fixture(scope="session")
def pictures():
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
    return [photograph(name) for name in (*names, "camera.png")]


@pytest.fixture(scope="session")
def exported(checkpoint, pictures, tmp_path_factory):
    """A proven bundle for batches to 4. Shared: copy before changing."""
    out = tmp_path_factory.mktemp("export") / "bundle"
    export_bundle(checkpoint, out, images=pictures, max_batch=4)
    return out


@pytest.fixture
def bundle(exported, tmp_path):
    """A bundle of one's own."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))
