"""The CPUs of this process: affinity, and quotas in the kernel's own file layouts."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from drexperts.runtime import cpus
from drexperts.runtime.cpus import (
    available_cores,
    available_cpus,
    cpu_capability,
    cpu_name,
    cpu_quotas,
)

linux = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")


def process(folder: Path, membership: str, *mounts: str) -> Path:
    """A stand-in for /proc/self; in a line of mountinfo, MOUNT stands for `folder`."""
    proc = folder / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(membership)
    lines = [mount.replace("MOUNT", str(folder)) for mount in mounts]
    (proc / "mountinfo").write_text("".join(f"{line}\n" for line in lines))
    return proc


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content + "\n")


V2 = "30 23 0:26 / MOUNT/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 32 0:29 / MOUNT/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct"
OTHER = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, []),
        ({"a/b": "max 100000"}, []),
        ({"a/b": "150000 100000"}, [1.5]),
        ({"a": "50000 100000", "a/b": "max 100000"}, [0.5]),  # a parent's limit holds as well
        ({"": "400000 200000", "a/b": "300000 100000"}, [3.0, 2.0]),
        ({"a/b": "junk"}, []),
    ],
)
def test_version_2(tmp_path: Path, limits: dict[str, str], expected: list[float]) -> None:
    proc = process(tmp_path, "0::/a/b\n", OTHER, V2)
    for group, content in limits.items():
        write(tmp_path / "cgroup" / group / "cpu.max", content)
    assert list(cpu_quotas(proc)) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", []), ("25000", [0.25])])
def test_version_1(tmp_path: Path, quota: str, expected: list[float]) -> None:
    proc = process(tmp_path, "5:memory:/x\n4:cpu,cpuacct:/a\n1:name=systemd:/\n", OTHER, V1)
    write(tmp_path / "cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", quota)
    write(tmp_path / "cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000")
    assert list(cpu_quotas(proc)) == expected


@pytest.mark.parametrize("root", ["/docker/1234", "/elsewhere"])
def test_a_container_that_sees_its_own_part_of_the_tree(tmp_path: Path, root: str) -> None:
    mount = V1.replace(" / MOUNT", f" {root} MOUNT")
    proc = process(tmp_path, "4:cpu,cpuacct:/docker/1234\n", mount)
    write(tmp_path / "cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000")
    write(tmp_path / "cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
    assert list(cpu_quotas(proc)) == [2.0]


@pytest.mark.parametrize("files", [(), ("cgroup",), ("cgroup", "mountinfo")])
def test_no_control_groups(tmp_path: Path, files: Iterable[str]) -> None:
    for name in files:
        (tmp_path / name).write_text("unlike anything\n")
    assert list(cpu_quotas(tmp_path)) == []


@linux
@pytest.mark.parametrize(
    ("quotas", "expected"), [([], 4), ([2.0], 2), ([1.1, 3.0], 2), ([0.2], 1), ([9.0], 4)]
)
def test_quotas_are_rounded_up(
    quotas: list[float], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpus, "cpu_quotas", lambda: quotas)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert available_cpus() == expected


@linux
@pytest.mark.parametrize(("siblings", "expected"), [(("0,2", "1,3", "0,2", "1,3"), 2), ((), 4)])
def test_hardware_threads_of_a_core_count_once(
    siblings: tuple[str, ...], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cpu, threads in enumerate(siblings):
        write(tmp_path / f"cpu{cpu}/topology/thread_siblings_list", threads)
    monkeypatch.setattr(cpus, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(cpus, "cpu_quotas", lambda: [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert available_cores() == expected


def test_a_name_that_is_no_text_names_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpus, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_bytes(b"processor\t: 0\nmodel name\t: Abacus\xff 9\n\n")
    assert cpu_name() == "Abacus\N{REPLACEMENT CHARACTER} 9"
    (tmp_path / "cpuinfo").unlink()
    assert cpu_name()


BASE = "fpu sse4_2 fma avx2"
AVX512 = f"{BASE} avx512f avx512dq avx512bw avx512vl"


@pytest.mark.parametrize(
    ("flags", "capability"),
    [
        (f"{AVX512} avx512_vnni avx512_bf16 avx_vnni amx_tile amx_int8 amx_bf16", "x86_64-amx"),
        (f"{AVX512} avx512_vnni avx512_bf16", "x86_64-avx512-bf16"),  # Zen 4
        (f"{AVX512} avx512_vnni", "x86_64-avx512-vnni"),  # Cascade Lake
        (AVX512, "x86_64-avx512"),
        (f"{BASE} avx_vnni", "x86_64-avx2-vnni"),  # Alder Lake
        (BASE, "x86_64-avx2"),
        (f"{BASE} amx_tile", "x86_64-avx2"),  # a virtual machine that hides the rest
        ("fpu sse4_2", "x86_64"),
        ("", "x86_64"),
    ],
)
def test_the_capability_is_the_best_level_of_instructions(flags: str, capability: str) -> None:
    assert cpu_capability({"flags": flags}, "x86_64") == capability


@pytest.mark.parametrize(
    ("features", "capability"),
    [
        ("fp asimd asimdhp asimddp", "aarch64"),  # Neoverse N1
        ("fp asimd bf16 i8mm", "aarch64-bf16"),
        ("fp asimd sve bf16 i8mm", "aarch64-sve-bf16"),  # Neoverse V1
        ("fp asimd sve", "aarch64"),
        ("", "aarch64"),
    ],
)
def test_the_capability_of_an_arm_machine(features: str, capability: str) -> None:
    assert cpu_capability({"Features": features}, "aarch64") == capability


def test_the_capability_of_this_machine_is_one_that_a_manifest_can_hold() -> None:
    architecture, _, level = cpu_capability().partition("-")
    assert architecture
    assert level in ("", *cpus.CPU_LEVELS)
