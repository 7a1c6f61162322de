from hypothesis import given
from hypothesis import strategies as st

from batcher.jobs.order import LaneOrder


@given(st.lists(st.integers(-32768, 32767) | st.integers(0, 2)))
def test_rows_come_by_priority_and_then_by_age(priorities: list[int]) -> None:
    order = LaneOrder()
    for row, priority in enumerate(priorities):
        order.push(priority, row)
    expected = sorted(range(len(priorities)), key=lambda row: -priorities[row])
    for left, row in zip(range(len(expected), 0, -1), expected, strict=True):
        assert (len(order), order.next_priority) == (left, priorities[row])
        assert order.pop() == row
    assert (len(order), order.next_priority, order.pop()) == (0, None, None)


def test_repr_tells_what_is_left() -> None:
    order = LaneOrder()
    order.push(0, 0)
    order.push(5, 1)
    assert repr(order) == "<LaneOrder 2 left, priorities [5, 0]>"
