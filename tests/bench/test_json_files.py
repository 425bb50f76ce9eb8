from pathlib import Path

import pytest

from drexperts.bench.json_files import read_json, write_json
from drexperts.bench.provenance import Gpu, Machine, this_machine
from drexperts.bench.timing import Ratio, Summary
from drexperts.runtime.errors import UserError


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    machine = this_machine(1)
    machine = Machine(**{**vars(machine), "gpus": (Gpu("A GPU", throttled=("power cap",)),)})
    path = tmp_path / "new" / "machine.json"
    write_json(machine, path)
    assert read_json(path, Machine) == machine


@pytest.mark.parametrize("text", ["{", '{"p20": "fast"}', "[]"])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"other\.json"):
        read_json(path, Ratio)


def test_a_number_that_is_not_finite_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "ratio.json"
    path.write_text("before")
    with pytest.raises(ValueError, match="JSON"):
        write_json(Ratio(1.0, float("nan"), 2.0), path)
    assert path.read_text() == "before"


def test_statistics_of_samples() -> None:
    found = Summary.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.p20, found.p50, found.p80, found.mean) == (1.8, 3.0, 4.2, 3.0)
    assert found.cv == pytest.approx(2**0.5 / 3)
    ratio = Ratio.of([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
    assert (ratio.p20, ratio.p50, str(ratio)) == (2.0, 2.0, "2.00 (2.00-2.60)")
