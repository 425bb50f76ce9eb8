"""Memory and energy, from files in the form of the kernel's and a stand-in for NVML."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.fake_nvml import FakeNvml

from drexperts.bench import telemetry
from drexperts.bench.reports import Energy
from drexperts.bench.telemetry import Rapl, UnreportedError, Window, host_peak_bytes

RANGE = 262143328850  # microjoules, of a server's package
Zones = dict[str, tuple[str, int]]
Powercap = Callable[..., Path]


@pytest.fixture
def powercap(tmp_path: Path) -> Powercap:
    """powercap({folder: (name, microjoules)}, range): the class folder, as the kernel lays it out.

    It lists zones inside a package beside it, too.
    """

    def make(zones: Zones, most: int = RANGE) -> Path:
        root = tmp_path / "class" / "powercap"
        for folder, (name, energy) in zones.items():
            (root / folder).mkdir(parents=True)
            (root / folder / "name").write_text(f"{name}\n")
            (root / folder / "max_energy_range_uj").write_text(f"{most}\n")
            write(root, folder, energy)
        return root

    return make


def write(root: Path, folder: str, energy: int) -> None:
    (root / folder / "energy_uj").write_text(f"{energy}\n")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What GPU 0 reports."""
    reports = {
        "UUID": "GPU-0f",
        "TotalEnergyConsumption": 1000,
        "MemoryInfo": SimpleNamespace(used=512 << 20),
    }
    monkeypatch.setattr(telemetry, "pynvml", FakeNvml(reports))
    return reports


SERVER: Zones = {
    "intel-rapl:0": ("package-0", 1000),
    "intel-rapl:0:0": ("dram", 500),
    "intel-rapl:1": ("package-1", 2000),
    "intel-rapl:1:0": ("dram", 700),
}
LAPTOP: Zones = {
    "intel-rapl:0": ("package-0", 0),
    "intel-rapl:0:0": ("core", 0),
    "intel-rapl:0:1": ("uncore", 0),
    "intel-rapl:1": ("psys", 0),
}


@pytest.mark.parametrize(("zones", "joules"), [(SERVER, 8.0), (LAPTOP, 2.0)])
def test_packages_and_their_memory_are_added_up(
    zones: Zones, joules: float, powercap: Powercap
) -> None:
    """What a package includes is not counted twice."""
    root = powercap(zones)
    meter = Rapl(root)
    for folder, (_, before) in zones.items():
        write(root, folder, before + 2_000_000)
    assert meter.joules(1.0) == pytest.approx(joules)


def test_a_counter_that_starts_over(powercap: Powercap) -> None:
    root = powercap({"intel-rapl:0": ("package-0", RANGE - 4_000_000)})
    meter = Rapl(root)
    write(root, "intel-rapl:0", 6_000_000)
    assert meter.joules(1.0) == pytest.approx(10.0)


def test_a_counter_that_may_have_started_over_twice(powercap: Powercap) -> None:
    meter = Rapl(powercap({"intel-rapl:0": ("package-0", 0)}, most=65_532_610_987))
    assert meter.joules(65) == 0
    with pytest.raises(UnreportedError, match="66 s"):
        meter.joules(66)


def test_counters_that_only_root_may_read(
    powercap: Powercap, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = powercap(SERVER)
    counter, read = root / "intel-rapl:0" / "energy_uj", Path.read_text

    def refused(path: Path) -> str:
        if path == counter:
            raise PermissionError
        return read(path)

    monkeypatch.setattr(Path, "read_text", refused)
    with Window(powercap=root) as window:
        pass
    energy = window.energy(1)
    assert energy.joules is None
    assert str(counter) in energy.source


@pytest.mark.parametrize("zones", [None, {}, {"intel-rapl:0": ("psys", 0)}])
def test_no_package(zones: Zones | None, powercap: Powercap, tmp_path: Path) -> None:
    root = tmp_path / "nowhere" if zones is None else powercap(zones)
    with Window(powercap=root) as window:
        pass
    energy = window.energy(3)
    assert (energy.joules, energy.joules_per_image) == (None, None)
    assert "RAPL" in energy.source


def test_a_counter_that_goes_away_meanwhile(powercap: Powercap) -> None:
    root = powercap(SERVER)
    with Window(powercap=root) as window:
        (root / "intel-rapl:1" / "energy_uj").unlink()
    energy = window.energy(1)
    assert energy.joules is None
    assert "intel-rapl:1/energy_uj" in energy.source


def test_energy_of_each_image(powercap: Powercap) -> None:
    root = powercap(SERVER)
    with Window(powercap=root) as window:
        write(root, "intel-rapl:1", 2000 + 8_000_000)
    energy = window.energy(16)
    assert energy.joules_per_image == pytest.approx(0.5)
    assert energy.source == "RAPL package-0, dram, package-1, dram"
    assert window.memory().device_bytes is None


@pytest.mark.parametrize("name", ["0", "GPU-0f"])
def test_a_gpu_and_the_cpu_beside_it(
    name: str, gpu: dict[str, Any], powercap: Powercap, tmp_path: Path
) -> None:
    root = powercap(SERVER)
    with Window(name, root) as both:
        gpu["TotalEnergyConsumption"] = 31_000
        write(root, "intel-rapl:0", 1000 + 50_000_000)
    with Window(name, tmp_path / "none") as alone:
        gpu["TotalEnergyConsumption"] = 32_000
    assert both.energy(1).joules == pytest.approx(80)
    assert both.energy(1).source.endswith(f"GPU {name} + RAPL package-0, dram, package-1, dram")
    assert alone.energy(1).joules == pytest.approx(1)
    assert "without the CPU" in alone.energy(1).source
    assert alone.memory().device_bytes == 512 << 20


def test_a_gpu_that_does_not_count_its_energy(gpu: dict[str, Any], powercap: Powercap) -> None:
    del gpu["TotalEnergyConsumption"]
    with Window("0", powercap(SERVER)) as window:
        pass
    assert window.energy(1).joules is None, "the CPU's energy alone is not that of the work"
    assert window.memory().device_bytes == 512 << 20


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_nvml_does_not_know(powercap: Powercap) -> None:
    with Window("7", powercap(SERVER)) as window:
        pass
    assert window.energy(1) == Energy(None, 1, "NVML does not report GPU 7: Not Found")
    assert window.memory().device_bytes is None


@pytest.mark.slow
def test_peak_memory_grows_and_stays() -> None:
    before = host_peak_bytes()
    assert before
    held = np.ones((before + (64 << 20)) // 8)
    during = host_peak_bytes()
    assert during
    del held
    assert during >= before + (48 << 20)
    # The kernel sums its counters now and then.
    assert (host_peak_bytes() or 0) >= before + (48 << 20)


def test_peak_memory_that_the_platform_does_not_tell(tmp_path: Path) -> None:
    silent = tmp_path / "status"
    silent.write_text("Name:\tpython\nVmRSS:\t1024 kB\n")
    assert host_peak_bytes(silent) is None
    assert host_peak_bytes(tmp_path / "another platform")
