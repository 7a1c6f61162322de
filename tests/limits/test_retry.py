"""Retries: what counts, how long the waits are, and when a job has failed for good."""

import asyncio
import itertools
from collections.abc import Iterable
from dataclasses import asdict

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
    KeyDoubted,
    LocalFault,
    RateLimited,
    ServerError,
)
from batcher.limits.retry import DOUBTS, RetryClass, RetryPolicy, Tally, retrying
from batcher.limits.retry_presets import PRESETS, on_preset

POLICY = RetryPolicy()
SIMPLE = PRESETS["simple"]
COUNTED = [CapacityExceeded, ServerError, ConnectionLost, AttemptTimeout, BadReply, HostBlocked]
UNCOUNTED = [RateLimited, ConnectFailed, LocalFault, KeyDoubted]
FIRST_WAIT_S = {ConnectionLost: 0.5, ConnectFailed: 0.5, LocalFault: 0.5, RateLimited: 0.0}


def error(
    kind: type[CallError], retry_after_s: float | None = None, *, status: int = 0, message: str = "no luck"
) -> CallError:
    return kind(message, code="test", retry_after_s=retry_after_s, status=status)


def probe(kind: type[CallError]) -> CallError:
    failure = error(kind)
    failure.probe = True
    return failure


def tally(policy: RetryPolicy = POLICY, *, others_succeed: bool = True) -> Tally:
    return Tally(policy, lambda: others_succeed)


def calls_made(counted: Tally, failures: Iterable[CallError]) -> int | None:
    """Count failures until they end the job; None if they do not."""
    for made, failure in enumerate(failures, start=1):
        counted.count(failure)
        if counted.exhausted(failure):
            return made
    return None


@pytest.mark.parametrize(
    ("kind", "others_succeed", "calls"),
    [
        *[pytest.param(kind, True, 5, id=f"{kind.__name__}, others succeed") for kind in COUNTED],
        *[pytest.param(kind, False, 20, id=f"{kind.__name__}, nobody succeeds") for kind in COUNTED],
        *[pytest.param(kind, True, None, id=f"{kind.__name__} never counts") for kind in UNCOUNTED[:-1]],
        pytest.param(BadGeneration, True, 3, id="BadGeneration"),
        pytest.param(BadGeneration, False, 3, id="BadGeneration, nobody succeeds"),
    ],
)
def test_how_many_calls_may_fail(kind: type[CallError], others_succeed: bool, calls: int | None) -> None:
    failures = (error(kind) for _ in range(100))
    assert calls_made(tally(others_succeed=others_succeed), failures) == calls


@pytest.mark.parametrize(
    ("kind", "calls", "waits_s"),
    [
        pytest.param(AttemptTimeout, 3, [2, 4], id="timeout"),
        pytest.param(ServerError, 5, [1, 1, 1, 1], id="server"),
        pytest.param(ConnectionLost, 5, [1, 1, 1, 1], id="network"),
        pytest.param(RateLimited, 10, [1, 2, 4, 8, 16, 32, 60, 60, 60], id="rate limit"),
        pytest.param(BadGeneration, 3, [0.5, 1], id="generation, as standard"),
    ],
)
def test_the_simple_preset_is_the_classic_table(
    kind: type[CallError], calls: int, waits_s: list[float]
) -> None:
    counted, waited = tally(SIMPLE), list[float]()
    while calls_made(counted, [error(kind)]) is None:
        waited.append(counted.wait_s(error(kind), 0.5))
    assert waited == waits_s
    assert len(waited) + 1 == calls


@pytest.mark.parametrize("policy", [POLICY, SIMPLE], ids=["standard", "simple"])
def test_a_job_is_not_to_blame_for_what_its_probes_meet(policy: RetryPolicy) -> None:
    counted = tally(policy)
    assert calls_made(counted, [probe(kind) for kind in [*COUNTED, *UNCOUNTED] * 20]) is None
    assert (counted.attempts, counted.failures) == (0, {})
    assert counted.wait_s(probe(ServerError), 1.0) == (30.0 if policy is POLICY else 1.0), "but it waits"


