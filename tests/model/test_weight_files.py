"""Weight files: reading published ones safely and in their exact layouts, and our checkpoints."""

import collections
import json
import os
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
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
from drexperts.model.weight_files import (
    read_safetensors,
    read_torch_file,
    weights_digest,
    write_safetensors,
)
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


def test_equal_weights_have_one_digest_wherever_they_are_read_from(tmp_path):
    published, own, other = (
        tmp_path / name for name in ("a.pth", "b.safetensors", "c.safetensors")
    )
    state = released.random_state(released.released_shapes(128, 2, 4, **SMALL_DACLIP))
    torch.save({"model": {name: tensor.float() for name, tensor in state.items()}}, published)
    loaded = load_checkpoint(published)
    save_checkpoint(loaded._replace(scale=SCALE), own)
    save_checkpoint(loaded._replace(preprocessing=Preprocessing(64, 64, 64, 1)), other)
    digests = {load_checkpoint(path).weights for path in (published, own, other)}
    assert digests == {loaded.weights} == {read_safetensors(own)[1]["weights"]}
    with torch.no_grad():
        loaded.model.score.bias.add_(1e-6)
    assert loaded.weights not in digests


def test_the_digest_is_of_names_types_shapes_and_bytes():
    plain = {"a": torch.arange(4.0).reshape(2, 2), "b": torch.zeros(1)}
    other = [
        {"c": plain["a"], "b": plain["b"]},
        plain | {"a": plain["a"].double()},
        plain | {"a": plain["a"].reshape(4)},
        plain | {"b": -plain["b"]},  # equal as numbers
        {"a": plain["a"]},
    ]
    assert len({weights_digest(state) for state in [plain, *other]}) == 6
    turned = {"b": plain["b"], "a": plain["a"].T.contiguous().T}
    assert weights_digest(turned) == weights_digest(plain)


def test_weights_that_are_not_the_saved_ones_are_refused(tmp_path, tiny):
    def change(state: dict[str, Tensor], _: dict[str, str]) -> None:
        state["score.bias"].add_(1e-6)

    path = changed_checkpoint(tmp_path, tiny(), change)
    with pytest.raises(WeightsError, match=r"model\.safetensors.*saved with"):
        load_checkpoint(path)
    older = changed_checkpoint(tmp_path, tiny(), lambda _, texts: texts.pop("weights"))
    assert load_checkpoint(older).weights.startswith("sha256:")


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


def test_deit_weights_are_resampled_to_another_image_size(tmp_path, tiny):
    model = new_model(tiny())
    state = deit_state(model, False)
    state["pos_embed"] = torch.ones(1, 9, 32)  # of 3x3 patches; the model has 4x4
    save_file(state, tmp_path / "model.safetensors")
    load_encoder(model, tmp_path / "model.safetensors")
    torch.testing.assert_close(model.encoder.vit.pos_embed, torch.ones(1, 16, 32))


def test_an_encoder_from_nothing_has_nothing_to_download(tiny):
    for config in (tiny(), DRExpertsConfig(encoder=EncoderConfig(weights="none"))):
        model = new_model(tiny())
        model.config = config
        with pytest.raises(WeightsError, match="no published weights"):
            load_encoder(model)


def test_offline_the_address_of_the_file_is_named(monkeypatch):
    def offline(repository: str, filename: str, **options: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("drexperts.model.downloads.hf_hub_download", offline)
    monkeypatch.setattr(EncoderConfig, "published", "deit3_small_patch16")
    model = new_model(small_config())
    with pytest.raises(WeightsError, match=r"deit3_small_patch16_224\.fb_in22k_ft_in1k/.*safetens"):
        load_encoder(model)
    with pytest.raises(WeightsError, match=r"weblzw/daclip.*/daclip_ViT-B-32\.pt"):
        daclip.load_prior(model)


def test_hub_names_lead_to_the_published_files(monkeypatch, tmp_path, tiny):
    asked: list[tuple[str, object]] = []
    notes: list[str] = []
    monkeypatch.setattr(EncoderConfig, "published", "deit3_small_patch16")
    model = new_model(small_config())
    commit = tmp_path / ("0" * 40)
    commit.mkdir()
    save_file(deit_state(model, False), commit / "model.safetensors")
    daclip_file(commit).rename(commit / daclip.FILENAME)

    def hub(repository: str, filename: str, **options: Any) -> str:
        asked.append((repository, options["token"]))
        return str(commit / filename)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("drexperts.model.downloads.hf_hub_download", hub)
    load_encoder(model, note=notes.append)
    daclip.load_prior(model, note=notes.append)
    published = "timm/deit3_small_patch16_224.fb_in22k_ft_in1k"
    assert asked == [(published, False), (daclip.REPOSITORY, False)]
    assert [note.split(" ")[0] for note in notes] == [
        f"{published}/model.safetensors",
        f"{daclip.REPOSITORY}/{daclip.FILENAME}",
    ]


def changed_checkpoint(
    folder: Path, config: DRExpertsConfig, change: Callable[[dict[str, Any], dict[str, str]], Any]
) -> Path:
    """A checkpoint of a small model whose tensors and metadata were changed."""
    path = folder / "model.safetensors"
    save_checkpoint(Checkpoint(new_model(config), SCALE, Preprocessing(64, 64, 128, 2)), path)
    state, texts = read_safetensors(path)
    change(state, texts)
    save_file(state, path, texts)
    return path


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda _, d: d.pop("config"), "config"),
        (lambda _, d: d.update(config="{"), "config"),
        (lambda _, d: d.update(scale='{"low": 0}'), "scale"),
        (lambda _, d: d.update(preprocessing="[]"), "preprocessing"),
        (lambda _, d: d.update(extra="{}"), "extra"),
        (lambda s, _: s["score.bias"].fill_(float("nan")), r"score\.bias"),
        (lambda s, _: s["score.weight"].fill_(float("-inf")), r"score\.weight"),
        (lambda s, _: s.update({"score.bias": s["score.bias"].double() + 1e300}), r"score\.bias"),
        (lambda s, _: s.update({"score.bias": s["score.bias"].to(torch.int64)}), r"score\.bias"),
    ],
)
def test_a_checkpoint_that_was_changed_is_named(change, named, tmp_path, tiny):
    path = changed_checkpoint(tmp_path, tiny(), change)
    with pytest.raises(WeightsError, match=rf"model\.safetensors.*{named}"):
        load_checkpoint(str(path))


