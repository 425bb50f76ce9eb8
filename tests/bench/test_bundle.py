"""What `bench` measures of a bundle. No test asserts a time."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from support.reporting import Recorder

from drexperts.bench import BenchOptions, BenchReport, bench, provenance
from drexperts.bench import bundle as measuring
from drexperts.bench import profile as profiling
from drexperts.bench.caveats import warnings
from drexperts.bench.json_files import read_json, write_json
from drexperts.bench.provenance import Gpu, this_source
from drexperts.bench.reports import AGAIN
from drexperts.bench.scenarios import SCENARIOS
from drexperts.bench.timing import Summary, alternately
from drexperts.export.graph.to_onnx import onnx_from_model
from drexperts.model.checkpoint import Checkpoint, save_checkpoint
from drexperts.model.config import DISTORTIONS
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import ScoreScale, digest, read_manifest, sha256_of, write_manifest
from drexperts.runtime.preprocess import Preprocessing

pytestmark = pytest.mark.slow  # what they share takes seconds to make

BASELINES = {"eager-dense", "eager-reduced"}
LEFT_OUT = {"pyiqa:nothing-of-the-kind"}


@pytest.fixture(scope="module")
def checkpoint(tiny: Callable[..., Any], random_model: Callable[..., Any]) -> Checkpoint:
    scale = ScoreScale(0.0, 100.0, higher_is_better=True)
    return Checkpoint(random_model(tiny("official")), scale, Preprocessing(64, 64, 128, 2))


@pytest.fixture(scope="module")
def bundle(
    checkpoint: Checkpoint, toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle of the model with the toy's proof: proving takes longer than what is tested."""
    out = tmp_path_factory.mktemp("bench") / "bundle"
    out.mkdir()
    onnx.save(onnx_from_model(checkpoint.model, maps=True), out / "model.onnx")
    toy = read_manifest(toy_bundle)
    sha256 = sha256_of(out / "model.onnx")
    manifest = dataclasses.replace(
        toy,
        preset="official",
        config=checkpoint.model.config.as_dict(),
        preprocessing=checkpoint.preprocessing,
        distortions=DISTORTIONS,
        engines=(dataclasses.replace(toy.engines[0], sha256=sha256, precision="fp32"),),
    )
    write_manifest(manifest, out)
    return out


