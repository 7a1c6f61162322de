"""A request's way to an answer: again where that helps, elsewhere where it may, and to an end."""

import asyncio
import math
from collections.abc import Sequence

import pytest
from scripted import Answer, Run, job, reply

from batcher.clock import monotonic
from batcher.errors import (
    BadGeneration,
    CallError,
    CapacityExceeded,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    InvalidRequest,
    KeyRefused,
    LaneParked,
    LocalFault,
    ModelUnavailable,
    RateLimited,
    ServerError,
    TooLarge,
)
from batcher.events import CircuitChanged
from batcher.execution.attempt import Story
from batcher.limits.quota import QuotaLimits
from batcher.limits.retry import RetryClass, RetryPolicy
from batcher.scheduling.allowance import LaneLimits
from batcher.types import Job, Reply

YES = reply()
BUSY = RateLimited("slow down", code="http_429", status=429, retry_after_s=10.0)
LONG = RateLimited("come back", code="http_429", status=429, retry_after_s=7200.0)
BROKEN = ServerError("oops", code="http_500", status=500)
DOWN = ServerError("down", code="http_503", status=503)
LOST = ConnectionLost("cut", code="lost")
UNREACHED = ConnectFailed("refused", code="connect", sent=False)
LOCAL = LocalFault("no descriptors", code="local", sent=False)
FULL = CapacityExceeded("full", code="http_498", status=498)
RETIRED = ModelUnavailable("retired", code="model_gone", status=404)
LARGE = TooLarge("too large", code="http_413", status=413)
BAD = InvalidRequest("bad", code="http_400", status=400)
LATE = DeadlineExceeded("too late", code="deadline_exceeded")
DEAD_KEY = KeyRefused("unknown key", code="http_401", status=401)

ANSWER_SCHEMA = b'{"type":"object","required":["a"],"properties":{"a":{"type":"integer"}}}'
FITS, MISSES = reply('{"a": 1}'), reply('{"a": "one"}')


async def complete(run: Run, asked: Job, deadline_at: float = math.inf) -> tuple[Reply, Story]:
    story = Story(asked, began_at=monotonic(), deadline_at=deadline_at)
    return await run.completer.complete(story), story


@pytest.mark.parametrize(
    ("script", "attempts"),
    [
        pytest.param([YES], 1, id="at once"),
        pytest.param([BROKEN] * 4 + [YES], 5, id="the fifth attempt"),
        pytest.param([LOST, BROKEN, FULL, YES], 4, id="this and that"),
        pytest.param([BUSY] * 30 + [YES], 1, id="429s are no attempts"),
        pytest.param([UNREACHED] * 9 + [YES], 1, id="neither is what was never sent"),
        pytest.param([LOCAL] * 9 + [YES], 1, id="nor a fault of this machine"),
        pytest.param([BROKEN] * 12 + [YES], 13, id="a server that says the same to its only job"),
        pytest.param([DOWN] * 12 + [YES], 11, id="an outage fails nobody, and probes do not count"),
    ],
)
async def test_what_a_retry_cures(script: Sequence[Answer], attempts: int) -> None:
    run = Run({"m": script})
    answer, story = await complete(run, job())
    assert answer is YES
    assert (story.attempts, story.calls) == (attempts, len(script))
    assert [entry[2] for entry in run.log if entry[0] == "sent"] == [str(n + 1) for n in range(len(script))]
    assert run.slots.taken == 0


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        pytest.param(LOST, 5, id="five attempts while others succeed"),
        pytest.param(BROKEN, 3, id="three where the server always says the same"),
        pytest.param(BAD, 1, id="a bad request once"),
        pytest.param(LARGE, 1, id="a request too large once"),
    ],
)
async def test_what_fails_in_the_end(error: CallError, calls: int) -> None:
    run = Run({"m": [YES, error]})
    other = asyncio.create_task(complete(run, job()))
    await asyncio.sleep(0)
    with pytest.raises(type(error)) as raised:
        await complete(run, job())
    assert raised.value is error
    assert len(run.provider.calls) == calls + 1
    await other


async def test_a_job_that_always_gets_the_same_words_does_not_open_the_circuit() -> None:
    run = Run({"m": [BROKEN]})
    with pytest.raises(ServerError):
        await complete(run, job())
    assert len(run.provider.calls) == RetryPolicy().calls
    assert not any(isinstance(event, CircuitChanged) for event in run.events)


