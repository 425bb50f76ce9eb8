"""Portions of a stream."""

import functools
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drexperts.scale.tasks import tasks_of


@pytest.mark.parametrize(
    ("count", "wanted", "sizes"),
    [
        (0, 4, []),
        (1, 4, [1]),
        (8, 4, [4, 4]),
        (9, 4, [4, 4, 1]),
        (9, 1, [4, 4, 1]),
        (17, 5, [8, 8, 1]),
        (16, 100, [16]),
    ],
)
def test_tasks_are_whole_groups(count: int, wanted: int, sizes: list[int]) -> None:
    tasks = list(tasks_of(map(str, range(count)), 4, lambda: wanted))
    assert [len(task.items) for task in tasks] == sizes
    assert [item for task in tasks for item in task.items] == list(map(str, range(count)))


def test_what_fetches_an_image_is_sent_as_it_is() -> None:
    @functools.wraps(bytes)
    def fetch() -> bytes:
        return b"decorated"

    (task,) = tasks_of([("k", fetch)], 4, lambda: 4)
    assert task.items == [("k", fetch)]


@pytest.mark.parametrize(
    "image", [bytes(2**23), np.zeros((2**10, 2**13), "u1"), Image.new("L", (2**10, 2**13))]
)
def test_large_images_make_small_tasks(image: Any) -> None:
    items = [(str(i), image) for i in range(12)]
    assert [len(task.items) for task in tasks_of(items, 2, lambda: 100)] == [4, 4, 4]
    assert [len(task.items) for task in tasks_of(items, 6, lambda: 100)] == [6, 6]
