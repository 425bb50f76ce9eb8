from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from drexperts.runtime.fair_queue import FairQueue


def emptied(queue):
    return [queue.pop() for _ in range(len(queue))]


def test_first_come_first_served_within_a_group():
    queue: FairQueue[Any] = FairQueue(4)
    for item in range(9):
        queue.push("one", item)
    assert emptied(queue) == list(range(9))


def test_groups_take_turns():
    queue: FairQueue[Any] = FairQueue(2)
    for item in "aaaaabbbc":
        queue.push(item, item)
    assert "".join(emptied(queue)) == "aabbcaaba"


def test_a_late_comer_waits_for_the_present_turn_only():
    queue: FairQueue[Any] = FairQueue(2)
    for _ in range(60):
        queue.push("large", "a")
    assert [queue.pop() for _ in range(2)] == ["a", "a"]
    queue.push("small", "b")
    assert [queue.pop() for _ in range(3)] == ["b", "a", "a"]


def test_what_is_discarded_is_not_served():
    queue: FairQueue[Any] = FairQueue(2)
    for group, item in ("a", 1), ("b", 2), ("a", 3), ("a", 4):
        queue.push(group, item)
    queue.discard("a", lambda item: item == 3)
    queue.discard("none", lambda item: True)
    assert sorted(queue) == [1, 2, 4]
    assert emptied(queue) == [1, 4, 2]
    queue.push("a", 5)
    queue.discard("a", lambda item: True)
    assert not queue


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=60))
def test_nothing_is_lost_and_the_order_in_groups_holds(turn, steps):
    queue: FairQueue[tuple[int, int]] = FairQueue(turn)
    model: dict[int, list[tuple[int, int]]] = {}
    for count, (group, action) in enumerate(steps):
        if action == 0 and queue:
            served = queue.pop()
            assert model[served[0]].pop(0) == served
        elif action == 1:
            queue.discard(group, lambda item: item[1] % 2 == 0)
            model[group] = [item for item in model.get(group, []) if item[1] % 2]
        else:
            queue.push(group, (group, count))
            model.setdefault(group, []).append((group, count))
        assert len(queue) == sum(map(len, model.values()))
    assert sorted(emptied(queue)) == sorted(item for items in model.values() for item in items)