async def test_while_nobody_is_answered_a_job_fails_never_and_its_lane_parks_after_a_day() -> None:
    run = Run({"m": [DOWN]})
    with pytest.raises(LaneParked, match="m: no answer for 1 d 0 h"):
        await complete(run, job())
    assert len(run.provider.calls) < 24 * 60 / 5 * 1.5 + 20, "a probe in 5 min, times 0.8 to 1.2"


async def test_a_dead_key_closes_the_accounts_lanes_and_blames_no_job() -> None:
    run = Run({"m": [DEAD_KEY], "n": [YES]})
    for model in ("m", "n"):
        with pytest.raises(LaneParked, match="unknown key"):
            await complete(run, job(model=model))
    assert run.models_called == ["m"]
    assert run.refused == ["scripted refused the key: unknown key"]


async def test_a_server_error_that_asks_for_hours_gets_five_minutes() -> None:
    run = Run({"m": [ServerError("down", code="http_503", status=503, retry_after_s=7200.0), YES]})
    await complete(run, job())
    assert [at for at, _, _ in run.provider.calls] == [0.0, 301.0]


async def test_retries_wait_as_long_as_the_provider_asks() -> None:
    down = ServerError("down", code="http_503", status=503, retry_after_s=100.0)
    run = Run({"m": [down, BUSY, YES]})
    await complete(run, job())
    first, second, third = [at for at, _, _ in run.provider.calls]
    assert first == 0.0
    assert second == 101.0
    assert 112.0 <= third <= 113.05


@pytest.mark.parametrize(
    ("scripts", "called"),
    [
        pytest.param({"m": [LARGE], "n": [YES]}, ["m", "n"], id="too large for the first"),
        pytest.param({"m": [RETIRED], "n": [YES]}, ["m", "n"], id="the first is retired"),
        pytest.param(
            {"m": [BROKEN, LARGE], "n": [BROKEN, YES]}, ["m", "m", "n", "n"], id="with retries on both"
        ),
        pytest.param({"m": [LARGE], "n": [RETIRED], "o": [YES]}, ["m", "n", "o"], id="the third"),
    ],
)
async def test_a_fallback_answers(scripts: dict[str, Sequence[Answer]], called: list[str]) -> None:
    run = Run(scripts)
    answer, story = await complete(run, job(fallback=("n", "m", "o")))
    assert answer is YES
    assert run.models_called == called
    assert story.model == called[-1]
    for _, request, _ in run.provider.calls:
        assert request.body == b'{"model":"%s","messages":[]}' % request.model.encode()


async def test_a_fallback_takes_what_the_limit_can_never_let_through() -> None:
    tight = {"m": LaneLimits(quota=QuotaLimits(tpm=100)), "n": LaneLimits()}
    run = Run({"m": [YES], "n": [YES]}, limits=tight.__getitem__)
    await complete(run, job(fallback=("n",)))
    assert run.models_called == ["n"]


async def test_without_a_fallback_what_the_limit_can_never_let_through_fails_at_once() -> None:
    run = Run({"m": [YES]}, limits=lambda model: LaneLimits(quota=QuotaLimits(tpm=100)))
    with pytest.raises(TooLarge, match="the 100 a minute"):
        await complete(run, job())
    assert run.log == []


@pytest.mark.parametrize(
    ("scripts", "ending"),
    [
        pytest.param({"m": [RETIRED], "n": [LARGE]}, LaneParked, id="the first may come back"),
        pytest.param({"m": [LARGE], "n": [RETIRED]}, LaneParked, id="the second may come back"),
        pytest.param({"m": [LARGE], "n": [LARGE]}, TooLarge, id="too large for both"),
        pytest.param(
            {"m": [RETIRED], "n": [BAD]}, LaneParked, id="the first may yet take what the second refuses"
        ),
        pytest.param({"m": [LONG], "n": [BAD]}, LaneParked, id="the first pauses for hours"),
        pytest.param({"m": [LONG], "n": [BROKEN]}, LaneParked, id="the second fails for all its attempts"),
        pytest.param({"m": [LARGE], "n": [BAD]}, InvalidRequest, id="both refuse it for good"),
        pytest.param({"m": [LONG], "n": [DEAD_KEY]}, LaneParked, id="the key is dead for all"),
        pytest.param({"m": [LONG], "n": [LATE]}, DeadlineExceeded, id="its own time is over"),
    ],
)
async def test_how_it_ends_when_no_route_answers(
    scripts: dict[str, Sequence[Answer]], ending: type[Exception]
) -> None:
    run = Run(scripts)
    with pytest.raises(ending):
        await complete(run, job(fallback=("n",)))


