"""No call goes out before it is written down, and before the answers that came in are kept."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import OutputError
from batcher.execution.departures import Departures
from batcher.journal import Sent


def call(name: str) -> Sent:
    return Sent(name, "ab" * 32, 1, "m")


class Log:
    """What happened, in order."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    def write_down(self, calls: Sequence[Sent]) -> None:
        self.entries.append("sent " + " ".join(call.job_id for call in calls))

    def keep_results(self) -> None:
        self.entries.append("kept")


async def test_what_is_ready_in_one_step_leaves_together() -> None:
    log = Log()
    departures = Departures(log.write_down, log.keep_results)

    async def job(name: str) -> None:
        await departures.leave(call(name))
        log.entries.append(f"out {name}")
        await asyncio.sleep(ord(name))
        await departures.leave(call(name.upper()))
        log.entries.append(f"out {name.upper()}")

    await asyncio.gather(job("a"), job("b"))
    first = ["kept", "sent a b", "out a", "out b"]
    assert log.entries == [*first, "kept", "sent A", "out A", "kept", "sent B", "out B"]
    assert repr(departures) == "<Departures ready=0>"


async def test_a_call_that_is_cancelled_before_it_is_written_down_is_not() -> None:
    log = Log()
    departures = Departures(log.write_down)
    calls = [asyncio.create_task(departures.leave(call(name))) for name in "abc"]
    asyncio.get_running_loop().call_soon(calls[1].cancel)
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(end) for end in ends] == [type(None), asyncio.CancelledError, type(None)]
    assert log.entries == ["sent a c"]


async def test_where_nothing_can_be_written_down_nothing_goes_out() -> None:
    def full(calls: Sequence[Sent]) -> None:
        raise OutputError("no space left on device")

    departures = Departures(full)
    ends = await asyncio.gather(*[departures.leave(call(name)) for name in "ab"], return_exceptions=True)
    assert [str(end) for end in ends] == 2 * ["no space left on device"]
    with pytest.raises(OutputError):
        await departures.leave(call("c"))


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=30))
def test_nobody_is_out_unwritten(plan: list[tuple[int, bool]]) -> None:
    """Whoever is cancelled whenever: what is out is written down, each once."""
    written: list[str] = []
    out: set[str] = set()

    async def job(name: str, steps: int, departures: Departures) -> None:
        for _ in range(steps):
            await asyncio.sleep(0)
        await departures.leave(call(name))
        assert name in written
        out.add(name)

    async def story() -> None:
        departures = Departures(lambda calls: written.extend(call.job_id for call in calls))
        tasks = [
            asyncio.create_task(job(str(number), steps, departures)) for number, (steps, _) in enumerate(plan)
        ]
        for (steps, cancelled), task in zip(plan, tasks, strict=True):
            if cancelled:
                asyncio.get_running_loop().call_soon(task.cancel)
            if steps == 2:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(story())
    assert len(written) == len(set(written))
    assert out <= set(written)
    assert {str(number) for number, (_, cancelled) in enumerate(plan) if not cancelled} <= out
