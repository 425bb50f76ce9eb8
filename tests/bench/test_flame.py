"""The picture of a profile: widths are times, nothing is lost, labels stay in their boxes."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from typing import Any

import pytest

from drexperts.bench.flame import flame
from drexperts.bench.profile import PARTS

SVG = "{http://www.w3.org/2000/svg}"
WIDTH = 1080
GAP = 1


def profile_of(seconds: dict[str, list[float]], **others: float) -> dict[str, Any]:
    """Layers of an operator each, by "part operator"; and parts without layers."""
    layers = [
        {"name": f"{name.split()[0]}.<{i}>", "op": op, "part": part, "seconds": spent}
        for name, times in seconds.items()
        for part, op in [name.split()]
        for i, spent in enumerate(times)
    ]
    spent = dict.fromkeys(PARTS, 0.0) | others
    for layer in layers:
        spent[layer["part"]] += layer["seconds"]
    parts = [{"part": part, "seconds": each} for part, each in spent.items()]
    return {"total_s": sum(spent.values()), "parts": parts, "layers": layers}


PROFILE = profile_of(
    {"encoder Gemm": [0.2, 0.1], "encoder Softmax": [0.1], "head Gemm": [0.05] + [1e-4] * 30},
    decode=0.3,
    crop=0.05,
)


def boxes(profile: dict[str, Any]) -> list[tuple[str, float, float, float, str]]:
    """(title, left, top, width, label) of each box."""
    found = []
    for group in ET.fromstring(flame(profile)).iter(f"{SVG}g"):
        title, rect, text = (group.find(f"{SVG}{tag}") for tag in ("title", "rect", "text"))
        assert title is not None
        assert rect is not None
        place = [float(rect.get(name, "")) for name in ("x", "y", "width")]
        label = "" if text is None else text.text or ""
        found.append((title.text or "", place[0], place[1], place[2], label))
    return found


def test_widths_are_times() -> None:
    for title, _, _, width, _ in boxes(PROFILE):
        found = re.search(r": ([\d.]+) ms, ([\d.]+)%", title)
        assert found is not None
        share = float(found[1]) / 1e3 / PROFILE["total_s"]
        assert width == pytest.approx(max(share * WIDTH - GAP, 0.2), abs=0.05)
        assert float(found[2]) == pytest.approx(100 * share, abs=0.06)


def test_each_row_lies_within_the_one_above() -> None:
    rows: dict[float, list[tuple[float, float]]] = {}
    for _, left, top, width, _ in boxes(PROFILE):
        rows.setdefault(top, []).append((left, left + width))
    tops = sorted(rows)
    assert len(tops) == 4
    for above, below in pairwise(tops):
        assert rows[below] == sorted(rows[below])
        for (_, end), (start, _) in pairwise(rows[below]):
            assert start >= end
        for left, right in rows[below]:
            assert any(a <= left + 0.01 and right <= b + 0.01 for a, b in rows[above])


def test_narrow_boxes_are_one() -> None:
    titles = [title for title, *_ in boxes(PROFILE)]
    assert sum(title.startswith("30 more: 3 ms") for title in titles) == 1
    one = profile_of({"encoder Gemm": [1.0, 1e-5]})  # a single narrow box keeps its name
    assert "<1>: 0.01 ms, 0.0% (Gemm, encoder)" in [title for title, *_ in boxes(one)]


def test_order_is_the_way_of_an_image_then_the_dearest_first() -> None:
    by_row: dict[float, list[str]] = {}
    for title, _, top, _, _ in boxes(PROFILE):
        by_row.setdefault(top, []).append(title.split(":")[0])
    whole, parts, operators, layers = (by_row[top] for top in sorted(by_row))
    assert whole == ["one image, 803 ms"]
    assert parts == ["decode", "crop", "encoder", "head"]
    assert operators == ["Gemm", "Softmax", "Gemm"]
    assert layers == ["<0>", "<1>", "<0>", "<0>", "30 more"]


def test_labels_fit() -> None:
    """By the width of a wide font's letters, 7.6 px; upright ones by the height of their row."""
    long = profile_of({f"encoder {'O' * 40}": [1.0], "head Gemm": [0.05] * 20})
    for _, _, _, width, label in boxes(long):
        room = 132 if width < 60 else width
        assert 7.6 * len(label) <= room
    assert "encoder" in [label for *_, label in boxes(long)]
    narrow = profile_of({"encoder Gemm": [0.1]}, crop=2.4)
    assert "enc…" in [label for *_, label in boxes(narrow)]


def test_form() -> None:
    root = ET.fromstring(flame(PROFILE))
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    assert "803" in root.get("aria-label", "")
    assert "&lt;0&gt;" in flame(PROFILE)  # names are text
    height = float(root.get("height", ""))
    for rect in root.iter(f"{SVG}rect"):
        if rect.get("y"):
            assert float(rect.get("y", "")) + float(rect.get("height", "")) <= height
    key = [text.text or "" for text in root.findall(f"{SVG}text")]
    assert [each.split(":")[0] for each in key] == list(PARTS)
    assert "decode: 300 ms, 37.4%" in key


def test_profile_without_layers() -> None:
    titles = [title for title, *_ in boxes(profile_of({}, decode=0.5, crop=0.5))]
    assert titles == [
        "one image, 1000 ms: 1000 ms, 100.0%",
        "decode: 500 ms, 50.0%",
        "crop: 500 ms, 50.0%",
    ]


def test_rows_without_boxes_take_no_room() -> None:
    def gap(profile: dict[str, Any]) -> float:
        """From the lowest box to the highest entry of the key, px."""
        root = ET.fromstring(flame(profile))
        rects = [one for one in root.iter(f"{SVG}rect") if one.get("y")]
        places = [(float(one.get("y", "")), float(one.get("height", ""))) for one in rects]
        key = [y for (y, height), one in zip(places, rects, strict=True) if one in list(root)]
        return min(key) - max(y + height for y, height in places if y < min(key))

    assert gap(profile_of({}, decode=0.5, crop=0.5)) == gap(PROFILE) < 20
