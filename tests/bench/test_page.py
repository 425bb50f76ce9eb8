"""The page of `drx bench`: what is in it, and how it looks in a browser."""

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import browser, sample_reports
from support.browser import Browser

from drexperts.bench.caveats import warnings
from drexperts.bench.page import page
from drexperts.bench.reports import AGAIN, ENGINE
from drexperts.ui import palette

NEEDED = pytest.mark.skipif(
    browser.executable() is None, reason=f"no browser: none of {', '.join(browser.NAMES)}"
)
EACH = pytest.mark.parametrize("name", sample_reports.REPORTS)


@cache
def html(name: str) -> str:
    """The page of a sample report; its charts take seconds."""
    return page(sample_reports.REPORTS[name]())


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@EACH
@pytest.mark.slow
def test_nothing_runs_and_nothing_is_fetched(name: str) -> None:
    elements = Elements(html(name))
    assert not elements.of("script")
    for _, attributes in elements.tags:
        assert not {"src", "href", "srcset", "onload"} & attributes.keys()
    assert "url(" not in elements.text
    assert "@import" not in elements.text


def test_what_comes_from_outside_is_text() -> None:
    elements = Elements(html("gpu"))
    assert sample_reports.HOSTILE in elements.text
    assert not elements.of("script")
    assert not elements.of("a")


@EACH
def test_every_picture_says_what_it_is(name: str) -> None:
    pictures = Elements(html(name)).of("svg")
    for picture in pictures:
        assert picture.get("aria-label") if picture.get("role") else picture["aria-hidden"]


def test_everything_is_there() -> None:
    report = sample_reports.cpu()
    elements = Elements(html("cpu"))
    labels = [picture.get("aria-label") or "" for picture in elements.of("svg")]
    for entry in report.batches:
        for name in entry.shown:
            assert f"latencies of {name}, batch {entry.batch}" in labels
    for promised in (
        "crops per second against batch",
        "FLOP/s against FLOP per byte",
        "p99 latency against the rate of arrivals",
        "time by part of one image",
    ):
        assert promised in labels
    for promised in (
        *("no NVIDIA GPU", "Noise floor", "1.3e-07", "encoder.blocks.0.mlp.fc1"),
        *(report.command, report.source.commit or "", *warnings(report)),
    ):
        assert promised in elements.text
    assert all(AGAIN not in label for label in labels)


@pytest.mark.slow
def test_trials_that_were_stopped_are_marked() -> None:
    report = sample_reports.cpu()
    assert "stopped early, of what was answered" in html("cpu")
    assert "no, stopped early" in html("cpu")
    server = report.scenarios.server
    assert server
    complete = tuple(replace(each, planned=len(each.seconds)) for each in server.trials)
    scenarios = replace(report.scenarios, server=replace(server, trials=complete))
    shown = page(replace(report, batches=report.batches[:1], scenarios=scenarios))
    assert "stopped early" not in shown
    assert "every image answered" in shown


def test_what_is_missing_has_no_heading() -> None:
    text = Elements(html("bare")).text
    assert "Latency" in text
    for heading in ("Roofline", "Time of an image", "Agreement", "Left out", "Server"):
        assert heading not in text


def colours_of(html: str) -> dict[str, set[str]]:
    """The colours that are drawn in each chart of times, by its label."""
    found = {}
    for label, picture in re.findall(r'<svg [^>]*aria-label="([^"]+)"(.*?)</svg>', html, re.DOTALL):
        drawn = set(re.findall("(?:stroke|fill): (#[0-9a-f]{6})", picture))
        found[label] = drawn & set(map(palette.colour, range(100)))
    return found


