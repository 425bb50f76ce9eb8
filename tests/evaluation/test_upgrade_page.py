"""The page of a comparison: what is in it, and how it looks in a browser."""

import html
import re
from pathlib import Path

import pytest
from PIL import Image
from support import browser
from support.result_files import result_file

from drexperts.evaluation import compare_results, write_comparison_page
from drexperts.runtime.manifest import ScoreScale

NEEDED = pytest.mark.skipif(
    browser.executable() is None, reason=f"no browser: none of {', '.join(browser.NAMES)}"
)
HOSTILE = "<script>alert(1)</script>\n\udcff.png"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Forty images, of which the first four moved far: two have a picture."""
    names = [str(tmp_path / "0.png"), str(tmp_path / "1.png"), "a.tar/2.png", HOSTILE]
    names += [f"images of a long name/{i}" for i in range(4, 40)]
    for name in names[:2]:
        Image.new("RGB", (600, 300), (200, 0, 0)).save(name)
    a: dict[str, float | str] = {name: 2.0 * i for i, name in enumerate(names)}
    b: dict[str, float | str] = {name: 2.0 * i + 0.1 for i, name in enumerate(names)}
    b |= {name: 60.0 - i for i, name in enumerate(names[:4])}
    b[names[-1]] = "<i>no picture</i>"
    files = [result_file(tmp_path / f"{i}.csv", each) for i, each in enumerate((a, b))]
    write_comparison_page(compare_results(*files), tmp_path / "page.html")
    return tmp_path / "page.html"


def test_it_shows_what_moved_most_and_names_what_has_no_picture(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption><b>(.*?)</b><br>(.*?)</figcaption>", text)
    assert len(captions) == 20
    assert captions[0] == ("0.000 → 60.000 (+60.000)", str(page.parent / "0.png"))
    assert captions[2][1] == "a.tar/2.png"
    assert html.unescape(captions[3][1]) == "<script>alert(1)</script>\\n\\udcff.png"
    assert text.count("data:image/jpeg") == 2
    assert text.count("<svg") == 1
    assert "&lt;i&gt;no picture" in text
    assert "Images with a score in A and an error in B: 1." in text
    for word in ("<script", "<i>no", "href=", 'http-equiv="refresh'):
        assert word not in text.replace('xlink:href="#', "")


def test_contracts_that_differ_are_said(tmp_path: Path) -> None:
    a = result_file(tmp_path / "a.csv", {"a": 1.0})
    b = result_file(
        tmp_path / "b.csv", {"a": 1.0}, scale=ScoreScale(0.0, 1.0, higher_is_better=True)
    )
    write_comparison_page(compare_results(a, b, across=True), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "The scores do not mean the same" in text


def test_nothing_moved(tmp_path: Path) -> None:
    file = result_file(tmp_path / "a.csv", {"a": 1.0, "b": 1.0})
    write_comparison_page(compare_results(file, file), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "No score has changed" in text
    assert "Both have the same weights" in text


@NEEDED
@pytest.mark.slow
def test_it_can_be_read_everywhere(page: Path) -> None:
    with browser.browser() as chromium:
        for width, dark in ((1200, False), (1200, True), (360, False), (360, True)):
            chromium.open(page, width, dark=dark)
            assert chromium.evaluate(browser.TEXT_FAULTS) == []
            assert chromium.evaluate(browser.CONTRAST_FAULTS) == []
            assert chromium.evaluate("document.documentElement.scrollWidth") == width
            loaded = "[...document.images].every(one => one.complete && one.naturalWidth > 0)"
            assert chromium.evaluate(loaded)
            assert chromium.messages == []
            assert chromium.requests == [page.as_uri()]
