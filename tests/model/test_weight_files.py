"""Weight files: reading published ones safely and in their exact layouts, and our checkpoints."""

import collections
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import released
from torch import Tensor

from drexperts.model import daclip
from drexperts.model.checkpoint import Checkpoint, load_checkpoint, load_encoder, save_checkpoint
from drexperts.model.config import ControllerConfig, DRExpertsConfig, EncoderConfig
from drexperts.model.dr_experts import new_model
from drexperts.model.weight_files import read_safetensors, read_torch_file, write_safetensors
from drexperts.runtime.errors import WeightsError
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing

SCALE = ScoreScale(0.0, 100.0, higher_is_better=True)
# A DA-CLIP of reduced width, in its published layout.
SMALL_DACLIP: dict[str, Any] = {"controller": (192, 2, 2), "embedding": 64, "text": (128, 2)}


def daclip_file(folder: Path) -> Path:
    """A file like the published one: weights, an optimiser, NumPy scalars, keys with `module.`."""
    state = released.random_state(released.daclip_shapes(**SMALL_DACLIP))
    content = {
        "epoch": 30,
        "name": "daclip",
        "state_dict": collections.OrderedDict((f"module.{k}", v) for k, v in state.items()),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(4), "step": np.float64(3.0)}}},
    }
    path = folder / "daclip.pt"
    torch.save(content, path)
    return path


def small_config(preset: str = "official") -> DRExpertsConfig:
    encoder = EncoderConfig(image_size=64, width=128, depth=2, heads=2)
    controller = ControllerConfig(64, 32, width=192, depth=2, heads=3, embedding=64)
    return DRExpertsConfig.preset_named(preset).with_sizes(encoder, controller)


def test_daclip_is_read_and_converted(tmp_path):
    path, slim = daclip_file(tmp_path), tmp_path / "prior.safetensors"
    daclip.convert_daclip(path, slim)
    original = released.random_state(released.daclip_shapes(**SMALL_DACLIP))
    for source in (path, slim):
        model = new_model(small_config())
        daclip.load_prior(model, source)
        zero = original["visual_control.transformer.zero_modules.1.weight"]
        assert torch.equal(model.controller.zero.weight, zero)  # type: ignore[union-attr]
        assert torch.equal(model.controller.visual.proj, original["visual_control.proj"])
    kept = load_file(slim)
    assert kept["prompts"].shape == (10, 64)
    torch.testing.assert_close(kept["prompts"].norm(dim=-1), torch.ones(10, dtype=torch.float64))
    assert not any("clip." in key or "zero_modules" in key for key in kept)


def test_the_papers_preset_takes_the_same_prior(tmp_path):
    model = new_model(small_config("paper"))
    daclip.load_prior(model, daclip_file(tmp_path))
    assert model.controller.zero is None


def test_daclip_with_a_key_missing_names_it(tmp_path):
    state = released.random_state(released.daclip_shapes(**SMALL_DACLIP))
    del state["visual_control.ln_post.bias"]
    torch.save({"state_dict": state}, tmp_path / "daclip.pt")
    with pytest.raises(WeightsError, match=r"visual_control\.ln_post\.bias"):
        daclip.read_prior(tmp_path / "daclip.pt")


@pytest.mark.parametrize("read", [daclip.read_prior, load_checkpoint])
def test_a_foreign_safetensors_file(read, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"x\.safetensors"):
        read(tmp_path / "x.safetensors")


class Exploit:
    """Runs code when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_not_run(tmp_path, zipped):
    path, marker = tmp_path / "evil.pt", tmp_path / "ran"
    content = {"model": {}, "config": Exploit(marker)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(WeightsError, match=r"evil\.pt") as told:
        read_torch_file(path)
    assert "weights_only" not in str(told.value)  # torch's advice to trust the file
    assert not marker.exists()


@pytest.fixture
def cfgnode(monkeypatch: pytest.MonkeyPatch) -> type:
    """A stand-in for the class in which the authors' checkpoints pickle their settings."""

    class CfgNode(dict[str, Any]):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    return CfgNode