@pytest.mark.slow
def test_a_variant_has_one_colour_on_the_whole_page_and_no_other_has_it() -> None:
    medians = {ENGINE: 0.3, AGAIN: 0.3} | {f"baseline {i}": 0.4 for i in range(15)}
    others = {name: time for name, time in medians.items() if name != "baseline 2"}
    batches = (sample_reports.batch(1, others, 5), sample_reports.batch(2, medians, 5))
    found = colours_of(page(replace(sample_reports.bare(), batches=batches)))
    by_name: dict[str, set[str]] = {}
    for label, drawn in found.items():
        if label.startswith("latencies of "):
            by_name.setdefault(label.split(" of ")[1].split(",")[0], set()).update(drawn)
    assert by_name.keys() == medians.keys() - {AGAIN}
    assert {len(colours) for colours in by_name.values()} == {1}
    every = set.union(*by_name.values())
    assert len(every) == 16
    assert found["every call of each variant, batch 2"] == every
    assert found["every call of each variant, batch 1"] == every - by_name["baseline 2"]
    assert found["crops per second against batch"] == every


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    for name in sample_reports.REPORTS:
        (folder / f"{name}.html").write_text(html(name), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.browser() as opened:
        yield opened


def show(chromium: Browser, page: Path, width: int, dark: bool = False) -> None:
    chromium.open(page, width, dark=dark)
    chromium.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")


@NEEDED
@EACH
@pytest.mark.parametrize("width", [1280, 360])
def test_no_text_leaves_its_picture_or_overlaps(
    chromium: Browser, pages: Path, name: str, width: int
) -> None:
    show(chromium, pages / f"{name}.html", width)
    assert chromium.evaluate("document.querySelectorAll('svg text').length") > 10
    assert chromium.evaluate(browser.TEXT_FAULTS) == []


@NEEDED
@EACH
def test_it_asks_for_nothing_and_complains_of_nothing(
    chromium: Browser, pages: Path, name: str
) -> None:
    show(chromium, pages / f"{name}.html", 1280)
    assert chromium.requests == [(pages / f"{name}.html").as_uri()]
    assert chromium.messages == []


@NEEDED
@EACH
def test_a_telephone_scrolls_one_way_only(chromium: Browser, pages: Path, name: str) -> None:
    show(chromium, pages / f"{name}.html", 360)
    assert chromium.evaluate("innerWidth") == 360
    assert chromium.evaluate("document.documentElement.scrollWidth") <= 360


@NEEDED
@EACH
@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read(chromium: Browser, pages: Path, name: str, dark: bool) -> None:
    show(chromium, pages / f"{name}.html", 1280, dark)
    assert chromium.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert chromium.evaluate(browser.CONTRAST_FAULTS) == []


@NEEDED
@pytest.mark.parametrize("dark", [False, True])
def test_its_series_are_seen(chromium: Browser, pages: Path, dark: bool) -> None:
    chromium.open(pages / "cpu.html", 1280, height=1600, dark=dark)
    shown = np.asarray(Image.open(io.BytesIO(chromium.screenshot())).convert("RGB"))
    assert shown[5, 5].mean() < 60 if dark else shown[5, 5].mean() > 200
    red, green, blue = np.moveaxis(shown.astype(np.uint32), 2, 0)
    colours, counts = np.unique(red << 16 | green << 8 | blue, return_counts=True)
    seen = dict(zip(colours.tolist(), counts.tolist(), strict=True))
    for colour in palette.COLOURS:  # one per variant
        assert seen.get(int(colour[1:], 16), 0) > 100, colour


@NEEDED
def test_faults_would_be_found(chromium: Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(
        "<body style='color: #777; background: #fff'><p style='width: 800px'>pale</p>"
        "<svg width=100 height=50><rect width=100 height=50 fill='#333' />"
        "<text x=10 y=20>one</text><text x=20 y=22>two</text><text x=90 y=40>three</text></svg>"
        "<img src='nowhere.png'></body><script>console.error('no')</script>"
    )
    show(chromium, broken, 360)
    assert chromium.evaluate(browser.TEXT_FAULTS) == [
        "one overlaps two",
        "three leaves its picture",
    ]
    faults = chromium.evaluate(browser.CONTRAST_FAULTS)
    assert [fault.partition(":")[0] for fault in faults] == ["pale", "one", "two"]
    assert chromium.evaluate("document.documentElement.scrollWidth") > 360
    assert len(chromium.requests) == 2
    assert chromium.messages
