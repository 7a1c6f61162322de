"""Requests and tokens a minute: kept in every window, and used nearly to the full."""

import asyncio

import pytest
from creeping_clock import on_creeping_clock
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_kit import MINUTE_S, lesson, make_lane, most_in_a_minute, now_or_never, settled
from virtual_clock import VirtualClockLoop

from batcher.clock import monotonic
from batcher.errors import TooLarge
from batcher.events import Event, LaneChanged
from batcher.limits.bucket import WINDOW_S
from batcher.limits.limit import Demand
from batcher.limits.quota import QuotaLimits
from batcher.scheduling.allowance import NOTHING, LaneLimits, Lesson
from batcher.scheduling.lane import OVERTAKEN_S, Lane
from batcher.scheduling.permit import Permit
from batcher.scheduling.slots import RunSlots
from batcher.text.tokens import ANSWERS_KEPT
from batcher.types import Outcome, RateLimits, Usage


async def work(lane: Lane, started: list[float], *, seconds: float, tokens: int = 0, used: int = 0) -> None:
    """Make one call of a given length that succeeds, and note when it started."""
    with await lane.permit(demand=Demand(tokens, 0)) as permit:
        started.append(monotonic())
        await asyncio.sleep(seconds)
        permit.settle(lesson(Outcome.SUCCESS, used_tokens=used or tokens))


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
        lane = make_lane(LaneLimits(quota=QuotaLimits(rpm=requests_per_minute)), slots=RunSlots(workers))
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
    lane = make_lane(LaneLimits(quota=QuotaLimits(tpm=limit)), slots=RunSlots(50))
    started = await keep_busy(lane, workers=20, until_s=11 * MINUTE_S, seconds=1.0, tokens=tokens, used=used)
    # Calls in flight are still counted as estimated.
    assert most_in_a_minute(started) * used <= limit + 20 * max(0, used - tokens)
    assert share_used(started, limit=limit // used) >= 0.97


async def test_a_refund_lets_the_next_ones_through() -> None:
    lane = make_lane(LaneLimits(quota=QuotaLimits(tpm=1_000)))
    first = await now_or_never(lane.permit(demand=Demand(1_000, 0)))
    second = asyncio.create_task(lane.permit(demand=Demand(50, 0)))
    await asyncio.sleep(1.0)
    assert lane.waiting == 1
    first.settle(lesson(Outcome.OVERLOADED, used_tokens=0))
    await settled()
    assert second.done()


async def test_a_large_request_holds_its_place_before_small_ones() -> None:
    lane = make_lane(LaneLimits(quota=QuotaLimits(tpm=1_000)))
    order: list[str] = []

    async def call(name: str, tokens: int) -> None:
        (await lane.permit(demand=Demand(tokens, 0))).settle(lesson(Outcome.SUCCESS, used_tokens=tokens))
        order.append(name)

    await asyncio.gather(call("first", 900), call("large", 900), *(call("small", 1) for _ in range(20)))
    assert order == ["first", "large"] + ["small"] * 20


async def waiting_for_tokens(lane: Lane, tokens: int) -> asyncio.Task[Permit]:
    task = asyncio.create_task(lane.permit(demand=Demand(tokens, 0)))
    await settled()
    return task


async def test_a_small_request_goes_before_a_large_one_whose_tokens_are_not_there() -> None:
    lane = make_lane(LaneLimits(quota=QuotaLimits(tpm=1_000)))
    (await now_or_never(lane.permit(demand=Demand(500, 0)))).settle(lesson(Outcome.SUCCESS))
    await asyncio.sleep(40.0)
    large = await waiting_for_tokens(lane, 900)
    small = await waiting_for_tokens(lane, 10)
    assert (large.done(), small.done(), lane.waiting) == (False, True, 1)


async def test_a_large_request_lets_small_ones_go_first_for_so_long_only() -> None:
    lane = make_lane(LaneLimits(quota=QuotaLimits(tpm=1_000)), slots=RunSlots(8))
    (await now_or_never(lane.permit(demand=Demand(500, 0)))).settle(lesson(Outcome.SUCCESS))
    await asyncio.sleep(40.0)
    large = await waiting_for_tokens(lane, 900)
    await asyncio.sleep(OVERTAKEN_S)
    late = await waiting_for_tokens(lane, 10)
    assert (large.done(), late.done(), lane.waiting) == (False, False, 2)
    large.cancel()
    await settled()
    assert (late.done(), lane.waiting) == (True, 0)


@given(
    amounts=st.lists(st.integers(1, 300), min_size=1, max_size=60),
    large=st.integers(600, 1_000),
    gap_s=st.floats(0.01, 3.0),
)
@settings(max_examples=50, deadline=None)
def test_a_large_request_is_never_starved(amounts: list[int], large: int, gap_s: float) -> None:
    """It waits for its own turn, then at most for the minute to empty and the even flow to fill."""

    async def run() -> None:
        lane = make_lane(LaneLimits(quota=QuotaLimits(tpm=1_000)), slots=RunSlots(100))

        async def call(tokens: int) -> float:
            began_at = monotonic()
            (await lane.permit(demand=Demand(tokens, 0))).settle(lesson(Outcome.SUCCESS, used_tokens=tokens))
            return monotonic() - began_at

        first = asyncio.create_task(call(large))
        second = asyncio.create_task(call(large))  # has to wait for the tokens of the first
        small = []
        for tokens in amounts:
            small.append(asyncio.create_task(call(tokens)))
            await asyncio.sleep(gap_s)
        await asyncio.gather(first, *small)
        assert await second <= OVERTAKEN_S + 2 * WINDOW_S + 0.2

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(run())


async def test_more_than_the_limit_fails_at_once() -> None:
    lane = make_lane(LaneLimits(quota=QuotaLimits(tpm=1_000)))
    with pytest.raises(TooLarge, match="may use 1,001 tokens, 1 more than the 1,000 a minute"):
        await lane.permit(demand=Demand(1_001, 0))
    assert (lane.in_flight, lane.waiting) == (0, 0)


def test_a_paced_lane_holds_its_token_ready_when_a_slot_comes_free() -> None:
    """Otherwise every free slot would go to the other lane while the token is on its way."""

    async def run() -> None:
        slots = RunSlots(1)
        paced, free = make_lane(LaneLimits(quota=QuotaLimits(rpm=600)), slots=slots), make_lane(slots=slots)
        order: list[str] = []

        async def call(lane: Lane, name: str, priority: int) -> None:
            with await lane.permit(priority=priority) as permit:
                order.append(name)
                await asyncio.sleep(1.0)
                permit.settle(lesson(Outcome.SUCCESS))

        await asyncio.gather(
            call(free, "free", 0),
            *(call(free, "free", 0) for _ in range(5)),
            *(call(paced, "paced", 1) for _ in range(5)),
        )
        assert order == ["free"] + ["paced"] * 5 + ["free"] * 5
        paced.park("done")

    on_creeping_clock(run())


async def test_a_machine_that_is_short_of_descriptors_calls_less_at_once() -> None:
    said: list[Event] = []
    lane = make_lane(LaneLimits(concurrency=64), slots=RunSlots(64), emit=said.append)
    permits = [await now_or_never(lane.permit()) for _ in range(lane.concurrency)]
    before = lane.concurrency
    for permit in permits:
        permit.settle(Lesson(outcome=Outcome.IGNORED, admitted=False, short_here=True))
    assert lane.concurrency < before
    assert [event.message for event in said if isinstance(event, LaneChanged)] == [
        f"a-model: {before} calls at once are more than this machine can carry: down to {lane.concurrency}"
    ]
    assert not lane.hindrance(monotonic()), "it says nothing about the provider"


async def test_tokens_are_estimated_until_no_limit_is_to_be_expected_and_again_once_there_is_one() -> None:
    lane = make_lane()
    form = b'{"max_completion_tokens":50,"messages":[{"role":"user","content":"%b"}]}'
    body, large = form % (b"x" * 900), form % (b"x" * 90_000)

    async def answered(seen: RateLimits | None = None) -> Demand:
        demand = lane.demand(body, answers=True)
        with await lane.permit(demand=demand) as permit:
            usage = Usage(input_tokens=300, output_tokens=20)
            permit.settle(Lesson(outcome=Outcome.SUCCESS, usage=usage, sent_bytes=len(body), seen=seen))
        return demand

    at_first = [await answered() for _ in range(ANSWERS_KEPT)]
    assert all(demand.input_tokens > 250 and demand.output_tokens >= 20 for demand in at_first)
    assert await answered() == NOTHING
    await answered(RateLimits(tokens_per_minute=10_000, tokens_left=9_000))
    assert await answered() == at_first[-1]
    with pytest.raises(TooLarge):
        await lane.permit(demand=lane.demand(large, answers=True))
    lane.park("done")
