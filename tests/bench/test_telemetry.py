"""Memory and energy, from files and programs in the exact form of the kernel's and NVIDIA's."""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from support.waiting import until

from drexperts.bench import telemetry
from drexperts.bench.telemetry import MIB, Rapl, Smi, UnreportedError, Window, host_peak_bytes

RANGE = 262143328850  # microjoules, of a server's package

SMI = """#!{python}
import sys, time
assert sys.argv[1:] == [
    "-i", "0", "--query-gpu=power.draw,memory.used", "--format=csv,noheader,nounits", "-lms", "100"
], sys.argv
for i in range({lines}):
    print({line}, flush=True)
    time.sleep(0.002)
time.sleep({after})
"""


@pytest.fixture
def powercap():
    """powercap({folder: (name, microjoules)}, range): the class folder, as the kernel lays it out.

    Zones below a package lie in its folder, and all are linked side by side. Everybody may look
    in, which no folder of pytest's allows.
    """
    holder = tempfile.TemporaryDirectory()

    def make(zones, most=RANGE):
        sys_folder = Path(holder.name)
        sys_folder.chmod(0o755)
        root = sys_folder / "class" / "powercap"
        device = sys_folder / "devices" / "virtual" / "powercap" / "intel-rapl"
        root.mkdir(parents=True)
        device.mkdir(parents=True)
        (root / "intel-rapl").symlink_to(device)
        (device / "enabled").write_text("1\n")
        for folder, (name, energy) in zones.items():
            parts = folder.split(":")
            nested = [":".join(parts[: i + 1]) for i in range(1, len(parts))]
            path = device.joinpath(*nested)
            path.mkdir()
            (path / "name").write_text(f"{name}\n")
            (path / "energy_uj").write_text(f"{energy}\n")
            (path / "max_energy_range_uj").write_text(f"{most}\n")
            (root / folder).symlink_to(path)
        return root

    with holder:
        yield make


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """nvidia_smi(line, lines, after=30): a program of that name that prints so and waits."""

    def make(line, lines=200, after=30):
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(SMI.format(python=sys.executable, line=line, lines=lines, after=after))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))

    return make


def write(root, folder, energy):
    (root / folder / "energy_uj").write_text(f"{energy}\n")


SERVER = {
    "intel-rapl:0": ("package-0", 1000),
    "intel-rapl:0:0": ("dram", 500),
    "intel-rapl:1": ("package-1", 2000),
    "intel-rapl:1:0": ("dram", 700),
}


def test_packages_and_the_memory_beside_them_are_added_up(powercap):
    root = powercap(SERVER)
    meter = Rapl(root)
    assert meter.source == "RAPL package-0, dram, package-1, dram"
    for folder, more in zip(SERVER, (3_000_000, 200_000, 1_000_000, 50_000), strict=True):
        write(root, folder, SERVER[folder][1] + more)
    assert meter.joules(1.0) == pytest.approx(4.25)


def test_what_a_package_holds_is_not_counted_twice(powercap):
    root = powercap(
        {
            "intel-rapl:0": ("package-0", 0),
            "intel-rapl:0:0": ("core", 0),
            "intel-rapl:0:1": ("uncore", 0),
            "intel-rapl:1": ("psys", 0),
        }
    )
    meter = Rapl(root)
    for folder in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:0:1", "intel-rapl:1"):
        write(root, folder, 2_000_000)
    assert meter.joules(1.0) == pytest.approx(2.0)


def test_a_counter_that_starts_over(powercap):
    root = powercap({"intel-rapl:0": ("package-0", RANGE - 4_000_000)})
    meter = Rapl(root)
    write(root, "intel-rapl:0", 6_000_000)
    assert meter.joules(1.0) == pytest.approx(10.0)


def test_a_counter_that_may_have_started_over_twice(powercap):
    meter = Rapl(powercap({"intel-rapl:0": ("package-0", 0)}, most=65_532_610_987))
    assert meter.joules(65) == 0
    with pytest.raises(
        UnreportedError, match="in 66 s an energy counter may have gone round twice"
    ):
        meter.joules(66)