@pytest.fixture(scope="module")
def weights(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_checkpoint(checkpoint, file)
    return file


@pytest.fixture(scope="module")
def report(bundle: Path, weights: Path) -> BenchReport:
    """Everything there is, a little of each."""
    options = BenchOptions(
        baselines=(*sorted(BASELINES), *LEFT_OUT),
        against={"engine-other": bundle},
        batches=(1, 2),
        repeats=3,
        threads=(1, 2, 1),
        checkpoint=weights,
        scenarios=SCENARIOS,
        seconds=0.5,
        profile=True,
    )
    return bench(bundle, options)


def test_every_batch_has_every_variant(report: BenchReport) -> None:
    assert [entry.batch for entry in report.batches] == [1, 2]
    others = {"engine-2-threads", "engine-other"}
    for entry in report.batches:
        assert next(iter(entry.shown)) == "engine"
        assert set(entry.seconds) == {"engine", AGAIN, *others, *BASELINES}
        assert {len(times) for times in entry.seconds.values()} == {3}
    assert set(report.left_out) == LEFT_OUT
    assert set(report.against) == others
    assert set(report.agreement) == {"engine", *BASELINES}
    assert max(report.agreement.values()) < 1e-3


def test_where_it_is_from(report: BenchReport, bundle: Path, weights: Path, tmp_path: Path) -> None:
    assert report.machine.threads == 1
    assert report.source == this_source(*report.source.packages)
    assert {"drexperts.bench", "drexperts.export.graph"} <= set(report.source.packages)
    assert report.weights == sha256_of(weights) != report.bundle.sha256
    assert report.bundle.bytes == (bundle / "model.onnx").stat().st_size
    assert report.command == (
        "drx bench BUNDLE --baseline eager-dense --baseline eager-reduced "
        "--baseline pyiqa:nothing-of-the-kind --against ENGINE-OTHER --scenario single_stream "
        "--scenario multi_stream --scenario server --scenario offline --batch 1,2 --repeats 3 "
        "--threads 1,2 --seconds 0.5 --checkpoint FILE --profile"
    )
    options = {"engine": report.bundle.options, **{n: d.options for n, d in report.against.items()}}
    threads = {name: each["intra_op_num_threads"] for name, each in options.items()}
    assert threads == {"engine": "1", "engine-other": "1", "engine-2-threads": "2"}
    assert report.bundle.digest == digest(read_manifest(bundle))
    assert report.warm_ups == 1
    assert report.conditions
    assert len(report.conditions.loads) == 3  # after each batch, and at the end
    write_json(report, tmp_path / "report.json")
    assert read_json(tmp_path / "report.json", BenchReport) == report
    text = (tmp_path / "report.json").read_text()
    assert str(bundle.parent) not in text
    assert str(weights.parent) not in text


def test_what_is_measured_of_the_engine_alone(report: BenchReport) -> None:
    assert [entry.batch for entry in report.engine_gpu] == [1, 2]
    assert all(list(entry.seconds) == ["engine"] for entry in report.engine_gpu)
    assert (report.image.photographs, report.image.crops) == (0, (4,))
    assert len(report.image.preprocess) == 3
    assert report.cold_start.resident_bytes
    assert report.energy.images == len(report.image.image_e2e)
    assert report.energy.source
    scenarios = report.scenarios
    assert scenarios.single_stream
    assert scenarios.multi_stream
    assert scenarios.offline
    assert scenarios.server
    bound = 3 * Summary.of(report.image.image_e2e).p50
    assert scenarios.server.bound_s == pytest.approx(bound)
    assert report.profile
    assert report.profile.parts["encoder"] > 0
    assert report.roofline
    assert report.roofline.flop_per_image > 0


def test_photographs_of_the_user(
    bundle: Path, tmp_path: Path, photo: Callable[..., Any], encode: Callable[..., bytes]
) -> None:
    for number, (width, height) in enumerate([(64, 64), (128, 64)]):
        (tmp_path / f"{number}.jpg").write_bytes(encode(photo(width, height), "JPEG"))
    (tmp_path / "broken.jpg").write_bytes(b"junk")
    options = BenchOptions(images=tmp_path, batches=(1,), repeats=1, threads=1)
    report = bench(bundle, options)
    assert (report.image.photographs, report.image.crops) == (2, (1, 2))
    assert (report.profile, report.left_out, report.agreement) == (None, {}, {})
    assert set(report.batches[0].seconds) == {"engine", AGAIN}
    for file in tmp_path.glob("?.jpg"):
        file.unlink()
    with pytest.raises(UserError, match=tmp_path.name):
        bench(bundle, options)


def test_a_gpu_is_read_before_and_right_after_the_rounds(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a profile that cannot be made costs the report nothing else; threads are what ran."""
    events: list[str] = []

    def state() -> tuple[Gpu, ...]:
        events.append("read")
        throttled = ("power cap",) if "batch 2: round 1 of 1" in events else ()
        return (Gpu("A GPU", throttled=throttled),)

    def no_profile(*_: Any, **__: Any) -> None:
        raise UserError("onnx is not installed: install it")

    monkeypatch.setattr(provenance, "_gpus", lambda: (state(), None))
    monkeypatch.setattr(measuring, "available_cores", lambda: 1)
    monkeypatch.setattr(profiling, "profile_engine", no_profile)
    options = BenchOptions(batches=(1, 2), repeats=1, profile=True)
    progress = Recorder(at=lambda message, done, total: events.append(message))
    report = bench(str(bundle), options, progress)
    last = len(events) - events[::-1].index("read") - 1
    assert events[last - 1] == "batch 2: round 1 of 1"
    assert events.index("read") < events.index("batch 1: round 0 of 1") < last
    assert any("power cap" in warning for warning in warnings(report))
    assert report.profile is None
    assert report.left_out == {"profile": "onnx is not installed: install it"}
    assert report.machine.threads == 1
    assert "--threads" not in report.command


def test_a_checkpoint_with_other_weights(
    checkpoint: Checkpoint, bundle: Path, tmp_path: Path, random_model: Callable[..., Any]
) -> None:
    other = random_model(checkpoint.model.config)
    with torch.no_grad():
        other.score.bias.add_(50.0)  # half of the scale's span
    file = tmp_path / "other.safetensors"
    save_checkpoint(checkpoint._replace(model=other), file)
    progress = Recorder()
    with pytest.raises(UserError):
        bench(bundle, BenchOptions(checkpoint=file, batches=(1,), repeats=1, threads=1), progress)
    assert len(progress.messages) == 1  # before anything is measured


def test_mistakes(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sgd"):
        bench(bundle, BenchOptions(baselines=("sgd",), repeats=1))
    with pytest.raises(UserError, match=r"16.*64"):
        bench(bundle, BenchOptions(batches=(64,), repeats=1))
    with pytest.raises(UserError, match=tmp_path.name):
        bench(tmp_path, BenchOptions(repeats=1))
    for threads in (0, (), (1, 0)):
        with pytest.raises(UserError, match="thread"):
            BenchOptions(threads=threads)
    with pytest.raises(UserError, match="burst"):
        BenchOptions(scenarios=("burst",))


def test_threads_are_of_the_cpu(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "device_of", lambda scorer: "cuda")
    with pytest.raises(UserError, match="GPU"):
        bench(bundle, BenchOptions(threads=(1, 2), batches=(1,), repeats=1))


def test_every_variant_runs_once_in_every_round() -> None:
    turns: list[str] = []
    calls = {name: lambda name=name: turns.append(name) for name in "abc"}
    times = alternately(calls, 4)
    assert {name: len(taken) for name, taken in times.items()} == dict.fromkeys("abc", 4)
    rounds = ["".join(turns[i : i + 3]) for i in range(0, len(turns), 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) > 1  # not always in the same order
