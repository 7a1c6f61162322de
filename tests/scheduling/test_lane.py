"""The lane: one gate, opened for the best waiter only, and nothing of it lost on any way out."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from creeping_clock import on_creeping_clock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from virtual_clock import VirtualClockLoop

from batcher.clock import monotonic
from batcher.errors import (
    AttemptTimeout,
    CallError,
    CapacityExceeded,
    ConnectFailed,
    LaneParked,
    RateLimited,
    ServerError,
    TooLarge,
)
from batcher.events import CircuitChanged, Event, LaneChanged
from batcher.limits.breaker import BreakerPolicy
from batcher.scheduling.lane import Lane, LaneLimits, Permit, used_tokens_after
from batcher.scheduling.slots import RunSlots
from batcher.types import Outcome

MINUTE_S = 60.0


def make_lane(
    limits: LaneLimits | None = None,
    *,
    slots: RunSlots | None = None,
    route: str = "a-model",
    emit: Callable[[Event], None] = lambda event: None,
) -> Lane:
    return Lane(
        route, limits or LaneLimits(), slots=slots or RunSlots(4), breaker=BreakerPolicy(), emit=emit
    )


async def now_or_never(permit: Awaitable[Permit]) -> Permit:
    """Return a permit that is to be had without any waiting."""
    began_at = monotonic()
    granted = await asyncio.wait_for(permit, 0.001)
    assert monotonic() == began_at
    return granted


async def settled() -> None:
    """Let everything happen that can happen at this moment."""
    for _ in range(6):
        await asyncio.sleep(0)


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
        return not lane.hindrance(self.loop.time())

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
            self.do(lambda which=which, priority=priority: self.ask_for_one(which, priority))  # type: ignore[misc]

    def ask_for_one(self, which: int, priority: int) -> None:
        self.arrivals += 1
        permit = self.lanes[which].permit(priority=priority, since=float(self.arrivals))
        key = (-priority, float(self.arrivals))
        self.asking.append(Asking(self.lanes[which], key, self.loop.create_task(permit)))

    @precondition(lambda self: self.asking)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        asking = self.asking[which % len(self.asking)]
        self.do(asking.task.cancel)

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
        self.do(lambda: permit.settle(outcome, retry_after_s=retry_after_s, refused=refused))

    @precondition(lambda self: self.open and self.asking)
    @rule(which=st.integers(0, 99), victims=st.integers(1, 3))
    def settle_and_cancel_who_was_let_through(self, which: int, victims: int) -> None:
        """The narrowest gap: the permit is granted, and its waiter is cancelled before it runs again."""
        _, permit = self.open.pop(which % len(self.open))

        def settle_and_cancel() -> None:
            permit.settle(Outcome.SUCCESS)
            for asking in sorted(self.asking, key=lambda asking: asking.key)[:victims]:
                asking.task.cancel()

        self.do(settle_and_cancel)

    @rule(seconds=st.floats(0.0, 90.0))
    def advance(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self.collect(across_lanes=False)  # their pauses may have ended one after the other

    @invariant()
    def every_slot_taken_is_a_permit_in_somebodys_hand(self) -> None:
        if not hasattr(self, "lanes"):
            return
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
                permit.settle(Outcome.SUCCESS)
            assert self.slots.taken == 0
            for lane in self.lanes:
                (await asyncio.wait_for(lane.permit(), 1000.0)).settle(Outcome.SUCCESS)
                assert (lane.in_flight, lane.waiting) == (0, 0)
            assert self.slots.taken == 0

        if hasattr(self, "loop"):
            self.loop.run_until_complete(wind_up())
            self.loop.close()


TestLanesMachine = LanesMachine.TestCase
TestLanesMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


async def work(lane: Lane, started: list[float], *, seconds: float, tokens: int = 0, used: int = 0) -> None:
    """Make one call of a given length that succeeds, and note when it started."""
    with await lane.permit(tokens=tokens) as permit:
        started.append(monotonic())
        await asyncio.sleep(seconds)
        permit.settle(Outcome.SUCCESS, used_tokens=used or tokens)


async def keep_busy(
    lane: Lane, *, workers: int, until_s: float, seconds: float, tokens: int = 0, used: int = 0
) -> list[float]:
    """Have so many workers call one after the other, and return when calls started."""
    started: list[float] = []

    async def worker() -> None:
        while monotonic() < until_s:
            await work(lane, started, seconds=seconds, tokens=tokens, used=used)

    await asyncio.gather(*(worker() for _ in range(workers)))
    return started


def most_in_a_minute(moments: list[float]) -> int:
    """Return the largest number of moments that any window of 60 s holds."""
    most, first = 0, 0
    for number, moment in enumerate(moments):
        while moments[first] <= moment - MINUTE_S:
            first += 1
        most = max(most, number - first + 1)
    return most


def share_used(started: list[float], *, limit: int) -> float:
    """Return the share of a minute's limit that was used over minutes 1 to 11."""
    return sum(MINUTE_S <= moment < 11 * MINUTE_S for moment in started) / (10 * limit)


