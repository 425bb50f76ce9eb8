"""A headless Chromium, and scripts that find what is hard to read on a page."""

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.waiting import PATIENCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium
    from playwright.sync_api import Dialog, Page

NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")


@cache
def executable() -> str | None:
    """An installed Chromium that runs; None without one, and without playwright."""
    if importlib.util.find_spec("playwright") is None:
        return None
    return next(
        (program for program in filter(None, map(shutil.which, NAMES)) if _runs(program)), None
    )


def _runs(program: str) -> bool:
    """Some programs of these names only ask for an installation."""
    done = subprocess.run(
        [program, "--version"], capture_output=True, timeout=PATIENCE, check=False
    )
    return done.returncode == 0


class Browser:
    """One page at a time.

    page: the page that is open
    messages: what the page's console and its dialogs say
    requests: the addresses it asks for
    """

    page: "Page"

    def __init__(self, chromium: "Chromium") -> None:
        self._chromium = chromium
        self.messages: list[str] = []
        self.requests: list[str] = []

    def open(self, address: Path | str, width: int, height: int = 900, dark: bool = False) -> None:
        """Show a page on a screen of `width` px, a telephone's where that is narrow."""
        self.close()
        self.messages.clear()
        self.requests.clear()
        self.page = self._chromium.new_page(
            viewport={"width": width, "height": height},
            is_mobile=width < 500,
            color_scheme="dark" if dark else "light",
        )
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.goto(address if isinstance(address, str) else address.as_uri())

    def close(self) -> None:
        """Close the page that is open, if there is one."""
        if hasattr(self, "page"):
            self.page.close()

    def _dismiss(self, dialog: "Dialog") -> None:
        self.messages.append(f"a dialog says {dialog.message}")
        dialog.dismiss()

    def evaluate(self, expression: str) -> Any:
        """The JSON value of an expression in the page."""
        return self.page.evaluate(expression)

    def screenshot(self) -> bytes:
        """The visible part of the page, as a PNG."""
        return self.page.screenshot()


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser that ends with the `with`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        try:
            yield Browser(chromium)
        finally:
            chromium.close()


# Texts of pictures that overlap or that are cut off, as a list of sentences.
TEXT_FAULTS = """(() => {
  const faults = [];
  for (const svg of document.querySelectorAll("svg")) {
    const box = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map(
      text => [text.textContent, text.getBoundingClientRect()]);
    texts.forEach(([words, at], i) => {
      if (at.left < box.left - 1 || at.right > box.right + 1 ||
          at.top < box.top - 1 || at.bottom > box.bottom + 1)
        faults.push(`${words} leaves its picture`);
      for (const [others, other] of texts.slice(i + 1))
        if (at.left < other.right - 1 && other.left < at.right - 1 &&
            at.top < other.bottom - 2 && other.top < at.bottom - 2)
          faults.push(`${words} overlaps ${others}`);
    });
  }
  return faults;
})()"""

# WCAG's contrast between a text and what lies behind it; 4.5 is its level AA.
CONTRAST_FAULTS = """(() => {
  const faults = [];
  const channels = colour => colour.match(/[0-9.]+/g).map(Number);
  const luminance = colour => {
    const [r, g, b] = channels(colour).map(c => c / 255).map(
      c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const seen = colour => colour !== "none" && channels(colour)[3] !== 0;
  const behind = element => {
    if (element.closest("svg")) {
      element.scrollIntoView({block: "center", inline: "center"});
      const at = element.getBoundingClientRect();
      const below = document.elementsFromPoint((at.left + at.right) / 2, (at.top + at.bottom) / 2);
      const box = below.find(one => one.tagName === "rect" && seen(getComputedStyle(one).fill));
      if (box) return getComputedStyle(box).fill;
    }
    for (let one = element; one; one = one.parentElement)
      if (seen(getComputedStyle(one).backgroundColor)) return getComputedStyle(one).backgroundColor;
    return "rgb(255, 255, 255)";
  };
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].filter(node => node.nodeType === 3)
      .map(node => node.data.trim()).join("");
    if (!words || ["title", "SCRIPT"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const [a, b] = [element.tagName === "text" ? style.fill : style.color, behind(element)]
      .map(luminance);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) faults.push(`${words}: ${contrast.toFixed(2)}`);
  }
  return faults;
})()"""
