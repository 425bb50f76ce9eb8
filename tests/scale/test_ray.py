"""On Ray itself: kills of engines, machines and the run; and Ray Data. `make test-ray` has Ray."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet
import pytest
from support.archives import png, write_parquet, write_tar
from support.waiting import until

from drexperts import runtime
from drexperts.runtime import Score, UserError, score_files
from drexperts.scale import Scoring
from drexperts.scale.ray import RayScorer, score_dataset

pytestmark = pytest.mark.slow
if not any(Path(entry, "ray", "__init__.py").exists() for entry in sys.path):
    pytest.skip("Ray is not installed: `make test-ray`", allow_module_level=True)

# Before Ray is imported: it reads them then.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}

LOAD: dict[str, Any] = {"batch": 4}
ENGINE = "RemoteEngine"
PHOTOS = 1500


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "photos").mkdir()
    for i in range(PHOTOS):
        (folder / "photos" / f"{i:04}.png").write_bytes(png(i % 256, side=64))
    (folder / "photos" / "broken.jpg").write_bytes(b"junk")
    write_tar(folder / "0.tar", [(f"{i}.png", png(50 + i)) for i in range(9)])
    write_parquet(folder / "p.parquet", {"image": [png(3 * i) for i in range(6)] + [None]})
    return [str(folder / "photos"), str(folder / "0.tar"), str(folder / "p.parquet")]


@pytest.fixture(scope="module")
def whole(toy_bundle: Path, inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of one process with one thread."""
    out = tmp_path_factory.mktemp("whole") / "whole.jsonl"
    with runtime.load(toy_bundle, threads=1, **LOAD) as scorer:
        score_files(scorer, inputs, out)
    return out.read_bytes()


def processes(name: str) -> list[psutil.Process]:
    """Those below this process with a name or argument like this."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


def working(family: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run, without Ray's agents, which end some minutes after the others."""
    found = []
    for process in family:
        with contextlib.suppress(psutil.Error):
            is_agent = "agent" in " ".join(process.cmdline()).lower()
            if process.status() != psutil.STATUS_ZOMBIE and not is_agent:
                found.append(process)
    return found


def at_row(number: int, act: Callable[[], object]) -> Callable[[Score], None]:
    rows = iter(range(1, 10**6))

    def count(_: Score) -> None:
        if next(rows) == number:
            act()

    return count


def kill(name: str) -> None:
    processes(name)[0].send_signal(signal.SIGKILL)


def test_started_here_and_an_engine_killed(
    toy_bundle: Path, inputs: list[str], whole: bytes, tmp_path: Path
) -> None:
    heard = set[str]()

    def kill_one() -> None:
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    heard.add(connection.laddr.ip)
        kill(ENGINE)

    out = tmp_path / "r.jsonl"
    summary = score_dataset(
        toy_bundle, inputs, out, cpus=1, load=LOAD, on_score=at_row(60, kill_one)
    )
    assert out.read_bytes() == whole
    assert (summary.scored, summary.failed) == (PHOTOS + 15, 2)
    assert heard <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert heard
    until(lambda: not processes("ray"))


def test_the_command_killed_and_continued(
    toy_bundle: Path, inputs: list[str], whole: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "r.jsonl"
    command = [sys.executable, "-m", "drexperts.cli.main", "score", str(toy_bundle), *inputs]
    command += ["--batch", "4", "--threads", "1", "--out", str(out), "--ray", "--json"]
    before = 0  # bytes
    for number in (signal.SIGKILL, signal.SIGTERM):
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: out.exists() and out.stat().st_size > before + 9_000)  # noqa: B023
        family = working(psutil.Process(run.pid).children(recursive=True))
        run.send_signal(number)
        assert run.wait() == -number
        before = out.stat().st_size
        assert before < len(whole)
        until(lambda: not working(family))  # noqa: B023
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["already_there"] == whole[:before].count(b"\n")
    assert document["session"].startswith("Ray, ")
    assert out.read_bytes() == whole


@pytest.fixture
def two_machines() -> Iterator[Any]:
    """A cluster of two nodes, each with room for one engine."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    cluster.add_node(num_cpus=1, include_dashboard=False)
    cluster.second = cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_machine_is_lost(
    toy_bundle: Path, inputs: list[str], whole: bytes, tmp_path: Path, two_machines: Any
) -> None:
    out = tmp_path / "r.jsonl"
    with RayScorer(toy_bundle, address=two_machines.address, cpus=1, **LOAD) as scorer:
        assert scorer.description.startswith("Ray, 2 engines")
        while len(scorer._pool._tasks) < 2:
            scorer._pool.wait()
        lose = at_row(60, lambda: two_machines.remove_node(two_machines.second))
        score_files(scorer, inputs, out, on_score=lose)
    assert out.read_bytes() == whole


@pytest.fixture(scope="module")
def local() -> Iterator[Any]:
    """Ray on this machine, with four places for work."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_a_pipeline_of_ray_data(
    toy_bundle: Path, inputs: list[str], tmp_path: Path, local: Any
) -> None:
    """The recipe in docs/guides/clusters.md."""
    data = pytest.importorskip("ray.data", reason="`make test-ray`")
    paths = sorted(map(str, Path(inputs[0]).iterdir()))
    table = data.from_arrow(pyarrow.table({"path": paths, "id": range(len(paths))})).repartition(8)
    scored = table.map_batches(
        Scoring,
        fn_constructor_args=[str(toy_bundle)],
        fn_constructor_kwargs={"image": "path", "keep": ["id"], "threads": 1, "batch": 4},
        batch_format="pyarrow",
        batch_size=16,
        num_cpus=1,
        compute=data.ActorPoolStrategy(size=2),
    )
    scored.write_parquet(str(tmp_path / "scored"))
    found = pyarrow.parquet.read_table(tmp_path / "scored").sort_by("source")
    out = tmp_path / "one.parquet"
    with runtime.load(toy_bundle, threads=1, **LOAD) as scorer:
        score_files(scorer, [inputs[0]], out)
    expected = pyarrow.parquet.read_table(out).sort_by("source")
    assert found["source"].equals(expected["source"])
    assert found.schema.remove_metadata().field("enlarged").type == pyarrow.float64()
    assert found["error"].null_count == PHOTOS
    for row, wanted in zip(found["value"], expected["value"], strict=True):
        assert row.as_py() == pytest.approx(wanted.as_py(), abs=1e-5 * 255)


def test_ray_that_is_connected_is_used_and_stays(
    toy_bundle: Path, inputs: list[str], tmp_path: Path, local: Any
) -> None:
    score_dataset(toy_bundle, inputs[1], tmp_path / "r.csv", cpus=2, load=LOAD)
    assert local.is_initialized()

    class Holder:
        def hold(self) -> None:
            pass

    holder = local.remote(num_cpus=3)(Holder).remote()
    local.get(holder.hold.remote())
    with pytest.raises(UserError, match=r"an engine takes 2 CPUs, and 1 CPUs .* are free"):
        RayScorer(toy_bundle, cpus=2)
    with pytest.raises(UserError, match="no machine of this Ray has 5 CPUs"):
        RayScorer(toy_bundle, cpus=5)
    local.kill(holder)


def test_no_cluster_at_an_address(toy_bundle: Path) -> None:
    import ray

    ray.shutdown()
    with pytest.raises(UserError, match=r"cannot connect to Ray at 127\.0\.0\.1:9"):
        RayScorer(toy_bundle, address="127.0.0.1:9")