@pytest.mark.parametrize(
    ("requests_per_minute", "workers", "seconds"),
    [
        pytest.param(30, 4, 1.0, id="30 a minute"),
        pytest.param(30, 16, 20.0, id="30 a minute, long calls"),
        pytest.param(600, 40, 2.0, id="600 a minute"),
    ],
)
def test_requests_a_minute_are_kept_and_used(requests_per_minute: int, workers: int, seconds: float) -> None:
    async def run() -> None:
        lane = make_lane(LaneLimits(requests_per_minute=requests_per_minute), slots=RunSlots(workers))
        started = await keep_busy(lane, workers=workers, until_s=11 * MINUTE_S, seconds=seconds)
        assert most_in_a_minute(started) <= requests_per_minute
        assert share_used(started, limit=requests_per_minute) >= 0.97
        lane.park("done")

    on_creeping_clock(run())


@pytest.mark.parametrize(
    ("tokens", "used"),
    [
        pytest.param(500, 500, id="estimates that are right"),
        pytest.param(500, 600, id="answers longer than estimated"),
    ],
)
async def test_tokens_a_minute_are_kept_and_used(tokens: int, used: int) -> None:
    limit = 60_000
    lane = make_lane(LaneLimits(tokens_per_minute=limit), slots=RunSlots(50))
    assert lane.counts_tokens
    started = await keep_busy(
        lane, workers=20, until_s=11 * MINUTE_S, seconds=1.0, tokens=tokens, used=used
    )
    # Calls in flight are still counted as estimated.
    assert most_in_a_minute(started) * used <= limit + 20 * max(0, used - tokens)
    assert share_used(started, limit=limit // used) >= 0.97


async def test_a_refund_lets_the_next_ones_through() -> None:
    lane = make_lane(LaneLimits(tokens_per_minute=1_000))
    first = await now_or_never(lane.permit(tokens=1_000))
    second = asyncio.create_task(lane.permit(tokens=50))
    await asyncio.sleep(1.0)
    assert lane.waiting == 1
    first.settle(Outcome.OVERLOADED, used_tokens=0)
    await settled()
    assert second.done()


async def test_a_large_request_holds_its_place_before_small_ones() -> None:
    lane = make_lane(LaneLimits(tokens_per_minute=1_000))
    order: list[str] = []

    async def call(name: str, tokens: int) -> None:
        (await lane.permit(tokens=tokens)).settle(Outcome.SUCCESS, used_tokens=tokens)
        order.append(name)

    await asyncio.gather(call("first", 900), call("large", 900), *(call("small", 1) for _ in range(20)))
    assert order == ["first", "large"] + ["small"] * 20


async def test_when_the_large_request_goes_away_the_small_ones_get_through() -> None:
    lane = make_lane(LaneLimits(tokens_per_minute=1_000))
    (await now_or_never(lane.permit(tokens=500))).settle(Outcome.SUCCESS)
    await asyncio.sleep(40.0)
    large = asyncio.create_task(lane.permit(tokens=900))
    small = asyncio.create_task(lane.permit(tokens=10))
    await settled()
    assert lane.waiting == 2
    large.cancel()
    await settled()
    assert (small.done(), lane.waiting) == (True, 0)


async def test_more_than_the_limit_fails_at_once() -> None:
    lane = make_lane(LaneLimits(tokens_per_minute=1_000))
    with pytest.raises(TooLarge, match="may use 1001 tokens, but 1000 a minute are allowed"):
        await lane.permit(tokens=1_001)
    assert (lane.in_flight, lane.waiting) == (0, 0)


async def test_a_permit_is_settled_exactly_once() -> None:
    slots = RunSlots(1)
    lane = make_lane(slots=slots)
    with await lane.permit() as permit:
        permit.settle(Outcome.SUCCESS)
        with pytest.raises(RuntimeError, match="exactly once"):
            permit.settle(Outcome.SUCCESS)
    assert (lane.in_flight, slots.taken) == (0, 0)


async def test_a_permit_left_open_is_given_back() -> None:
    slots = RunSlots(1)
    lane = make_lane(slots=slots)
    with pytest.raises(ZeroDivisionError):
        with await lane.permit():
            raise ZeroDivisionError
    assert (lane.in_flight, slots.taken) == (0, 0)


@pytest.mark.parametrize(
    ("refusals", "pauses"),
    [
        pytest.param([7.0], [7.0], id="as long as the provider asks"),
        pytest.param([None] * 6, [5, 10, 20, 40, 60, 60], id="longer and longer where it does not say"),
        pytest.param([None, 2.0, None], [5, 2, 10], id="one after the other"),
    ],
)
async def test_a_refusal_pauses_the_whole_lane(refusals: list[float | None], pauses: list[float]) -> None:
    events: list[Event] = []
    lane = make_lane(emit=events.append)
    for retry_after_s, pause in zip(refusals, pauses, strict=True):
        permit = await now_or_never(lane.permit())
        permit.settle(Outcome.OVERLOADED, retry_after_s=retry_after_s, refused=True)
        assert "pauses for" in lane.hindrance(monotonic())
        refused_at = monotonic()
        waiting = [asyncio.create_task(lane.permit()) for _ in range(3)]
        for granted in await asyncio.gather(*waiting):
            granted.settle(Outcome.IGNORED)
        assert pause <= monotonic() - refused_at <= 1.1 * pause + 0.05
        assert lane.hindrance(monotonic()) == ""
    assert [type(event) for event in events] == [LaneChanged] * len(refusals)


async def test_refusals_of_calls_in_flight_are_one_episode() -> None:
    events: list[Event] = []
    lane = make_lane(emit=events.append)
    permits = [await now_or_never(lane.permit()) for _ in range(4)]
    for permit in permits:
        permit.settle(Outcome.OVERLOADED, refused=True)
    (await lane.permit()).settle(Outcome.SUCCESS)
    assert monotonic() <= 5.55
    assert len(events) == 1


async def test_an_overload_that_is_no_refusal_holds_nobody_back() -> None:
    lane = make_lane()
    (await now_or_never(lane.permit())).settle(Outcome.OVERLOADED)
    (await now_or_never(lane.permit())).settle(Outcome.SUCCESS)


@pytest.mark.parametrize(
    ("limits", "asked_s"),
    [
        pytest.param(LaneLimits(), 3601.0, id="longer than an hour"),
        pytest.param(LaneLimits(deadline_at=60.0), 61.0, id="past the deadline of the run"),
    ],
)
async def test_too_long_a_pause_parks_the_lane(limits: LaneLimits, asked_s: float) -> None:
    lane = make_lane(limits, slots=RunSlots(1))
    permit = await now_or_never(lane.permit())
    waiting = asyncio.create_task(lane.permit())
    await settled()
    permit.settle(Outcome.OVERLOADED, retry_after_s=asked_s, refused=True)
    with pytest.raises(LaneParked, match=f"asks to wait {asked_s:.0f} s") as parked:
        await waiting
    assert parked.value.resume_in_s == asked_s
    assert lane.parked is not None
    assert monotonic() == 0.0


async def test_parking_frees_all_who_wait_or_sleep_and_leaves_calls_in_flight_alone() -> None:
    slots = RunSlots(1)
    lane = make_lane(LaneLimits(requests_per_minute=60), slots=slots)
    permit = await lane.permit()
    waiting: list[asyncio.Future[object]] = [
        asyncio.ensure_future(ask)
        for ask in (*(lane.permit() for _ in range(3)), *(lane.backoff(3600.0) for _ in range(2)))
    ]
    await settled()
    assert (lane.waiting, lane.backing_off, lane.in_flight) == (3, 2, 1)
    lane.park("closed", resume_in_s=5.0)
    lane.park("closed again")
    for ended in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(ended, LaneParked)
        assert (str(ended), ended.resume_in_s) == ("closed", 5.0)
    assert (lane.waiting, lane.backing_off, lane.in_flight) == (0, 0, 1)
    for refused in (lane.permit(), lane.backoff(1.0), lane.backoff(0.0)):
        with pytest.raises(LaneParked, match="closed"):
            await refused
    permit.settle(Outcome.SUCCESS)
    assert (lane.in_flight, slots.taken) == (0, 0)
    assert lane.hindrance(monotonic()) == "closed"


async def test_a_parked_lane_keeps_nothing_of_those_it_turns_away() -> None:
    lane = make_lane()
    lane.park("closed")
    for _ in range(3):
        with pytest.raises(LaneParked) as refused:
            await lane.permit()
    frames, trace = 0, refused.value.__traceback__
    while trace is not None:
        frames, trace = frames + 1, trace.tb_next
    assert frames <= 3


async def test_who_is_parked_and_cancelled_at_once_leaves_no_error_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lane = make_lane(slots=RunSlots(1))
    await now_or_never(lane.permit())
    waiting: list[asyncio.Future[object]] = [
        asyncio.ensure_future(lane.permit()),
        asyncio.ensure_future(lane.backoff(9.0)),
    ]
    await settled()
    with caplog.at_level(logging.ERROR, "asyncio"):
        lane.park("closed")
        for task in waiting:
            task.cancel()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in ended] == [asyncio.CancelledError] * 2
        del waiting, task, ended
        await settled()
    assert caplog.messages == []


