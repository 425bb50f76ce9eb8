"""The tables: what they need, and small models trained for them on miniature data sets."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import miniature
from support.reporting import Recorder

from drexperts.data.layouts import open_dataset
from drexperts.data.recipes import RECIPES
from drexperts.data.splits import make_splits
from drexperts.evaluation.metrics import compute_metrics
from drexperts.evaluation.predict import TorchSession, open_model, predict
from drexperts.model.ablations import VARIANTS
from drexperts.model.config import DRExpertsConfig
from drexperts.model.dr_experts import DRExperts, new_model
from drexperts.paper.cells import Training, cells_of, choose
from drexperts.paper.page import page
from drexperts.paper.reported import IMAGES as IMAGES_OF
from drexperts.paper.reported import TABLES
from drexperts.paper.reproduction import ReproductionOptions, reproduce
from drexperts.paper.results import MeasuredCell, Median, Reproduction
from drexperts.runtime.errors import ConfigError, StoppedError, UserError
from drexperts.runtime.progress import SILENT, Progress
from drexperts.training.run import start_digest
from drexperts.training.settings import Resources
from drexperts.training.trainer import TrainConfig

HERE = "DR.Experts, here, not from the published weights"  # the rows of our trainings
IMAGES = 16
RESOURCES = Resources(device="cpu", workers=0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Work:
    """Data sets, a folder for results, and options."""

    root: Path
    out: Path
    options: ReproductionOptions
    resources: Resources = RESOURCES

    def run(self, table: str, *only: str, progress: Progress = SILENT) -> Reproduction:
        return reproduce(
            table,
            str(self.root),
            str(self.out),
            self.options,
            only=only,
            resources=self.resources,
            progress=progress,
        )

    def but(self, **options: Any) -> "Work":
        return replace(self, options=replace(self.options, **options))

    def folder(self, training: str, split: int = 0) -> Path:
        return self.out / "runs" / training / f"split-{split}"

    def finished(self) -> dict[str, int]:
        """Every finished training, and when it was finished."""
        paths = (self.out / "runs").glob("*/*/result.json")
        return {path.parent.parent.name: path.stat().st_mtime_ns for path in paths}

    def shown(self, table: str = "table1") -> list[str]:
        """The columns for which a table has runs, without training any."""
        # SPAQ and LIVE-FB are not there.
        done = self.run(table, "spaq" if table == "table1" else "livefb")
        return [cell.column for cell in done.cells if cell.runs]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., DRExpertsConfig]) -> Work:
    """Three of the five data sets, and the shortest of trainings. Its runs add up."""
    root = tmp_path_factory.mktemp("data")
    for name in ("koniq10k", "livec", "bid"):
        miniature.write(name, root / name, contents=IMAGES // 4, side=(80, 72))
    options = ReproductionOptions(
        new_model=lambda: new_model(tiny()),
        start="random weights",
        published=False,
        fresh=False,
        train_config=lambda recipe: TrainConfig(batch=16, epochs=1),
        splits=1,
    )
    return Work(root, tmp_path_factory.mktemp("out"), options)


def column(done: Reproduction, name: str) -> MeasuredCell:
    """The cell of our row."""
    return next(c for c in done.cells if (c.row, c.column) == ("DR.Experts", name))


def test_every_cell_stands_beside_a_reported_one() -> None:
    for name, table in TABLES.items():
        cells = cells_of(name)
        assert len({(cell.row, cell.column) for cell in cells}) == len(cells)
        assert {cell.column for cell in cells} == set(table.columns)
        assert all(table.cell(cell.row, cell.column) for cell in cells)
    with pytest.raises(UserError, match="table6"):
        cells_of("table6")


def test_the_trainings_are_those_of_the_paper_and_shared() -> None:
    needed = {table: {cell.training for cell in cells_of(table)} for table in TABLES}
    assert [len(trainings) for trainings in needed.values()] == [5, 3, 6, 8, 14]
    full = Training("koniq10k")
    assert [full in trainings for trainings in needed.values()] == [True, True, False, True, True]
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
    with pytest.raises(UserError, match=r"--only spaq .*full, koniq10k"):
        choose(cells, ["livec", "spaq"])


@pytest.mark.slow
def test_modules_are_trained_tested_and_shown_beside_the_reported(work: Work) -> None:
    done = work.run("table4")
    assert done.failures == ()
    assert len(work.finished()) == 8
    for cell in done.cells:
        (run,) = cell.runs
        tested = run.tests["test part"]
        assert cell.medians["test part"] == Median(1, tested.srcc, tested.plcc)
        assert sum(run.images) == IMAGES
        assert len(run.split_digest) == 12
    assert json.loads((work.out / "table4.json").read_text()) == done.as_json()
    text = (work.out / "table4.md").read_text()
    assert text == page(done)
    assert "| DSDM | 0.930/0.941 | 0.885/0.904 |" in text
    assert text.count("(1 of 1)") == 8
    assert {cell.state for cell in done.cells} == {"done"}
    assert "not asked for" not in text
    assert "random weights, 1 epoch at a learning rate of 0.0002" in text
    assert "koniq10k 16 of 10073 images, livec 16 of 1162 images, not trained from" in text
    documents = (json.loads(path.read_text()) for path in work.out.glob("runs/*/*/result.json"))
    # Whatever the variant and the split.
    assert {each["model"] for each in documents} == {start_digest(work.options.new_model, 0)}


@pytest.mark.slow
def test_a_training_serves_every_table_and_is_made_once(work: Work) -> None:
    work.run("table4", "full")
    before = work.finished()
    done = work.run("table1", "koniq10k", "bid")
    after = work.finished()
    assert after.keys() - before.keys() == {"bid-full"}
    assert {name: after[name] for name in before} == before
    # LIVEC was not asked for, but is finished.
    assert [cell.column for cell in done.cells if cell.runs] == ["koniq10k", "livec", "bid"]
    row = next(
        line
        for line in page(done).splitlines()
        if "DR.Experts, here, not from the published weights" in line
    )
    assert row.count("not asked for") == 2
    assert [cell.state for cell in done.cells] == [
        *("done", "done", "not asked for", "not asked for", "done")
    ]


@pytest.mark.slow
def test_a_transfer_is_tested_on_all_of_its_target_and_on_a_part(work: Work) -> None:
    found = column(work.run("table2", "koniq10k"), "koniq10k to livec").runs[0].tests
    target = open_dataset("livec", work.root / "livec")
    test = json.loads((work.out / "splits" / "livec.json").read_text())["splits"][0]["test"]
    assert 1 < len(test) < IMAGES
    best = open_model(work.folder("koniq10k-full") / "best.safetensors")
    # All at once: an eager model's scores round differently beside other images.
    scored = predict(best, target, target.samples, protocol="grid", recipe=RECIPES["livec"]).rows
    for name, names in {"whole target set": target.by_name, "20 % of the target set": test}.items():
        rows = [row for row in scored if row.name in names]
        expected = compute_metrics([row.label for row in rows], [row.score for row in rows])
        assert found[name].images == len(names)
        assert found[name].plcc == pytest.approx(expected.plcc, abs=1e-12)
        assert (
            f"| DR.Experts, here, not from the published weights, {name} |"
            in (work.out / "table2.md").read_text()
        )


@pytest.mark.slow
def test_a_share_learns_from_less_and_is_tested_on_the_same(work: Work) -> None:
    work.run("table1", "livec")
    done = work.run("table3", "livec", "20")
    (run,) = column(done, "livec 20 %").runs
    assert sum(run.images[:2]) == round(0.2 * IMAGES)
    assert "are shares of all images of a data set, not of the training part" in page(done)
    few, many = (
        (work.folder(name) / "predictions.csv").read_text().splitlines()
        for name in ("livec-full-20-percent", "livec-full")
    )
    assert [line.split(",")[0] for line in few] == [line.split(",")[0] for line in many]


@pytest.mark.slow
def test_a_failed_training_is_listed_and_the_others_continue(work: Work) -> None:
    done = work.run("table2", "livefb", "livec")
    assert [failure.job for failure in done.failures] == [
        "livefb-full, split 0, on koniq10k",
        "livefb-full, split 0, on livec",
    ]
    assert str(work.root / "livefb") in done.failures[0].error
    assert column(done, "livefb to livec").state == "data missing"
    assert column(done, "koniq10k to livec").state in ("not asked for", "done")
    assert column(done, "livec to koniq10k").runs
    failed = page(done).partition("## Failed\n\n")[2]
    assert failed.startswith("- livefb-full, split 0, on koniq10k and 1 more: ")
    assert failed.count("\n") == 1


@pytest.mark.slow
def test_the_authors_practice_is_followed_on_request_and_stated(work: Work, tmp_path: Path) -> None:
    theirs = replace(work, out=tmp_path).but(protocol="released", select_on_test=True)
    (run,) = column(theirs.run("table1", "bid"), "bid").runs
    assert run.images == (13, 0, 3)  # nothing is held back for a validation
    assert run.selected_on == "test"
    text = (tmp_path / "table1.md").read_text()
    assert "protocol `released`; epochs chosen by the PLCC of the\ntest images" in text
    result = json.loads((theirs.folder("bid-full") / "result.json").read_text())
    assert result["selected_by"] == "plcc"


def test_runs_with_other_weights_or_settings_are_neither_shown_nor_replaced(work: Work) -> None:
    work.run("table1", "koniq10k", "livec")
    before = work.finished()

    def other() -> DRExperts:
        model = work.options.new_model()
        with torch.no_grad():
            model.encoder.vit.cls_token += 1
        return model

    assert {"koniq10k", "livec"} <= set(work.shown())
    assert work.but(new_model=other).shown() == []
    assert work.but(fresh=True).shown() == []
    longer = work.but(train_config=lambda recipe: TrainConfig(batch=16, epochs=2))
    done = longer.run("table1", "livec")
    assert str(work.folder("livec-full")) in done.failures[0].error
    assert not [cell for cell in done.cells if cell.runs]
    assert work.finished() == before


def test_runs_with_other_labels_or_without_data_are_not_shown(work: Work, tmp_path: Path) -> None:
    work.run("table1", "koniq10k", "livec")
    copied = replace(work, root=tmp_path / "data")
    shutil.copytree(work.root, copied.root)
    labels = copied.root / "koniq10k" / "koniq10k_scores_and_distributions.csv"
    first, row, *others = labels.read_text().splitlines()
    changed = row.rpartition(",")[0] + ",50.5"
    labels.write_text("\n".join([first, changed, *others]) + "\n")
    there = work.shown()
    assert {"koniq10k", "livec"} <= set(there)
    assert copied.shown() == [name for name in there if name != "koniq10k"]
    shutil.rmtree(copied.root / "livec")
    assert "livec" not in copied.shown()
    assert replace(work, root=tmp_path / "none").shown() == []


@pytest.mark.slow
def test_a_transfer_to_other_labels_is_not_shown(work: Work) -> None:
    work.run("table2", "koniq10k")
    path = work.folder("koniq10k-full") / "on-livec.json"
    before = path.read_text()
    assert "koniq10k to livec" in work.shown("table2")
    changes: tuple[dict[str, Any], ...] = (
        {"data_digest": "0" * 16},
        {"result": "0" * 64},
        {"tests": {}},
    )
    for change in changes:
        path.write_text(json.dumps(json.loads(before) | change))
        assert "koniq10k to livec" not in work.shown("table2")
    work.run("table2", "koniq10k")
    assert path.read_text() == before


@pytest.mark.parametrize("content", ["{}", "{", '{"test": 1}'])
def test_a_damaged_result_costs_only_its_cell(work: Work, tmp_path: Path, content: str) -> None:
    here = replace(work, out=tmp_path)
    work.run("table1", "livec", "bid")
    for name in ("livec-full", "bid-full"):
        shutil.copytree(work.folder(name), here.folder(name))
    bad = here.folder("bid-full") / "result.json"
    bad.write_text(content)
    progress = Recorder()
    done = here.run("table1", "livec", progress=progress)
    assert done.failures == ()
    assert [cell.column for cell in done.cells if cell.runs] == ["livec"]
    assert len([note for note in progress.notes if str(bad) in note]) == 1
    again = here.run("table1", "bid", "livec")
    (failure,) = again.failures
    assert column(again, "bid").state == "failed"
    assert failure.job.startswith("bid-full")
    assert str(bad) in failure.error


@pytest.mark.slow
def test_a_target_without_usable_images_costs_only_its_cell(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[TorchSession] = []
    monkeypatch.setattr(TorchSession, "close", lambda session: closed.append(session))
    work.run("table1", "koniq10k")
    lenient = replace(RESOURCES, skip_bad=True)
    here = replace(work, root=tmp_path / "data", out=tmp_path / "out", resources=lenient)
    shutil.copytree(work.root, here.root)
    folder = here.folder("koniq10k-full")
    shutil.copytree(work.folder("koniq10k-full"), folder)
    (folder / "on-livec.json").unlink(missing_ok=True)
    for name in make_splits(open_dataset("livec", here.root / "livec")).splits[0].test:
        (here.root / "livec" / name).write_bytes(b"no picture")
    (failure,) = here.run("table2", "koniq10k").failures
    assert str(here.root / "livec") in failure.error
    assert (here.out / "table2.md").exists()
    assert len(closed) == 1


def test_a_page_says_how_it_differs_from_the_paper(work: Work) -> None:
    done = work.run("table1", "bid")

    def using(counts: Mapping[str, int], published: bool) -> str:
        cells = [
            replace(cell, runs=tuple(replace(run, used=counts) for run in cell.runs))
            for cell in done.cells
        ]
        return page(replace(done, cells=tuple(cells), published=published))

    assert "no reproduction" not in using(IMAGES_OF, published=True)
    assert "numbers: not trained from the published" in using(IMAGES_OF, published=False)
    assert "numbers: bid 9 of 586 images." in using(IMAGES_OF | {"bid": 9}, published=True)
    nothing = replace(done, cells=tuple(replace(cell, runs=()) for cell in done.cells))
    assert "numbers: nothing was measured here." in page(nothing)


def test_medians_are_over_the_splits_that_are_finished(work: Work) -> None:
    work.run("table1", "bid")
    four = work.but(splits=4)
    result = json.loads((four.folder("bid-full") / "result.json").read_text())
    first = result["test"]["srcc"]
    # The result of split 0 in the folder of another is not counted.
    shutil.copytree(four.folder("bid-full"), four.folder("bid-full", 1))
    made = make_splits(open_dataset("bid", work.root / "bid")).splits
    for split, srcc in ((2, first + 0.1), (3, first + 0.3)):
        folder = four.folder("bid-full", split)
        folder.mkdir(parents=True)
        result["test"] |= {"srcc": srcc, "plcc": None}
        result["split_digest"] = made[split].digest
        (folder / "result.json").write_text(json.dumps(result))
    done = four.run("table1", "spaq")  # which is not there
    assert column(done, "bid").state == "partly done"
    assert column(done, "spaq").state == "data missing"
    found = column(done, "bid").medians["test part"]
    assert (found.splits, found.srcc, math.isnan(found.plcc)) == (3, first + 0.1, True)
    assert f"| {first + 0.1:.3f}/- (3 of 4) |" in page(done)


def test_no_splits_are_refused() -> None:
    with pytest.raises(ConfigError, match="0"):
        ReproductionOptions(splits=0)


def test_a_stop_is_passed_on_and_what_ran_runs_no_more(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str] = {}

    def stopped(*_: object, **__: object) -> None:
        seen.update(running())
        raise StoppedError("stopped", 15)

    def running() -> dict[str, str]:
        document = json.loads((tmp_path / "table1.json").read_text())
        return {cell["column"]: cell["state"] for cell in document["cells"]}

    monkeypatch.setattr("drexperts.paper.reproduction.train", stopped)
    with pytest.raises(StoppedError):
        replace(work, out=tmp_path).run("table1", "livec", "bid")
    assert seen["livec"] == "running"
    assert seen["bid"] == "not run yet"
    assert seen["koniq10k"] == "not asked for"
    assert running() == seen | {"livec": "not run yet"}
    assert "| not run yet |" in (tmp_path / "table1.md").read_text()
