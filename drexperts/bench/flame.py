"""A profile as one picture: the whole, its parts, their operators, their layers, each row below
the last and every box as wide as its time."""

import math
from collections.abc import Sequence
from html import escape
from itertools import accumulate, groupby
from typing import Any, NamedTuple

from drexperts.bench.profile import PARTS

_WIDTH = 1080  # px, as the rest
_ROWS = (26, 26, 26, 142)  # heights; in the last one long labels are upright
_TOPS = tuple(accumulate(_ROWS, initial=0))
_GAP = 1  # between boxes
_FONT = 12
_CHARACTER = 7.6  # width of a wide font's
_PADDING = 5
_LINE = 11  # what a line of text takes across
_NARROWEST = 4  # a narrower box is drawn together with its narrow neighbours
_KEY = (270, 24)  # width and height of an entry
_KEY_ABOVE = 12  # px between the boxes and the key
_KEY_COLUMNS = _WIDTH // _KEY[0]

# Okabe and Ito's palette, told apart by colour-blind readers too; grey for what is no part.
COLOURS = dict(
    zip(
        PARTS,
        ("#e69f00", "#f0e442", "#cc79a7", "#0072b2", "#d55e00", "#009e73", "#999999", "#cccccc"),
        strict=True,
    )
)
_WHOLE = "#56b4e9"
_PALER = (0.2, 0.35, 0.55, 0.7)  # how far to white, by row: dark text is read on each
_INK = "#1b1f24"


class Box(NamedTuple):
    """Some time, and what it is made of. detail: what a pointer shows beside the label."""

    label: str
    seconds: float
    colour: str
    detail: str = ""
    inside: tuple["Box", ...] = ()


def flame(profile: dict[str, Any]) -> str:
    """A profile of `profiling.profile_engine` as SVG, for a page or a file of its own."""
    whole = _whole(profile)
    key_top = _TOPS[_rows(whole)] + _KEY_ABOVE
    key = _key(profile, key_top)
    height = key_top + _KEY[1] * math.ceil(len(key) / _KEY_COLUMNS)
    drawn = _drawn(whole, 0.0, float(_WIDTH), 0, whole.seconds)
    label = escape(f"where the time of an image goes: {_shown(whole.seconds, whole.seconds)}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" style="max-width:100%;height:auto" role="img" '
        f'aria-label="{label}" font-family="system-ui, sans-serif" font-size="{_FONT}" '
        f'fill="{_INK}"><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(drawn)}{''.join(key)}</svg>"
    )


def _whole(profile: dict[str, Any]) -> Box:
    parts = tuple(
        Box(
            each["part"],
            each["seconds"],
            COLOURS[each["part"]],
            inside=_operators(profile, each["part"]),
        )
        for each in profile["parts"]
        if each["seconds"] > 0
    )
    label = f"one image, {1e3 * profile['total_s']:.4g} ms"
    return Box(label, sum(part.seconds for part in parts), _WHOLE, inside=parts)


def _rows(box: Box) -> int:
    """How many there are from a box down to the last that it is made of."""
    return 1 + max(map(_rows, box.inside), default=0)


def _operators(profile: dict[str, Any], part: str) -> tuple[Box, ...]:
    """The operators of a part with their layers, the dearest first."""
    layers = sorted(
        (each for each in profile["layers"] if each["part"] == part and each["seconds"] > 0),
        key=lambda each: each["op"],
    )
    boxes = []
    for op, group in groupby(layers, key=lambda each: each["op"]):
        inside = tuple(
            Box(
                each["name"].removeprefix(f"{part}."),
                each["seconds"],
                COLOURS[part],
                f"{op}, {part}",
            )
            for each in group
        )
        spent = sum(box.seconds for box in inside)
        boxes.append(Box(op, spent, COLOURS[part], f"{len(inside)} in {part}", _dearest(inside)))
    return _dearest(boxes)


def _dearest(boxes: Sequence[Box]) -> tuple[Box, ...]:
    return tuple(sorted(boxes, key=lambda box: -box.seconds))


def _drawn(box: Box, left: float, width: float, row: int, total: float) -> list[str]:
    """A box and all below it."""
    drawn = [_rectangle(box, left, width, row, total)]
    for inner in _joined(box.inside, width / box.seconds, row):
        inner_width = inner.seconds / box.seconds * width
        drawn += _drawn(inner, left, inner_width, row + 1, total)
        left += inner_width
    return drawn


def _joined(boxes: tuple[Box, ...], scale: float, row: int) -> tuple[Box, ...]:
    """Those that are wide enough, and one for the others. Parts, which are few, all stay.

    scale: px a second
    """
    narrow = [box for box in boxes if box.seconds * scale < _NARROWEST]
    if row == 0 or len(narrow) < 2:
        return boxes
    kept = tuple(box for box in boxes if box.seconds * scale >= _NARROWEST)
    spent = sum(box.seconds for box in narrow)
    return (*kept, Box(f"{len(narrow)} more", spent, narrow[0].colour))


def _rectangle(box: Box, left: float, width: float, row: int, total: float) -> str:
    tip = f"{box.label}: {_shown(box.seconds, total)}"
    tip += f" ({box.detail})" if box.detail else ""
    return (
        f'<g><title>{escape(tip)}</title><rect x="{left:.2f}" y="{_TOPS[row]}" '
        f'width="{max(width - _GAP, 0.2):.2f}" height="{_ROWS[row] - _GAP}" '
        f'fill="{_paler(box.colour, _PALER[row])}"/>{_words(box.label, left, width, row)}</g>'
    )


def _words(label: str, left: float, width: float, row: int) -> str:
    """A label as far as its box has room, upright where that is the longer side."""
    across = _clipped(label, width - 2 * _PADDING)
    upright = _clipped(label, _ROWS[row] - 2 * _PADDING) if width >= _LINE else ""
    if len(across) >= len(upright):
        x, y, turn = left + _PADDING, _TOPS[row] + 17.0, ""
    else:
        x, y = left + width / 2 + 4, _TOPS[row] + float(_PADDING)
        turn = f' text-anchor="end" transform="rotate(-90 {x:.2f} {y:.2f})"'
    text = escape(max(across, upright, key=len))
    return f'<text x="{x:.2f}" y="{y:.2f}"{turn}>{text}</text>' if text else ""


def _shown(spent: float, total: float) -> str:
    return f"{1e3 * spent:.4g} ms, {spent / total:.1%}"


def _clipped(text: str, width: float) -> str:
    """As much of a text as fits; nothing where that says nothing."""
    fitting = int(width / _CHARACTER)
    if len(text) <= fitting:
        return text
    return f"{text[: fitting - 1]}…" if fitting >= 4 else ""


def _paler(colour: str, share: float) -> str:
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(c + share * (255 - c)):02x}" for c in channels)


def _key(profile: dict[str, Any], highest: float) -> list[str]:
    """Each part with its time, in rows from `highest` on, px."""
    entries = []
    for place, each in enumerate(profile["parts"]):
        left = _KEY[0] * (place % _KEY_COLUMNS)
        top = highest + _KEY[1] * (place // _KEY_COLUMNS)
        colour = _paler(COLOURS[each["part"]], _PALER[1])
        text = f"{each['part']}: {_shown(each['seconds'], profile['total_s'])}"
        entries.append(
            f'<rect x="{left}" y="{top}" width="14" height="14" fill="{colour}"/>'
            f'<text x="{left + 20}" y="{top + 12}">{escape(text)}</text>'
        )
    return entries
