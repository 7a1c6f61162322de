"""Work beside a run ends with it, and its own end is heard."""

import asyncio

import pytest

from batcher.engines.background import in_background


async def test_it_ends_with_its_context() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(1.0)
            ticks += 1

    before = asyncio.all_tasks()
    async with in_background(tick()):
        await asyncio.sleep(5.5)
    await asyncio.sleep(5.0)
    assert ticks == 5
    assert asyncio.all_tasks() == before


async def test_a_failure_is_told_and_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        await asyncio.sleep(1.0)
        raise ValueError("broken")

    async with in_background(fail()):
        await asyncio.sleep(5.0)
    [record] = caplog.records
    assert "ended early, the run goes on without it" in record.getMessage()
    assert record.exc_info is not None
