"""Sleepers between two attempts: their own wait, then the retry budget, and never stranded by it."""

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_kit import lesson, make_lane, now_or_never, settled
from virtual_clock import VirtualClockLoop

from batcher.clock import monotonic
from batcher.errors import LaneParked
from batcher.limits.retry_budget import CAPACITY, COST, PER_S
from batcher.scheduling.backoffs import Backoffs
from batcher.types import Outcome

AT_ONCE = int(CAPACITY / COST)


class Sleepers:
    """Those who sleep, and the moments at which they woke."""

    def __init__(self) -> None:
        self.busy = True
        self.backoffs = Backoffs(lambda: not self.busy)
        self.woke: list[tuple[float, str]] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def sleep(self, *names: str, seconds: float = 0.0, counted: bool = True) -> None:
        for name in names:
            self.tasks.append(asyncio.create_task(self._sleep(name, seconds, counted)))
        await settled()

    async def _sleep(self, name: str, seconds: float, counted: bool) -> None:
        await self.backoffs.sleep(seconds, counted=counted)
        self.woke.append((monotonic(), name))

    async def spend_all(self) -> None:
        await self.sleep(*["before"] * AT_ONCE)
        assert len(self.woke) == AT_ONCE
        self.woke.clear()

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.woke]


async def test_each_waits_its_own_time_and_what_does_not_count_asks_no_budget() -> None:
    sleepers = Sleepers()
    await sleepers.spend_all()
    await sleepers.sleep("long", seconds=3.0, counted=False)
    await sleepers.sleep("short", seconds=1.0, counted=False)
    await sleepers.sleep("none", counted=False)
    await asyncio.gather(*sleepers.tasks)
    assert sleepers.woke == [(0.0, "none"), (1.0, "short"), (3.0, "long")]


async def test_retries_beyond_the_budget_follow_in_order_as_it_refills() -> None:
    sleepers = Sleepers()
    await sleepers.spend_all()
    await sleepers.sleep(*"abcd")
    await asyncio.sleep(60.0)
    assert sleepers.names == list("abcd")
    assert [moment for moment, _ in sleepers.woke] == pytest.approx([0.4, 0.8, 1.2, 1.6])
    await sleepers.sleep("e", seconds=5.0)
    await asyncio.sleep(60.0)
    assert sleepers.woke[-1] == (65.0, "e")


async def test_a_success_makes_room_for_half_a_retry() -> None:
    sleepers = Sleepers()
    await sleepers.spend_all()
    await sleepers.sleep(*"ab")
    for _ in range(2):
        sleepers.backoffs.succeeded(monotonic())
        sleepers.backoffs.look_again()
        await settled()
    assert sleepers.woke == [(0.0, "a")]


async def test_where_nothing_else_goes_on_one_at_a_time_is_let_through() -> None:
    sleepers = Sleepers()
    await sleepers.spend_all()
    await sleepers.sleep(*"abc")
    sleepers.busy = False
    sleepers.backoffs.look_again()
    await settled()
    assert sleepers.names == ["a"]
    sleepers.backoffs.look_again()
    await settled()
    assert sleepers.names == ["a", "b"]


async def test_who_is_on_its_way_back_to_the_lane_counts_as_something_that_goes_on() -> None:
    lane = make_lane()
    call = await now_or_never(lane.permit())
    for _ in range(AT_ONCE):
        await lane.backoff(0.0, counted=True)

    async def retry() -> float:
        await lane.backoff(0.0, counted=True)
        with await lane.permit() as permit:
            began_at = monotonic()
            await asyncio.sleep(0.1)
            permit.settle(lesson(Outcome.SUCCESS))
            return began_at

    first = asyncio.create_task(retry())
    await settled()
    second = asyncio.create_task(retry())  # looks when the first was let through, and has not moved yet
    call.settle(lesson(Outcome.FAILED))
    assert [await first, await second] == [0.0, 0.1]