async def test_a_retired_model_closes_its_lane_for_all() -> None:
    run = Run({"m": [RETIRED]})
    for _ in range(3):
        with pytest.raises(LaneParked, match="retired"):
            await complete(run, job())
    assert run.models_called == ["m"]
    assert str(run.routing.routes("m")[0].lane.parked) == "m: closed for this run, retired"


async def test_a_job_that_waits_between_attempts_leaves_when_its_lane_parks() -> None:
    run = Run({"m": [ServerError("down", code="http_503", status=503, retry_after_s=200.0), RETIRED]})
    with pytest.raises(LaneParked):
        await asyncio.gather(complete(run, job()), complete(run, job()))
    assert monotonic() < 200.0


@pytest.mark.parametrize(
    ("script", "calls"),
    [
        pytest.param([FITS], 1, id="fits at once"),
        pytest.param([MISSES, FITS], 2, id="fits the second time"),
        pytest.param(
            [MISSES, BROKEN, reply("no JSON"), BUSY, FITS], 5, id="fits the third time, faults between"
        ),
        pytest.param([reply("")], 1, id="a tool call or a refusal has no text to check"),
    ],
)
async def test_an_answer_that_misses_its_schema_is_asked_for_again(
    script: Sequence[Answer], calls: int
) -> None:
    run = Run({"m": script})
    answer, story = await complete(run, job(schema=ANSWER_SCHEMA))
    assert answer is script[-1]
    assert story.calls == calls


async def test_the_third_answer_that_misses_its_schema_fails_the_job() -> None:
    run = Run({"m": [MISSES]})
    with pytest.raises(
        BadGeneration, match="does not fit the schema at a: 'one' is not of type 'integer'"
    ) as raised:
        await complete(run, job(schema=ANSWER_SCHEMA))
    assert (raised.value.code, raised.value.status, raised.value.body) == (
        "schema_mismatch",
        200,
        MISSES.body,
    )
    assert len(run.provider.calls) == 3


@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        pytest.param("reasoning", 1, id="the answer follows the thoughts"),
        pytest.param("chat", 3, id="thoughts are no JSON"),
    ],
)
async def test_a_reasoning_answer_is_checked_without_its_thoughts(kind: str, calls: int) -> None:
    run = Run({"m": [reply('<think>{"a": "hm"}</think>{"a": 1}')]})
    try:
        await complete(run, job(schema=ANSWER_SCHEMA, kind=kind))
    except BadGeneration:
        assert kind == "chat"
    assert len(run.provider.calls) == calls


async def test_no_call_is_made_past_the_jobs_deadline() -> None:
    run = Run({"m": [BROKEN]}, retry=RetryPolicy(calls=1000, server=RetryClass(longest_wait_s=1.0)))
    with pytest.raises(DeadlineExceeded):
        await complete(run, job(deadline_s=5.0), deadline_at=5.0)
    assert all(at < 5.0 for at, _, _ in run.provider.calls)


async def test_a_schema_that_cannot_be_used_fails_before_a_call() -> None:
    run = Run({"m": [YES]})
    with pytest.raises(InvalidRequest, match="the schema cannot be used: 'objekt' is not valid"):
        await complete(run, job(schema=b'{"type":"objekt"}'))
    assert run.log == []


def closed_as_it_was_used() -> ConnectionLost:
    error = ConnectionLost("closed before a byte of the answer", code="connection_lost")
    error.unread = True
    return error


async def test_a_connection_that_closes_as_it_is_used_costs_one_free_call_at_once() -> None:
    run = Run({"m": [closed_as_it_was_used(), YES]})
    answer, story = await complete(run, job())
    assert answer is YES
    assert (story.attempts, story.calls) == (1, 2)
    assert [at for at, _, _ in run.provider.calls] == [0.0, 1.0], (
        "a call takes a second: nothing is waited for"
    )
    assert ("unknown", "j", "1", "connection_lost") in run.log, "the server may have read it all the same"


async def test_only_the_first_such_call_is_free() -> None:
    run = Run({"m": [YES, *(closed_as_it_was_used() for _ in range(9))]})
    other = asyncio.create_task(complete(run, job()))
    await asyncio.sleep(0)
    with pytest.raises(ConnectionLost):
        await complete(run, job())
    assert len(run.provider.calls) == 1 + 1 + 5, "the other's answer, the free one, and those of its class"
    await other
