"""The page in a browser when the server refuses: a token, and errors in plain words."""

import json
from typing import Any

import pytest
from support import browser
from support.scoring_page import choose, texts
from support.serving import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.executable() is None, reason="needs Chromium and playwright"),
]

TOKEN = "a-token-of-this-test"


def test_a_token_is_asked_for_and_kept_in_memory_only(show, toy, picture) -> None:
    with serving(toy, tokens=(TOKEN,)) as running:
        page = show(running)
        field = page.page.get_by_label("This server asks for a token")
        page.page.locator("#files").set_input_files([picture("a.jpg"), picture("b.jpg")])
        field.fill("another-token")
        field.press("Enter")
        page.page.get_by_text("That token was not accepted.").wait_for()
        field.fill(TOKEN)
        field.press("Enter")
        page.page.locator("[data-state=done]").nth(1).wait_for()
        assert not field.is_visible()
        assert field.input_value() == ""
        kept = "[localStorage.length, sessionStorage.length, document.cookie, location.href]"
        assert page.evaluate(kept) == [0, 0, "", f"http://127.0.0.1:{running.port}/"]


def refusal(status: int, code: str, **headers: str) -> dict[str, Any]:
    body = json.dumps({"error": {"code": code, "message": "a message", "request_id": "4711"}})
    return {"status": status, "body": body, "headers": headers}


@pytest.mark.parametrize(
    ("answer", "words", "again"),
    [
        (refusal(413, "too_large"), "The file is larger than this server takes", False),
        (refusal(504, "timed_out"), "The server did not get to it in time", True),
        (refusal(500, "internal"), "The server failed. Its log says why, under 4711", True),
        ({"status": 502, "body": "<h1>Bad gateway</h1>"}, "The server answered 502", True),
        (None, "The server cannot be reached, or the file cannot be read", True),
    ],
)
def test_a_refusal_is_said_in_words_and_tried_again(show, picture, answer, words, again) -> None:
    page = show()
    page.page.route(
        "**/v1/score*",
        lambda route: route.fulfill(**answer) if answer else route.abort(),
        times=1,
    )
    choose(page, picture("a.jpg"))
    assert texts(page, ".state") == [words]
    button = page.page.get_by_role("button", name="Try a.jpg again")
    assert button.count() == again
    if again:
        button.click()
        page.page.locator("[data-state=done]").wait_for()
        assert button.count() == 0


def test_all_that_failed_are_tried_again(show, picture) -> None:
    page = show()
    page.page.route("**/v1/score*", lambda route: route.abort(), times=2)
    choose(page, picture("a.jpg"), picture("b.jpg"))
    page.page.get_by_role("button", name="Try failed ones again").click()
    page.page.locator("[data-state=done]").nth(1).wait_for()
    assert texts(page, "#status") == ["2 of 2 scored"]


def test_a_busy_server_is_asked_again(show, picture) -> None:
    page = show()
    busy = refusal(503, "queue_full", **{"Retry-After": "0.2"})
    page.page.route("**/v1/score*", lambda route: route.fulfill(**busy), times=2)
    choose(page, picture("a.jpg"))
    assert texts(page, "#status") == ["1 of 1 scored"]


def test_what_is_too_large_is_not_sent(show, picture) -> None:
    page = show()
    choose(page, {**picture("a.jpg"), "buffer": bytes(3 * 2**20)})
    assert texts(page, ".state") == ["The file has 3 MiB. This server takes up to 2 MiB"]
    assert not any("v1/score" in address for address in page.requests)
