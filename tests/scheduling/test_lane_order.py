"""Two lanes over a few slots, driven at random: the best waiter first, and nothing ever lost."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from lane_kit import lesson, make_lane, settled
from virtual_clock import VirtualClockLoop

from batcher.scheduling.lane import Lane
from batcher.scheduling.permit import Permit
from batcher.scheduling.slots import RunSlots
from batcher.types import Outcome


@dataclass(eq=False)
class Asking:
    """Somebody who has asked a lane for a permit."""

    lane: Lane
    key: tuple[int, float]
    task: asyncio.Task[Permit]


ASKED = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=8)


class LanesMachine(RuleBasedStateMachine):
    """Two lanes over a few slots, with waiters that come, go, and are let through in order."""

    @initialize(slots=st.integers(1, 4), crowd=ASKED)
    def start(self, slots: int, crowd: list[tuple[int, int]]) -> None:
        self.loop = VirtualClockLoop()
        self.slots = RunSlots(slots)
        self.lanes: list[Lane] = []
        self.asking: list[Asking] = []
        self.open: list[tuple[Lane, Permit]] = []
        self.arrivals = 0
        self.do(self.make_lanes)
        self.ask(crowd)

    def do(self, act: Callable[[], None]) -> None:
        """Do something inside the loop and see who is let through by it."""

        async def run() -> None:
            act()
            await settled()
            self.collect(across_lanes=True)

        self.loop.run_until_complete(run())

    def make_lanes(self) -> None:
        self.lanes = [make_lane(slots=self.slots, route=name) for name in ("one", "other")]

    def free(self, lane: Lane) -> bool:
        """Whether nothing but a slot can hold a lane's waiters back."""
        return not lane.hindrance(self.loop.time()) and lane.in_flight < lane.concurrency

    def collect(self, *, across_lanes: bool) -> None:
        through = [asking for asking in self.asking if asking.task.done()]
        self.asking = [asking for asking in self.asking if not asking.task.done()]
        for asking in through:
            if not asking.task.cancelled():
                self.open.append((asking.lane, asking.task.result()))
                waiting = [
                    rival
                    for rival in self.asking
                    if rival.lane is asking.lane or (across_lanes and self.free(rival.lane))
                ]
                assert all(asking.key < rival.key for rival in waiting), "somebody better was passed over"

    @rule(asked=ASKED)
    def ask(self, asked: list[tuple[int, int]]) -> None:
        for which, priority in asked:
            # One after the other: who asks while there is a slot gets it, whoever comes later.
            self.do(partial(self.ask_for_one, which, priority))

    def ask_for_one(self, which: int, priority: int) -> None:
        self.arrivals += 1
        permit = self.lanes[which].permit(priority=priority, since=float(self.arrivals))
        key = (-priority, float(self.arrivals))
        self.asking.append(Asking(self.lanes[which], key, self.loop.create_task(permit)))

    @precondition(lambda self: self.asking)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        asking = self.asking[which % len(self.asking)]
        self.do(lambda: self.give_up(asking))

    def give_up(self, asking: Asking) -> None:
        asking.task.cancel()

    @precondition(lambda self: self.asking)
    @rule()
    def cancel_before_it_begins(self) -> None:
        def ask_and_cancel() -> None:
            self.ask_for_one(0, 0)
            self.asking[-1].task.cancel()

        self.do(ask_and_cancel)

    @precondition(lambda self: self.open)
    @rule(
        which=st.integers(0, 99),
        outcome=st.sampled_from([*Outcome, Outcome.SUCCESS, Outcome.SUCCESS]),
        retry_after_s=st.sampled_from([None, None, 2.0]),
    )
    def settle(self, which: int, outcome: Outcome, retry_after_s: float | None) -> None:
        _, permit = self.open.pop(which % len(self.open))
        refused = outcome is Outcome.OVERLOADED
        self.do(lambda: permit.settle(lesson(outcome, retry_after_s=retry_after_s, refused=refused)))

    @precondition(lambda self: self.open and self.asking)
    @rule(which=st.integers(0, 99), victims=st.integers(1, 3))
    def settle_and_cancel_who_was_let_through(self, which: int, victims: int) -> None:
        """The narrowest gap: the permit is granted, and its waiter is cancelled before it runs again."""
        _, permit = self.open.pop(which % len(self.open))

        def settle_and_cancel() -> None:
            permit.settle(lesson(Outcome.SUCCESS))
            for asking in sorted(self.asking, key=lambda asking: asking.key)[:victims]:
                asking.task.cancel()

        self.do(settle_and_cancel)

    @rule(seconds=st.floats(0.0, 90.0))
    def advance(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self.collect(across_lanes=False)  # their pauses may have ended one after the other

    @invariant()
    def every_slot_taken_is_a_permit_in_somebodys_hand(self) -> None:
        assert self.slots.taken == len(self.open) <= self.slots.limit
        for lane in self.lanes:
            assert lane.in_flight == sum(holder is lane for holder, _ in self.open)
            assert lane.waiting == sum(asking.lane is lane for asking in self.asking)
            if lane.waiting and self.free(lane) and "half-open" not in repr(lane):
                assert self.slots.taken == self.slots.limit, "a wake-up was lost"

    def teardown(self) -> None:
        """Cancel everybody who waits, settle what is open: then the lanes are as good as new."""

        async def wind_up() -> None:
            for asking in self.asking:
                asking.task.cancel()
            await settled()
            for _, permit in self.open:
                permit.settle(lesson(Outcome.SUCCESS))
            assert self.slots.taken == 0
            for lane in self.lanes:
                (await asyncio.wait_for(lane.permit(), 1000.0)).settle(lesson(Outcome.SUCCESS))
                assert (lane.in_flight, lane.waiting) == (0, 0)
            assert self.slots.taken == 0

        if hasattr(self, "loop"):
            self.loop.run_until_complete(wind_up())
            self.loop.close()


TestLanesMachine = LanesMachine.TestCase
TestLanesMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