def test_the_file_is_compared_with_the_sizes_before_a_model_is_made(monkeypatch, tmp_path, tiny):
    """The metadata of a small file asks for the largest model that the limits allow."""
    config = tiny().as_dict()
    config["encoder"] |= {"width": 2048, "depth": 19, "image_size": 2048, "heads": 64}
    path = changed_checkpoint(tmp_path, tiny(), lambda _, d: d.update(config=json.dumps(config)))
    made: list[DRExpertsConfig] = []
    monkeypatch.setattr("drexperts.model.checkpoint.new_model", made.append)
    with pytest.raises(WeightsError, match=r"model\.safetensors.*encoder\.vit\.blocks\.10"):
        load_checkpoint(path)
    assert made == []


@pytest.mark.parametrize("length", [2, 10**9, 2**63])
def test_a_header_that_claims_more_than_the_file_is_refused(length, tmp_path, tiny):
    path = changed_checkpoint(tmp_path, tiny(), lambda *_: None)
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load_checkpoint(path)


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path):
    path, packed = tmp_path / "x.pth", tmp_path / "packed.pth"
    torch.save({"model": {"a": torch.zeros(10**6)}}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    assert packed.stat().st_size < 10**5
    with pytest.raises(WeightsError, match=r"packed\.pth.*unpack"):
        load_checkpoint(packed)


def test_tensors_larger_than_their_file_are_refused(tmp_path):
    """One number that claims to be a billion, and a tensor under a thousand names."""
    block = torch.zeros(1000)
    for state in ({"a": torch.zeros(1).expand(10**9)}, {str(i): block for i in range(1000)}):
        torch.save({"model": state, "state_dict": state}, tmp_path / "x.pth")
        for read in (load_checkpoint, daclip.read_prior):
            with pytest.raises(WeightsError, match=r"x\.pth.* bytes, but its tensors claim"):
                read(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("clip.positional_embedding", (10**5, 128)),  # a mask of 10^10
        ("clip.token_embedding.weight", (100, 128)),  # the prompts' words are not in it
        ("visual_control.conv1.weight", (200, 3, 32, 32)),
        ("visual_control.conv1.weight", (0, 3, 32, 32)),
    ],
)
def test_a_prior_of_impossible_sizes_is_refused(key, shape, tmp_path):
    state = released.random_state(released.daclip_shapes(**SMALL_DACLIP))
    state[key] = torch.zeros(shape)
    torch.save({"state_dict": state}, tmp_path / "daclip.pt")
    with pytest.raises(WeightsError, match=r"daclip\.pt"):
        daclip.read_prior(tmp_path / "daclip.pt")


def test_a_prior_that_is_not_finite_names_its_tensor(tmp_path):
    state = released.random_state(released.daclip_shapes(**SMALL_DACLIP))
    state["visual_control.ln_post.bias"][3] = float("nan")
    torch.save({"state_dict": state}, tmp_path / "daclip.pt")
    with pytest.raises(WeightsError, match=r"daclip\.pt.*ln_post\.bias"):
        daclip.convert_daclip(tmp_path / "daclip.pt", tmp_path / "prior.safetensors")


@pytest.mark.parametrize("key", ["visual.class_embedding", "mask_token", "encoder", "beit3.x"])
def test_keys_of_other_models_do_not_make_an_encoder(key, tmp_path, tiny):
    save_file({key: torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load_encoder(new_model(tiny()), tmp_path / "model.safetensors")


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
