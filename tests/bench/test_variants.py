"""Who is admitted to a run, and the reasons of those who are not."""

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drexperts import runtime
from drexperts.bench.lineup import ENGINE, Entrants, _hold, enter, named, names_of
from drexperts.runtime.compatibility import gpus
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import Engine, read_manifest, sha256_of, write_manifest
from drexperts.runtime.preprocess import Preprocessing

BATCHES = [np.zeros((batch, 3, 32, 32), np.uint8) for batch in (1, 4)]


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy_bundle, tmp_path / "bundle")


def add(bundle: Path, *engines: Engine) -> None:
    manifest = read_manifest(bundle)
    write_manifest(dataclasses.replace(manifest, engines=(*manifest.engines, *engines)), bundle)


def copied(bundle: Path, file: str, **changes: Any) -> Engine:
    """Another engine of the bundle: the same graph under another name."""
    shutil.copy(bundle / "model.onnx", bundle / file)
    return dataclasses.replace(read_manifest(bundle).engines[0], file=file, **changes)


def entered(bundle: Path, **settings: Any) -> Entrants:
    settings = {"baselines": (), "others": {}, "threads": 1, "checkpoint": None} | settings
    return enter(runtime.load(bundle), bundle, BATCHES, progress=lambda _: None, **settings)


def test_whoever_fails_is_left_out_with_the_reason() -> None:
    entrants = Entrants(BATCHES, {})

    def unbuildable() -> Any:
        raise UserError("it is not there: install it")

    def failing(pixels: Any) -> Any:
        if len(pixels) == 4:
            raise RuntimeError("\nCUDA out of memory\nand a long trace")

    assert not entrants.admit("a", unbuildable)
    assert not entrants.admit("b", lambda: failing)
    assert entrants.admit("c", lambda: len)
    assert entrants.left_out == {
        "a": "it is not there: install it",
        "b": "RuntimeError: CUDA out of memory",
    }
    assert list(entrants.running) == ["c"]


def test_other_engines_of_the_bundle_enter(bundle: Path) -> None:
    add(bundle, copied(bundle, "other.onnx"), copied(bundle, "third.onnx", parity=None))
    entrants = entered(bundle)
    assert list(entrants.running) == [ENGINE, "onnx"]
    assert entrants.against["onnx"]["engine"] == "other.onnx"
    assert entrants.against["onnx"]["bytes"] == (bundle / "model.onnx").stat().st_size
    assert "not proven" in entrants.left_out["third.onnx"]
    for name in (ENGINE, "onnx"):
        assert entrants.running[name](BATCHES[0])["score"].shape == (1,)  # type: ignore[index]


def test_an_engine_of_smaller_batches_is_left_out(bundle: Path) -> None:
    add(bundle, copied(bundle, "other.onnx", max_batch=2, invariance=None))
    entrants = entered(bundle)
    assert ENGINE in entrants.running
    assert "onnx" in entrants.left_out


def test_engines_of_gpus_say_why_they_are_not_there(
    bundle: Path, planned: Callable[..., Engine]
) -> None:
    if gpus():
        pytest.skip("this machine has a GPU")
    add(bundle, planned())
    entrants = entered(bundle, baselines=("tensorrt-rtx", "onnx-cuda"))
    assert "tensorrt-rtx" in entrants.left_out["tensorrt-rtx"]
    assert "needs an NVIDIA GPU" in entrants.left_out["onnx-cuda"]
    assert list(entrants.running) == [ENGINE]


def test_another_bundle_enters_under_its_name(bundle: Path, toy_bundle: Path) -> None:
    entrants = entered(bundle, others={"engine-int8": toy_bundle})
    assert list(entrants.running) == [ENGINE, "engine-int8"]
    assert entrants.against["engine-int8"]["engine"] == "model.onnx"
    assert str(toy_bundle) not in str(entrants.against)


def test_another_bundle_must_be_of_the_same_model(bundle: Path, toy_bundle: Path) -> None:
    manifest = dataclasses.replace(read_manifest(bundle), config={"alpha": 0.25})
    write_manifest(manifest, bundle)
    with pytest.raises(UserError, match="another model"):
        entered(bundle, others={"engine-int8": toy_bundle})


def test_names_of_other_bundles(bundle: Path, toy_bundle: Path) -> None:
    found = names_of([bundle, toy_bundle])
    assert found == {"engine-float32": bundle, "engine-float32-2": toy_bundle}


def test_who_computes_something_else_is_left_out() -> None:
    entrants = Entrants(BATCHES, {})
    for name, apart in (("same", 1e-4), ("other", 0.2), ("broken", math.nan)):

        def make(name: str = name, apart: float = apart) -> Any:
            _hold(entrants, name, apart, "cpu")
            return len

        entrants.admit(name, make)
    assert list(entrants.running) == ["same"]
    assert entrants.agreement.keys() == {"same", "other"}
    assert "2.0e-01" in entrants.left_out["other"]
    assert "computes something else" in entrants.left_out["broken"]


def test_baselines_by_name() -> None:
    every = named(["all"])
    assert {"eager-dense", "aotinductor", "onnx-dense", "tensorrt", "pyiqa:musiq"} <= set(every)
    assert named(["backbones", "all"]) == ["backbones", *(n for n in every if n != "backbones")]
    assert named(["pyiqa:anything"]) == ["pyiqa:anything"]
    with pytest.raises(UserError, match="unknown baseline sgd: choose of all, eager-dense"):
        named(["sgd", "all"])


def test_preprocessing_is_compared_too(bundle: Path, toy_bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.preprocessing.crop == 32
    other = dataclasses.replace(manifest, preprocessing=Preprocessing(48, 48, 96, 2))
    write_manifest(other, bundle)
    with pytest.raises(UserError):
        entered(toy_bundle, others={"engine-int8": bundle})
    assert sha256_of(bundle / "model.onnx") == manifest.engines[0].sha256
