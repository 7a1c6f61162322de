"""The lane: permits settled once, pauses, parking, outages, and one timer."""

import asyncio
import math
from collections.abc import Callable
from contextvars import Context
from typing import TypeVarTuple

import pytest
from lane_kit import lesson, make_lane, now_or_never, settled
from virtual_clock import VirtualClockLoop

from batcher.clock import monotonic
from batcher.errors import LaneParked
from batcher.events import CircuitChanged, Event, LaneChanged
from batcher.limits.limit import Demand
from batcher.limits.quota import QuotaLimits
from batcher.scheduling.allowance import LaneLimits
from batcher.scheduling.lane import Lane
from batcher.scheduling.slots import RunSlots
from batcher.text.durations import in_words
from batcher.types import Outcome

Arguments = TypeVarTuple("Arguments")


async def test_a_permit_is_settled_exactly_once() -> None:
    slots = RunSlots(1)
    lane = make_lane(slots=slots)
    with await lane.permit() as permit:
        permit.settle(lesson(Outcome.SUCCESS))
        with pytest.raises(RuntimeError, match="exactly once"):
            permit.settle(lesson(Outcome.SUCCESS))
    assert (lane.in_flight, slots.taken) == (0, 0)


async def test_a_permit_left_open_is_given_back() -> None:
    slots = RunSlots(1)
    lane = make_lane(slots=slots)
    with pytest.raises(ZeroDivisionError), await lane.permit():
        raise ZeroDivisionError
    assert (lane.in_flight, slots.taken) == (0, 0)


async def pass_through(lane: Lane) -> None:
    (await lane.permit()).settle(lesson(Outcome.IGNORED))


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
        permit.settle(lesson(Outcome.OVERLOADED, retry_after_s=retry_after_s, refused=True))
        assert "pauses for" in lane.hindrance(monotonic())
        refused_at = monotonic()
        await asyncio.gather(*(pass_through(lane) for _ in range(3)))
        assert pause <= monotonic() - refused_at <= 1.1 * pause + 0.05
        assert lane.hindrance(monotonic()) == ""
    told = [event.message for event in events if isinstance(event, LaneChanged)]
    assert sum("wait" in message for message in told) == len(refusals)


async def test_refusals_of_calls_in_flight_are_one_episode() -> None:
    events: list[Event] = []
    lane = make_lane(emit=events.append)
    permits = [await now_or_never(lane.permit()) for _ in range(4)]
    for permit in permits:
        permit.settle(lesson(Outcome.OVERLOADED, refused=True))
    (await lane.permit()).settle(lesson(Outcome.SUCCESS))
    assert monotonic() <= 5.55
    pause, cut = [event.message for event in events if isinstance(event, LaneChanged)]
    assert "4 calls at once are more than it can take: down to 2" in pause + cut
    assert "waiting 5 s" in pause + cut


async def test_an_overload_that_is_no_refusal_holds_nobody_back() -> None:
    lane = make_lane()
    (await now_or_never(lane.permit())).settle(lesson(Outcome.OVERLOADED))
    (await now_or_never(lane.permit())).settle(lesson(Outcome.SUCCESS))


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
    permit.settle(lesson(Outcome.OVERLOADED, retry_after_s=asked_s, refused=True))
    with pytest.raises(LaneParked, match=f"asks to wait {in_words(asked_s)}") as parked:
        await waiting
    assert parked.value.resume_at == asked_s
    assert lane.parked is not None
    assert monotonic() == 0.0


async def test_parking_frees_all_who_wait_or_sleep_and_leaves_calls_in_flight_alone() -> None:
    slots = RunSlots(1)
    lane = make_lane(LaneLimits(quota=QuotaLimits(rpm=60)), slots=slots)
    permit = await lane.permit()
    waiting: list[asyncio.Future[object]] = [
        asyncio.ensure_future(ask)
        for ask in (*(lane.permit() for _ in range(3)), *(lane.backoff(3600.0) for _ in range(2)))
    ]
    await settled()
    assert (lane.waiting, lane.in_flight) == (3, 1)
    lane.park("closed", resume_in_s=5.0)
    lane.park("closed again")
    for ended in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(ended, LaneParked)
        assert (str(ended), ended.resume_at) == ("closed", monotonic() + 5.0)
    assert (lane.waiting, lane.in_flight) == (0, 1)
    for refused in (lane.permit(), lane.backoff(1.0), lane.backoff(0.0)):
        with pytest.raises(LaneParked, match="closed"):
            await refused
    permit.settle(lesson(Outcome.SUCCESS))
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


async def test_who_is_parked_and_cancelled_at_once_is_cancelled() -> None:
    lane = make_lane(slots=RunSlots(1))
    await now_or_never(lane.permit())
    waiting: list[asyncio.Future[object]] = [
        asyncio.ensure_future(lane.permit()),
        asyncio.ensure_future(lane.backoff(9.0)),
    ]
    await settled()
    lane.park("closed")
    for task in waiting:
        task.cancel()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in ended] == [asyncio.CancelledError] * 2


class TimersSeen(VirtualClockLoop):
    """Remembers all timers that were set, to tell how many are still on."""

    def __init__(self) -> None:
        self.timers: list[asyncio.TimerHandle] = []
        super().__init__()

    def call_at(
        self,
        when: float,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = super().call_at(when, callback, *args, context=context)
        self.timers.append(handle)
        return handle

    @property
    def on(self) -> int:
        return sum(not handle.cancelled() and handle.when() > self.time() for handle in self.timers)


def test_however_many_wait_there_is_one_timer() -> None:
    loop = TimersSeen()

    async def run() -> None:
        lane = make_lane(LaneLimits(quota=QuotaLimits(tpm=1_000)))
        calls = [asyncio.create_task(lane.permit(demand=Demand(tokens, 0))) for tokens in range(100, 900, 10)]
        for _ in range(60):
            await settled()
            assert loop.on == 1
            calls.pop().cancel()
        lane.park("done")
        assert loop.on == 0
        await asyncio.gather(*calls, return_exceptions=True)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(run())


async def test_backoff_sleeps_as_long_as_it_is_told() -> None:
    lane = make_lane()
    await lane.backoff(0.0)
    assert monotonic() == 0.0
    await lane.backoff(90.0)
    assert monotonic() == 90.0


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
                permit.settle(lesson(Outcome.SUCCESS if up else Outcome.FAILED))
                if up:
                    answered += 1
                    return

    await asyncio.gather(*(job() for _ in range(100)))
    assert answered == 100
    assert in_flight_in_outage == 1
    assert monotonic() < up_at + 1.2 * 80.0 + 45.0, "the way back is longer than the longest wait so far"
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
    permit.settle(lesson(Outcome.OVERLOADED, retry_after_s=10.0, refused=True))  # now `one` is paused
    (await now_or_never(asyncio.shield(modest))).settle(lesson(Outcome.SUCCESS))
    (await urgent).settle(lesson(Outcome.SUCCESS))
    assert 10.0 <= monotonic() <= 11.05


async def test_a_lane_says_how_it_is() -> None:
    lane = make_lane()
    permit = await lane.permit()
    assert repr(lane) == "<Lane a-model in_flight=1 waiting=0 <CircuitBreaker closed 0/0 probes=0>>"
    assert lane.last_success_at == -math.inf
    await asyncio.sleep(3.0)
    permit.settle(lesson(Outcome.SUCCESS))
    assert lane.last_success_at == 3.0
