"""The demo from end to end, on a shortened training."""

import io
import re
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from drexperts import runtime
from drexperts.demo import page as demo_page
from drexperts.demo import run as demo
from drexperts.demo.training import train_demo


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    out, shown = tmp_path_factory.mktemp("demo"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "train_demo", partial(train_demo, epochs=1, crops=1))
        report = demo.run_demo(out, Console(file=shown, width=120), lambda _: None)
    return out, report, shown.getvalue()


def test_it_leaves_a_bundle_that_scores(ran: tuple[Path, dict, str]) -> None:
    out, report, _ = ran
    image = next((out / "images").glob("*.png"))
    assert runtime.load(out / "bundle").score(image).value > 0
    assert report["held_out"]["images"] == 78
    assert set(report["held_out"]["contents"]) == {"camera", "cat", "coffee"}


def test_it_prints_what_it_promises(ran: tuple[Path, dict, str]) -> None:
    shown = ran[2]
    for promised in ("proven", "SRCC", "times the engine", "eager-dense", "index.html"):
        assert promised in shown


def test_its_page_has_its_pictures(ran: tuple[Path, dict, str]) -> None:
    out = ran[0]
    page = (out / "index.html").read_text()
    sources = re.findall(r'<img src="([^"]+)"', page)
    assert len(sources) == demo.PICTURES
    assert all((out / source).is_file() for source in sources)
    assert page.count("<circle") == 78 + 6  # a dot an image, and the key
    assert "http" not in page.replace("https://", "")  # nothing is fetched


def test_too_low_a_correlation_is_not_passed(ran: tuple[Path, dict, str]) -> None:
    report = ran[1]
    assert report["passed"] is (report["held_out"]["srcc"] >= demo.AIM)


def test_names_are_escaped() -> None:
    drawn = demo_page.scatter([demo_page.Point(1.0, 2.0, "<script>")])
    assert "<script>" not in drawn