@pytest.fixture
def unprivileged():
    """Root may read everything: it becomes nobody."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_counters_that_only_root_may_read(powercap, request):
    root = powercap(SERVER)
    counter = root / "intel-rapl:0" / "energy_uj"
    counter.chmod(0o400 if os.geteuid() == 0 else 0)
    request.getfixturevalue("unprivileged")
    with Window(powercap=root) as window:
        pass
    energy = window.energy(1)
    assert energy == {"joules_per_image": None, "source": f"only root may read {counter}"}


@pytest.mark.parametrize("zones", [None, {}, {"intel-rapl:0": ("psys", 0)}])
def test_no_package(zones, powercap, tmp_path):
    root = tmp_path / "nowhere" if zones is None else powercap(zones)
    with Window(powercap=root) as window:
        pass
    assert window.energy(3) == {
        "joules_per_image": None,
        "source": "the kernel counts no CPU package's energy (RAPL)",
    }


def test_a_counter_that_goes_away_meanwhile(powercap):
    root = powercap(SERVER)
    with Window(powercap=root) as window:
        (root / "intel-rapl:1" / "energy_uj").unlink()
    energy = window.energy(1)
    assert energy["joules_per_image"] is None
    assert "intel-rapl:1/energy_uj: No such file" in energy["source"]


def test_joules_per_image(powercap):
    root = powercap(SERVER)
    with Window(powercap=root) as window:
        write(root, "intel-rapl:1", 2000 + 8_000_000)
    assert window.energy(16) == {
        "joules_per_image": pytest.approx(0.5),
        "source": "RAPL package-0, dram, package-1, dram",
    }
    assert window.memory()["device_peak_bytes"] is None


def test_power_is_the_mean_of_the_readings(nvidia_smi):
    nvidia_smi("f'{100 + i}.25, {2000 + i}'", lines=21)
    meter = Smi(0)
    until(lambda: len(meter.watts) == 21)
    meter.close()
    assert meter.joules(4.0) == pytest.approx(4 * 110.25)
    assert meter.used_bytes == [MIB * (2000 + i) for i in range(21)]


def test_a_gpu_and_the_cpu_beside_it(nvidia_smi, powercap, tmp_path):
    nvidia_smi("'300.00, 5000'")
    root = powercap(SERVER)
    with Window(gpu=0, powercap=root) as both:
        until(lambda: len(both._smi.watts) > 20)
        write(root, "intel-rapl:0", 1000 + 50_000_000)
    with Window(gpu=0, powercap=tmp_path / "none") as alone:
        until(lambda: len(alone._smi.watts) > 20)
    assert both.energy(1)["source"].startswith("nvidia-smi power.draw of GPU 0 + RAPL package-0")
    assert both.energy(1)["joules_per_image"] > 50
    assert alone.energy(1)["source"] == (
        "nvidia-smi power.draw of GPU 0; without the CPU: the kernel counts no CPU package's "
        "energy (RAPL)"
    )
    assert alone.memory()["device_peak_bytes"] == 5000 * MIB


@pytest.mark.parametrize("line", ["'[N/A], 512'", "'[Not Supported], 512'"])
def test_a_gpu_that_reports_no_power(line, nvidia_smi, powercap):
    nvidia_smi(line)
    with Window(gpu=0, powercap=powercap(SERVER)) as window:
        until(lambda: window._smi.used_bytes)
    energy = window.energy(1)
    assert energy["joules_per_image"] is None, "the CPU's energy alone is not the work's"
    assert "0 readings of power" in energy["source"]
    assert window.memory()["device_peak_bytes"] == 512 * MIB


def test_a_gpu_that_nvidia_smi_does_not_know(nvidia_smi, tmp_path):
    nvidia_smi("'No devices were found'", lines=1, after=0)
    with Window(gpu=0, powercap=tmp_path) as window:
        until(lambda: window._smi._process.poll() is not None)
    assert "0 readings of power" in window.energy(1)["source"]
    assert window.memory()["device_peak_bytes"] is None


def test_no_nvidia_smi(monkeypatch, powercap, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with Window(gpu=0, powercap=powercap(SERVER)) as window:
        pass
    energy = window.energy(1)
    assert energy == {"joules_per_image": None, "source": "there is no nvidia-smi"}


def test_work_that_fails_leaves_no_program_behind(nvidia_smi, tmp_path):
    nvidia_smi("'300.00, 5000'", lines=100000)
    window = Window(gpu=0, powercap=tmp_path)
    with pytest.raises(RuntimeError, match="failed"), window:
        raise RuntimeError("failed")
    assert window._smi._process.poll() is not None
    assert not window._smi._reader.is_alive()


def test_peak_memory_grows_and_stays():
    before = host_peak_bytes()
    held = np.ones((before + (64 << 20)) // 8)
    during = host_peak_bytes()
    del held
    assert during >= before + (48 << 20)
    # The kernel sums its counters now and then.
    assert host_peak_bytes() >= before + (48 << 20)


@pytest.mark.skipif(not telemetry.STATUS.is_file(), reason="needs Linux, which says it twice")
def test_both_sources_of_peak_memory_agree(tmp_path):
    again = host_peak_bytes(tmp_path / "no such file")
    assert again == pytest.approx(host_peak_bytes(), rel=0.05)
    silent = tmp_path / "status"
    silent.write_text("Name:\tpython\nVmRSS:\t1024 kB\n")
    assert host_peak_bytes(silent) is None
