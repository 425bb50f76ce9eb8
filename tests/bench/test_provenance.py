import json
import os
import subprocess

import pytest

from drexperts.bench import provenance
from drexperts.bench.provenance import (
    gpu_cards,
    head,
    machine_card,
    physical_cores,
    source_card,
    source_hash,
)

SMI = "NVIDIA H200, 580.1, 9.0, 143771 MiB, 1980 MHz, 3201 MHz, 1980 MHz, 77.1 W, 700.00 W, 31, P0"


def test_a_head_is_json_and_names_the_libraries():
    made = head("bench", "drx bench BUNDLE", ("drexperts.bench.timing",), 2)
    assert json.loads(json.dumps(made)) == made
    assert made["machine"]["threads"] == 2
    assert {"numpy", "torch", "drexperts"} <= made["machine"]["versions"].keys()


def test_a_package_stands_for_its_files(tmp_path, monkeypatch):
    package = tmp_path / "some_measured_package"
    package.mkdir()
    for name in ("__init__.py", "one.py", "two.py"):
        (package / name).write_text(f"# {name}\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = source_hash(package.name), source_hash(f"{package.name}.one")
    (package / "two.py").write_text("# changed\n")
    after = source_hash(package.name), source_hash(f"{package.name}.one")
    assert before[0] != after[0]
    assert before[1] == after[1]
    (package / "two.py").rename(package / "three.py")
    assert source_hash(package.name) != after[0]


def test_source_does_not_depend_on_the_order_of_modules():
    names = ("drexperts.bench.timing", "drexperts.kernels")
    assert source_hash(*names) == source_hash(*names[::-1])
    assert source_card(*names)["modules"] == list(names)


def test_an_unknown_module_is_an_error():
    with pytest.raises(ModuleNotFoundError, match="no_such"):
        source_hash("drexperts.no_such")


@pytest.mark.parametrize(
    ("said", "expected"), [(None, 0), ("", 0), (f"{SMI}, 0x0\n{SMI}, 0x4", 2), ("No devices", 0)]
)
def test_what_nvidia_smi_says(said, expected, monkeypatch):
    monkeypatch.setattr(provenance, "_output", lambda *_: said)
    cards = gpu_cards()
    assert len(cards) == expected
    assert all(card["compute_cap"] == "9.0" and card["clocks.sm"] == "1980 MHz" for card in cards)
    assert machine_card(None)["gpus"] == cards


def test_a_copy_within_another_repository_has_no_commit(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    installed = tmp_path / "provenance.py"
    installed.touch()
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert source_card("json")["commit"] is None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
@pytest.mark.parametrize(("said", "expected"), [(("0,2", "1,3", "0,2", "1,3"), 2), ((), 4)])
def test_hardware_threads_of_a_core_count_once(said, expected, tmp_path, monkeypatch):
    for cpu, siblings in enumerate(said):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    monkeypatch.setattr(provenance, "CPUS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert physical_cores() == expected
