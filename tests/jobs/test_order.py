"""A lane's order: by priority, then by deadline, then by age, in few bytes a row."""

import math
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from batcher.jobs.order import LaneOrder

priorities = st.integers(-32768, 32767) | st.integers(0, 2)
deadlines = st.none() | st.integers(1, 255) | st.sampled_from([0.25, 1.5, 2.0, 254.5])


@given(st.lists(st.tuples(priorities, deadlines)))
def test_rows_come_by_priority_then_by_deadline_and_then_by_age(
    pushed: list[tuple[int, float | None]],
) -> None:
    order = LaneOrder()
    for row, (priority, deadline_s) in enumerate(pushed):
        order.push(priority, row, deadline_s)

    def place(row: int) -> tuple[int, float]:
        priority, deadline_s = pushed[row]
        return -priority, math.inf if deadline_s is None else math.ceil(deadline_s)

    expected = sorted(range(len(pushed)), key=place)
    for left, row in zip(range(len(expected), 0, -1), expected, strict=True):
        assert (len(order), order.next_priority) == (left, pushed[row][0])
        assert order.pop() == row
    assert (len(order), order.next_priority, order.pop()) == (0, None, None)


@given(st.lists(st.floats(1e-9, 2.0**31), min_size=2), st.integers(-32768, 32767))
def test_a_deadline_is_rounded_by_less_than_a_second_or_one_percent(
    deadlines_s: list[float], priority: int
) -> None:
    order = LaneOrder()
    for row, deadline_s in enumerate(deadlines_s):
        order.push(priority, row, deadline_s)
    latest = 0.0
    while (popped := order.pop()) is not None:
        assert deadlines_s[popped] > latest / 1.01 - 1.0
        latest = max(latest, deadlines_s[popped])
    assert order.next_priority is None


def test_deadlines_beyond_all_reason_are_deadlines() -> None:
    order = LaneOrder()
    for row, deadline_s in enumerate([None, 1e300, 2.0**40, 2.0**63, 86_400.0]):
        order.push(-1, row, deadline_s)
    assert order.next_priority == -1
    assert [order.pop() for _ in range(5)] == [4, 1, 2, 3, 0]


def test_rows_with_different_deadlines_take_few_bytes_each() -> None:
    tracemalloc.start()
    try:
        order = LaneOrder()
        for row in range(100_000):
            order.push(0, row, row / 3 + 1)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(order) == 100_000
    assert size < 100_000 * 5 + 500_000


def test_what_is_left_can_be_dropped() -> None:
    order = LaneOrder()
    for row in range(5):
        order.push(row % 2, row)
    assert order.pop() == 1
    assert order.clear() == 4
    assert (len(order), order.next_priority, order.pop(), order.clear()) == (0, None, None, 0)


def test_repr_tells_what_is_left() -> None:
    order = LaneOrder()
    order.push(0, 0)
    order.push(5, 1)
    order.push(5, 2, 60)
    assert repr(order) == "<LaneOrder 3 left, priorities [5, 0]>"