def test_an_outage_for_everybody_ends_when_others_get_answers_again() -> None:
    up = [False]
    counted = Tally(POLICY, lambda: up[0])
    failures = [error(ServerError, status=500) for _ in range(10)]
    assert calls_made(counted, failures) is None
    assert repr(counted) == "<Tally attempts=10 {'server': 10}>"
    up[0] = True
    assert counted.exhausted(failures[-1])


@given(
    kinds=st.lists(st.sampled_from([*COUNTED, BadGeneration]), min_size=20, max_size=20),
    policy=st.sampled_from([POLICY, SIMPLE, RetryPolicy(server=RetryClass(attempts=7))]),
    others_succeed=st.booleans(),
)
def test_failures_that_keep_changing_end_the_job_too(
    kinds: list[type[CallError]], policy: RetryPolicy, others_succeed: bool
) -> None:
    counted = tally(policy, others_succeed=others_succeed)
    made = calls_made(counted, [error(kind) for kind in kinds])
    assert made is not None
    assert made <= (policy.most_attempts if others_succeed else policy.calls)
    assert kinds[:made].count(BadGeneration) <= 3


def test_a_class_without_end_ends_with_the_calls() -> None:
    policy = RetryPolicy(server=RetryClass(attempts=None), calls=50)
    assert calls_made(tally(policy), (error(ServerError) for _ in range(100))) == 50


@pytest.mark.parametrize(
    ("said", "others_succeed", "calls"),
    [
        pytest.param([(500, "bug")] * 9, True, 3, id="the same each time"),
        pytest.param([(500, "bug")] * 9, False, None, id="to everybody"),
        pytest.param([(500, "bug 1"), (500, "bug 2")] * 4, True, 5, id="other words"),
        pytest.param([(500, "bug"), (501, "bug")] * 4, True, 5, id="other statuses"),
        pytest.param([(500, "bug"), (500, "bug"), (503, "")] * 4, True, 5, id="not in a row"),
        pytest.param([(503, "busy")] * 9, True, 5, id="what is busy always says so in the same words"),
        pytest.param([(408, "late")] * 9, True, 5, id="no fault of the server"),
    ],
)
def test_a_server_that_fails_in_the_same_words_will_never_answer_this_job(
    said: list[tuple[int, str]], others_succeed: bool, calls: int | None
) -> None:
    failures = [error(ServerError, status=status, message=message) for status, message in said]
    assert calls_made(tally(others_succeed=others_succeed), failures) == calls


def test_the_same_words_to_everybody_are_not_held_against_a_job_once_others_succeed() -> None:
    up = [False]
    counted = Tally(POLICY, lambda: up[0])
    assert calls_made(counted, [error(ServerError, status=500) for _ in range(3)]) is None
    up[0] = True
    assert calls_made(counted, [error(ServerError, status=500)]) is None


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
        least_s = max(min(retry_after_s or 0.0, 300.0), 60.0 if kind is HostBlocked else 0.0)
        first_s = FIRST_WAIT_S.get(kind, 1.0)
        assert least_s <= wait_s <= max(least_s, min(30.0, first_s * 2.0 ** (number - 1)))


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        pytest.param(ServerError, [1, 2, 4, 8, 16, 30, 30], id="server"),
        pytest.param(ConnectFailed, [0.5, 1, 2, 4, 8, 16, 30], id="no connection"),
        pytest.param(ConnectionLost, [0.5, 1, 2, 4, 8, 16, 30], id="broken connection"),
    ],
)
def test_the_ceiling_of_the_wait_doubles_up_to_thirty_seconds(
    kind: type[CallError], seconds: list[float]
) -> None:
    counted, ceilings = tally(), []
    for _ in range(7):
        counted.count(error(kind))
        ceilings.append(counted.wait_s(error(kind), 1.0))
    assert ceilings == seconds


