"""`drx compare`: what it prints, and how it ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command_line import drx, without
from support.result_files import result_file

Call = Callable[..., tuple[int, Any, str]]
A = {"a": 10.0, "b": 20.0, "c": 30.0}
B = {"a": 10.0, "b": 29.0, "c": 25.0}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return result_file(tmp_path / "a.jsonl", A), result_file(tmp_path / "b.csv", B, "e" * 16)


def test_the_document(files: tuple[Path, Path], call: Call) -> None:
    status, document, shown = call("compare", *files, "--threshold", "6")
    assert status == 0
    assert (document["images"], document["moved"], document["largest"]) == (3, 1, 9.0)
    assert document["srcc"] == pytest.approx(0.5)
    assert document["most_moved"][0]["source"] == "b"
    assert document["failed"] == []
    for text in ("what moved most", "1 of 3 (33.333%)", "+9.000", "e" * 16):
        assert text in shown


@pytest.mark.parametrize(
    ("gate", "failed"),
    [
        (("--min-srcc", "0.5"), []),
        (("--min-srcc", "0.51"), ["the rank correlation is 0.5, and --min-srcc asks for 0.51"]),
        (("--max-change", "9"), []),
        (("--max-change", "8.5"), ["an image changed by 9, and --max-change allows 8.5"]),
        (("--max-change", "nan"), ["an image changed by 9, and --max-change allows nan"]),
    ],
)
def test_gates(
    files: tuple[Path, Path], call: Call, gate: tuple[str, str], failed: list[str]
) -> None:
    status, document, shown = call("compare", *files, *gate)
    assert (status, document["failed"]) == (bool(failed), failed)
    assert ("FAILS" in shown) == bool(failed)


def test_a_correlation_that_is_not_defined_fails(tmp_path: Path, call: Call) -> None:
    file = result_file(tmp_path / "a.csv", {"a": 1.0})
    status, document, _ = call("compare", file, file, "--min-srcc", "0.1")
    assert (status, document["srcc"]) == (1, None)
    assert "is not defined" in document["failed"][0]


def test_a_page(files: tuple[Path, Path], tmp_path: Path, call: Call) -> None:
    page = tmp_path / "page.html"
    assert call("compare", *files, "--page", page)[0] == 0
    assert "What moved most" in page.read_text(encoding="utf-8")
    status, document, _ = call("compare", *files, "--page", tmp_path / "missing" / "page.html")
    assert status == 2
    assert "--page" in document["error"]


def test_a_page_does_not_replace_a_result_file(files: tuple[Path, Path], call: Call) -> None:
    before = files[0].read_bytes()
    status, document, _ = call("compare", *files, "--page", files[0])
    assert status == 2
    assert "name a .html file" in document["error"]
    assert files[0].read_bytes() == before


def test_other_scales_say_what_to_do(files: tuple[Path, Path], tmp_path: Path, call: Call) -> None:
    other = result_file(tmp_path / "c.csv", B, "e" * 16, crops_per_side=3)
    status, document, _ = call("compare", files[0], other)
    assert status == 2
    assert "pass --across" in document["error"]
    status, document, shown = call("compare", files[0], other, "--across")
    assert (status, len(document["differing"])) == (0, 1)
    assert "do not mean the same" in shown


@pytest.mark.slow
def test_bundles(toy_bundle: Path, photos: Path, call: Call) -> None:
    status, document, _ = call("compare", toy_bundle, toy_bundle, photos)
    assert (status, document["images"], document["failed_both"]) == (0, 3, 1)
    status, document, _ = call("compare", toy_bundle, toy_bundle)
    assert status == 2
    assert "name images" in document["error"]


# `without` puts None in the place of a module, which SciPy trips over where it looks for torch.
NO_TORCH = """
import sys
class Missing:
    def find_spec(name, path=None, target=None):
        if name in ("torch", "torchvision", "timm", "onnx", "pyarrow"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing)
"""


@pytest.mark.slow
def test_it_needs_no_torch_and_says_which_library_it_needs(files: tuple[Path, Path]) -> None:
    done = drx("compare", *files, before=NO_TORCH)
    assert done.returncode == 0, done.stderr
    done = drx("compare", *files, before=without("scipy"))
    assert done.returncode == 2
    assert "`drx compare` needs scipy" in done.stderr
    assert "report" in done.stderr
