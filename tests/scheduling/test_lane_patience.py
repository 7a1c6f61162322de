"""Who may go elsewhere waits for a shut lane as long as it cares to, and is taken as a probe meanwhile."""

import asyncio
import math

import pytest
from lane_kit import lesson, make_lane, now_or_never, settled

from batcher.clock import monotonic
from batcher.errors import LaneHeldUp
from batcher.limits.breaker import BreakerPolicy
from batcher.limits.limit import Demand
from batcher.limits.quota import QuotaLimits
from batcher.scheduling.allowance import LaneLimits
from batcher.scheduling.circuits import HostCircuit
from batcher.scheduling.lane import Lane
from batcher.scheduling.permit import Permit
from batcher.scheduling.slots import RunSlots
from batcher.types import Outcome

OPENING = lesson(Outcome.FAILED, retry_after_s=20.0)
EAGER = BreakerPolicy(failures_in_a_row=1)


def eager_lane(limits: LaneLimits | None = None) -> Lane:
    """A lane that is shut by a single failure."""
    return make_lane(limits, slots=RunSlots(64), breaker=EAGER)


async def shut(lane: Lane) -> None:
    (await now_or_never(lane.permit())).settle(OPENING)
    assert lane.held_up_s(monotonic()) == pytest.approx(20.0)


async def ask(lane: Lane, *, patience_s: float = math.inf, priority: int = 0) -> asyncio.Task[Permit]:
    task = asyncio.create_task(lane.permit(patience_s=patience_s, priority=priority))
    await settled()
    return task


async def left_at(task: asyncio.Task[Permit]) -> float:
    with pytest.raises(LaneHeldUp, match="a-"):
        await task
    return monotonic()


async def test_a_lane_that_is_shut_for_longer_turns_the_impatient_away_at_once() -> None:
    lane = eager_lane()
    await shut(lane)
    impatient, patient = await ask(lane, patience_s=19.0), await ask(lane, patience_s=21.0)
    assert await left_at(impatient) == 0.0
    assert (await patient).probe
    assert monotonic() == pytest.approx(20.0)


async def test_who_waits_when_the_lane_becomes_shut_leaves_then() -> None:
    lane = make_lane(slots=RunSlots(1), breaker=EAGER)
    call = await now_or_never(lane.permit())
    impatient, patient = await ask(lane, patience_s=10.0), await ask(lane)
    await asyncio.sleep(3.0)
    assert not impatient.done()
    call.settle(OPENING)
    assert await left_at(impatient) == 3.0
    assert (await patient).probe


async def test_a_short_pause_sends_nobody_away() -> None:
    lane = make_lane()
    call = await now_or_never(lane.permit())
    call.settle(lesson(Outcome.OVERLOADED, retry_after_s=2.0, refused=True))
    assert 2.0 <= lane.held_up_s(monotonic()) <= 2.25
    assert not (await lane.permit(patience_s=3.0)).probe
    assert 2.0 <= monotonic() <= 2.25
    assert lane.held_up_s(monotonic()) == 0.0


async def test_a_long_pause_sends_the_impatient_away() -> None:
    lane = make_lane(slots=RunSlots(1))
    call = await now_or_never(lane.permit())
    waiting = await ask(lane, patience_s=30.0)
    call.settle(lesson(Outcome.OVERLOADED, retry_after_s=60.0, refused=True))
    assert await left_at(waiting) == 0.0
    assert await left_at(await ask(lane, patience_s=30.0)) == 0.0


async def test_a_probe_that_hangs_does_not_hold_the_impatient() -> None:
    lane = eager_lane()
    await shut(lane)
    probe = await lane.permit()
    impatient = [await ask(lane, patience_s=patience_s) for patience_s in (40.0, 30.0, 35.0)]
    moments = [await left_at(impatient[which]) for which in (1, 2, 0)]
    assert moments == pytest.approx([30.0, 35.0, 40.0], abs=0.001)
    probe.settle(lesson(Outcome.SUCCESS))


