"""The report of `drx bench`: its form, its baselines, its mistakes. No test asserts a time."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from drexperts import baselines
from drexperts.bench import NAMES, bench_bundle, print_report, statistics
from drexperts.checkpoint import Checkpoint, save_checkpoint
from drexperts.export.bundle import export_bundle
from drexperts.export.photographs import verification_images
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing


@pytest.fixture(scope="module")
def checkpoint(tiny: Callable[..., Any], random_model: Callable[..., Any]) -> Checkpoint:
    scale = ScoreScale(0.0, 100.0, higher_is_better=True)
    return Checkpoint(random_model(tiny("official")), scale, Preprocessing(64, 64, 128, 2))


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "bundle"
    export_bundle(checkpoint, out, verification_images()[:3], max_batch=2)
    return out


def test_report(bundle: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(checkpoint, tmp_path / "model.safetensors")
    report = bench_bundle(
        bundle,
        baselines=NAMES,
        batches=(1, 2),
        repeats=3,
        threads=1,
        checkpoint=tmp_path / "model.safetensors",
    )
    json.dumps(report, allow_nan=False)
    assert [entry["batch"] for entry in report["batches"]] == [1, 2]
    for entry in report["batches"]:
        assert set(entry["latency"]) == {"engine", *NAMES}
        assert set(entry["ratio"]) == set(NAMES)
        assert all(len(times["samples"]) == 3 for times in entry["latency"].values())
    assert report["cold_start"]["resident_bytes"] > 1e6
    assert report["machine"]["cpu"]
    shown = io.StringIO()
    print_report(report, Console(file=shown, width=100))
    assert "eager-dense" in shown.getvalue()


@pytest.mark.parametrize("name", NAMES[:2])
def test_eager_baselines_compute_what_the_engine_computes(
    name: str, bundle: Path, checkpoint: Checkpoint
) -> None:
    from drexperts import runtime

    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    expected = runtime.load(bundle).session.run(pixels)["score"]
    prediction: Any = baselines.BASELINES[name](checkpoint.model, None)(pixels)
    np.testing.assert_allclose(prediction.score.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_released_recipe_encodes_its_prompts_on_each_call() -> None:
    from dataclasses import replace

    from drexperts.backbone import PromptEncoder
    from drexperts.config import DRExpertsConfig
    from drexperts.model import new_model

    config = DRExpertsConfig.official()
    model = new_model(replace(config, encoder=replace(config.encoder, depth=1)))
    encoded = []
    kept = PromptEncoder.forward
    baseline = baselines.eager_dense(model, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromptEncoder, "forward", lambda s, like: encoded.append(1) or kept(s, like))
        for _ in range(2):
            baseline(np.zeros((1, 3, 384, 384), np.uint8))
    assert len(encoded) == 2
    assert not isinstance(model.prompts, PromptEncoder)  # the given model is left as it was


def test_mistakes(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown baseline sgd: choose of eager-dense"):
        bench_bundle(bundle, baselines=("sgd",), repeats=1)
    with pytest.raises(UserError, match="admits batches of 1 to 2"):
        bench_bundle(bundle, batches=(64,), repeats=1)
    with pytest.raises(UserError, match="not a bundle"):
        bench_bundle(tmp_path, repeats=1)


def test_statistics() -> None:
    found = statistics([1.0, 2.0, 3.0])
    assert (found["p50"], found["mean"]) == (2.0, 2.0)
    assert found["cv"] == pytest.approx(np.std([1, 2, 3]) / 2)
