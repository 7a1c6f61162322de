"""The line before a lane: who is best, who leaves, and who has no patience left."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_clock import VirtualClockLoop

from batcher.scheduling.allowance import NOTHING
from batcher.scheduling.waiters import OVERTAKERS, Waiter, Waiters

ARRIVALS = st.lists(
    st.tuples(st.integers(-2, 2), st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from([math.inf, 1.0, 5.0])),
    max_size=30,
)


@given(arrivals=ARRIVALS, leaving=st.lists(st.integers(0, 29)), cancelled=st.lists(st.integers(0, 29)))
@settings(max_examples=200, deadline=None)
def test_the_line_is_in_order_whoever_leaves_it(
    arrivals: list[tuple[int, float, float]], leaving: list[int], cancelled: list[int]
) -> None:
    async def run() -> None:
        line: Waiters[str] = Waiters()
        left: dict[int, Waiter[str]] = {}
        for number, (priority, since, patience_s) in enumerate(arrivals):
            left[number] = line.add(priority, since, NOTHING, patience_s)
        for number in leaving:
            if waiter := left.pop(number, None):
                line.remove(waiter)
                line.remove(waiter)
        assert len(line) == len(left)
        for number in cancelled:
            if number in left:
                left.pop(number).future.cancel()
        order = sorted(left, key=lambda number: (-arrivals[number][0], arrivals[number][1], number))
        while order:
            first = left.pop(order.pop(0))
            assert line.best is first
            behind = [number for number in order if arrivals[number][0] == -first.urgency]
            seen = line.behind_first()
            assert len(seen) <= OVERTAKERS
            assert seen == [left[number] for number in behind][: len(seen)]
            if not cancelled:
                assert len(seen) == min(OVERTAKERS, len(behind))
            line.remove(first)
        assert line.best is None
        assert len(line) == 0

    loop = VirtualClockLoop()
    loop.run_until_complete(run())
    loop.close()


async def test_those_without_patience_are_told_apart_and_the_next_to_lose_theirs_is_known() -> None:
    line: Waiters[str] = Waiters()
    short, long, _ = (line.add(0, 0.0, NOTHING, patience_s) for patience_s in (3.0, 8.0, math.inf))
    assert line.impatient(2.0) == ([], 3.0)
    assert line.impatient(3.0) == ([short], 8.0)
    line.remove(short)
    line.remove(long)
    assert line.impatient(7.0) == ([], 8.0), "at worst somebody looks once in vain"
    assert line.impatient(9.0) == ([], math.inf)
