"""Scoring on Ray, with a stand-in for it that loses engines and finishes in any order."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.archives import png, write_parquet, write_tar
from support.fake_ray import FakeRay

from drexperts import runtime
from drexperts.runtime import MissingDependencyError, UserError, score_files
from drexperts.runtime.inputs.listed import failure
from drexperts.scale.ray import RayScorer, score_dataset
from drexperts.scale.remote_engine import RemoteEngine

LOCAL: dict[str, Any] = {"isolated": False, "batch": 4}


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeRay]]:
    def make(*nodes: Any, **options: Any) -> FakeRay:
        made = FakeRay(*nodes, **options)
        monkeypatch.setitem(sys.modules, "ray", made)
        return made

    here = os.getcwd()
    yield make
    os.chdir(here)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "photos").mkdir()
    for i in range(50):
        (folder / "photos" / f"{i:02}.png").write_bytes(png(5 * i))
    (folder / "photos" / "broken.jpg").write_bytes(b"junk")
    write_tar(folder / "0.tar", [(f"{i}.png", png(50 + i)) for i in range(9)])
    write_parquet(folder / "p.parquet", {"image": [png(3 * i) for i in range(6)] + [None]})
    return [str(folder / "photos"), f"{folder}/*.tar", str(folder / "p.parquet")]


@pytest.fixture(scope="module")
def whole(toy_bundle: Path, inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "whole.jsonl"
    with runtime.load(toy_bundle, threads=1, batch=4) as scorer:
        score_files(scorer, inputs, out)
    return out.read_bytes()


@pytest.mark.parametrize("engines", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_file_is_that_of_one_process(
    toy_bundle: Path,
    inputs: list[str],
    whole: bytes,
    tmp_path: Path,
    ray: Callable[..., FakeRay],
    engines: int,
    seed: int,
) -> None:
    lossy = ray(lossy=0.1, seed=seed)
    out = tmp_path / "r.jsonl"
    summary = score_dataset(toy_bundle, inputs, out, cpus=1, engines=engines, load=LOCAL)
    assert out.read_bytes() == whole
    assert (summary.scored, summary.failed) == (50 + 9 + 6, 2)
    assert lossy.losses or seed
    assert not any(actor.alive for actor in lossy.actors)
    assert lossy.initialised  # it was before


def test_a_run_is_continued_with_ray_and_without(
    toy_bundle: Path,
    inputs: list[str],
    whole: bytes,
    tmp_path: Path,
    ray: Callable[..., FakeRay],
) -> None:
    out, count = tmp_path / "r.jsonl", 0

    def stop(_: object) -> None:
        nonlocal count
        count += 1
        if count == 21:
            raise KeyboardInterrupt

    ray()
    with pytest.raises(KeyboardInterrupt):
        score_dataset(toy_bundle, inputs, out, cpus=1, load=LOCAL, on_score=stop)
    os.truncate(out, out.stat().st_size - 7)
    with runtime.load(toy_bundle, threads=1, batch=4) as scorer:
        count = 0
        with pytest.raises(KeyboardInterrupt):
            score_files(scorer, inputs, out, on_score=stop)
    assert score_dataset(toy_bundle, inputs, out, cpus=1, load=LOCAL).already_there == 41
    assert out.read_bytes() == whole


def test_relative_paths_begin_where_the_run_began(
    toy_bundle: Path,
    tmp_path: Path,
    ray: Callable[..., FakeRay],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "a.png").write_bytes(png(7))
    shutil.copytree(toy_bundle, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    ray()
    with RayScorer("bundle", cpus=1, **LOCAL) as scorer:
        monkeypatch.chdir("/")
        scores = list(scorer.score_stream(["a.png", ("k", png(9)), ("e", failure("e", "why"))]))
    assert [score.source for score in scores] == ["a.png", "k", "e"]
    assert [score.error for score in scores] == [None, None, "cannot read e: why"]


def test_maps_come_back_in_small_tasks(
    toy_bundle: Path, ray: Callable[..., FakeRay], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, score = list[int](), RemoteEngine.score

    def noted(self: RemoteEngine, items: list[Any], maps: bool) -> Any:
        sizes.append(len(items))
        return score(self, items, maps)

    monkeypatch.setattr(RemoteEngine, "score", noted)
    monkeypatch.setattr(RayScorer, "_images_per_task", lambda self: 16)
    ray()
    with RayScorer(toy_bundle, cpus=1, **LOCAL) as scorer:
        for maps in (False, True):
            list(scorer.score_stream([(str(i), png(i)) for i in range(16)], maps=maps))
    assert sizes == [16, 4, 4, 4, 4]


def test_maps_come_back(
    toy_bundle: Path, inputs: list[str], tmp_path: Path, ray: Callable[..., FakeRay]
) -> None:
    ray()
    with RayScorer(toy_bundle, cpus=1, **LOCAL) as scorer:
        (score,) = scorer.score_stream([("k", png(9))], maps=True)
        assert score.maps is not None
        (tmp_path / "far.png").write_bytes(png(9))
        images = [f"{inputs[0]}/0[0-3].png", inputs[2], f"file://{tmp_path}/far.png"]
        score_files(scorer, images, tmp_path / "r.csv", explain=tmp_path / "pictures")
    assert len(list((tmp_path / "pictures").iterdir())) == 4 + 6 + 1


def test_tuples_that_are_no_pairs_cost_their_own_scores(
    toy_bundle: Path, ray: Callable[..., FakeRay]
) -> None:
    ray()
    items: list[Any] = [(), ("k",), ("k", png(7)), ("k", png(7), 3)]
    with RayScorer(toy_bundle, cpus=1, **LOCAL) as scorer:
        errors = [score.error for score in scorer.score_stream(items)]
    assert errors[2] is None
    assert all("is a pair (key, source)" in str(errors[place]) for place in (0, 1, 3))


@pytest.mark.parametrize(
    ("engines", "lossy", "seed"),
    [(1, 0, 0), (3, 0.15, 11)],  # with the latter, its tasks fill the engines that are left
)
def test_an_abandoned_stream_leaves_the_engines_to_the_next(
    toy_bundle: Path, ray: Callable[..., FakeRay], engines: int, lossy: float, seed: int
) -> None:
    ray(lossy=lossy, seed=seed)
    with RayScorer(toy_bundle, cpus=1, engines=engines, **LOCAL) as scorer:
        images = [(str(i), png(i)) for i in range(100)]
        assert next(scorer.score_stream(images)).source == "0"
        assert [score.source for score in scorer.score_stream(images)] == [k for k, _ in images]


def test_engines_that_never_stay(toy_bundle: Path, ray: Callable[..., FakeRay]) -> None:
    ray(lossy=1.0)
    with pytest.raises(UserError, match=r"lost as soon as they start \(the actor died\)"):
        RayScorer(toy_bundle, cpus=1, **LOCAL)


def test_an_image_that_costs_engines_is_named(
    toy_bundle: Path, ray: Callable[..., FakeRay], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ray()
    score = RemoteEngine.score

    def fatal(self: RemoteEngine, items: list[Any], maps: bool) -> Any:
        if any(key == "bad" for key, _ in items):
            raise FatalError
        return score(self, items, maps)

    class FatalError(Exception):
        pass

    monkeypatch.setattr(RemoteEngine, "score", fatal)
    monkeypatch.setattr(made.exceptions, "RayTaskError", FatalError)
    images = [(str(i), png(i)) for i in range(8)] + [("bad", png(0))]
    with (
        RayScorer(toy_bundle, cpus=1, **LOCAL) as scorer,
        pytest.raises(UserError, match=r"4 engines on Ray were lost .* 'bad' to 'bad'"),
    ):
        list(scorer.score_stream(images))


def test_a_machine_without_the_images_is_told_apart_from_missing_images(
    toy_bundle: Path, tmp_path: Path, ray: Callable[..., FakeRay], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray()
    (tmp_path / "a.png").write_bytes(png(7))
    listed = [str(tmp_path / "gone.png"), str(tmp_path / "a.png")]
    with RayScorer(toy_bundle, cpus=1, **LOCAL) as scorer:
        assert [bool(score.error) for score in scorer.score_stream(listed)] == [True, False]
        score = RemoteEngine.score

        def unmounted(self: RemoteEngine, items: list[Any], maps: bool) -> Any:
            os.rename(tmp_path / "a.png", tmp_path / "b.png")
            answer = score(self, items, maps)
            os.rename(tmp_path / "b.png", tmp_path / "a.png")
            return answer

        monkeypatch.setattr(RemoteEngine, "score", unmounted)
        with pytest.raises(UserError, match=r"a\.png' is on this machine, and not on"):
            list(scorer.score_stream(listed))


def test_machines_that_make_other_scores_are_refused(
    toy_bundle: Path, ray: Callable[..., FakeRay], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray()
    names = iter("abcdefgh")
    monkeypatch.setattr(runtime.Scorer, "fingerprint", lambda self: next(names))
    with (
        RayScorer(toy_bundle, cpus=1, engines=2, **LOCAL) as scorer,
        pytest.raises(UserError, match="makes other scores"),
    ):
        list(scorer.score_stream([(str(i), png(i)) for i in range(90)]))


def test_what_an_engine_raises_is_raised_here(
    toy_bundle: Path, ray: Callable[..., FakeRay]
) -> None:
    made = ray()
    with pytest.raises(UserError, match=f"on {platform.node()}: batch must be 1 to"):
        RayScorer(toy_bundle, cpus=1, batch=99)
    assert not any(actor.alive for actor in made.actors)


@pytest.mark.parametrize(
    ("nodes", "options", "engines", "taken"),
    [
        ([{"CPU": 2.0}], {}, 1, (2, 0)),
        ([{"CPU": 9.0}, {"CPU": 3.0}], {}, 2, (4, 0)),
        ([{"CPU": 9.0}, {"CPU": 3.0}], {"cpus": 3}, 4, (3, 0)),
        ([{"CPU": 8.0}, {"CPU": 16.0, "GPU": 8.0}], {}, 8, (2, 1)),
        ([{"CPU": 8.0}, {"CPU": 64.0, "GPU": 8.0}], {}, 8, (4, 1)),
        ([{"CPU": 8.0}, {"CPU": 16.0, "GPU": 8.0}], {"cpus": 4}, 4, (4, 1)),
        ([{"CPU": 8.0}, {"CPU": 64.0, "GPU": 8.0}], {"device": "cpu"}, 18, (4, 0)),
    ],
)
def test_how_many_engines_there_are(
    toy_bundle: Path,
    ray: Callable[..., FakeRay],
    nodes: list[dict[str, float]],
    options: dict[str, Any],
    engines: int,
    taken: tuple[int, int],
) -> None:
    made = ray(*nodes)
    with RayScorer(toy_bundle, threads=1, **LOCAL, **options) as scorer:
        assert f"{engines} engines" in scorer.description
    assert len(made.actors) == engines
    assert (made.taken["num_cpus"], made.taken["num_gpus"]) == taken


@pytest.mark.parametrize(
    ("options", "free", "message"),
    [
        ({"cpus": 3}, None, r"no machine of this Ray has 3 CPUs.*of 2 has 2 CPUs: pass fewer"),
        ({"device": "cuda"}, None, r"no machine of this Ray has .* CPUs and 1 GPU"),
        ({"device": "cuda:1"}, None, "Ray chooses the GPUs"),
        ({"cpus": 0}, None, "cpus must be a whole number of at least 1, got 0"),
        ({"cpus": -2}, None, "cpus must be a whole number of at least 1, got -2"),
        ({"cpus": 1.5}, None, r"cpus must be a whole number of at least 1, got 1\.5"),
        ({"engines": 0}, None, "engines must be a whole number of at least 1, got 0"),
        ({"cpus": 2}, {"CPU": 1.0}, "an engine takes 2 CPUs, and 1 CPUs and 0 GPUs .* are free"),
    ],
)
def test_no_room(
    toy_bundle: Path,
    ray: Callable[..., FakeRay],
    options: dict[str, Any],
    free: dict[str, float] | None,
    message: str,
) -> None:
    made = ray({"CPU": 2.0}, {"CPU": 1.0})
    made.free = free
    with pytest.raises(UserError, match=message):
        RayScorer(toy_bundle, **options)
    assert not made.actors


def test_without_ray(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"scoring on Ray needs Ray: .*ray"):
        RayScorer(toy_bundle)
