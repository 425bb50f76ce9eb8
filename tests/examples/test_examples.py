"""Every example runs, on the toy bundle."""

import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from PIL import Image

from drexperts import runtime

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    """An example as a module, run as far as importing it goes."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test() -> None:
    tested = {"score_folder.py", "score_in_web_handler.py", "use_kernel.py", "drexperts.ipynb"}
    tested |= {"score_in_asyncio.py"}
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")} == tested


def test_score_folder(
    toy_bundle: Path,
    tmp_path: Path,
    photo: Callable[..., Image.Image],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The toy's score is the mean brightness, and higher is better."""
    Image.new("RGB", (40, 40), "white").save(tmp_path / "light.png")
    Image.new("RGB", (40, 40), "black").save(tmp_path / "dark.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    example("score_folder").main([str(toy_bundle), str(tmp_path), "--worst", "1"])
    shown = capsys.readouterr()
    assert "dark.png" in shown.out
    assert "light.png" not in shown.out
    assert "broken.jpg" in shown.err


@pytest.fixture(scope="module")
def ask(toy_bundle: Path) -> Callable[..., tuple[str, Any]]:
    """ask(method, path, body): the status and the JSON that the web handler answers."""
    application = validator(example("score_in_web_handler").application(runtime.load(toy_bundle)))

    def request(method: str, path: str, body: bytes | None = None) -> tuple[str, Any]:
        environ: dict[str, Any] = {"REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path}
        environ["QUERY_STRING"] = ""
        if body is not None:
            environ |= {"CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
        setup_testing_defaults(environ)
        statuses: list[str] = []

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
            statuses.append(status)

        answered = application(environ, start_response)
        document = json.loads(b"".join(answered))
        answered.close()  # type: ignore[attr-defined]  # the validator's iterator has it
        return statuses[0][:3], document

    return request


def test_web_handler_scores_an_upload(
    ask: Callable[..., Any], photo: Callable[..., Image.Image], encode: Callable[..., bytes]
) -> None:
    status, row = ask("POST", "/score", encode(photo(50, 40), "PNG"))
    assert status == "200"
    assert 0 < row["value"] < 255
    assert row["error"] is None
    assert ask("GET", "/health")[0] == "200"


def test_web_handler_refuses(ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask("POST", "/score", b"no image")[0] == "422"
    assert ask("POST", "/score")[0] == "411"
    assert ask("POST", "/other", b"")[0] == ask("GET", "/score")[0] == "404"


def test_web_handler_reads_no_more_than_it_allows(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = example("score_in_web_handler")
    environ = {"CONTENT_LENGTH": str(module.MOST_BYTES + 1), "wsgi.input": None}
    statuses: list[str] = []
    with runtime.load(toy_bundle) as scorer:
        module.score_upload(scorer, environ, lambda status, headers: statuses.append(status))
    assert statuses[0].startswith("413")


def test_score_in_asyncio(
    toy_bundle: Path,
    tmp_path: Path,
    photo: Callable[..., Image.Image],
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [str(tmp_path / f"{i}.png") for i in range(6)]
    for i, name in enumerate(names):
        photo(40, 36, i).save(name)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    names.insert(2, str(tmp_path / "broken.jpg"))
    with runtime.load(toy_bundle) as scorer:
        expected = [score.value for score in scorer.score(list(names))]
    example("score_in_asyncio").main([str(toy_bundle), *names])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names
    assert "cannot read" in lines.pop(2)
    del expected[2]
    assert [float(line.split()[1]) for line in lines] == pytest.approx(expected, abs=0.006)


def test_use_kernel() -> None:
    module = example("use_kernel")
    assert module.attention("cpu").shape == (2, 4, 100, 64)
    pooled, maps = module.pooling("cpu")
    assert pooled.shape == (2, 10, 384)
    assert maps.sum(-1).allclose(maps.new_tensor(0.5), atol=1e-4)


@pytest.mark.slow
def test_notebook(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its code cells run in order; no cell needs a shell."""
    monkeypatch.setenv("DREXPERTS_BUNDLE", str(toy_bundle))
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "drexperts.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert cells
    assert not any(line.startswith(("!", "%")) for line in "\n".join(cells).splitlines())
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)
    assert names["good"].error is None
    assert names["bad"].error