def test_each_class_waits_by_its_own_count() -> None:
    counted = tally()
    for kind in (ServerError, ServerError, ConnectionLost):
        counted.count(error(kind))
    assert counted.wait_s(error(ConnectionLost), 1.0) == 0.5
    assert counted.wait_s(error(ServerError), 1.0) == 2.0


def test_an_endless_outage_does_not_overflow() -> None:
    assert RetryClass().wait_s(10**9, 1.0) == 30.0


def test_a_preset_is_completed_and_a_class_given_in_part_keeps_the_rest() -> None:
    full = on_preset({"preset": "simple", "timeout": {"attempts": 4}, "calls": 9})
    assert full["timeout"] == {
        "attempts": 4,
        "first_wait_s": 2.0,
        "longest_wait_s": 30.0,
        "wait": "doubling",
    }
    assert full["calls"] == 9
    assert full["server"] == asdict(SIMPLE.server)
    assert on_preset({}) == asdict(POLICY)
    assert full["network"] == asdict(SIMPLE.network)


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
        pytest.param([(ServerError, 100.0), (ConnectionLost, None)], [0.0, 100.0, 100.25], id="Retry-After"),
        pytest.param([(RateLimited, 60.0)] * 3, [0.0] * 4, id="a 429 is waited for by the lane"),
        pytest.param(
            [(RateLimited, None)] * 30 + [(ServerError, None)] * 4,
            [0.0] * 31 + [0.5, 1.5, 3.5, 7.5],
            id="429s are no attempts",
        ),
        pytest.param(
            [(ConnectFailed, None)] * 7,
            [0.0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 30.75],
            id="not a host to find",
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
    ("kind", "policy", "number"),
    [
        pytest.param(ServerError, POLICY, 5, id="a Retryable after its attempts"),
        pytest.param(BadGeneration, POLICY, 3, id="a BadGeneration after its generations"),
        pytest.param(InvalidRequest, POLICY, 1, id="a Permanent at once"),
        pytest.param(RateLimited, SIMPLE, 10, id="a RateLimited where its attempts are counted"),
    ],
)
async def test_the_last_failure_is_raised_as_it_is(
    kind: type[CallError], policy: RetryPolicy, number: int
) -> None:
    failures = [error(kind) for _ in range(number)]
    calls = Calls(failures)
    with pytest.raises(kind) as raised:
        await retrying(tally(policy), sleep=asyncio.sleep, random=lambda: 0.0)(calls)
    assert raised.value is failures[-1]
    assert len(calls.made_at) == number


async def test_a_cancelled_wait_is_not_swallowed() -> None:
    calls = Calls(error(ServerError) for _ in itertools.count())
    again = retrying(tally(), sleep=asyncio.sleep, random=lambda: 1.0)
    repeated: asyncio.Future[str] = asyncio.ensure_future(again(calls))
    await asyncio.sleep(0.5)
    repeated.cancel()
    with pytest.raises(asyncio.CancelledError):
        await repeated
    assert len(calls.made_at) == 1


async def test_a_job_whose_keys_serve_only_others_ends() -> None:
    doubted = KeyDoubted("unknown key", code="invalid_api_key", status=401)
    tally = Tally(RetryPolicy(), others_succeed=lambda: True)
    waits = []
    for _ in range(DOUBTS - 1):
        tally.count(doubted)
        assert not tally.exhausted(doubted)
        waits.append(tally.wait_s(doubted, 0.5))
    tally.count(doubted)
    assert tally.exhausted(doubted)
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    waiting = KeyDoubted("wait", code="invalid_api_key", retry_after_s=1.0, sent=False)
    told_to_wait = Tally(RetryPolicy(), others_succeed=lambda: True)
    for _ in range(10 * DOUBTS):
        told_to_wait.count(waiting)
        assert not told_to_wait.exhausted(waiting)
        assert told_to_wait.wait_s(waiting, 0.5) == 1.0
    patient = Tally(RetryPolicy(), others_succeed=lambda: False)
    for _ in range(10 * DOUBTS):
        patient.count(doubted)
        assert not patient.exhausted(doubted)
