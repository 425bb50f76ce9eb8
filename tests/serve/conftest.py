"""A browser that shows the page of a server, and photographs for it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import browser
from support.browser import Browser
from support.serving import Running, serving

from drexperts import runtime
from drexperts.runtime import Scorer


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def toy(toy_bundle) -> Iterator[Scorer]:
    with runtime.load(toy_bundle, threads=1) as scorer:
        yield scorer


@pytest.fixture(scope="module")
def server(toy) -> Iterator[Running]:
    with serving(toy, max_body=2 * 2**20) as running:
        yield running


@pytest.fixture(scope="module")
def picture(photo, encode) -> Callable[..., dict[str, Any]]:
    """picture(name, seed=0, format="JPEG"): a photograph as a file that a person chooses."""

    def make(name: str, seed: int = 0, format: str = "JPEG") -> dict[str, Any]:
        content = encode(photo(120, 80, seed), format)
        return {"name": name, "mimeType": "application/octet-stream", "buffer": content}

    return make


@pytest.fixture
def show(chromium, server) -> Iterator[Callable[..., Browser]]:
    """show(running=server, width=1000, dark=False): a browser with the page of a server.

    At the end the page has asked no other host, and its console is empty.
    """
    shown: list[str] = []

    def make(running: Running = server, width: int = 1000, dark: bool = False) -> Browser:
        shown.append(f"http://127.0.0.1:{running.port}/")
        chromium.open(shown[-1], width, dark=dark)
        return chromium

    yield make
    assert all(address.startswith(shown[-1]) for address in chromium.requests)
    # The browser itself tells the console of every answer that is an error.
    assert [m for m in chromium.messages if not m.startswith("Failed to load resource")] == []
