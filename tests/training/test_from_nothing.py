"""Models that start from nothing: their first weights and their prior."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import miniature
from support.run_training import Printed, run_of, train
from torch import Generator, Tensor, nn

from drexperts.data.distortions import SYNTHETIC_TYPES
from drexperts.data.images import GridSize, ImageStore
from drexperts.data.layouts import open_dataset
from drexperts.model.backbones import normalised
from drexperts.model.config import DISTORTIONS, LEARNT, ControllerConfig, DRExpertsConfig
from drexperts.model.dr_experts import DRExperts
from drexperts.runtime.errors import UserError
from drexperts.runtime.preprocess import Preprocessing
from drexperts.training import from_nothing
from drexperts.training import run as training
from drexperts.training.from_nothing import (
    LEAST_LEVEL,
    MOST_LEVEL,
    PROMPT_OF,
    PriorTraining,
    distorted_squares,
    frequency_filters,
    initialise,
    random_crops,
    train_prior,
    untrained_model,
)
from drexperts.training.settings import Resources

SHORT = PriorTraining(squares=16, epochs=1, batch=8)


def toy() -> DRExperts:
    """64 px, as small as a model can be."""
    config = DRExpertsConfig.from_nothing("tiny", 128)
    encoder = replace(config.encoder, image_size=64, width=32, depth=2, heads=2)
    prior = ControllerConfig(64, 16, width=32, depth=1, heads=2, embedding=16)
    return untrained_model(config.with_sizes(encoder, prior))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write("livec", tmp_path_factory.mktemp("data") / "livec", contents=5)


@pytest.fixture(scope="module")
def store(root: Path) -> ImageStore:
    return ImageStore(open_dataset("livec", root), GridSize(Preprocessing(64, 64, 72, 1)))


def squares_of(store: ImageStore, seed: int = 0, count: int = 48) -> from_nothing.Squares:
    return distorted_squares(store, store.dataset.samples, 64, count, seed, lambda *_: None)


def test_what_a_prior_learns_is_what_the_configuration_says() -> None:
    assert set(PROMPT_OF.values()) == set(LEARNT) <= set(DISTORTIONS)
    assert all(SYNTHETIC_TYPES[kind].monotone for kind in PROMPT_OF)


def test_squares_are_distorted_and_repeatable(store: ImageStore) -> None:
    one, again, other = squares_of(store), squares_of(store), squares_of(store, seed=1)
    assert one.pixels.dtype == torch.uint8
    assert one.pixels.shape[1:] == (3, 64, 64)
    assert len(one.pixels) == len(one.prompts) >= 48
    assert torch.equal(one.pixels, again.pixels)
    assert not torch.equal(one.pixels, other.pixels)
    assert {DISTORTIONS[i] for i in one.prompts.tolist()} <= set(LEARNT)
    # More pictures than squares: each gives at most one.
    assert len(squares_of(store, count=3).pixels) == 3


def test_every_distortion_and_level_is_drawn() -> None:
    generator = Generator().manual_seed(0)
    drawn = {from_nothing._drawn(generator) for _ in range(2000)}
    levels = range(LEAST_LEVEL, MOST_LEVEL + 1)
    assert drawn == {(kind, level) for kind in PROMPT_OF for level in levels}


def test_the_first_weights_let_every_frequency_through(store: ImageStore) -> None:
    model = toy()
    prompts = model.prompts(torch.zeros(0, dtype=torch.float64))
    torch.testing.assert_close(prompts @ prompts.T, torch.eye(10, dtype=torch.float64))
    before = {name: p.clone() for name, p in model.named_parameters()}
    squares = squares_of(store)
    initialise(model, squares.pixels)
    scales = [p for name, p in model.encoder.named_parameters() if name.endswith("gamma")]
    assert scales
    assert all((p == 1).all() for p in scales)
    for name in ("encoder.vit.patch_embed.proj.weight", "controller.visual.conv1.weight"):
        filters = model.get_parameter(name).flatten(1)
        cosines = frequency_filters(round((filters.shape[1] / 3) ** 0.5), len(filters)).flatten(1)
        directions = nn.functional.cosine_similarity(filters, cosines)
        torch.testing.assert_close(directions, torch.ones(len(filters)))
        assert not torch.equal(filters, before[name].flatten(1))


def test_the_first_features_are_energies_which_have_no_sign(store: ImageStore) -> None:
    def features(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            tokens: Tensor = model.encoder(normalised(pixels))
        return tokens[:, 0]

    torch.manual_seed(0)
    model, squares = toy(), squares_of(store).pixels
    blurred = nn.functional.avg_pool2d(squares.float(), 3, 1, 1).to(torch.uint8)
    distances = []
    for _ in range(2):
        of_squares = features(squares)
        others = (features(255 - squares), features(blurred))
        distances.append([float((of_squares - other).norm(dim=1).mean()) for other in others])
        initialise(model, squares)
    (negative, blur), (negative_now, blur_now) = distances
    assert negative_now / blur_now < 0.5 * negative / blur


@pytest.mark.slow
def test_the_prior_learns_to_tell_distortions_apart(store: ImageStore) -> None:
    torch.manual_seed(0)
    model, squares = toy(), squares_of(store, count=200)
    initialise(model, squares.pixels)
    losses = train_prior(model, squares, PriorTraining(epochs=12).config(0), lambda _: None)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert not any(p.requires_grad for p in model.controller.parameters())


def scores(out: Path) -> str:
    return (out / "predictions.csv").read_text()


@pytest.mark.slow
def test_a_run_keeps_its_start_until_it_is_done(root: Path, tmp_path: Path) -> None:
    run = replace(run_of(root, epochs=1), fresh=True, prior=SHORT)
    result = train(run, tmp_path / "run", toy)
    assert result.settings["prior"]["squares"] == 16
    assert not (tmp_path / "run" / "start.safetensors").exists()
    train(run, tmp_path / "again", toy)
    assert scores(tmp_path / "again") == scores(tmp_path / "run")
    train(replace(run, prior=replace(SHORT, rate=1e-4)), tmp_path / "other", toy)
    assert scores(tmp_path / "other") != scores(tmp_path / "run")


class KilledError(Exception):
    """Stands for the end of a process."""


class Fragile(Printed):
    """Progress that ends the run at the first message with a text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.told: list[str] = []

    def __call__(self, message: str, done: int = 0, total: int | None = None) -> None:
        self.told.append(message)
        if self.text in message:
            raise KilledError


