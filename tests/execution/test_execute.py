"""A whole job: it ends in one result or stays pending, whatever its calls do."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
from scripted import USAGE, Answer, Run, job, reply

from batcher.clock import monotonic
from batcher.errors import (
    ConnectFailed,
    InvalidRequest,
    KeyRefused,
    LaneParked,
    ModelUnavailable,
    OutputError,
    RateLimited,
    ServerError,
)
from batcher.events import JobStarted
from batcher.journal import Sent
from batcher.types import Failure, Job, Reply, Usage

YES = reply()
BUSY = RateLimited("slow down", code="http_429", status=429, retry_after_s=10.0)
GONE = ModelUnavailable("retired", code="gone", status=404)
BROKEN = ServerError("oops", code="http_500", status=500, body=b'{"error":1}', request_id="r-9")


async def test_an_answer_becomes_a_result() -> None:
    run = Run({"m": [BROKEN, BUSY, YES]})
    result = await run.executor.execute(job())
    assert result is not None
    assert result.ok
    assert result.answer is YES
    assert (result.model, result.provider, result.attempts, result.latency_s) == ("m", "scripted", 2, 1.0)
    assert result.queued_s == pytest.approx(monotonic() - 3.0)
    assert result.cost_usd == (USAGE.input_tokens * 1.0 + USAGE.output_tokens * 2.0) / 1e6
    assert result.finished_at.endswith("+00:00")
    assert run.events[0] == JobStarted(job_id="j", model="m")


async def test_a_failure_becomes_a_result_with_the_last_reply() -> None:
    run = Run({"m": [InvalidRequest("bad", code="http_400", status=400, body=b"{}", request_id="r-2")]})
    result = await run.executor.execute(job())
    assert result is not None
    assert result.answer == Failure(code="http_400", message="bad", status=400, body=b"{}", request_id="r-2")
    assert (result.ok, result.cost_usd) == (False, None)


SCHEMA = b'{"type":"object"}'
MISS, FIT = reply("no JSON", usage=Usage(input_tokens=100, output_tokens=50)), reply("{}")
UNCOUNTED = reply("no JSON", usage=None)


@pytest.mark.parametrize(
    ("scripts", "cost_usd"),
    [
        pytest.param({"m": [MISS, FIT]}, 200e-6 + 20e-6, id="a miss, then the answer"),
        pytest.param({"m": [MISS]}, 3 * 200e-6, id="nothing but misses"),
        pytest.param({"m": [UNCOUNTED, FIT]}, None, id="a miss of unknown size"),
        pytest.param({"m": [BROKEN, FIT]}, 20e-6, id="an error is free"),
        pytest.param({"m": [MISS, GONE], "dear": [FIT]}, 200e-6 + 20e-3, id="each at the price of its model"),
    ],
)
async def test_every_paid_reply_is_in_the_cost(
    scripts: dict[str, Sequence[Answer]], cost_usd: float | None
) -> None:
    run = Run(scripts)
    result = await run.executor.execute(job(schema=SCHEMA, fallback=("dear",)))
    assert result is not None
    assert result.cost_usd == (None if cost_usd is None else pytest.approx(cost_usd))
    if isinstance(result.answer, Reply):
        assert result.answer.usage == USAGE


async def test_a_fallback_is_named_in_the_result() -> None:
    run = Run({"m": [ModelUnavailable("retired", code="gone", status=404)], "n": [YES]})
    result = await run.executor.execute(job(fallback=("n",)))
    assert result is not None
    assert (result.model, result.job.model) == ("n", "m")


@pytest.mark.parametrize(
    ("script", "latency_s", "maybe_charged"),
    [
        pytest.param([None], 1.0, True, id="in a call"),
        pytest.param([YES], 100.0, True, id="in a slow call"),
        pytest.param(
            [RateLimited("no", code="429", status=429, retry_after_s=60.0)], 1.0, False, id="in a pause"
        ),
        pytest.param(
            [ServerError("no", code="503", status=503, retry_after_s=60.0)], 1.0, False, id="in a backoff"
        ),
        pytest.param([ConnectFailed("no", code="connect", sent=False)], 1e-6, False, id="in an outage"),
    ],
)
async def test_a_deadline_fails_the_job_on_time(
    script: list[Answer], latency_s: float, maybe_charged: bool
) -> None:
    run = Run({"m": script}, latency_s=latency_s)
    await asyncio.sleep(5.0)  # the deadline counts from the start of the run
    result = await run.executor.execute(job(deadline_s=15.0))
    assert monotonic() == 15.0
    assert result is not None
    assert isinstance(result.answer, Failure)
    assert (result.answer.code, result.answer.message) == (
        "deadline_exceeded",
        "no answer within deadline_s = 15",
    )
    assert result.queued_s == pytest.approx(10.0 - sum(event.latency_s for event in run.attempts_told))
    assert any(entry[0] == "unknown" for entry in run.log) == maybe_charged
    assert run.slots.taken == 0


async def test_a_deadline_that_has_passed_lets_no_call_out() -> None:
    run = Run({"m": [YES]})
    await asyncio.sleep(20.0)
    result = await run.executor.execute(job(deadline_s=15.0))
    assert result is not None
    assert not result.ok
    assert run.log == []


async def test_an_answer_before_the_deadline_is_an_answer() -> None:
    run = Run({"m": [YES]})
    result = await run.executor.execute(job(deadline_s=15.0))
    assert result is not None
    assert result.ok


@pytest.mark.parametrize("deadline_s", [None, 60.0])
@pytest.mark.parametrize("bug", [ZeroDivisionError("a bug"), TimeoutError("not ours")], ids=repr)
async def test_a_bug_fails_one_job_and_is_logged(
    bug: Exception, deadline_s: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run({"m": [bug]})
    result = await run.executor.execute(job(deadline_s=deadline_s))
    assert result is not None
    assert isinstance(result.answer, Failure)
    assert (result.answer.code, result.answer.message) == ("internal_error", f"{type(bug).__name__}: {bug}")
    assert "a bug: jobs.jsonl:1 failed with an unexpected error" in caplog.text
    assert run.slots.taken == 0


async def test_a_refused_key_leaves_the_job_pending() -> None:
    error = KeyRefused("unknown key", code="http_401", status=401)
    run = Run({"m": [error]})
    assert await run.executor.execute(job()) is None
    assert run.refused == ["scripted refused the key: unknown key"]


def parked(run: Run) -> None:
    run.routing.park("stopped")


def nothing(run: Run) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "answer"),
    [
        pytest.param(parked, YES, id="its lane is parked"),
        pytest.param(
            nothing,
            RateLimited("no", code="429", status=429, retry_after_s=7200.0),
            id="its lane parks under it",
        ),
        pytest.param(nothing, ModelUnavailable("gone", code="gone", status=404), id="its model is gone"),
    ],
)
async def test_a_job_that_can_go_on_in_another_run_stays_pending(
    prepare: Callable[[Run], None], answer: Answer
) -> None:
    run = Run({"m": [answer]})
    prepare(run)
    assert await run.executor.execute(job()) is None
    assert run.slots.taken == 0


class FullDisk:
    """A journal that takes nothing more."""

    def sent(self, calls: Sequence[Sent]) -> None:
        raise OutputError("no space left on device")

    def unknown(self, job_id: str, attempt: int, code: str) -> None:
        raise OutputError("no space left on device")


async def test_a_journal_that_cannot_be_written_ends_the_run_and_fails_no_job() -> None:
    run = Run({"m": [YES]}, journal=FullDisk())
    with pytest.raises(OutputError):
        await run.executor.execute(job())
    assert run.provider.calls == []
    assert run.slots.taken == 0


@pytest.mark.parametrize(
    ("first", "cancel_after_s"),
    [
        pytest.param(YES, 0.0, id="before it runs"),
        pytest.param(YES, 0.5, id="in a call"),
        pytest.param(BROKEN, 1.0, id="between call and backoff"),
        pytest.param(ServerError("no", code="503", status=503, retry_after_s=60.0), 30.0, id="in a backoff"),
        pytest.param(BUSY, 5.0, id="in a pause of its lane"),
    ],
)
@pytest.mark.parametrize("deadline_s", [None, 1000.0])
async def test_a_cancelled_job_ends_at_once_and_holds_nothing(
    first: Answer, cancel_after_s: float, deadline_s: float | None
) -> None:
    run = Run({"m": [first, YES]})
    task = asyncio.create_task(run.executor.execute(job(deadline_s=deadline_s)))
    if cancel_after_s:
        await asyncio.sleep(cancel_after_s)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert monotonic() == cancel_after_s
    lane = run.routing.routes("m")[0].lane
    assert (run.slots.taken, lane.in_flight, lane.waiting) == (0, 0, 0)


async def test_jobs_of_all_fates_at_once_end_each_in_its_own() -> None:
    scripts: dict[str, Sequence[Answer]] = {
        "answers": [YES],
        "recovers": [BROKEN, YES],
        "refuses": [InvalidRequest("bad", code="http_400", status=400)],
        "gone": [ModelUnavailable("gone", code="gone", status=404)],
    }
    run = Run(scripts)
    jobs: list[Job] = [job(model=model) for model in scripts for _ in range(25)]
    results = await asyncio.gather(*(run.executor.execute(one) for one in jobs))
    fates: dict[str, set[bool | None]] = {}
    for one, result in zip(jobs, results, strict=True):
        fates.setdefault(one.model, set()).add(None if result is None else result.ok)
    # The second call of `recovers` and all later ones succeed: its script is shared by its 25 jobs.
    assert fates == {"answers": {True}, "recovers": {True}, "refuses": {False}, "gone": {None}}
    assert run.slots.taken == 0
    assert isinstance(run.routing.routes("gone")[0].lane.parked, LaneParked)
