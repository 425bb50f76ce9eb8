"""Baselines compute the scores that they are compared with, and say why where they cannot."""

import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch

from drexperts.bench.baselines import (
    BASELINES,
    FORMS,
    HALF_ALIKE,
    Subject,
    build,
    difference,
    released,
)
from drexperts.model.backbones import PromptEncoder, normalised
from drexperts.model.checkpoint import Checkpoint, save_checkpoint
from drexperts.model.config import DRExpertsConfig
from drexperts.model.dr_experts import new_model
from drexperts.runtime.errors import MissingDependencyError, UserError, WeightsError
from drexperts.runtime.manifest import OUTPUTS, ScoreScale
from drexperts.runtime.preprocess import Preprocessing

COMPILED = ("compile", "aotinductor")
EXPORTED = ("onnx-dense", "openvino-fp32")
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)


@pytest.fixture(scope="module")
def subject(
    tiny: Callable[..., Any],
    random_model: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Subject:
    config = tiny("official")
    shallow = replace(config.encoder, depth=1), replace(config.controller, depth=1)
    config = config.with_sizes(*shallow)
    file = tmp_path_factory.mktemp("baselines") / "model.safetensors"
    scale = ScoreScale(0.0, 100.0, higher_is_better=True)
    save_checkpoint(Checkpoint(random_model(config), scale, Preprocessing(64, 64, 128, 2)), file)
    return Subject(config, file, crop=64, max_batch=3, threads=1, device="cpu")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in (*COMPILED, *EXPORTED) else name
        for name in FORMS
        if name not in HALF_ALIKE
    ],
)
def test_forms_compute_what_the_model_computes(name: str, subject: Subject) -> None:
    if name in COMPILED and shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    if name.startswith("openvino"):
        pytest.importorskip("openvino")
    form: Any = build(name, subject)
    assert difference(name, form, subject, PIXELS[:1]) < 1e-4
    for batch in (1, 3):
        with torch.inference_mode():
            expected = subject.model(normalised(torch.from_numpy(PIXELS[:batch])))
        found = form(PIXELS[:batch])
        for output, wanted in zip(OUTPUTS, expected, strict=True):
            atol = 1e-4 * float(wanted.abs().max())
            np.testing.assert_allclose(found[output], wanted.numpy(), rtol=0, atol=atol)


@pytest.mark.slow
def test_openvino_computes_in_its_default_type(subject: Subject) -> None:
    """Without a hint it may be bfloat16, which is a hundred times farther than float32."""
    pytest.importorskip("openvino")
    run: Any = build("openvino", subject)
    assert difference("openvino", run, subject, PIXELS[:1]) < HALF_ALIKE["openvino"]
    assert {name: len(rows) for name, rows in run(PIXELS).items()} == dict.fromkeys(OUTPUTS, 3)


def test_openvino_is_not_for_gpus(subject: Subject) -> None:
    with pytest.raises(UserError, match="onnx-dense"):
        build("openvino", replace(subject, device="cuda"))


def test_a_difference_is_relative_to_the_larger_score(subject: Subject) -> None:
    wanted: Any = build("eager-reduced", subject)
    doubled = difference("onnx-dense", lambda p: {"score": 2 * wanted(p)["score"]}, subject, PIXELS)
    assert doubled == pytest.approx(0.5)
    broken = difference("onnx-dense", lambda p: {"score": np.full(3, np.nan)}, subject, PIXELS)
    assert np.isnan(broken)


@pytest.mark.slow
def test_lower_bounds_run_the_encoders_alone(subject: Subject) -> None:
    run: Any = build("backbones", subject)
    tokens, pooled, *_ = run(PIXELS)
    assert tokens.shape == (3, 17, 32)
    assert len(pooled) == 3
    features: Any = build("timm-backbone", subject)(PIXELS)
    assert features["score"].shape == (3, 17, 32)


@pytest.mark.slow
def test_the_released_recipe_is_compared_with_its_own_prompts() -> None:
    config = DRExpertsConfig.official()
    config = replace(config, encoder=replace(config.encoder, depth=1))
    whole = Subject(config, None, crop=384, max_batch=1, threads=1, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 384, 384), dtype=np.uint8)
    dense = build("eager-dense", whole)
    assert isinstance(whole.released.prompts, PromptEncoder)
    assert difference("eager-dense", dense, whole, pixels) < 1e-3


@pytest.mark.slow
def test_released_recipe_encodes_its_prompts_on_each_call() -> None:
    config = DRExpertsConfig.official()
    model = new_model(replace(config, encoder=replace(config.encoder, depth=1)))
    encoded = []
    encode = PromptEncoder.forward

    def counted(prompts: PromptEncoder, like: torch.Tensor) -> Any:
        encoded.append(prompts)
        return encode(prompts, like)

    dense = released(model).forward_dense
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(PromptEncoder, "forward", counted)
        for _ in range(2):
            dense(torch.zeros(1, 3, 384, 384))
    assert len(encoded) == 2
    assert not isinstance(model.prompts, PromptEncoder)  # the given model is left as it was


def test_a_checkpoint_with_another_configuration(
    subject: Subject, tiny: Callable[..., Any]
) -> None:
    other = replace(subject, config=tiny("paper"))
    with pytest.raises(WeightsError, match="safetensors"):
        build("eager-reduced", other)


@pytest.fixture
def pyiqa(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in whose metrics ask for their backbone's weights whatever their arguments are."""
    module: Any = types.ModuleType("pyiqa")
    module.made = []

    def create_metric(name: str, **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        timm.create_model("deit3_small_patch16_384", pretrained=True, depth=1)
        module.made.append((name, options["pretrained"]))
        return lambda images: images.mean((1, 2, 3))

    module.create_metric = create_metric
    module.list_models = lambda mode: {"NR": ["musiq", "maniqa"]}[mode]
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    return module


@pytest.mark.parametrize("metric", ["musiq", "maniqa"])
def test_metrics_of_pyiqa_are_made_without_weights(
    metric: str, pyiqa: Any, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(timm, "create_model", lambda *_, **options: asked.append(options))
    given = timm.create_model
    found: Any = build(f"pyiqa:{metric}", subject)(PIXELS)
    assert pyiqa.made == [(metric, False)]
    assert [options["pretrained"] for options in asked] == [False]
    assert timm.create_model is given
    np.testing.assert_allclose(found["score"], PIXELS.mean((1, 2, 3)) / 255, rtol=1e-5)


def test_a_metric_that_pyiqa_does_not_have(pyiqa: Any, subject: Subject) -> None:
    with pytest.raises(UserError, match="nonsense"):
        build("pyiqa:nonsense", subject)


def test_pyiqa_is_never_needed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(MissingDependencyError, match="pip install pyiqa"):
        build("pyiqa:musiq", subject)


def test_every_baseline_is_tested_here() -> None:
    assert set(BASELINES) == {*FORMS, "backbones", "timm-backbone", "pyiqa:musiq"}
