"""A headless Chromium, spoken to in its own DevTools protocol over a pipe: no driver is needed."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from support.waiting import PATIENCE, until

NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
# Chromium reads file descriptor 3 and writes 4; Popen can only hand on those that there are.
_LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4);"
    " os.execv(sys.argv[3], sys.argv[3:])"
)


@cache
def executable() -> str | None:
    """A browser of Chromium's kind that runs, None without one: some of them are empty shells."""
    programs = filter(None, map(shutil.which, NAMES))
    return next((program for program in programs if _runs(program)), None)


def _runs(program: str) -> bool:
    done = subprocess.run(
        [program, "--version"], capture_output=True, timeout=PATIENCE, check=False
    )
    return done.returncode == 0


class Browser:
    """One page. `messages` are what its console says, `requests` the addresses it asked for."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._read, self._count, self._session = b"", 0, ""
        self.messages: list[str] = []
        self.requests: list[str] = []

    def attach(self) -> None:
        """Open an empty page and listen to it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, page: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Show a page, as wide as a screen of `width` px; returns when it is loaded."""
        self.messages.clear()
        self.requests.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.as_uri())
        shown = f"complete{page.as_uri()}"
        until(lambda: self.evaluate("document.readyState + location") == shown)

    def evaluate(self, expression: str) -> Any:
        """The JSON value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        """What is seen of the page, as a PNG."""
        taken = self.call("Page.captureScreenshot")
        return base64.b64decode(taken["data"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol and its result."""
        self._count += 1
        said = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            said["sessionId"] = self._session
        os.write(self._writer, json.dumps(said).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            self._notice(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def _notice(self, event: dict[str, Any]) -> None:
        method, said = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Log.entryAdded":
            self.messages.append(said["entry"]["text"])
        elif method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.messages.append(json.dumps(said))

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, end - time.monotonic()))
            found = os.read(self._reader, 2**16) if ready else b""
            if not found:
                raise RuntimeError("the browser " + ("has ended" if ready else "does not answer"))
            self._read += found
        message, _, self._read = self._read.partition(b"\0")
        return dict(json.loads(message))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile folder, which ends with the `with`."""
    program = executable()
    assert program is not None
    theirs_in, ours_out = _pipe()
    ours_in, theirs_out = _pipe()
    launch = [sys.executable, "-c", _LAUNCH, str(theirs_in), str(theirs_out), program]
    process = subprocess.Popen(
        [*launch, *_FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        page = Browser(ours_in, ours_out)
        page.attach()
        yield page
    finally:
        os.close(ours_out)  # which tells it to go
        os.close(ours_in)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pipe() -> tuple[int, int]:
    """Above the numbers that the child gives them, so that neither end overwrites the other."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


# Of each page: what a reader would stumble over, as a list of sentences.
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
