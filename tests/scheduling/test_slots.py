"""The run's slots: never more than the limit, and each free one for the best waiter of any lane."""

import bisect
import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batcher.scheduling.slots import RunSlots

Key = tuple[int, float]


class Queueing:
    """The least that a lane is: sorted waiters, and a gate of its own that may be shut."""

    def __init__(self, slots: RunSlots) -> None:
        self.slots = slots
        self.waiters: list[Key] = []
        self.granted: list[Key] = []
        self.shut = False
        self.asked = 0

    def wants_slot(self) -> Key | None:
        self.asked += 1
        return self.waiters[0] if self.waiters else None

    def slot_free(self) -> None:
        while self.waiters and not self.shut and self.slots.free_for(self):
            self.granted.append(self.waiters.pop(0))
            self.slots.take()

    def wait(self, key: Key) -> None:
        bisect.insort(self.waiters, key)
        self.slot_free()


LANES = st.integers(0, 2)


class SlotsMachine(RuleBasedStateMachine):
    """Three lanes whose waiters come and go, and whose gates open and shut, over one to three slots."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0
        self.limit(1)

    @initialize(limit=st.integers(1, 3))
    def limit(self, limit: int) -> None:
        self.slots = RunSlots(limit)
        self.lanes = [Queueing(self.slots) for _ in range(3)]

    @rule(arrivals=st.lists(st.tuples(LANES, st.integers(-9, 9)), min_size=1, max_size=4))
    def wait(self, arrivals: list[tuple[int, int]]) -> None:
        for lane, priority in arrivals:
            self.clock += 1
            self.lanes[lane].wait((-priority, self.clock))

    @rule(lane=LANES, which=st.integers(0, 9))
    def give_up(self, lane: int, which: int) -> None:
        waiters = self.lanes[lane].waiters
        if waiters:
            waiters.pop(which % len(waiters))

    @rule(lane=LANES)
    def shut_or_open(self, lane: int) -> None:
        self.lanes[lane].shut = not self.lanes[lane].shut
        self.lanes[lane].slot_free()

    @precondition(lambda self: self.slots.taken)
    @rule(which=st.integers(0, 2))
    def give_back(self, which: int) -> None:
        holders = [lane for lane in self.lanes if lane.granted]
        holders[which % len(holders)].granted.pop(0)
        served = [len(other.granted) for other in self.lanes]
        waiting = [waiter for other in self.lanes if not other.shut for waiter in other.waiters]
        self.slots.give_back()
        newly = [
            key for other, count in zip(self.lanes, served, strict=True) for key in other.granted[count:]
        ]
        assert newly == ([min(waiting)] if waiting else []), "not the best waiter of all lanes"

    @invariant()
    def never_above_the_limit_nor_below_it_while_somebody_could_go(self) -> None:
        assert self.slots.taken == sum(len(lane.granted) for lane in self.lanes)
        assert self.slots.taken <= self.slots.limit
        if any(lane.waiters and not lane.shut for lane in self.lanes):
            assert self.slots.taken == self.slots.limit, "a wake-up was lost"


TestSlotsMachine = SlotsMachine.TestCase
TestSlotsMachine.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


@pytest.fixture
def full() -> tuple[RunSlots, Queueing, Queueing]:
    """A single slot, taken, and two lanes."""
    slots = RunSlots(1)
    slots.take()
    return slots, Queueing(slots), Queueing(slots)


def test_a_waiter_that_comes_later_but_is_more_urgent_goes_first(
    full: tuple[RunSlots, Queueing, Queueing],
) -> None:
    slots, one, other = full
    one.wait((0, 1.0))
    other.wait((-5, 2.0))
    one.wait((-9, 3.0))
    slots.give_back()
    assert (one.granted, other.granted) == ([(-9, 3.0)], [])


def test_a_lane_whose_waiters_have_gone_does_not_keep_the_slot(
    full: tuple[RunSlots, Queueing, Queueing],
) -> None:
    slots, one, other = full
    one.wait((-1, 1.0))
    other.wait((0, 2.0))
    one.waiters.clear()
    slots.give_back()
    assert other.granted == [(0, 2.0)]
    assert slots.taken == 1


def test_a_lane_that_is_shut_meanwhile_passes_the_slot_on(full: tuple[RunSlots, Queueing, Queueing]) -> None:
    slots, one, other = full
    one.wait((-1, 1.0))
    other.wait((0, 2.0))
    one.shut = True
    slots.give_back()
    assert (one.granted, other.granted) == ([], [(0, 2.0)])


@pytest.mark.parametrize("gone", [False, True], ids=["all wait", "all have gone"])
def test_a_slot_that_comes_free_asks_few_of_many_lanes(gone: bool) -> None:
    slots = RunSlots(1)
    slots.take()
    lanes = [Queueing(slots) for _ in range(1000)]
    for number, lane in enumerate(lanes):
        lane.wait((0, number))
        if gone:
            lane.waiters.clear()
    slots.give_back()
    for _ in range(999):
        slots.take() if gone else None
        slots.give_back()
    assert [len(lane.granted) for lane in lanes] == [0 if gone else 1] * 1000
    assert sum(lane.asked for lane in lanes) < 5 * len(lanes)


def test_a_waiter_that_many_overtake_keeps_one_place() -> None:
    slots = RunSlots(1)
    lane = Queueing(slots)
    lane.waiters = [(0, 0.0)]
    slots.take()
    slots.free_for(lane)
    tracemalloc.start()
    try:
        for number in range(20_000):
            lane.waiters.insert(0, (-1, float(number)))
            slots.free_for(lane)
            slots.give_back()
            lane.granted.clear()
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lane.waiters == [(0, 0.0)]
    assert kept_bytes < 100_000
