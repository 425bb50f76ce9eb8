"""What is left of a stream of images, and which images are scored again for their neighbours."""

import functools
from collections.abc import Iterator

import pytest

from drexperts.runtime.inputs.listed import ListedImage
from drexperts.runtime.results.done import DoneSources
from drexperts.runtime.todo import Todo, beginning


def named(count: int) -> list[ListedImage]:
    return [ListedImage(str(i)) for i in range(count)]


def done(*places: int) -> DoneSources:
    there = DoneSources()
    for place in places:
        there.add(str(place), scored=place % 2 == 0)
    return there


def taking(places: list[int], place: int) -> bytes:
    places.append(place)
    return b""


def left(images: list[ListedImage], there: DoneSources, group: int) -> tuple[list[int], int]:
    todo = Todo(images, there, group)
    items = [int(image.source) for image, _ in todo.items()]
    assert (todo.images, todo.already_there) == (len(images), len(there))
    assert todo.any_scored == any(there.is_scored(image.source) for image in images)
    return items, todo.repeats


@pytest.mark.parametrize("count", range(10))
@pytest.mark.parametrize("group", [1, 3, 4])
def test_the_group_of_the_first_missing_image_is_begun_again(count: int, group: int) -> None:
    items, repeats = left(named(9), done(*range(min(count, 9))), group)
    begin = 9 if count >= 9 else count - count % group
    assert items == list(range(begin, 9))
    assert repeats == (0 if count >= 9 else count % group)


def test_rows_of_other_images_and_gaps() -> None:
    there = done(0, 1, 2, 3, 4, 6)
    assert left(named(9), there, 4) == ([4, 5, 7, 8], 1)
    there.add("elsewhere", scored=True)
    todo = Todo(named(9), there, 4)
    assert [image.source for image, _ in todo.items()] == ["4", "5", "7", "8"]


def test_videos_are_counted_apart_and_have_a_place_in_their_group() -> None:
    images = [ListedImage(str(place), is_video=place % 3 == 2) for place in range(9)]
    todo = Todo(images, done(*range(5)), 4)
    assert [image.source for image, _ in todo.items()] == ["4", "5", "6", "7", "8"]
    assert (todo.images, todo.already_there, todo.videos, todo.repeats) == (6, 4, 3, 1)


def test_images_in_archives_are_read_for_the_last_rows_only() -> None:
    read = list[int]()

    def passing(place: int) -> ListedImage:
        return ListedImage(str(place), functools.partial(taking, read, place), passing=True)

    todo = Todo([passing(place) for place in range(20)], done(*range(14)), 4)
    assert [int(image.source) for image, _ in todo.items()] == list(range(12, 20))
    assert (read, todo.repeats) == (list(range(12, 20)), 2)


def test_an_image_is_asked_for_when_the_one_before_was_taken() -> None:
    taken = list[int]()

    def stream() -> Iterator[ListedImage]:
        for place in range(5):
            yield ListedImage(str(place), functools.partial(taking, taken, place))
            assert taken == list(range(place + 1))

    assert len(list(Todo(stream(), done(), 2).items())) == 5


def test_the_beginning_of_a_stream() -> None:
    assert beginning(iter(named(0))) == ([], True)
    assert beginning(iter(named(3))) == (named(3), True)
    stream = iter(named(3))
    assert beginning(stream, seconds=-1) == (named(1), False)
    assert beginning(stream, most=1) == (named(2)[1:], False)
    assert list(stream) == named(3)[2:]


def test_the_beginning_reads_no_archive() -> None:
    inside = ListedImage("x.tar/a.png", lambda: b"", passing=True)
    stream = iter([*named(2), inside, *named(2)])
    assert beginning(stream) == ([*named(2), inside], False)
    assert len(list(stream)) == 2
