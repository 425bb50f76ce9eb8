"""A bundle and a checkpoint that an earlier version wrote (commit 47b13d6) score as they did then.

`fixtures/schema-1/scores.json` holds what that version computed from scikit-image's photographs.
Crops and fingerprint inputs are integers and hashes, so that they are equal on every machine. The
floating-point values are equal to the bit where the processor and the libraries are the same, and
equal to a few units in the last place elsewhere: each processor sums in its own order.
"""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drexperts import runtime
from drexperts.evaluation.predict import open_model
from drexperts.runtime.decoding import decode
from drexperts.runtime.preprocess import crops_from_image

skimage = pytest.importorskip("skimage", reason="the photographs come with scikit-image")

FOLDER = Path(__file__).parent / "fixtures" / "schema-1"
BEFORE = json.loads((FOLDER / "scores.json").read_text())
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
NEAR = 2e-6  # of float32 scores of order one, summed in another order


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def same_software() -> bool:
    return all(installed(name) == number for name, number in BEFORE["versions"].items())


def tolerance() -> float:
    """Zero where the processor and the libraries are those that made the numbers."""
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return 0.0 if same_software() and BEFORE["cpu"] in models[0] else NEAR


def images() -> list[Any]:
    return [pytest.param(image, id=image["row"]["source"]) for image in BEFORE["images"]]


@pytest.fixture(scope="module")
def scorer() -> runtime.Scorer:
    return runtime.load(FOLDER / "bundle", device="cpu", threads=1)


@pytest.mark.parametrize("image", images())
def test_crops_are_the_same_bytes(image: dict[str, Any], scorer: runtime.Scorer) -> None:
    photograph = decode(PHOTOGRAPHS / image["row"]["source"])
    crops = crops_from_image(photograph, scorer.manifest.preprocessing).pixels
    assert hashlib.sha256(crops.tobytes()).hexdigest() == image["crops_sha256"]


@pytest.mark.parametrize("image", images())
def test_the_bundle_scores_as_before(image: dict[str, Any], scorer: runtime.Scorer) -> None:
    before, off = image["row"], tolerance()
    now = scorer.score(PHOTOGRAPHS / before["source"]).as_row()
    newer = ("enlarged", "crops_per_side")
    assert [name for name in now if name not in newer] == list(before)
    for name in ("value", "std", "raw"):
        np.testing.assert_allclose(now[name], before[name], rtol=0, atol=off)
    assert list(now["distortions"]) == list(before["distortions"])
    np.testing.assert_allclose(
        list(now["distortions"].values()), list(before["distortions"].values()), rtol=0, atol=off
    )
    assert (now["scale"], now["error"]) == (before["scale"], before["error"])


def test_the_checkpoint_scores_as_before() -> None:
    with open_model(FOLDER / "checkpoint.safetensors", "cpu") as eager:
        for image in BEFORE["images"]:
            score = eager.score(PHOTOGRAPHS / image["row"]["source"])
            np.testing.assert_allclose(score.value, image["eager"], rtol=0, atol=tolerance())
            assert score.distortions == pytest.approx(
                image["eager_distortions"], rel=0, abs=tolerance()
            )
