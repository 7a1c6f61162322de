"""Silence is told, with what is waited for; so is a process that stood still."""

import asyncio

import pytest
from virtual_clock import VirtualClockLoop

from batcher.clock import monotonic
from batcher.events import AttemptFinished
from batcher.observe.watchdog import Watchdog
from batcher.types import Outcome

MOVED = AttemptFinished(
    job_id="j",
    call=1,
    route="m",
    outcome=Outcome.SUCCESS,
    code="",
    message="",
    status=200,
    latency_s=1.0,
    sent=True,
    usage=None,
)


@pytest.fixture
async def dog(caplog: pytest.LogCaptureFixture) -> Watchdog:
    return Watchdog(lambda: "m: 3 calls in flight, 0 wait", quiet_s=300.0)


async def test_nothing_is_said_while_something_moves(dog: Watchdog, caplog: pytest.LogCaptureFixture) -> None:
    watching = asyncio.create_task(dog.watch())
    for _ in range(20):
        await asyncio.sleep(299.0)
        dog(MOVED)
    watching.cancel()
    assert caplog.messages == []


async def test_silence_is_told_again_and_again(dog: Watchdog, caplog: pytest.LogCaptureFixture) -> None:
    watching = asyncio.create_task(dog.watch())
    await asyncio.sleep(100.0)
    dog(MOVED)
    for _ in range(3):
        await asyncio.sleep(100.0)
    await asyncio.sleep(310.0)
    watching.cancel()
    assert caplog.messages == [
        f"nothing has moved for {seconds} s; the run waits for: m: 3 calls in flight, 0 wait"
        for seconds in (300, 600)
    ]


async def test_a_process_that_stood_still_is_no_silent_provider(
    dog: Watchdog, caplog: pytest.LogCaptureFixture
) -> None:
    watching = asyncio.create_task(dog.watch())
    await asyncio.sleep(0.5)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    loop.stand_still(400.0)
    await asyncio.sleep(100.0)
    watching.cancel()
    assert caplog.messages == ["this process stood still for 400 s: busy, or asleep"]
    assert monotonic() > 500.0