async def test_backoff_sleeps_as_long_as_it_is_told() -> None:
    lane = make_lane()
    await lane.backoff(0.0)
    assert monotonic() == 0.0
    await lane.backoff(90.0)
    assert (monotonic(), lane.backing_off) == (90.0, 0)


async def test_an_outage_is_probed_one_by_one_and_everybody_gets_through_in_the_end() -> None:
    events: list[Event] = []
    lane = make_lane(slots=RunSlots(64), emit=events.append)
    up_at, in_flight_in_outage = 120.0, 0
    answered = 0

    async def job() -> None:
        nonlocal answered, in_flight_in_outage
        for _ in range(100):
            with await lane.permit() as permit:
                if 30.0 < monotonic() < up_at:
                    in_flight_in_outage = max(in_flight_in_outage, lane.in_flight)
                await asyncio.sleep(1.0)
                up = monotonic() >= up_at
                permit.settle(Outcome.SUCCESS if up else Outcome.FAILED)
                if up:
                    answered += 1
                    return

    await asyncio.gather(*(job() for _ in range(100)))
    assert answered == 100
    assert in_flight_in_outage == 1
    assert monotonic() < up_at + 1.2 * 80.0 + 15.0, "the way back is longer than the longest wait so far"
    states = [event.state for event in events if isinstance(event, CircuitChanged)]
    assert states[:2] == ["open", "half-open"]
    assert states[-2:] == ["half-open", "closed"]


