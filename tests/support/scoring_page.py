"""What a person does on the page of `drx serve`, and what is seen there."""

from typing import Any

from support.browser import Browser

_FINISHED = "[data-state=done], [data-state=failed]"


def choose(chromium: Browser, *pictures: Any) -> None:
    """Choose files and wait until each has a score or has failed.

    pictures: as the fixture `picture` makes them
    """
    page = chromium.page
    before = page.locator("article").count()
    page.locator("#files").set_input_files(list(pictures))
    page.locator(_FINISHED).nth(before + len(pictures) - 1).wait_for()


def texts(chromium: Browser, selector: str) -> list[str]:
    return chromium.page.locator(selector).all_inner_texts()