async def test_who_is_cancelled_leaves_the_others_alone() -> None:
    sleepers = Sleepers()
    await sleepers.spend_all()
    await sleepers.sleep(*"abc")
    await sleepers.sleep("d", seconds=1.0)
    first, third = sleepers.tasks[-4], sleepers.tasks[-2]
    for task in (first, third):
        task.cancel()
    await asyncio.sleep(0.39)
    assert sleepers.names == []
    sleepers.tasks[-1].cancel()
    await asyncio.sleep(60.0)
    assert sleepers.names == ["b"]
    assert sleepers.woke[0][0] == pytest.approx(0.4)


async def test_who_is_cancelled_on_its_way_does_not_keep_the_lane_from_being_idle() -> None:
    sleepers = Sleepers()
    await sleepers.spend_all()
    sleepers.busy = True
    await sleepers.sleep(*"ab")
    sleepers.busy = False
    sleepers.backoffs.look_again()
    sleepers.tasks[-2].cancel()
    await settled()
    sleepers.backoffs.look_again()
    await settled()
    assert sleepers.names == ["b"]


@pytest.mark.parametrize("counted", [True, False])
async def test_parking_wakes_all_at_once_however_empty_the_budget_is(counted: bool) -> None:
    lane = make_lane()
    call = await now_or_never(lane.permit())
    for _ in range(AT_ONCE):
        await lane.backoff(0.0, counted=True)
    waits = (0.0, 0.0, 30.0, 60.0) if counted else (30.0, 60.0)
    asleep = [asyncio.create_task(lane.backoff(seconds, counted=counted)) for seconds in waits]
    await settled()
    lane.park("closed")
    ended = await asyncio.gather(*asleep, return_exceptions=True)
    assert [type(error) for error in ended] == [LaneParked] * len(waits)
    assert monotonic() == 0.0, "who had slept stood in line for the budget"
    call.settle(lesson(Outcome.SUCCESS))


async def test_the_end_of_a_call_lets_the_next_retry_through_if_nothing_else_goes_on() -> None:
    lane = make_lane()
    call = await now_or_never(lane.permit())
    for _ in range(AT_ONCE):
        await lane.backoff(0.0, counted=True)
    retry = asyncio.create_task(lane.backoff(0.0, counted=True))
    await settled()
    assert not retry.done()
    call.settle(lesson(Outcome.FAILED))
    await settled()
    assert retry.done()
    assert monotonic() == 0.0


async def test_nothing_goes_on_at_a_lane_whose_budget_is_never_asked() -> None:
    lane = make_lane()
    for _ in range(10 * AT_ONCE):
        await lane.backoff(0.0)
    assert monotonic() == 0.0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("sleep"), st.floats(0.0, 5.0)),
        st.tuples(st.just("crowd"), st.floats(0.0, 5.0)),
        st.tuples(st.just("cancel"), st.floats(0.0, 1.0)),
        st.tuples(st.just("success"), st.just(0.0)),
        st.tuples(st.just("pass"), st.floats(0.0, 8.0)),
    ),
    max_size=40,
)


@given(steps=STEPS)
@settings(max_examples=100, deadline=None)
def test_never_more_retries_than_the_budget_has_and_all_get_through(steps: list[tuple[str, float]]) -> None:
    async def run() -> None:
        sleepers = Sleepers()
        successes: list[float] = [0.0]
        numbers = itertools.count()
        for what, amount in steps:
            if what in ("sleep", "crowd"):
                many = 40 if what == "crowd" else 1
                await sleepers.sleep(*(str(next(numbers)) for _ in range(many)), seconds=amount)
            elif what == "cancel" and sleepers.tasks:
                sleepers.tasks[int(amount * (len(sleepers.tasks) - 1))].cancel()
            elif what == "success":
                successes.append(monotonic())
                sleepers.backoffs.succeeded(monotonic())
                sleepers.backoffs.look_again()
            else:
                await asyncio.sleep(amount)
        await asyncio.wait_for(
            asyncio.gather(*sleepers.tasks, return_exceptions=True), 5.0 + 2_000 * COST / PER_S
        )
        for first, (since, _) in enumerate(sleepers.woke):
            for count, (until, _) in enumerate(sleepers.woke[first:], start=1):
                good = sum(since <= moment <= until for moment in successes)
                assert count * COST <= CAPACITY + PER_S * (until - since) + good + 1e-6
        assert len(sleepers.woke) == sum(not task.cancelled() for task in sleepers.tasks)

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(run())