@pytest.fixture
def killed_at(root: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """killed_at(TEXT): the messages of a run in `tmp_path / "run"` up to the first with TEXT."""
    run = replace(run_of(root, epochs=1), fresh=True, prior=SHORT)
    resources = Resources(device="cpu", workers=0, save_minutes=0.0)

    def messages(text: str) -> list[str]:
        progress = Fragile(text)
        with suppress(KilledError):
            training.train(run, toy, tmp_path / "run", resources=resources, progress=progress)
        return progress.told

    return messages


@pytest.mark.slow
def test_a_resumed_run_does_not_train_its_prior_again(
    killed_at: Callable[[str], list[str]], root: Path, tmp_path: Path
) -> None:
    assert any("training the prior" in text for text in killed_at("validating"))
    kept = tmp_path / "run" / "start.safetensors"
    assert kept.exists()
    start = kept.read_bytes()
    kept.rename(tmp_path / "aside")
    with pytest.raises(UserError, match=r"start\.safetensors.*restore it"):
        killed_at("never")
    (tmp_path / "aside").rename(kept)
    told = killed_at("testing")
    assert not any("prior" in text for text in told)
    assert kept.read_bytes() == start
    killed_at("never")
    train(replace(run_of(root, epochs=1), fresh=True, prior=SHORT), tmp_path / "whole", toy)
    assert scores(tmp_path / "run") == scores(tmp_path / "whole")


@pytest.mark.slow
def test_a_start_of_other_settings_is_not_taken(
    killed_at: Callable[[str], list[str]], root: Path, tmp_path: Path
) -> None:
    """Killed before the first state: the folder may be begun again with another seed."""
    killed_at("epoch 1 of")
    (tmp_path / "run" / "state.safetensors").unlink(missing_ok=True)
    run = replace(run_of(root, epochs=1, seed=1), fresh=True, prior=SHORT)
    train(run, tmp_path / "run", toy)
    train(run, tmp_path / "clean", toy)
    assert scores(tmp_path / "run") == scores(tmp_path / "clean")


def test_frequency_filters_are_orthogonal_and_blind_to_nothing() -> None:
    filters = frequency_filters(4, 48)
    luma = filters[:16].flatten(1)
    gram = luma @ luma.T
    torch.testing.assert_close(gram, gram.diagonal().diag(), atol=1e-5, rtol=0)
    assert torch.linalg.matrix_rank(filters.flatten(1)) == 48


def test_crops_are_pieces_of_their_own_image_some_mirrored() -> None:
    rows, columns = torch.arange(6)[:, None], torch.arange(7)
    image = (10 * rows + columns).to(torch.uint8).expand(40, 3, 6, 7)
    crops = random_crops(image, 4, torch.Generator().manual_seed(0)).int()
    steps = crops.diff(dim=-1)
    mirrored = steps[:, 0, 0, 0] == -1
    assert 0 < mirrored.sum() < 40
    assert torch.equal(steps.abs(), torch.ones_like(steps))
    assert torch.equal(crops.diff(dim=-2), torch.full((40, 3, 3, 4), 10, dtype=torch.int32))
    corners = torch.where(mirrored, crops[:, 0, 0, -1], crops[:, 0, 0, 0])
    assert set(corners.tolist()) == {10 * y + x for y in range(3) for x in range(4)}