async def test_what_shuts_the_host_sends_the_impatient_of_all_its_lanes_away() -> None:
    host = HostCircuit("a-host", EAGER, lambda event: None)
    one, other = make_lane(slots=RunSlots(64), host=host), make_lane(slots=RunSlots(1), host=host)
    refused, holder = await now_or_never(one.permit()), await now_or_never(other.permit())
    impatient, patient = await ask(other, patience_s=10.0), await ask(other)
    refused.settle(lesson(Outcome.FAILED, host=Outcome.FAILED, retry_after_s=20.0))
    assert await left_at(impatient) == 0.0
    assert other.held_up_s(monotonic()) == pytest.approx(20.0)
    holder.settle(lesson(Outcome.SUCCESS))
    assert (await patient).probe


async def test_the_impatient_are_taken_as_probes_so_that_a_lane_recovers_without_the_patient() -> None:
    lane = eager_lane()
    await shut(lane)
    probes = 0
    for _ in range(100):
        with await (await ask(lane, patience_s=math.inf if monotonic() < 20.0 else 1.0)) as permit:
            probes += permit.probe
            assert not permit.probe or lane.held_up_s(monotonic()) >= 20.0
            permit.settle(lesson(Outcome.SUCCESS))
    assert probes == BreakerPolicy().successes_to_close
    assert lane.held_up_s(monotonic()) == 0.0


async def test_a_probe_that_is_answered_takes_two_of_the_impatient_along() -> None:
    lane = eager_lane()
    await shut(lane)
    await asyncio.sleep(20.0)
    probe = await now_or_never(lane.permit(patience_s=1.0))
    waiting = [await ask(lane, patience_s=25.0) for _ in range(4)]
    await asyncio.sleep(2.0)
    probe.settle(lesson(Outcome.SUCCESS))
    await settled()
    assert [task.done() for task in waiting] == [True, True, False, False]
    assert [(await task).probe for task in waiting[:2]] == [True, True]
    assert [await left_at(task) for task in waiting[2:]] == pytest.approx([25.0, 25.0], abs=0.001)


async def test_a_smaller_one_goes_when_the_first_in_line_has_left() -> None:
    """Its tokens were all that held the line up, while the lane was still finding its way back."""
    lane = eager_lane(LaneLimits(quota=QuotaLimits(tpm=1_000)))
    with await now_or_never(lane.permit(demand=Demand(300, 0))) as call:
        call.settle(OPENING)
    await asyncio.sleep(20.0)
    (await now_or_never(lane.permit())).settle(lesson(Outcome.SUCCESS))
    first = asyncio.create_task(lane.permit(priority=1, demand=Demand(900, 0), patience_s=25.0))
    await settled()
    small = await ask(lane)
    assert (first.done(), small.done()) == (False, False)
    assert await left_at(first) == pytest.approx(25.0, abs=0.001)
    assert (await small).probe
    assert monotonic() == pytest.approx(25.0, abs=0.001)


@pytest.mark.parametrize("how", ["cancelled", "parked"])
async def test_nobody_gets_a_permit_and_an_error(how: str) -> None:
    slots = RunSlots(1)
    lane = make_lane(slots=slots, breaker=EAGER)
    call = await now_or_never(lane.permit())
    waiting = [await ask(lane, patience_s=10.0) for _ in range(3)]
    call.settle(OPENING)  # turned away, and not yet aware of it
    if how == "cancelled":
        waiting[0].cancel()
    else:
        lane.park("closed")
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    first = asyncio.CancelledError if how == "cancelled" else LaneHeldUp
    assert [type(error) for error in ended] == [first, LaneHeldUp, LaneHeldUp]
    assert (lane.waiting, lane.in_flight, slots.taken) == (0, 0, 0)


async def test_who_was_let_through_is_not_sent_away_any_more() -> None:
    slots = RunSlots(2)
    lane = make_lane(slots=slots, breaker=EAGER)
    good, bad = await now_or_never(lane.permit()), await now_or_never(lane.permit())
    waiting = await ask(lane, patience_s=10.0)
    good.settle(lesson(Outcome.SUCCESS))  # lets it through ...
    bad.settle(OPENING)  # ... before the lane is shut
    permit = await waiting
    assert (permit.probe, lane.in_flight, slots.taken) == (False, 1, 1)
