"""What a grant costs does not depend on how many wait for one."""

import asyncio
import time
from dataclasses import dataclass

import pytest
from rig import ProofLoop, lane_of

from batcher.limits.limit import Demand
from batcher.limits.quota import QuotaLimits
from batcher.scheduling.allowance import Lesson
from batcher.scheduling.lane import Lane
from batcher.scheduling.slots import RunSlots, SlotTaker
from batcher.types import Outcome, Usage

FEW, MANY = 10, 1_000
CONCURRENCY = 8
QUOTAS = {
    "no limit": QuotaLimits(),
    "tokens": QuotaLimits(tpm=120_000),
    "requests": QuotaLimits(rpm=6_000),
}


class CountingSlots(RunSlots):
    """Counts how often lanes ask for a slot, the last of their gates."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.questions = 0

    def free_for(self, lane: SlotTaker) -> bool:
        """Count the question and answer it."""
        self.questions += 1
        return super().free_for(lane)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one grant has cost, on average."""

    questions: float
    timers: float
    cpu_us: float


def _cost(quota: QuotaLimits, waiters: int, grants: int) -> Cost:
    """Let so many wait all the time, each for calls of different sizes, one after the other."""
    slots = CountingSlots(CONCURRENCY)
    granted, warm = 0, asyncio.Event()

    async def work(lane: Lane, number: int) -> None:
        nonlocal granted
        demand = Demand(50 + number % 7, 50)
        usage = Usage(input_tokens=50, output_tokens=50)
        while granted < grants:
            with await lane.permit(since=granted, demand=demand) as permit:
                granted += 1
                if granted > grants // 10:
                    warm.set()
                await asyncio.sleep(0.01)
                permit.settle(Lesson(outcome=Outcome.SUCCESS, usage=usage))

    async def run() -> Cost:
        lane = lane_of(slots, quota, concurrency=CONCURRENCY)
        workers = [asyncio.ensure_future(work(lane, number)) for number in range(waiters + CONCURRENCY)]
        await warm.wait()  # the concurrency has been found, and all stand in line
        before, timers, questions = granted, loop.timers_set, slots.questions
        began = time.process_time()
        await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
        spent_s = time.process_time() - began
        count = granted - before
        cost = Cost(
            (slots.questions - questions) / count, (loop.timers_set - timers) / count, spent_s / count * 1e6
        )
        lane.park("the proof is over")
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        return cost

    loop = ProofLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(run())


@pytest.mark.parametrize("limited", QUOTAS)
def test_a_thousand_waiters_cause_no_more_questions_and_timers_than_ten(limited: str) -> None:
    few, many = (_cost(QUOTAS[limited], waiters, 1_000) for waiters in (FEW, MANY))
    assert few.questions <= 2.5, (few, many)
    assert many.questions <= 1.1 * few.questions, (few, many)
    assert many.timers <= 1.1 * few.timers, (few, many)


@pytest.mark.long
@pytest.mark.parametrize("limited", QUOTAS)
def test_a_grant_among_a_thousand_waiters_costs_at_most_half_as_much_again(limited: str) -> None:
    """In turns, and the best of each, so that whatever else runs on this machine counts little."""
    rounds = [
        tuple(_cost(QUOTAS[limited], waiters, 10_000).cpu_us for waiters in (FEW, MANY)) for _ in range(5)
    ]
    few, many = map(min, zip(*rounds, strict=True))
    assert many <= 1.5 * few, f"{many:.1f} us for each grant, not {few:.1f}: {rounds}"
