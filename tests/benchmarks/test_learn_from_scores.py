"""What the receipt of learning from scores derives, and the parts of the script that are ours."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ttest_1samp
from support import miniature

from drexperts.bench.provenance import Machine, Source
from drexperts.benchmarks import learn_from_scores
from drexperts.benchmarks.learn_from_scores import Commands
from drexperts.benchmarks.natural_statistics import brisque_features
from drexperts.benchmarks.receipt_types.learning_receipt import (
    Contestant,
    LearningReceipt,
    Learnt,
    RatedPart,
    half_interval,
    parts,
)
from drexperts.data.layouts import open_dataset
from drexperts.data.splits import Split, Splits
from drexperts.runtime.errors import UserError
from drexperts.ui.markdown import Table

LABELS = (1.0, 2.0, 3.0, 4.0)
# Spearman's correlations with the labels: 1, 0.8, -1 and 0.4.
EQUAL, NEAR, REVERSED, FAR = (1, 2, 3, 4), (1, 2, 4, 3), (4, 3, 2, 1), (1, 4, 2, 3)


def contestant(*scores: tuple[float, ...], before: float = 0.0) -> Contestant:
    learnt = tuple(Learnt(scores=each, cpu_seconds=10.0) for each in scores)
    return Contestant(seen="s", before=before, learnt=learnt)


@pytest.fixture
def receipt() -> LearningReceipt:
    return LearningReceipt(
        command="c",
        machine=Machine("cpu", 2, None, "Linux", "3.11", {}, ()),
        source=Source(None, None, ()),
        data="d",
        data_digest="0",
        baseline="SVR",
        splits=(RatedPart(labels=LABELS, learnt_from=16),) * 2,
        contestants={
            "SVR": contestant(NEAR, FAR),
            "ours": contestant(EQUAL, NEAR, before=5.0),
        },
    )


def test_correlations_are_of_each_split(receipt: LearningReceipt) -> None:
    assert receipt.correlations("SVR").srcc == pytest.approx([0.8, 0.4])
    assert receipt.correlations("ours").plcc == pytest.approx([1.0, 0.8])


def test_differences_are_paired_by_split(receipt: LearningReceipt) -> None:
    mean, half = receipt.ahead("ours")
    assert mean == pytest.approx(0.3)
    # Two differences, 0.2 and 0.4: their variance is 0.02, and t(0.975, 1) is 12.706.
    assert half == pytest.approx(12.7062 * math.sqrt((1 / 2 + 4 / 16) * 0.02), rel=1e-4)


def test_without_shared_images_the_interval_is_students() -> None:
    values = [0.1, 0.4, 0.2, 0.25, 0.3]
    interval = ttest_1samp(values, 0).confidence_interval()
    assert half_interval(values, 0.0) == pytest.approx((interval.high - interval.low) / 2)
    assert math.isnan(half_interval([0.1], 0.25))


def test_the_table_compares_medians(receipt: LearningReceipt) -> None:
    tables = [part for part in parts(receipt) if isinstance(part, Table)]
    baseline, ours = tables[0].rows
    assert baseline[2:] == ("0.600", "0.400-0.800", "0.600", "", "10")
    assert ours[2:4] == ("0.900", "0.800-1.000")
    assert ours[5].startswith("+0.300 (")
    assert ours[6] == "10 + 5"
    assert tables[1].rows[1] == ("ours", "1.000", "0.800")


def test_scores_of_other_images_are_refused(receipt: LearningReceipt) -> None:
    with pytest.raises(UserError, match="ours"):
        replace(receipt, contestants=receipt.contestants | {"ours": contestant(EQUAL)})
    with pytest.raises(UserError, match="ridge"):
        replace(receipt, baseline="ridge")


def test_crop_features_are_the_mean_over_the_runtimes_crops() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    places = (0, 128)  # the shorter side is twice that of a crop
    crops = [pixels[y : y + 128, x : x + 128] for y in places for x in places]
    expected = np.mean([brisque_features(crop) for crop in crops], axis=0)
    found = learn_from_scores.crop_features(Image.fromarray(pixels))
    assert found == pytest.approx(expected)


def test_the_pictures_without_scores_are_in_no_test_part(tmp_path: Path) -> None:
    dataset = open_dataset("livec", miniature.write("livec", tmp_path / "livec", contents=5))
    names = sorted(dataset.by_name)
    halves = (Split(tuple(names[1:]), (), tuple(names[:1])), Split((), (), tuple(names[2:4])))
    found = learn_from_scores.unrated(dataset, Splits("livec", "0", 0, halves))
    tested = {names[0], *names[2:4]}
    assert {path.name for path in found} == {Path(n).name for n in names if n not in tested}


def test_a_command_is_run_once_and_its_time_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def run(words: list[str], check: bool) -> None:
        assert words[:3] == [sys.executable, "-m", "drexperts.cli.main"]
        assert check
        calls.append(words[3:])

    monkeypatch.setattr(subprocess, "run", run)
    commands = Commands(tmp_path, ())
    first = commands.run(tmp_path / "runs" / "one", "train", "--epochs", "1")
    assert commands.run(tmp_path / "runs" / "one", "train", "--epochs", "1") == first
    assert calls == [["train", "--epochs", "1"]]
