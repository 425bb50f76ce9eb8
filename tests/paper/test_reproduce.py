"""The tables: what they need, and small models trained for them on miniature data sets."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import miniature
from support.reporting import Recorder

from drexperts.data.layouts import open_dataset
from drexperts.data.recipes import RECIPES
from drexperts.data.splits import make_splits
from drexperts.evaluation.metrics import judge
from drexperts.evaluation.predict import TorchSession, open_model, predict
from drexperts.model.ablations import VARIANTS
from drexperts.model.config import DRExpertsConfig
from drexperts.model.dr_experts import DRExperts, new_model
from drexperts.paper.page import page
from drexperts.paper.reported import IMAGES as IMAGES_OF
from drexperts.paper.reported import TABLES
from drexperts.paper.reproduce import Plan, Training, cells_of, choose, reproduce
from drexperts.runtime.errors import ConfigError, StoppedError, UserError
from drexperts.runtime.progress import SILENT
from drexperts.training.run import start_digest
from drexperts.training.settings import Resources
from drexperts.training.trainer import TrainConfig

IMAGES = 16
RESOURCES = Resources(device="cpu", workers=0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., DRExpertsConfig]) -> Plan:
    """Three of the five data sets, and the shortest of trainings. Its runs add up."""
    root = tmp_path_factory.mktemp("data")
    for name in ("koniq10k", "livec", "bid"):
        miniature.write(name, root / name, contents=IMAGES // 4, side=(80, 72))
    return Plan(
        root,
        tmp_path_factory.mktemp("out"),
        lambda: new_model(tiny()),
        "random weights",
        lambda recipe: TrainConfig(batch=16, epochs=1),
        splits=1,
    )


def results(plan: Plan) -> dict[str, int]:
    """Every finished training, and when it was finished."""
    paths = (plan.out / "runs").glob("*/*/result.json")
    return {str(p.parent.relative_to(plan.out / "runs")): p.stat().st_mtime_ns for p in paths}


def cell(report: dict[str, Any], row: str, column: str) -> dict[str, Any]:
    return next(c for c in report["cells"] if (c["row"], c["column"]) == (row, column))


@pytest.mark.parametrize("table", TABLES)
def test_every_cell_stands_beside_a_reported_one(table: str) -> None:
    cells = cells_of(table)
    assert len({(cell.row, cell.column) for cell in cells}) == len(cells)
    assert {cell.column for cell in cells} == set(TABLES[table].columns)
    assert all(TABLES[table].cell(cell.row, cell.column) for cell in cells)


def test_the_trainings_are_those_of_the_paper_and_shared() -> None:
    needed = {table: {cell.training for cell in cells_of(table)} for table in TABLES}
    assert {table: len(trainings) for table, trainings in needed.items()} == {
        "table1": 5,
        "table2": 3,
        "table3": 6,
        "table4": 8,
        "table5": 14,
    }
    full = Training("koniq10k")
    assert [table for table in TABLES if full in needed[table]] == [
        "table1",
        "table2",
        "table4",
        "table5",
    ]
    together = set().union(*needed.values())
    assert len(together) == len({training.name for training in together}) == 5 + 6 + 6 + 12
    assert {training.variant for training in together} == set(VARIANTS)


def test_only_narrows_by_data_set_variant_and_share() -> None:
    cells = cells_of("table5")
    assert choose(cells, []) == list(cells)
    assert {c.training.dataset for c in choose(cells, ["livec"])} == {"livec"}
    two = choose(cells, ["no_dis", "full", "livec"])
    assert [c.training.variant for c in two] == ["no_dis", "full"]
    assert len(choose(cells_of("table3"), ["20", "40", "koniq10k"])) == 2
    with pytest.raises(UserError, match="--only spaq is not in this table: all, full, koniq10k"):
        choose(cells, ["livec", "spaq"])


def test_modules_are_trained_tested_and_shown_beside_the_reported(plan: Plan) -> None:
    report = reproduce("table4", plan, RESOURCES, SILENT)
    assert report["failures"] == []
    assert len(results(plan)) == 8
    for one in report["cells"]:
        (run,) = one["runs"]
        assert one["medians"]["test part"]["splits"] == 1
        assert one["medians"]["test part"]["plcc"] == run["tests"]["test part"]["plcc"]
        assert sum(run["images"]) == IMAGES
        assert len(run["split_digest"]) == 12
    assert json.loads((plan.out / "table4.json").read_text()) == report
    text = (plan.out / "table4.md").read_text()
    assert "| DSDM | 0.930/0.941 | 0.885/0.904 |" in text
    assert text.count("(1 of 1)") == 8
    assert "missing" not in text
    assert (
        "Trained from random weights, 1 epoch at a learning rate of 0.0002; tested by the "
        "protocol `grid`" in text
    )
    assert (
        "**This is no reproduction of the paper's numbers**: koniq10k 16 of 10073 images, livec "
        "16 of 1162 images, not trained from the published weights." in text
    )
    documents = (json.loads(path.read_text()) for path in plan.out.glob("runs/*/*/result.json"))
    # Whatever the variant and the split.
    assert {one["model"] for one in documents} == {start_digest(plan.new_model, 0)}


def test_a_training_serves_every_table_and_is_made_once(plan: Plan) -> None:
    reproduce("table4", plan, RESOURCES, SILENT, ["full"])
    before = results(plan)
    report = reproduce("table1", plan, RESOURCES, SILENT, ["koniq10k", "bid"])
    after = results(plan)
    assert after.keys() - before.keys() == {"bid-full/split-0"}
    assert {name: after[name] for name in before} == before
    measured = [c["column"] for c in report["cells"] if c["runs"]]
    assert measured == ["koniq10k", "livec", "bid"]  # also what was not asked for, as it is there
    row = next(line for line in page(report).splitlines() if "DR.Experts, here" in line)
    assert row.count("missing") == 2


def test_a_transfer_is_tested_on_all_of_its_target_and_on_a_part(plan: Plan) -> None:
    report = reproduce("table2", plan, RESOURCES, SILENT, ["koniq10k"])
    found = cell(report, "DR.Experts", "koniq10k to livec")["runs"][0]["tests"]
    target = open_dataset("livec", plan.root / "livec")
    test = json.loads((plan.out / "splits" / "livec.json").read_text())["splits"][0]["test"]
    assert 1 < len(test) < IMAGES
    best = plan.folder(Training("koniq10k"), 0) / "best.safetensors"
    for name, names in (
        ("whole target set", target.by_name),
        ("20 % of the target set", test),
    ):
        rows = predict(
            open_model(best),
            target,
            target.select(names),
            protocol="grid",
            recipe=RECIPES["livec"],
        ).rows
        expected = judge([row.label for row in rows], [row.score for row in rows])
        assert found[name]["images"] == len(names)
        assert found[name]["plcc"] == pytest.approx(expected.plcc, abs=1e-6)
    text = (plan.out / "table2.md").read_text()
    assert "| DR.Experts, here, whole target set |" in text
    assert "| DR.Experts, here, 20 % of the target set |" in text


def test_a_share_learns_from_less_and_is_tested_on_the_same(plan: Plan) -> None:
    reproduce("table1", plan, RESOURCES, SILENT, ["livec"])
    report = reproduce("table3", plan, RESOURCES, SILENT, ["livec", "20"])
    (run,) = cell(report, "DR.Experts", "livec 20 %")["runs"]
    folders = [plan.folder(Training("livec", share), 0) for share in ("20", "all")]
    few, many = ((f / "predictions.csv").read_text().splitlines() for f in folders)
    assert sum(run["images"][:2]) == round(0.2 * IMAGES)
    assert "are shares of all images of a data set, not of the training part" in page(report)
    assert [line.split(",")[0] for line in few] == [line.split(",")[0] for line in many]


def test_what_cannot_be_trained_is_told_and_the_others_go_on(plan: Plan) -> None:
    report = reproduce("table2", plan, RESOURCES, SILENT, ["livefb", "livec"])
    assert [failure["job"] for failure in report["failures"]] == [
        "livefb-full, split 0, on koniq10k",
        "livefb-full, split 0, on livec",
    ]
    assert str(plan.root / "livefb") in report["failures"][0]["error"]
    assert cell(report, "DR.Experts", "livec to koniq10k")["runs"]
    failed = page(report).partition("## Failed\n\n")[2]
    assert failed.startswith("- livefb-full, split 0, on koniq10k and 1 more: ")
    assert failed.count("\n") == 1


def test_the_authors_practice_is_followed_on_request_and_said(plan: Plan, tmp_path: Path) -> None:
    theirs = replace(plan, out=tmp_path, protocol="released", select_on_test=True)
    report = reproduce("table1", theirs, RESOURCES, SILENT, ["bid"])
    (run,) = cell(report, "DR.Experts", "bid")["runs"]
    assert run["images"] == [13, 0, 3]  # nothing is held back for a validation
    assert run["selected_on"] == "test"
    text = (tmp_path / "table1.md").read_text()
    assert "tested by the protocol `released`; epochs chosen by the test images" in text


def shown(plan: Plan, table: str = "table1") -> list[str]:
    """The columns for which a page of this plan has runs, without making one."""
    # SPAQ and LIVE-FB are not there.
    report = reproduce(table, plan, RESOURCES, SILENT, ["spaq" if table == "table1" else "livefb"])
    return [one["column"] for one in report["cells"] if one["runs"]]


def test_runs_from_other_weights_are_not_shown(plan: Plan) -> None:
    reproduce("table1", plan, RESOURCES, SILENT, ["koniq10k"])

    def other() -> DRExperts:
        model = plan.new_model()
        with torch.no_grad():
            model.encoder.vit.cls_token += 1
        return model

    assert "koniq10k" in shown(plan)
    assert shown(replace(plan, new_model=other)) == []
    assert shown(replace(plan, fresh=True)) == []


def test_runs_of_other_labels_or_of_none_are_not_shown(plan: Plan, tmp_path: Path) -> None:
    reproduce("table1", plan, RESOURCES, SILENT, ["koniq10k", "livec"])
    shutil.copytree(plan.root, tmp_path / "data")
    labels = tmp_path / "data" / "koniq10k" / "koniq10k_scores_and_distributions.csv"
    first, row, *others = labels.read_text().splitlines()
    changed = row.rpartition(",")[0] + ",50.5"
    labels.write_text("\n".join([first, changed, *others]) + "\n")
    there = shown(plan)
    assert {"koniq10k", "livec"} <= set(there)
    copied = replace(plan, root=tmp_path / "data")
    assert shown(copied) == [name for name in there if name != "koniq10k"]
    shutil.rmtree(tmp_path / "data" / "livec")
    assert "livec" not in shown(copied)
    assert shown(replace(plan, root=tmp_path / "none")) == []


def test_a_result_of_another_split_is_not_shown(plan: Plan, tmp_path: Path) -> None:
    reproduce("table1", plan, RESOURCES, SILENT, ["livec"])
    two = replace(plan, splits=2, out=tmp_path)
    source = plan.folder(Training("livec"), 0) / "result.json"
    for split in range(2):
        folder = two.folder(Training("livec"), split)
        folder.mkdir(parents=True)
        shutil.copy(source, folder)
    report = reproduce("table1", two, RESOURCES, SILENT, ["spaq"])
    assert [run["split"] for run in cell(report, "DR.Experts", "livec")["runs"]] == [0]


def test_a_transfer_to_other_labels_is_not_shown(plan: Plan) -> None:
    reproduce("table2", plan, RESOURCES, SILENT, ["koniq10k"])
    path = plan.folder(Training("koniq10k"), 0) / "on-livec.json"
    before = path.read_text()
    assert "koniq10k to livec" in shown(plan, "table2")
    for change in ({"data_digest": "0" * 16}, {"result": "0" * 64}, {"tests": {}}):
        path.write_text(json.dumps(json.loads(before) | change))
        assert "koniq10k to livec" not in shown(plan, "table2")
    reproduce("table2", plan, RESOURCES, SILENT, ["koniq10k"])
    assert path.read_text() == before


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"test": 1}'])
def test_a_result_of_another_shape_costs_only_its_cell(
    plan: Plan, tmp_path: Path, content: str
) -> None:
    here = replace(plan, out=tmp_path)
    reproduce("table1", plan, RESOURCES, SILENT, ["livec", "bid"])
    for name in ("livec", "bid"):
        shutil.copytree(plan.folder(Training(name), 0), here.folder(Training(name), 0))
    bad = here.folder(Training("bid"), 0) / "result.json"
    bad.write_text(content)
    notes: list[str] = []
    report = reproduce("table1", here, RESOURCES, Recorder(notes=notes), ["livec"])
    assert report["failures"] == []
    assert [one["column"] for one in report["cells"] if one["runs"]] == ["livec"]
    assert len([note for note in notes if str(bad) in note and "remove" in note]) == 1
    report = reproduce("table1", here, RESOURCES, SILENT, ["bid", "livec"])
    (failure,) = report["failures"]
    assert failure["job"].startswith("bid-full")
    assert str(bad) in failure["error"]
    assert "| 0.914/0.926 |" in (tmp_path / "table1.md").read_text()


def test_a_part_without_usable_images_costs_only_its_cell(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[TorchSession] = []
    close = TorchSession.close
    monkeypatch.setattr(TorchSession, "close", lambda one: (closed.append(one), close(one)))
    reproduce("table1", plan, RESOURCES, SILENT, ["koniq10k"])
    here = replace(plan, root=tmp_path / "data", out=tmp_path / "out")
    shutil.copytree(plan.root, here.root)
    folder = here.folder(Training("koniq10k"), 0)
    shutil.copytree(plan.folder(Training("koniq10k"), 0), folder)
    (folder / "on-livec.json").unlink(missing_ok=True)
    split = make_splits(open_dataset("livec", here.root / "livec")).splits[0]
    for name in split.test:
        (here.root / "livec" / name).write_bytes(b"no picture")
    lenient = replace(RESOURCES, skip_bad=True)
    report = reproduce("table2", here, lenient, SILENT, ["koniq10k"])
    (failure,) = report["failures"]
    assert "none of the 3 images can be used that are the 20 %" in failure["error"]
    assert (here.out / "table2.md").exists()
    assert len(closed) == 1


def test_a_page_says_what_is_no_reproduction(plan: Plan) -> None:
    report = reproduce("table1", plan, RESOURCES, SILENT, ["bid"])
    full = report | {"published": True, "cells": [dict(one) for one in report["cells"]]}
    for one in full["cells"]:
        one["runs"] = [
            run | {"used": {one["column"]: IMAGES_OF[one["column"]]}} for run in one["runs"]
        ]
    assert "no reproduction" not in page(full)
    assert "**This is no reproduction of the paper's numbers**: not trained from the published" in (
        page(full | {"published": False})
    )
    nothing = full | {"cells": [one | {"runs": []} for one in full["cells"]]}
    assert "numbers**: nothing was measured here." in page(nothing)


def test_runs_of_another_plan_are_neither_shown_nor_replaced(plan: Plan) -> None:
    reproduce("table1", plan, RESOURCES, SILENT, ["livec"])
    before = results(plan)
    other = replace(plan, config=lambda recipe: TrainConfig(batch=16, epochs=2))
    report = reproduce("table1", other, RESOURCES, SILENT, ["livec"])
    assert "holds another run" in report["failures"][0]["error"]
    assert not [c for c in report["cells"] if c["runs"]]
    assert results(plan) == before


def test_medians_are_over_the_splits_that_are_done(plan: Plan) -> None:
    reproduce("table1", plan, RESOURCES, SILENT, ["bid"])
    four = replace(plan, splits=4)
    done = json.loads((four.folder(Training("bid"), 0) / "result.json").read_text())
    first = done["test"]["srcc"]
    made = make_splits(open_dataset("bid", plan.root / "bid")).splits
    for split, srcc in ((2, first + 0.1), (3, first + 0.3)):
        folder = four.folder(Training("bid"), split)
        folder.mkdir(parents=True)
        done["test"] |= {"srcc": srcc, "plcc": None}
        done["split_digest"] = made[split].digest
        (folder / "result.json").write_text(json.dumps(done))
    report = reproduce("table1", four, RESOURCES, SILENT, ["spaq"])  # which is not there
    median = cell(report, "DR.Experts", "bid")["medians"]["test part"]
    assert median == {"splits": 3, "srcc": first + 0.1, "plcc": None}
    row = next(line for line in page(report).splitlines() if "DR.Experts, here" in line)
    assert f"| {first + 0.1:.3f}/- (3 of 4) |" in row


def test_no_splits_are_refused(plan: Plan) -> None:
    with pytest.raises(ConfigError, match="at least, not 0"):
        replace(plan, splits=0)


def test_a_stop_is_passed_on(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise StoppedError("stopped", 15)

    monkeypatch.setattr("drexperts.paper.reproduce.train", stopped)
    with pytest.raises(StoppedError):
        reproduce("table1", plan, RESOURCES, SILENT, ["livec"])
