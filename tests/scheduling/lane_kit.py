"""Lanes for tests, and those who use them."""

import asyncio
from collections.abc import Awaitable, Callable

from batcher.clock import monotonic
from batcher.events import Event
from batcher.limits.breaker import BreakerPolicy
from batcher.scheduling.allowance import LaneLimits, Lesson
from batcher.scheduling.circuits import HostCircuit
from batcher.scheduling.lane import Lane
from batcher.scheduling.permit import Permit
from batcher.scheduling.slots import RunSlots
from batcher.types import Outcome, Usage

MINUTE_S = 60.0


def make_lane(
    limits: LaneLimits | None = None,
    *,
    slots: RunSlots | None = None,
    route: str = "a-model",
    emit: Callable[[Event], None] = lambda event: None,
    host: HostCircuit | None = None,
    breaker: BreakerPolicy | None = None,
) -> Lane:
    return Lane(
        route,
        limits or LaneLimits(),
        slots=slots or RunSlots(4),
        breaker=breaker or BreakerPolicy(),
        emit=emit,
        host=host,
    )


async def now_or_never(permit: Awaitable[Permit]) -> Permit:
    """Return a permit that is to be had without any waiting."""
    began_at = monotonic()
    granted = await asyncio.wait_for(permit, 0.001)
    assert monotonic() == began_at
    return granted


def lesson(
    outcome: Outcome,
    *,
    used_tokens: int | None = None,
    retry_after_s: float | None = None,
    refused: bool = False,
    host: Outcome = Outcome.IGNORED,
) -> Lesson:
    """Return what an attempt taught; it was not admitted if it used no tokens."""
    usage = Usage(input_tokens=used_tokens, output_tokens=0) if used_tokens else None
    return Lesson(
        outcome=outcome,
        usage=usage,
        admitted=used_tokens != 0,
        retry_after_s=retry_after_s,
        refused=refused,
        host=host,
    )


async def settled() -> None:
    """Let everything happen that can happen at this moment."""
    for _ in range(6):
        await asyncio.sleep(0)


def most_in_a_minute(moments: list[float]) -> int:
    """Return the largest number of moments that any window of 60 s holds."""
    most, first = 0, 0
    for number, moment in enumerate(moments):
        while moments[first] <= moment - MINUTE_S:
            first += 1
        most = max(most, number - first + 1)
    return most
