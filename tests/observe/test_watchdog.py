"""Silence is told, with what is waited for; so is a process that stood still."""

import asyncio

import pytest
from virtual_clock import VirtualClockLoop

from batcher.clock import monotonic
from batcher.observe.watchdog import Watchdog


class Watched:
    """A run that moves when it is told to, and its watchdog."""

    def __init__(self) -> None:
        self.calls = 0
        dog = Watchdog(lambda: "m: 3 calls in flight, 0 wait", lambda: self.calls, quiet_s=300.0)
        self.watch = dog.watch

    def moves(self) -> None:
        self.calls += 1


@pytest.fixture
async def run(caplog: pytest.LogCaptureFixture) -> Watched:
    return Watched()


async def test_nothing_is_said_while_something_moves(run: Watched, caplog: pytest.LogCaptureFixture) -> None:
    watching = asyncio.create_task(run.watch())
    for _ in range(20):
        await asyncio.sleep(299.0)
        run.moves()
    watching.cancel()
    assert caplog.messages == []


async def test_silence_is_told_again_and_again(run: Watched, caplog: pytest.LogCaptureFixture) -> None:
    watching = asyncio.create_task(run.watch())
    await asyncio.sleep(100.0)
    run.moves()
    for _ in range(3):
        await asyncio.sleep(100.0)
    await asyncio.sleep(310.0)
    watching.cancel()
    assert caplog.messages == [
        f"nothing has moved for {seconds} s; the run waits for: m: 3 calls in flight, 0 wait"
        for seconds in (300, 600)
    ]


async def test_a_process_that_stood_still_is_no_silent_provider(
    run: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watching = asyncio.create_task(run.watch())
    await asyncio.sleep(0.5)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    loop.stand_still(400.0)
    await asyncio.sleep(100.0)
    watching.cancel()
    assert caplog.messages == ["this process stood still for 400 s: busy, or asleep"]
    assert monotonic() > 500.0
