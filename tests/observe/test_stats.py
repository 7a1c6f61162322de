"""The counts of a run follow its events, and its percentiles are right to one percent."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.events import (
    AttemptFinished,
    BudgetReached,
    CircuitChanged,
    FallbackTaken,
    JobFinished,
    JobStarted,
    KeyDisabled,
    LaneChanged,
)
from batcher.observe.stats import Histogram, Stats
from batcher.types import Failure, Job, Outcome, Reply, Result, Usage

JOB = Job(
    id="j", endpoint="/v1/chat/completions", model="m", body=b"{}", request_sha256="0", where="jobs.jsonl:1"
)


def attempt(
    outcome: Outcome = Outcome.SUCCESS,
    *,
    call: int = 1,
    route: str = "m",
    code: str = "",
    status: int = 200,
    sent: bool = True,
    usage: Usage | None = None,
) -> AttemptFinished:
    return AttemptFinished(
        job_id="j",
        call=call,
        route=route,
        outcome=outcome,
        code=code,
        message=f"message of {code}",
        status=status,
        latency_s=0.5,
        sent=sent,
        usage=usage,
    )


def finished(answer: Reply | Failure, *, model: str = "m", cost_usd: float | None = None) -> JobFinished:
    return JobFinished(
        result=Result(
            job=JOB,
            answer=answer,
            model=model,
            provider="p",
            attempts=1,
            latency_s=2.0,
            queued_s=1.0,
            finished_at="2026-01-01T00:00:00+00:00",
            cost_usd=cost_usd,
        )
    )


def reply(usage: Usage | None) -> Reply:
    return Reply(status=200, body=b"{}", usage=usage)


@given(
    durations=st.lists(st.floats(1e-5, 1e5), min_size=1, max_size=200),
    share=st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]),
)
def test_a_percentile_is_right_to_one_percent(durations: list[float], share: float) -> None:
    histogram = Histogram()
    for seconds in durations:
        histogram.add(seconds)
    exact = sorted(durations)[max(0, math.ceil(share * len(durations) - 1e-9) - 1)]
    assert histogram.percentile_s(share) == pytest.approx(exact, rel=0.0101)
    assert histogram.percentile_s(share) <= max(durations)


def test_percentiles_of_nothing_and_of_no_time_at_all() -> None:
    histogram = Histogram()
    assert histogram.summary() == {"mean": 0.0, "p50": 0.0, "p95": 0.0, "p99": 0.0, "max": 0.0}
    histogram.add(0.0)
    assert histogram.summary() == {"mean": 0.0, "p50": 0.0, "p95": 0.0, "p99": 0.0, "max": 0.0}


def test_calls_are_counted_by_what_became_of_them() -> None:
    stats = Stats()
    assert not stats.reached_provider
    for event in (
        JobStarted(job_id="j", model="m"),
        attempt(Outcome.FAILED, code="connect", status=0, sent=False),
    ):
        stats(event)
    assert not stats.reached_provider
    assert stats.last_error == "message of connect"
    for event in (
        attempt(Outcome.OVERLOADED, call=2, code="rate_limited", status=429),
        attempt(Outcome.FAILED, call=3, code="timeout", status=0),
        attempt(Outcome.FAILED, call=4, code="http_500", status=500),
        attempt(Outcome.SUCCESS, call=5),
    ):
        stats(event)
    assert stats.reached_provider
    assert (stats.started, stats.calls, stats.retries, stats.calls_in_vain) == (1, 5, 4, 4)
    assert (stats.refused_429, stats.maybe_charged) == (1, 1)
    assert stats.call_errors == {"connect": 1, "rate_limited": 1, "timeout": 1, "http_500": 1}


def test_results_are_counted_by_model() -> None:
    stats = Stats()
    usage = Usage(input_tokens=10, output_tokens=5, cached_tokens=4)
    stats(attempt(Outcome.SUCCESS, usage=usage))
    stats(finished(reply(usage), cost_usd=0.5))
    stats(attempt(Outcome.SUCCESS, route="n", usage=usage))
    stats(finished(reply(usage), model="n", cost_usd=0.25))
    stats(finished(reply(None)))
    stats(finished(Failure(code="http_400", message="bad")))
    assert (stats.succeeded, stats.failed, stats.finished) == (3, 1, 4)
    assert (stats.input_tokens, stats.output_tokens, stats.cached_tokens) == (20, 10, 8)
    assert (stats.cost_usd, stats.cost_unknown) == (0.75, 1)
    assert stats.failures == {"http_400": 1}
    assert (stats.models["m"].succeeded, stats.models["m"].failed, stats.models["m"].cost_usd) == (2, 1, 0.5)
    assert (stats.models["n"].input_tokens, stats.models["n"].output_tokens) == (10, 5)
    assert (stats.latency.count, stats.latency.longest_s, stats.queued.sum_s) == (4, 2.0, 4.0)


def test_answers_that_missed_their_schema_are_paid_for() -> None:
    stats = Stats()
    usage = Usage(input_tokens=10, output_tokens=5)
    for _ in range(3):
        stats(attempt(Outcome.SUCCESS, usage=usage))
    stats(finished(Failure(code="schema_mismatch", message="no"), cost_usd=0.3))
    assert (stats.input_tokens, stats.output_tokens, stats.cost_usd) == (30, 15, 0.3)
    assert (stats.failed, stats.cost_unknown) == (1, 0)


def test_notices_are_kept_with_their_time_and_fallbacks_are_counted_for_each_pair() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    stats = Stats(now=lambda: noon)
    for _ in range(3):
        stats(LaneChanged(route="m", message="lane"))
        stats(CircuitChanged(route="m", state="open", message="circuit"))
        stats(FallbackTaken(job_id="j", wanted="m", taken="n", reason="why"))
    stats(FallbackTaken(job_id="j", wanted="m", taken="o", reason="why"))
    stats(KeyDisabled(account="main", message="key"))
    stats(BudgetReached(spent_usd=1.01, budget_usd=1.0))
    local = noon.astimezone().isoformat(sep=" ")
    assert stats.notices.lines() == [
        f"m: jobs go on with n: why ({local})",
        f"lane (3 times, last {local})",
        f"circuit (3 times, last {local})",
        f"m: jobs go on with o: why ({local})",
        f"key ({local})",
        f"the cost budget of $1 is reached ({local})",
    ]
    assert stats.fallbacks == {("m", "n"): 3, ("m", "o"): 1}
