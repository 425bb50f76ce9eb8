"""What is timed beside an engine, and why other things are not."""

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.openvino_engines import add_openvino_engine

from drexperts import runtime
from drexperts.bench.reports import ENGINE
from drexperts.bench.variants import Variants, baseline_names, names_of, prepared
from drexperts.runtime.compatibility import gpus
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import Engine, read_manifest, write_manifest
from drexperts.runtime.openvino_library import openvino_version
from drexperts.runtime.preprocess import Preprocessing

BATCHES = [np.zeros((batch, 3, 32, 32), np.uint8) for batch in (1, 4)]


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy_bundle, tmp_path / "bundle")


def change(bundle: Path, **changes: Any) -> None:
    write_manifest(dataclasses.replace(read_manifest(bundle), **changes), bundle)


def add(bundle: Path, *engines: Engine) -> None:
    change(bundle, engines=(*read_manifest(bundle).engines, *engines))


def copied(bundle: Path, file: str, **changes: Any) -> Engine:
    """Another engine of the bundle: the same graph under another name."""
    shutil.copy(bundle / "model.onnx", bundle / file)
    return dataclasses.replace(read_manifest(bundle).engines[0], file=file, **changes)


def variants_of(bundle: Path, **options: Any) -> Variants:
    return prepared(runtime.load(bundle), bundle, BATCHES, threads=1, **options)


def test_what_fails_is_left_out_with_the_reason() -> None:
    variants = Variants(BATCHES, {})

    def unbuildable() -> Any:
        raise UserError("it is not there: install it")

    def failing(pixels: Any) -> Any:
        if len(pixels) == 4:
            raise RuntimeError("\nCUDA out of memory\nand a long trace")

    assert not variants.add("a", unbuildable)
    assert not variants.add("b", lambda: failing)
    assert variants.add("c", lambda: len)
    assert variants.left_out == {
        "a": "it is not there: install it",
        "b": "RuntimeError: CUDA out of memory",
    }
    assert list(variants.running) == ["c"]


def test_what_computes_something_else_is_left_out() -> None:
    variants = Variants(BATCHES, {})
    for name, apart in (("same", 1e-4), ("other", 0.2), ("broken", math.nan)):

        def make(name: str = name, apart: float = apart) -> Any:
            variants.check(name, apart, "cpu")
            return len

        variants.add(name, make)
    assert list(variants.running) == ["same"]
    assert variants.agreement.keys() == {"same", "other"}
    assert "2.0e-01" in variants.left_out["other"]


def test_other_engines_of_the_bundle_run_too(bundle: Path) -> None:
    add(bundle, copied(bundle, "other.onnx"), copied(bundle, "third.onnx", parity=None))
    variants, name = variants_of(bundle), "engine-onnx-fp32"
    assert list(variants.running) == [ENGINE, name]
    assert variants.against[name].engine == "other.onnx"
    assert variants.against[name].bytes == (bundle / "model.onnx").stat().st_size
    assert list(variants.left_out) == ["third.onnx"]  # it is not proven
    for run in variants.running.values():
        outputs: Any = run(BATCHES[0])
        assert outputs["score"].shape == (1,)


def test_an_engine_for_smaller_batches_is_left_out(bundle: Path) -> None:
    add(bundle, copied(bundle, "other.onnx", max_batch=2, invariance=None))
    assert list(variants_of(bundle).left_out) == ["engine-onnx-fp32"]


@pytest.mark.skipif(not openvino_version(), reason="needs openvino")
def test_engines_of_several_libraries_run_in_turn(bundle: Path) -> None:
    engine = add_openvino_engine(bundle, "fp32")
    variants = variants_of(bundle)
    assert list(variants.running) == [ENGINE, "engine-onnx-fp32"]
    scorer = runtime.load(bundle, engine="onnx")
    variants = prepared(scorer, bundle, BATCHES, threads=1)
    assert list(variants.running) == [ENGINE, "engine-openvino-fp32"]
    found = variants.against["engine-openvino-fp32"]
    assert (found.engine, found.backend) == (engine.file, "openvino")
    assert found.options["INFERENCE_NUM_THREADS"] == "1"
    assert found.options["INFERENCE_PRECISION_HINT"] == "f32"


def test_engines_of_gpus_say_why_they_are_not_there(
    bundle: Path, planned: Callable[..., Engine]
) -> None:
    if gpus():
        pytest.skip("this machine has a GPU")
    add(bundle, planned())
    variants = variants_of(bundle, baselines=("tensorrt-rtx", "onnx-cuda"))
    assert "tensorrt-rtx" in variants.left_out["tensorrt-rtx"]
    assert "GPU" in variants.left_out["onnx-cuda"]
    assert list(variants.running) == [ENGINE]


def test_another_bundle_runs_under_its_name(bundle: Path, toy_bundle: Path) -> None:
    variants = variants_of(bundle, against={"engine-int8": toy_bundle})
    assert list(variants.running) == [ENGINE, "engine-int8"]
    assert variants.against["engine-int8"].engine == "model.onnx"
    assert str(toy_bundle) not in str(variants.against)


@pytest.mark.parametrize(
    "changes",
    [{"config": {"alpha": 0.25}}, {"preprocessing": Preprocessing(48, 48, 96, 2)}],
)
def test_another_bundle_must_hold_the_same_model(
    changes: dict[str, Any], bundle: Path, toy_bundle: Path
) -> None:
    change(bundle, **changes)
    with pytest.raises(UserError, match=bundle.name):
        variants_of(toy_bundle, against={"engine-int8": bundle})


def test_names_of_other_bundles(bundle: Path, toy_bundle: Path) -> None:
    found = names_of([bundle, toy_bundle])
    assert found == {"engine-fp32": bundle, "engine-fp32-2": toy_bundle}


def test_baselines_by_name() -> None:
    every = baseline_names(["all"])
    assert {"eager-dense", "aotinductor", "onnx-dense", "tensorrt", "pyiqa:musiq"} <= set(every)
    first = ["backbones", *(name for name in every if name != "backbones")]
    assert baseline_names(["backbones", "all"]) == first
    assert baseline_names(["pyiqa:anything"]) == ["pyiqa:anything"]
    with pytest.raises(UserError, match="sgd"):
        baseline_names(["sgd", "all"])
