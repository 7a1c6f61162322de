"""Retries: what counts, how long the waits are, and when a job has failed for good."""

import asyncio
import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.clock import monotonic
from batcher.errors import (
    AttemptTimeout,
    BadGeneration,
    BadReply,
    CallError,
    CapacityExceeded,
    ConnectFailed,
    ConnectionLost,
    HostBlocked,
    InvalidRequest,
    LocalFault,
    RateLimited,
    ServerError,
)
from batcher.limits.retry import RetryPolicy, Tally, retrying

POLICY = RetryPolicy()
COUNTED = [CapacityExceeded, ServerError, ConnectionLost, AttemptTimeout, BadReply, HostBlocked]
UNCOUNTED = [RateLimited, ConnectFailed, LocalFault]


def error(kind: type[CallError], retry_after_s: float | None = None) -> CallError:
    return kind("no luck", code="test", retry_after_s=retry_after_s)


def tally(*, others_succeed: bool = True) -> Tally:
    return Tally(POLICY, lambda: others_succeed)


@pytest.mark.parametrize(
    ("kind", "others_succeed", "calls"),
    [
        *[pytest.param(kind, True, 5, id=f"{kind.__name__}, others succeed") for kind in COUNTED],
        *[pytest.param(kind, False, 20, id=f"{kind.__name__}, nobody succeeds") for kind in COUNTED],
        *[pytest.param(kind, True, None, id=f"{kind.__name__} never counts") for kind in UNCOUNTED],
        pytest.param(BadGeneration, True, 3, id="BadGeneration"),
        pytest.param(BadGeneration, False, 3, id="BadGeneration, nobody succeeds"),
    ],
)
def test_how_many_calls_may_fail(kind: type[CallError], others_succeed: bool, calls: int | None) -> None:
    counted = tally(others_succeed=others_succeed)
    made = 0
    while not counted.exhausted() and made < 100:
        counted.count(error(kind))
        made += 1
    assert made == (calls or 100)
    assert repr(counted) == f"<Tally attempts={calls or 0} generations={3 if kind is BadGeneration else 0}>"


def test_an_outage_for_everybody_ends_when_others_get_answers_again() -> None:
    up = [False]
    counted = Tally(POLICY, lambda: up[0])
    for _ in range(10):
        counted.count(error(ServerError))
    assert not counted.exhausted()
    up[0] = True
    assert counted.exhausted()


@given(
    failures=st.lists(
        st.tuples(
            st.sampled_from([*COUNTED, *UNCOUNTED, BadGeneration]), st.none() | st.floats(0.001, 7200.0)
        ),
        min_size=1,
        max_size=40,
    ),
    random=st.floats(0, 1, exclude_max=True),
)
def test_waits_are_full_jitter_and_never_shorter_than_asked_within_reason(
    failures: list[tuple[type[CallError], float | None]], random: float
) -> None:
    counted = tally()
    for number, (kind, retry_after_s) in enumerate(failures, start=1):
        failure = error(kind, retry_after_s)
        counted.count(failure)
        wait_s = counted.wait_s(failure, random)
        if kind is RateLimited:
            assert wait_s == 0.0, "the lane waits, not the job"
            continue
        asked_s = min(retry_after_s or 0.0, 300.0)
        assert asked_s <= wait_s <= max(asked_s, min(30.0, 2.0 ** (number - 1)))


@pytest.mark.parametrize("kind", [ServerError, ConnectFailed])
def test_the_ceiling_of_the_wait_doubles_from_one_second_to_thirty(kind: type[CallError]) -> None:
    counted, ceilings = tally(), []
    for _ in range(7):
        counted.count(error(kind))
        ceilings.append(counted.wait_s(error(kind), 1.0))
    assert ceilings == [1, 2, 4, 8, 16, 30, 30]


class Calls:
    """A call that fails with each of the given errors once, then answers."""

    def __init__(self, failures: Iterable[CallError]) -> None:
        self.failures = iter(failures)
        self.made_at: list[float] = []

    async def __call__(self) -> str:
        self.made_at.append(monotonic())
        for failure in self.failures:
            raise failure
        return "an answer"


@pytest.mark.parametrize(
    ("failures", "made_at"),
    [
        pytest.param([], [0.0], id="at once"),
        pytest.param([(ServerError, None)] * 4, [0.0, 0.5, 1.5, 3.5, 7.5], id="jitter of one half"),
        pytest.param([(ServerError, 100.0), (ConnectionLost, None)], [0.0, 100.0, 101.0], id="Retry-After"),
        pytest.param([(RateLimited, 60.0)] * 3, [0.0] * 4, id="a 429 is waited for by the lane"),
        pytest.param(
            [(RateLimited, None)] * 30 + [(ServerError, None)] * 4,
            [0.0] * 31 + [0.5, 1.5, 3.5, 7.5],
            id="429s are no attempts",
        ),
        pytest.param(
            [(ConnectFailed, None)] * 7, [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 30.5, 45.5], id="not a host to find"
        ),
        pytest.param([(BadGeneration, None)] * 2, [0.0, 0.5, 1.5], id="the third generation is good"),
    ],
)
async def test_a_call_is_repeated_until_it_answers(
    failures: list[tuple[type[CallError], float | None]], made_at: list[float]
) -> None:
    calls = Calls([error(kind, retry_after_s) for kind, retry_after_s in failures])
    again = retrying(tally(), sleep=asyncio.sleep, random=lambda: 0.5)
    assert await again(calls) == "an answer"
    assert calls.made_at == pytest.approx(made_at)


@pytest.mark.parametrize(
    ("kind", "calls_made"),
    [
        pytest.param(ServerError, 5, id="a Retryable after its attempts"),
        pytest.param(BadGeneration, 3, id="a BadGeneration after its generations"),
        pytest.param(InvalidRequest, 1, id="a Permanent at once"),
    ],
)
async def test_the_last_failure_is_raised_as_it_is(kind: type[CallError], calls_made: int) -> None:
    failures = [error(kind) for _ in range(calls_made)]
    calls = Calls(failures)
    with pytest.raises(kind) as raised:
        await retrying(tally(), sleep=asyncio.sleep, random=lambda: 0.0)(calls)
    assert raised.value is failures[-1]
    assert len(calls.made_at) == calls_made


async def test_a_cancelled_wait_is_not_swallowed() -> None:
    calls = Calls(error(ServerError) for _ in itertools.count())
    again = retrying(tally(), sleep=asyncio.sleep, random=lambda: 1.0)
    repeated: asyncio.Future[str] = asyncio.ensure_future(again(calls))
    await asyncio.sleep(0.5)
    repeated.cancel()
    with pytest.raises(asyncio.CancelledError):
        await repeated
    assert len(calls.made_at) == 1
