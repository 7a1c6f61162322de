"""Lanes of several runs that split an account's minute, and count what the others used of the day."""

import asyncio

import pytest
from creeping_clock import on_creeping_clock
from lane_kit import MINUTE_S, lesson, make_lane, most_in_a_minute, now_or_never, settled

from batcher.clock import monotonic
from batcher.limits.limit import DAY_S, Demand
from batcher.limits.quota import QuotaLimits
from batcher.scheduling.allowance import LaneLimits, Lesson
from batcher.scheduling.slots import RunSlots
from batcher.sharing import LOOK_EVERY_S, USED_TOGETHER
from batcher.types import Outcome, RateLimits, Usage

TOKENS = 100
PER_MINUTE = 300
STAGE_S = 2.1 * MINUTE_S
TOLD = {
    "requests": QuotaLimits(rpm=PER_MINUTE),
    "tokens": QuotaLimits(tpm=PER_MINUTE * TOKENS),
    "learned": QuotaLimits(),
}
SEEN = RateLimits(requests=PER_MINUTE, requests_window_s=MINUTE_S, tokens_per_minute=PER_MINUTE * TOKENS)


class Run:
    """A run that keeps its lane busy and notes when calls started."""

    def __init__(
        self, kind: str, limits: LaneLimits | None = None, started: list[float] | None = None
    ) -> None:
        self.lane = make_lane(limits or LaneLimits(quota=TOLD[kind]), slots=RunSlots(40))
        self.started: list[float] = [] if started is None else started
        self._end = Lesson(
            outcome=Outcome.SUCCESS,
            usage=Usage(input_tokens=TOKENS, output_tokens=0),
            seen=SEEN if kind == "learned" else None,
        )
        self._tasks: list[asyncio.Task[None]] = []

    def go(self) -> None:
        self._tasks = [asyncio.create_task(self._work()) for _ in range(20)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.lane.park("done")

    async def _work(self) -> None:
        while True:
            await self.call()

    async def call(self) -> None:
        with await self.lane.permit(demand=Demand(TOKENS, 0)) as permit:
            self.started.append(monotonic())
            await asyncio.sleep(1.0)
            permit.settle(self._end)


async def share_out(*shares: tuple[Run, float]) -> None:
    """Tell the runs their shares, and see that each uses its own once the last minute's calls have gone."""
    for run, share in shares:
        run.lane.set_share(share)
    await asyncio.sleep(STAGE_S)
    for run, share in shares:
        lately = sum(moment >= monotonic() - MINUTE_S for moment in run.started)
        assert 0.97 <= lately / (share * PER_MINUTE) <= 1.0


@pytest.mark.parametrize("kind", list(TOLD))
def test_shares_that_change_in_mid_run_are_used_and_never_exceeded_together(kind: str) -> None:
    async def main() -> None:
        one, other = Run(kind), Run(kind)
        await one.call()
        one.go()
        await share_out((one, 1.0))
        other.lane.set_share(0.5)  # before it calls for the first time
        one.lane.set_share(0.5)
        await other.call()
        other.go()
        await share_out((one, 0.5), (other, 0.5))
        await share_out((one, 0.25), (other, 0.75))
        await other.stop()
        await share_out((one, 1.0))
        await one.stop()
        # Half a call for each, or tokens that flow evenly again after a pause: runs leave that much free.
        together = most_in_a_minute(sorted(one.started + other.started))
        assert together <= PER_MINUTE + (1 if kind == "requests" else 0.02 * PER_MINUTE)
        for run in (one, other):
            assert most_in_a_minute(run.started) <= PER_MINUTE

    on_creeping_clock(main())


@pytest.mark.parametrize(
    ("per_day", "others"),
    [(QuotaLimits(rpd=100), (90, 0)), (QuotaLimits(tpd=100 * TOKENS), (0, 90 * TOKENS))],
)
async def test_what_others_use_of_the_day_is_missing_here(
    per_day: QuotaLimits, others: tuple[int, int]
) -> None:
    lane = make_lane(LaneLimits(quota=per_day), slots=RunSlots(1))
    lane.used_elsewhere(*others)
    for _ in range(10):
        (await now_or_never(lane.permit(demand=Demand(TOKENS, 0)))).settle(lesson(Outcome.SUCCESS))
    (await lane.permit(demand=Demand(TOKENS, 0))).settle(lesson(Outcome.SUCCESS))
    assert monotonic() == pytest.approx(DAY_S / 100)


async def test_who_waits_is_told_when_others_use_the_day_or_a_share_grows() -> None:
    lane = make_lane(LaneLimits(quota=QuotaLimits(tpm=1_000, rpd=1_000_000)))
    lane.set_share(0.25)
    await asyncio.sleep(5.0)
    (await now_or_never(lane.permit(demand=Demand(200, 0)))).settle(lesson(Outcome.SUCCESS))
    await asyncio.sleep(25.0)
    waiting = asyncio.create_task(lane.permit(demand=Demand(200, 0)))
    await settled()
    assert not waiting.done()
    lane.set_share(1.0)
    await waiting
    assert monotonic() < 60.0


def test_the_smallest_share_still_lets_requests_through() -> None:
    async def main() -> None:
        lane = make_lane(LaneLimits(quota=QuotaLimits(rpm=49)))
        lane.set_share(USED_TOGETHER / 25)
        for number in range(3):
            (await lane.permit()).settle(lesson(Outcome.SUCCESS))
            assert monotonic() <= (number + 1.1) * MINUTE_S
        lane.park("done")

    on_creeping_clock(main())


@pytest.mark.parametrize("per_minute", [30, 60])
def test_runs_that_come_and_go_keep_a_small_limit_together(per_minute: int) -> None:
    async def main() -> None:
        limits = LaneLimits(quota=QuotaLimits(rpm=per_minute))
        runs: list[Run] = []
        started: list[float] = []
        for wanted in (1, 2, 3, 4, 8, 7, 4, 2, 1, 2, 1):
            while len(runs) > wanted:
                await runs.pop(0).stop()
            while len(runs) < wanted:
                runs.append(Run("requests", limits, started))
                runs[-1].lane.set_share(1.0 if wanted == 1 else USED_TOGETHER / wanted)
                runs[-1].go()
            await asyncio.sleep(LOOK_EVERY_S)
            for run in runs:
                run.lane.set_share(1.0 if wanted == 1 else USED_TOGETHER / wanted)
            await asyncio.sleep(17.0 if wanted % 2 else 50.0)
        for run in runs:
            await run.stop()
        assert most_in_a_minute(started) <= per_minute
        assert len(started) >= 0.8 * per_minute * monotonic() / MINUTE_S

    on_creeping_clock(main())
