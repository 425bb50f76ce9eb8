"""The page in a browser, against a server: what a person sees, hears and can do."""

import dataclasses
import re

import pytest
from PIL import Image
from support import browser
from support.browser import Browser
from support.scoring_page import choose, texts
from support.serving import serving

from drexperts.runtime import Scorer
from drexperts.runtime.manifest import ScoreScale

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.executable() is None, reason="needs Chromium and playwright"),
]

HOSTILE = "<img src=x onerror=alert(1)>.jpg"


def test_each_photograph_gets_its_score_or_the_reason_why_not(show, toy, picture) -> None:
    page = show()
    good = [picture("a.jpg"), picture("b.tif", 1, "TIFF"), picture(HOSTILE, 2)]
    broken = {**picture("cut.jpg"), "buffer": picture("cut.jpg")["buffer"][:300]}
    choose(page, *good, broken)
    assert texts(page, "#status") == ["3 of 4 scored, 1 failed"]
    assert texts(page, "h2") == ["a.jpg", "b.tif", HOSTILE, "cut.jpg"]
    scores = [toy.score(each["buffer"]) for each in good]
    assert texts(page, ".score strong") == [
        f"{score.value:.{score.scale.decimals}f}" for score in scores
    ]
    assert texts(page, ".spread") == [f"± {score.std:.1f}" for score in scores]
    assert texts(page, "code") == [score.fingerprint for score in scores]
    (state,) = texts(page, "[data-state=failed] .state")
    assert state.startswith("This cannot be read as a photograph: ")
    assert "bytes>" not in state
    assert texts(page, "article:first-child .weight .name")[1:] == list(scores[0].distortions)
    assert page.page.locator(".unseen canvas[role=img]").first.get_attribute("aria-label") == (
        "b.tif, without a preview"
    )


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_map_lies_over_the_photograph_as_it_is_upright(show, encode, format) -> None:
    bright_left = Image.new("RGB", (120, 80), "black")
    bright_left.paste("white", (0, 0, 60, 80))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    stored = encode(bright_left.rotate(90, expand=True), format, exif=exif)
    page = show()
    choose(page, {"name": "turned", "mimeType": "", "buffer": stored})
    page.page.locator("label.thumbnail", has_text="distortion 9").click()
    canvas = page.page.locator(".picture canvas")
    assert canvas.get_attribute("aria-label") == "turned, with the map of distortion 9"
    left, right, wide = canvas.evaluate(
        """canvas => {
          const {width, height} = canvas;
          const row = canvas.getContext("2d").getImageData(0, height / 2, width, 1).data;
          const at = share => [...row.slice(4 * Math.round(share * width)).slice(0, 3)];
          return [at(0.2), at(0.8), width / height];
        }"""
    )
    assert wide == 1.5
    assert left[0] - left[2] > 100  # orange: the toy's experts look where it is bright
    assert max(right) < 50  # nothing over what is black in the photograph


def test_forty_at_once_are_sent_a_few_at_a_time_and_ordered(show, toy, picture) -> None:
    manifest = dataclasses.replace(toy.manifest, scale=ScoreScale(0.0, 255.0, False))
    scorer = Scorer(manifest, toy.engine, toy.session, batch=8)
    with serving(scorer) as running:
        page = show(running)
        open_, most = [0], [0]

        def begun(_: object) -> None:
            open_[0] += 1
            most[0] = max(most[0], open_[0])

        page.page.on("request", begun)
        page.page.on("requestfinished", lambda _: open_.__setitem__(0, open_[0] - 1))
        choose(page, *(picture(f"{i}.jpg", i) for i in range(40)))
        assert texts(page, "#status") == ["40 of 40 scored"]
        assert 2 <= most[0] <= 4
        assert texts(page, "article:first-child .ends span") == ["0 best", "255 worst"]
        page.page.locator("#order").select_option("worst")
        scores = [float(text) for text in texts(page, ".score strong")]
        assert scores == sorted(scores, reverse=True)
        page.page.get_by_role("button", name="Clear").click()
        assert page.page.locator("article").count() == 0


def test_photographs_are_dropped_and_pasted(show, picture) -> None:
    page = show()
    for event in ("Drag", "Clipboard"):
        page.page.evaluate(
            """([event, bytes]) => {
              const data = new DataTransfer();
              data.items.add(new File([new Uint8Array(bytes)], event + ".jpg"));
              dispatchEvent(event === "Drag" ? new DragEvent("drop", {dataTransfer: data})
                : new ClipboardEvent("paste", {clipboardData: data}));
            }""",
            [event, list(picture("")["buffer"])],
        )
    page.page.locator("[data-state=done]").nth(1).wait_for()
    assert texts(page, "h2") == ["Drag.jpg", "Clipboard.jpg"]


def test_everything_is_done_by_keyboard(show, picture) -> None:
    page = show()
    keys = page.page.keyboard
    # Playwright tells the browser of the first listener without waiting for it.
    page.page.on("filechooser", lambda _: None)
    keys.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    with page.page.expect_file_chooser() as chooser:
        keys.press("Enter")
    chooser.value.set_files([picture("a.jpg")])
    page.page.locator("[data-state=done]").wait_for()
    focused = "document.activeElement.ariaLabel || document.activeElement.id"
    reached = []
    for _ in range(4):
        keys.press("Tab")
        reached.append(page.evaluate(focused))
    assert reached[:3] == ["order", "clear", "photograph only"]
    assert reached[3].startswith("Copy the fingerprint ")
    keys.press("Enter")
    page.page.locator(".heard", has_text=re.compile("Copied|Selected")).wait_for()
    keys.press("Shift+Tab")
    keys.press("ArrowDown")
    label = page.page.locator(".picture canvas").get_attribute("aria-label")
    assert label == "a.jpg, with the map of distortion 0"


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (360, False)])
def test_it_can_be_read_in_every_light_and_width(show, picture, width, dark) -> None:
    page = show(width=width, dark=dark)
    name = "a-name-without-a-blank-" * 5 + ".jpg"
    broken = {**picture("broken.jpg"), "buffer": b"text"}
    choose(page, picture(name), picture("b.tif", 1, "TIFF"), broken)
    page.page.locator("label.thumbnail", has_text="distortion 8").first.click()
    assert page.evaluate(browser.CONTRAST_FAULTS) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert unnamed(page) == []


def unnamed(page: Browser) -> list[str]:
    """The roles of what a screen reader meets without a name."""
    session = page.page.context.new_cdp_session(page.page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    wanted = {"button", "radio", "combobox", "image", "textbox", "article", "group", "region"}
    roles = [
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if not node["ignored"]
    ]
    assert {"button", "radio", "combobox", "image", "article"} <= {role for role, _ in roles}
    return [role for role, name in roles if role in wanted and not name]
