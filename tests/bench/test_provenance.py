import json
import subprocess
import sys
import types
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from support.fake_nvml import FakeNvml

from drexperts.bench import provenance
from drexperts.bench.provenance import (
    Source,
    gpus,
    staleness,
    this_machine,
    this_source,
)
from drexperts.runtime import cpus

IDLE = {
    "Name": "NVIDIA H200",
    "CudaComputeCapability": (9, 0),
    "PowerUsage": 77100,
    "EnforcedPowerLimit": 700000,
    ("ClockInfo", "sm"): 1410,
    ("MaxClockInfo", "sm"): 1980,
    "CurrentClocksThrottleReasons": 0x1,  # idle
}
BUSY = IDLE | {"CurrentClocksThrottleReasons": 0x24}


def test_a_machine_is_json_and_names_the_libraries() -> None:
    machine = this_machine(2)
    assert json.loads(json.dumps(asdict(machine)))["threads"] == 2
    assert {"numpy", "torch", "drexperts"} <= machine.versions.keys()
    assert machine.cores >= 1


def test_the_cpu_is_named_by_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 207\n"
        "model name\t: Intel(R) Xeon(R) Processor\nstepping\t: 2\nflags\t: a b\n\n"
        "processor\t: 1\nmodel\t: 1\n"
    )
    machine = this_machine()
    assert machine.cpu == "Intel(R) Xeon(R) Processor"
    assert machine.cpu_id == "vendor_id GenuineIntel, cpu family 6, model 207, stepping 2"
    (tmp_path / "cpuinfo").write_text("CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n")
    assert this_machine().cpu_id == "CPU implementer 0x41, CPU part 0xd0c"
    (tmp_path / "cpuinfo").unlink()
    assert this_machine().cpu_id is None


def test_each_gpu_with_what_it_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(IDLE, BUSY))
    first, second = gpus()
    assert (first.name, first.driver, first.compute_capability) == ("NVIDIA H200", "580.1", "9.0")
    assert (first.sm_mhz, first.max_sm_mhz, first.memory_mhz) == (1410, 1980, None)
    assert [first.watts, first.limit_watts] == pytest.approx([77.1, 700])
    assert (first.throttled, second.throttled) == ((), ("power cap", "software thermal limit"))
    assert this_machine().gpus == (first, second)
    assert this_machine().missing == {}


@pytest.mark.parametrize(
    ("error", "found"), [("NVMLError_LibraryNotFound", ()), ("NVMLError", None)]
)
def test_no_driver_is_no_gpu_but_a_failing_one_is_unknown(
    error: str, found: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(fails=error))
    machine = this_machine()
    assert machine.gpus == found
    assert ("gpus" in machine.missing) == (found is None)


def test_without_its_library_pytorch_names_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = types.SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=150 << 30)
    cuda = types.SimpleNamespace(device_count=lambda: 1, get_device_properties=lambda _: gpu)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    machine = this_machine()
    assert machine.gpus is not None
    assert (machine.gpus[0].name, machine.gpus[0].throttled) == ("NVIDIA H200", None)
    assert "nvidia-ml-py" in machine.missing["gpus"]
    monkeypatch.delitem(sys.modules, "torch")
    assert this_machine().gpus is None


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that holds a package and the module `provenance`."""
    folder = tmp_path / "some_measured_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "one.py").write_text("# one\n")
    here = tmp_path / "provenance.py"
    here.touch()
    monkeypatch.syspath_prepend(tmp_path)
    # Asking for a module of it imports the package.
    monkeypatch.delitem(sys.modules, folder.name, raising=False)
    monkeypatch.setattr(provenance, "__file__", str(here))
    git(tmp_path, "init", "--quiet")
    commit_all(tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True)


def commit_all(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a change")


def test_a_source_is_stale_when_its_packages_change(checkout: Path) -> None:
    package = this_source("some_measured_package")
    module = this_source("some_measured_package.one")
    assert package.dirty is False
    (checkout / "elsewhere.py").touch()
    commit_all(checkout)
    assert (staleness(package), staleness(module)) == ("current", "current")
    (checkout / "some_measured_package" / "two.py").touch()
    commit_all(checkout)
    assert (staleness(package), staleness(module)) == ("stale", "current")
    git(checkout, "rm", "--quiet", "some_measured_package/one.py")
    assert staleness(module) == "stale"


def test_no_commit_holds_a_source_with_changes(checkout: Path) -> None:
    (checkout / "some_measured_package" / "two.py").touch()
    source = this_source("some_measured_package")
    assert source.dirty is True
    assert staleness(source) == "unknown"


def test_a_commit_that_is_not_here_is_unknown(checkout: Path) -> None:
    source = this_source("some_measured_package")
    assert staleness(replace(source, commit="0" * 40)) == "unknown"


def test_a_copy_within_another_repository_has_no_commit(checkout: Path) -> None:
    git(checkout, "rm", "--quiet", "--cached", "provenance.py")
    assert this_source("json") == Source(None, None, ("json",))
    assert staleness(Source("0" * 40, False, ("json",))) == "unknown"


def test_an_unknown_package_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such"):
        this_source("drexperts.no_such")
