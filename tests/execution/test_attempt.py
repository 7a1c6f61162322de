"""One call: written down before it is sent, settled whatever happens, and told about."""

import asyncio
import math
from contextlib import suppress

import pytest
from scripted import Run, job, reply

from batcher.clock import monotonic
from batcher.errors import (
    AttemptTimeout,
    BadReply,
    CallError,
    ConnectFailed,
    ConnectionLost,
    InvalidRequest,
    LaneParked,
    LocalFault,
    RateLimited,
    ServerError,
)
from batcher.execution.attempt import Story
from batcher.limits.quota import QuotaLimits
from batcher.scheduling.allowance import LaneLimits, ProviderRules
from batcher.types import Outcome, Reply, Request, Usage

REQUEST = Request(endpoint="/v1/chat/completions", model="m", body=b'{"max_completion_tokens":100}')


def story(deadline_at: float = math.inf) -> Story:
    return Story(job(), began_at=monotonic(), deadline_at=deadline_at)


async def attempt(run: Run, told: Story) -> Reply:
    return await run.attempts.attempt(told, REQUEST, run.routing.routes("m")[0])


async def test_a_call_is_written_down_before_it_is_sent() -> None:
    run, told = Run({"m": [reply()]}), story()
    assert await attempt(run, told) == reply()
    assert run.log == [("sent", "j", "1", "m"), ("send", "m")]
    assert (told.calls, told.attempts, told.latency_s, told.in_calls_s) == (1, 1, 1.0, 1.0)
    [event] = run.attempts_told
    assert (event.outcome, event.code, event.status, event.sent) == (Outcome.SUCCESS, "", 200, True)
    assert event.usage is not None


@pytest.mark.parametrize(
    ("error", "unknown", "counted"),
    [
        pytest.param(ConnectionLost("cut", code="lost"), True, 1, id="broken after sending"),
        pytest.param(AttemptTimeout("slow", code="timeout"), True, 1, id="timed out"),
        pytest.param(ConnectFailed("no", code="refused", sent=False), False, 0, id="never sent"),
        pytest.param(LocalFault("no", code="descriptors", sent=False), False, 0, id="a fault of ours"),
        pytest.param(ServerError("oops", code="http_500", status=500), False, 1, id="a reply that says no"),
        pytest.param(RateLimited("slow down", code="http_429", status=429), False, 0, id="a 429"),
        pytest.param(BadReply("html", code="bad", status=200), False, 1, id="a reply that is none"),
        pytest.param(InvalidRequest("bad", code="http_400", status=400), False, 1, id="refused for good"),
    ],
)
async def test_a_failed_call_is_settled_and_told(error: CallError, unknown: bool, counted: int) -> None:
    run, told = Run({"m": [error]}), story()
    with pytest.raises(type(error)) as raised:
        await attempt(run, told)
    assert raised.value is error
    ending = [("unknown", "j", "1", error.code)] if unknown else []
    assert run.log == [("sent", "j", "1", "m"), ("send", "m"), *ending]
    assert (told.calls, told.attempts, told.in_calls_s) == (1, counted, 1.0)
    assert run.slots.taken == 0
    [event] = run.attempts_told
    assert (event.outcome, event.code, event.message) == (error.outcome, error.code, str(error))
    assert (event.status, event.sent, event.latency_s) == (error.status, error.sent, 1.0)


async def test_a_cancelled_call_may_have_been_charged() -> None:
    run, told = Run({"m": [None]}), story()
    task = asyncio.create_task(attempt(run, told))
    await asyncio.sleep(7.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert run.log[1:] == [("send", "m"), ("unknown", "j", "1", "cancelled")]
    assert (run.slots.taken, told.attempts, told.in_calls_s) == (0, 1, 7.0)
    [event] = run.attempts_told
    assert (event.outcome, event.code, event.sent) == (Outcome.IGNORED, "cancelled", True)


async def test_a_call_that_ends_in_a_bug_may_have_been_charged() -> None:
    run, told = Run({"m": [ZeroDivisionError("a bug")]}), story()
    with pytest.raises(ZeroDivisionError):
        await attempt(run, told)
    assert run.log[1:] == [("send", "m"), ("unknown", "j", "1", "internal_error")]
    assert run.slots.taken == 0


async def test_who_is_cancelled_while_waiting_has_sent_nothing() -> None:
    run = Run({"m": [reply()]}, latency_s=60.0)
    calls = [asyncio.create_task(attempt(run, story())) for _ in range(9)]
    await asyncio.sleep(1.0)
    calls[-1].cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert len(run.provider.calls) == run.log.count(("send", "m")) == 8
    assert [entry for entry in run.log if entry[0] == "unknown"] == []


@pytest.mark.parametrize(
    ("deadline_at", "timeout_s"),
    [
        pytest.param(math.inf, 300.0, id="no deadline"),
        pytest.param(1000.0, 300.0, id="a far deadline"),
        pytest.param(42.0, 42.0, id="a deadline that comes first"),
    ],
)
async def test_a_call_ends_with_its_timeout_or_the_jobs_deadline(
    deadline_at: float, timeout_s: float
) -> None:
    run = Run({"m": [reply()]})
    await attempt(run, story(deadline_at))
    assert [seconds for _, _, seconds in run.provider.calls] == [timeout_s]


async def test_a_parked_lane_makes_no_call() -> None:
    run = Run({"m": [reply()]})
    run.routing.park("closed")
    with pytest.raises(LaneParked):
        await attempt(run, story())
    assert run.log == []


@pytest.mark.parametrize(
    ("answer", "next_at"),
    [
        pytest.param(reply(usage=Usage(input_tokens=6, output_tokens=4)), 4.97, id="ten tokens used"),
        pytest.param(
            reply(usage=Usage(input_tokens=110, output_tokens=0, cached_tokens=110)), 1.0, id="cached"
        ),
        pytest.param(reply(usage=None), 60.35, id="an answer that does not say counts as reserved"),
        pytest.param(
            ServerError("oops", code="http_500", status=500), 60.35, id="a fault counts as reserved"
        ),
        pytest.param(RateLimited("no", code="http_429", status=429), 6.0, id="a 429 was not admitted"),
    ],
)
async def test_tokens_are_reserved_as_estimated_and_settled_as_used(
    answer: Reply | CallError, next_at: float
) -> None:
    # 11 tokens for the prompt's 29 bytes, and 100 for the answer, of a limit that lets one through.
    limits = LaneLimits(quota=QuotaLimits(tpm=121), rules=ProviderRules(cached_tokens_count=False))
    run = Run({"m": [answer, reply()]}, limits=lambda model: limits)
    for _ in range(2):
        with suppress(CallError):
            await attempt(run, story())
    started = [at for at, _, _ in run.provider.calls]
    assert started[0] == 0.0
    assert next_at <= started[1] <= 1.2 * next_at + 0.05
