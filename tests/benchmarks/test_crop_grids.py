"""What the receipt of crop grids derives, and the scores that the script takes."""

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import miniature

from drexperts.bench.provenance import Machine, Source
from drexperts.benchmarks import crop_grids
from drexperts.benchmarks.learn_from_scores import Commands
from drexperts.benchmarks.receipt_types.grid_receipt import (
    Case,
    GridReceipt,
    GridScores,
    ScoredPart,
    parts,
)
from drexperts.data.layouts import open_dataset
from drexperts.evaluation.metrics import correlation_changes, correlation_intervals
from drexperts.model.checkpoint import Checkpoint, save_checkpoint
from drexperts.runtime.decoding import decode
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing
from drexperts.ui.markdown import Table

SCALE = ScoreScale(0.0, 100.0, higher_is_better=True)
LABELS = (1.0, 2.0, 3.0, 4.0)
# Spearman's correlations with the labels: 1, 0.8 and 0.4.
EQUAL, NEAR, FAR = (1, 2, 3, 4), (1, 2, 4, 3), (1, 4, 2, 3)


def part(learnt_from: int = 0, **grids: Sequence[float]) -> ScoredPart:
    """Grids of one to three crops per image, by their names' last digit."""
    return ScoredPart(
        labels=LABELS,
        learnt_from=learnt_from,
        grids={
            name[-1]: GridScores(scores=tuple(scores), crops=4 * int(name[-1]))
            for name, scores in grids.items()
        },
    )


def case(*scored: ScoredPart) -> Case:
    return Case(model="m", images="i", crop=64, own="2", parts=scored)


def test_one_model_has_intervals_from_resampling_the_images() -> None:
    one = case(part(g1=FAR, g2=NEAR))
    assert one.crops_per_image("2") == 2
    found = one.correlation("srcc", "1")
    assert found.value == pytest.approx(0.4)
    assert found[1:] == correlation_intervals(LABELS, FAR)["srcc"]
    change = one.change("srcc", "1")
    assert change.value == pytest.approx(-0.4)
    assert change[1:] == correlation_changes((LABELS, NEAR), (LABELS, FAR))["srcc"].interval


def test_several_models_have_means_over_the_splits() -> None:
    several = case(part(16, g1=NEAR, g2=EQUAL), part(16, g1=FAR, g2=NEAR))
    assert several.correlation("srcc", "2").value == pytest.approx(0.9)
    change = several.change("srcc", "1")
    assert change.value == pytest.approx(-0.3)
    # Two differences, -0.2 and -0.4, as in the tests of the receipt of learning.
    half = 12.7062 * (0.75 * 0.02) ** 0.5
    assert (change.low, change.high) == pytest.approx((-0.3 - half, -0.3 + half), rel=1e-4)
    # Without images to learn from the parts share nothing: the variance is divided by two.
    half = 12.7062 * (0.5 * 0.02) ** 0.5
    alone = case(*(replace(part, learnt_from=0) for part in several.parts)).change("srcc", "1")
    assert (alone.low, alone.high) == pytest.approx((-0.3 - half, -0.3 + half), rel=1e-4)


def test_the_table_names_the_own_grid_and_the_one_that_is_the_same() -> None:
    cut = part(g1=FAR, g2=NEAR, g3=NEAR)
    same = replace(cut, grids=cut.grids | {"3": cut.grids["2"]})
    receipt = GridReceipt(
        command="c",
        machine=Machine("cpu", 2, None, "Linux", "3.11", {}, ()),
        source=Source(None, None, ()),
        data={"i": "Images."},
        digests={"i": "0"},
        cases=(case(same),),
    )
    (table,) = (each for each in parts(receipt) if isinstance(each, Table))
    less, own, more = table.rows
    assert less[:4] == ("m, 64 px", "i", "1", "1.00")
    assert less[6].startswith("-0.400 (")
    assert own[:4] == ("", "", "2, its own", "2.00")
    assert own[6:] == ("", "")
    assert more[6:] == ("same crops", "same crops")
    two = replace(receipt, cases=(case(part(16, g1=NEAR, g2=EQUAL), part(16, g1=FAR, g2=NEAR)),))
    _, by_part = (each for each in parts(two) if isinstance(each, Table))
    assert by_part.rows == [("1", "0.800", "0.400"), ("2", "1.000", "0.800")]


def test_scores_of_other_images_and_a_missing_own_grid_are_refused() -> None:
    with pytest.raises(UserError, match="labels"):
        case(part(g1=FAR, g2=(1, 2)))
    with pytest.raises(UserError, match="own grid, 2"):
        case(part(g1=FAR))


def test_each_grid_is_scored(
    tiny: Callable[..., Any], random_model: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    spec = Preprocessing(crop=64, short_side_min=64, short_side_max=66, crops_per_side=2)
    save_checkpoint(Checkpoint(random_model(tiny()), SCALE, spec), path)
    labels = miniature.write("folder", tmp_path / "data", contents=2, side=(72, 66))
    dataset = open_dataset("folder", labels, scale=SCALE)
    names = sorted(dataset.by_name)
    found = crop_grids.scored(path, dataset, names, learnt_from=3)
    assert found.labels == tuple(dataset.by_name[name].label for name in names)
    count = len(names)
    assert [each.crops for each in found.grids.values()] == [count, 4 * count, 4 * count, 4 * count]
    assert found.grids["4"] == found.grids["2"] != found.grids["1"]
    made = crop_grids.case("m", "i", [path], [found])
    assert (made.crop, made.own) == (64, "2")


def test_the_synthetic_set_is_of_whole_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def synth(words: list[str], check: bool) -> None:
        clean, out = Path(words[4]), Path(words[6])
        assert words[3] == "synth"
        sizes = [decode(path).size for path in sorted(clean.iterdir())]
        assert len(sizes) == len(crop_grids.TESTED)
        assert sum(width > height for width, height in sizes) >= 3
        out.mkdir()
        (out / "a.png").write_bytes(sorted(clean.iterdir())[0].read_bytes())
        (out / "labels.csv").write_text("path,score\na.png,50\n")

    monkeypatch.setattr(subprocess, "run", synth)
    made = crop_grids.synthetic_set(Commands(tmp_path, ()), "tested", crop_grids.TESTED)
    assert [sample.label for sample in made.samples] == [50.0]
    assert "1 images" in crop_grids.about(made, crop_grids.TESTED)
