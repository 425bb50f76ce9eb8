"""The guide to `drx serve`: its clients get scores, and its tables are those of the code."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from support.serving import Running, metric_kinds, serving

from drexperts import runtime
from drexperts.serve.failures import _KNOWN, _OF_STATUS
from drexperts.serve.oip import _CODES

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "serve.md").read_text(encoding="utf-8")
URL = "localhost:8000"
COUNTED = re.compile(r"_(bucket|sum|count)$")


def blocks(language: str) -> list[str]:
    """The code of one language that asks the server over HTTP."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.M | re.S)
    return [code for code in found if URL in code]


@pytest.fixture(scope="module")
def asked(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with runtime.load(toy_bundle, threads=1) as scorer, serving(scorer) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("photo.jpg", "other.jpg"):
        Image.fromarray(np.full((40, 40), 77, np.uint8)).save(tmp_path / name)
    (tmp_path / "token").write_text("a token that nobody asks for")
    return tmp_path


def printed(running: Running, folder: Path, command: list[str], code: str) -> str:
    """What a client prints. It must succeed."""
    there = code.replace(URL, f"localhost:{running.port}")
    command = [*command, there]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"), ids=["urllib", "requests", "tritonclient"])
def test_the_clients_in_python_get_a_score(asked: Running, folder: Path, code: str) -> None:
    for name in re.findall(r"^import (\w+)", code, re.M):
        pytest.importorskip(name)
    assert "77" in printed(asked, folder, [sys.executable, "-c"], code)


@pytest.mark.slow
def test_curl_gets_scores(asked: Running, folder: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    lines = [line for code in blocks("bash") for line in code.splitlines() if "curl" in line]
    assert len(lines) == 5
    for line in lines:
        said = printed(asked, folder, ["bash", "-c"], line.replace("curl", "curl -sSf", 1))
        assert '"value":77' in said or "BYTES" in said


@pytest.mark.slow
def test_javascript_gets_a_score(asked: Running, folder: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")
    (code,) = blocks("js")
    assert "77" in printed(asked, folder, [node, "--input-type=module", "-e"], code)


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = GUIDE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = next(line for line in section.split("\n\n") if line.startswith("|")).splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_every_error_is_in_the_table_with_its_status() -> None:
    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob("drexperts/serve/*.py")]
    raised = re.findall(r'RequestError\((\d+), "(\w+)"', "".join(sources))
    known = {(str(status), code) for _, status, code in _KNOWN}
    known |= {(str(status), code) for status, code in (*_OF_STATUS.items(), *_CODES.items())}
    known |= {("400", "not_http"), ("503", "engine_failed"), ("500", "internal"), *raised}
    shown = {
        (status, code)
        for cells in rows("What is answered")
        for status in cells[0].split(", ")
        for code in re.findall(r"\w+", cells[1])
    }
    assert known <= shown, known - shown


def test_every_metric_is_in_the_table(toy_bundle: Path) -> None:
    with runtime.load(toy_bundle, threads=1) as scorer:
        kinds = metric_kinds(scorer)
    shown = {}
    for name, kind, _ in rows("Metrics"):
        match = re.fullmatch(r"`(\w+)(?:\{([\w,]+)\})?`", name)
        assert match is not None, name
        shown[match[1]] = kind, tuple(match[2].split(",")) if match[2] else ()
    assert shown == kinds


def test_alerts_ask_for_what_there_is(toy_bundle: Path) -> None:
    (code,) = re.findall(r"^```yaml\n(.*?)^```$", GUIDE, re.M | re.S)
    rules = yaml.safe_load(code)["groups"][0]["rules"]
    with runtime.load(toy_bundle, threads=1) as scorer:
        known = metric_kinds(scorer)
    section = GUIDE.split("\n## Metrics\n")[1].split("\n## ")[0]
    assert {COUNTED.sub("", name) for name in re.findall(r"drx_\w+", section)} <= known.keys()
    codes = {code for cells in rows("What is answered") for code in re.findall(r"\w+", cells[1])}
    for rule in rules:
        for outcomes in re.findall(r'outcome=~"([\w|]+)"', rule["expr"]):
            assert set(outcomes.split("|")) <= codes