async def test_a_slot_that_a_lane_cannot_use_goes_to_another_lane() -> None:
    slots = RunSlots(1)
    one, other = make_lane(slots=slots), make_lane(slots=slots)
    permit = await now_or_never(one.permit())
    urgent = asyncio.create_task(one.permit(priority=9))
    modest = asyncio.create_task(other.permit(priority=-9))
    await settled()
    permit.settle(Outcome.OVERLOADED, retry_after_s=10.0, refused=True)  # now `one` is paused
    (await now_or_never(asyncio.shield(modest))).settle(Outcome.SUCCESS)
    (await urgent).settle(Outcome.SUCCESS)
    assert 10.0 <= monotonic() <= 11.05


def test_a_paced_lane_holds_its_token_ready_when_a_slot_comes_free() -> None:
    """Otherwise every free slot would go to the other lane while the token is on its way."""

    async def run() -> None:
        slots = RunSlots(1)
        paced, free = make_lane(LaneLimits(requests_per_minute=600), slots=slots), make_lane(slots=slots)
        order: list[str] = []

        async def call(lane: Lane, name: str, priority: int) -> None:
            with await lane.permit(priority=priority) as permit:
                order.append(name)
                await asyncio.sleep(1.0)
                permit.settle(Outcome.SUCCESS)

        await asyncio.gather(
            call(free, "free", 0),
            *(call(free, "free", 0) for _ in range(5)),
            *(call(paced, "paced", 1) for _ in range(5)),
        )
        assert order == ["free"] + ["paced"] * 5 + ["free"] * 5
        paced.park("done")

    on_creeping_clock(run())


@pytest.mark.parametrize(
    ("error", "used"),
    [
        pytest.param(RateLimited, 0, id="a 429 was not admitted"),
        pytest.param(CapacityExceeded, 0, id="neither was a 498"),
        pytest.param(ServerError, None, id="a 500 may have been charged"),
        pytest.param(AttemptTimeout, None, id="so may a timeout"),
    ],
)
def test_what_a_failed_call_is_charged(error: type[CallError], used: int | None) -> None:
    assert used_tokens_after(error("no", code="test")) == used


def test_what_was_never_sent_is_never_charged() -> None:
    assert used_tokens_after(ConnectFailed("no", code="test", sent=False)) == 0


async def test_a_lane_says_how_it_is() -> None:
    lane = make_lane()
    permit = await lane.permit()
    assert repr(lane) == "<Lane a-model in_flight=1 waiting=0 <CircuitBreaker closed 0/0 probes=0>>"
    assert lane.last_success_at == -math.inf
    await asyncio.sleep(3.0)
    permit.settle(Outcome.SUCCESS)
    assert lane.last_success_at == 3.0
