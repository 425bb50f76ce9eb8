"""A batch of images in, a batch of scores out, in whatever form a framework has."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from support.archives import png
from support.memory_bucket import memory_bucket

from drexperts import runtime
from drexperts.runtime import UserError, score_files
from drexperts.runtime.manifest import read_manifest, write_manifest
from drexperts.scale import Scoring, scoring

OPTIONS: dict[str, Any] = {"threads": 1, "isolated": False}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(20 * i + 10))
    (tmp_path / "broken.jpg").write_bytes(b"junk")
    return [str(tmp_path / name) for name in ("0.png", "1.png", "broken.jpg", "2.png")]


@pytest.fixture
def results(toy_bundle: Path, files: list[str], tmp_path: Path) -> pyarrow.Table:
    """What `drx score` writes."""
    with runtime.load(toy_bundle, threads=1) as scorer:
        score_files(scorer, files, tmp_path / "r.parquet")
    return pyarrow.parquet.read_table(tmp_path / "r.parquet")


def test_a_table_of_arrow(toy_bundle: Path, files: list[str], results: pyarrow.Table) -> None:
    table = Scoring(toy_bundle, image="path", **OPTIONS)(pyarrow.table({"path": files}))
    assert table.schema.metadata == results.schema.metadata
    assert table.equals(results.cast(table.schema))  # Parquet names the items of lists anew


def test_a_dictionary_of_columns(
    toy_bundle: Path, files: list[str], results: pyarrow.Table
) -> None:
    columns = Scoring(toy_bundle, image="path", **OPTIONS)({"path": np.array(files)})
    assert columns == results.to_pydict()
    assert list(columns) == results.column_names


def test_a_data_frame(toy_bundle: Path, files: list[str], results: pyarrow.Table) -> None:
    batch = pandas.DataFrame({"path": files, "id": [5, 6, 7, 8]}, index=[3, 1, 4, 2])
    frame = Scoring(toy_bundle, image="path", keep=["id"], **OPTIONS)(batch)
    expected = results.to_pandas().assign(id=[5, 6, 7, 8])
    pandas.testing.assert_frame_equal(frame, expected)


def test_kept_columns_keep_their_types(toy_bundle: Path) -> None:
    image = pyarrow.array([{"bytes": png(7), "path": "a.png"}])
    batch = pyarrow.table({"image": image, "label": pyarrow.array([3], pyarrow.int8())})
    table = Scoring(toy_bundle, keep=("image", "label"), **OPTIONS)(batch)
    assert table.select(["image", "label"]).equals(batch)
    assert table["source"].to_pylist() == ["a.png"]
    columns = Scoring(toy_bundle, keep=("label",), **OPTIONS)(batch.to_pydict())
    assert columns["label"] == [3]


def test_each_kind_of_cell(toy_bundle: Path, files: list[str]) -> None:
    path = files[1]
    with memory_bucket() as system:
        system.pipe("/bucket/a.png", Path(path).read_bytes())
        cells: list[Any] = [path, Path(path), Path(path).read_bytes(), "memory://bucket/a.png"]
        cells += [{"bytes": png(30), "path": None}, {"bytes": None, "path": path}]
        cells += [Image.open(path), None, float("nan"), {"bytes": None, "path": None}, "gone.png"]
        batch = {"image": cells, "id": range(len(cells))}
        columns = Scoring(toy_bundle, key="id", **OPTIONS)(batch)
    assert columns["source"] == list(map(str, range(len(cells))))
    assert [error is None for error in columns["error"]] == [True] * 7 + [False] * 4
    assert len(set(columns["value"][:7])) == 1
    assert columns["error"][7] == "cannot read 7: its row holds no image"


def test_an_empty_batch_has_the_columns(toy_bundle: Path, results: pyarrow.Table) -> None:
    assert Scoring(toy_bundle, **OPTIONS)({"image": []}).keys() == set(results.column_names)


ELSEWHERE = """
import pickle, sys
print(pickle.load(sys.stdin.buffer)({"image": [sys.argv[1]]})["value"])
"""


def test_it_is_pickled_without_its_engine(toy_bundle: Path, files: list[str]) -> None:
    made = Scoring(toy_bundle, **OPTIONS)
    here = made({"image": files[:1]})["value"]
    assert len(pickle.dumps(made)) < 2000
    assert pickle.dumps(made) == pickle.dumps(Scoring(str(toy_bundle), **OPTIONS))
    command = [sys.executable, "-c", ELSEWHERE, files[0]]
    there = subprocess.run(command, input=pickle.dumps(made), capture_output=True, check=True)
    assert json.loads(there.stdout) == here


def test_a_process_opens_one_engine(toy_bundle: Path, files: list[str]) -> None:
    scoring._loaded.cache_clear()
    for _ in range(3):
        Scoring(toy_bundle, **OPTIONS)({"image": files})
    assert scoring._loaded.cache_info().misses == 1


def test_a_bundle_that_was_replaced_is_refused_and_another_function(
    toy_bundle: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(toy_bundle, bundle)
    made = Scoring(bundle, **OPTIONS)
    manifest = read_manifest(bundle)
    manifest.created_with["drexperts"] = "0"
    write_manifest(manifest, bundle)
    with pytest.raises(UserError, match="has the digest"):
        made({"image": [png(3)], "k": ["a"]} | {"image": ["a.png"]})
    assert pickle.dumps(made) != pickle.dumps(Scoring(bundle, **OPTIONS))


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({"image": "img"}, {"image": []}, "no column 'img', but 'image': say which"),
        ({"key": "id"}, {"image": []}, "no column 'id'"),
        ({}, {"image": [b""]}, "an image of the batch has no name.* key="),
        ({"keep": ["id"]}, {"image": []}, "keep='id' must name a column of the batch"),
        ({"keep": ["value"]}, {"image": [], "value": []}, "keep='value' must .* no column of sco"),
        ({}, ["a.png"], "a batch is a dictionary of columns"),
    ],
)
def test_mistakes(toy_bundle: Path, options: dict[str, Any], batch: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Scoring(toy_bundle, **OPTIONS, **options)(batch)


def test_a_missing_bundle_is_found_when_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        Scoring(tmp_path / "nowhere")


@pytest.mark.slow
def test_datasets_of_hugging_face(
    toy_bundle: Path, files: list[str], results: pyarrow.Table, tmp_path: Path
) -> None:
    """The recipe in docs/guides/clusters.md."""
    datasets = pytest.importorskip("datasets", reason="install datasets, or `make test-ray`")
    images = [{"bytes": Path(path).read_bytes(), "path": path} for path in files]
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int32"))
    data = datasets.Dataset.from_dict({"image": images, "label": range(4)}, features)
    for processes in (None, 2):
        scored = data.with_format("arrow").map(
            Scoring(toy_bundle, keep=["label"], **OPTIONS),
            batched=True,
            batch_size=2,
            num_proc=processes,
            remove_columns=data.column_names,
        )
        assert scored.with_format("arrow")[:].select(results.column_names).equals(results)
        assert scored.with_format(None)["label"][:] == [0, 1, 2, 3]