def test_the_authors_file_is_read_without_their_settings_class(tmp_path, cfgnode, monkeypatch):
    shapes = released.released_shapes(128, 2, 4, **SMALL_DACLIP)
    settings = cfgnode({"MODEL": cfgnode({"TYPE": "deit"}), "BATCH": 4})
    settings.__dict__["__frozen__"] = True
    path = tmp_path / "ckpt_epoch_8.pth"
    torch.save(
        {
            "model": released.random_state(shapes),
            "optimizer": {"state": {}, "param_groups": [{"lr": 2e-4}]},
            "lr_scheduler": {"last_epoch": 8},
            "max_plcc": np.float64(0.95),
            "scaler": {"scale": 65536.0},
            "epoch": 8,
            "config": settings,
        },
        path,
    )
    monkeypatch.delitem(sys.modules, "yacs.config")
    monkeypatch.delitem(sys.modules, "yacs")
    loaded = load_checkpoint(path)
    assert loaded.scale is None
    assert loaded.model.config.preset == "official"
    assert loaded.preprocessing.crop == 64


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", b"PK\x03\x04 torn"])
def test_missing_and_damaged_files_are_named(tmp_path, content):
    for name in ("x.pth", "x.safetensors"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=name):
            load_checkpoint(tmp_path / name)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_our_checkpoints_round_trip(preset, tmp_path, tiny, random_model):
    model, path = random_model(tiny(preset)), tmp_path / "model.safetensors"
    saved = Checkpoint(model, SCALE, Preprocessing(64, 64, 128, 2))
    save_checkpoint(saved, path)
    loaded = load_checkpoint(path)
    assert loaded[1:] == saved[1:]
    assert loaded.model.config == model.config
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded.model(images).score, model(images).score)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert read_safetensors(path)[0]["prompts.prompts"].dtype == torch.float64


def deit_state(model: Any, original: bool) -> dict[str, Tensor]:
    """The encoder's weights, moved, under timm's names or the original ones, with a classifier."""
    state = {k: v + 0.5 for k, v in model.encoder.vit.state_dict().items()}
    if original:
        for i in (1, 2):
            state = {k.replace(f"ls{i}.gamma", f"gamma_{i}"): v for k, v in state.items()}
    return state | {"head.weight": torch.zeros(1000, 32), "head.bias": torch.zeros(1000)}


@pytest.mark.parametrize("original", [True, False])
def test_deit_weights_from_a_local_file(original, tmp_path, tiny):
    model = new_model(tiny())
    state, expected = deit_state(model, original), deit_state(model, False)
    path = tmp_path / ("deit.pth" if original else "model.safetensors")
    if original:
        torch.save({"model": state}, path)
    else:
        save_file(state, path)
    load_encoder(model, path)
    for key, value in model.encoder.vit.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_deit_weights_with_a_key_missing(tmp_path, tiny):
    model = new_model(tiny())
    state = deit_state(model, False)
    del state["blocks.1.norm2.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"blocks\.1\.norm2\.weight"):
        load_encoder(model, tmp_path / "model.safetensors")


def test_offline_the_address_of_the_file_is_named(monkeypatch, tiny):
    def offline(repository: str, filename: str) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("drexperts.model.weight_files.hf_hub_download", offline)
    model = new_model(tiny())
    with pytest.raises(WeightsError, match=r"deit3_small_patch16_384\.fb_in22k_ft_in1k/.*safetens"):
        load_encoder(model)
    with pytest.raises(WeightsError, match=r"weblzw/daclip.*/daclip_ViT-B-32\.pt"):
        daclip.load_prior(model)


def test_hub_names_lead_to_the_published_files(monkeypatch, tmp_path, tiny):
    asked = []
    model = new_model(small_config())
    save_file(deit_state(model, False), tmp_path / "model.safetensors")
    files = {
        "model.safetensors": tmp_path / "model.safetensors",
        daclip.FILENAME: daclip_file(tmp_path),
    }

    def hub(repository: str, filename: str) -> str:
        asked.append(repository)
        return str(files[filename])

    monkeypatch.setattr("drexperts.model.weight_files.hf_hub_download", hub)
    load_encoder(model)
    daclip.load_prior(model)
    assert asked == ["timm/deit3_small_patch16_384.fb_in22k_ft_in1k", daclip.REPOSITORY]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("config"),
        lambda d: d.update(config="{"),
        lambda d: d.update(scale='{"low": 0}'),
        lambda d: d.update(preprocessing="[]"),
    ],
)
def test_a_checkpoint_whose_metadata_was_changed(change, tmp_path, tiny):
    path = tmp_path / "model.safetensors"
    save_checkpoint(Checkpoint(new_model(tiny()), SCALE, Preprocessing(64, 64, 128, 2)), path)
    state, description = read_safetensors(path)
    change(description)
    save_file(state, path, description)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load_checkpoint(str(path))


@pytest.mark.parametrize("content", [{"model": None}, {"model": [1]}, {1: torch.zeros(1)}])
def test_a_torch_file_without_a_state_dict(content, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="state dict"):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_a_file_has_the_permissions_of_any_other(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        write_safetensors({"a": torch.zeros(1)}, {"by": "us"}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == mode
