"""Day limits: never paced, refilled all the time, opened with what was used before."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.limits.limit import Demand
from batcher.limits.quota import Quota, QuotaLimits
from batcher.types import RateLimits

DAY_S = 86_400.0


def test_a_day_is_not_paced_and_then_says_when_enough_has_refilled() -> None:
    quota = Quota(QuotaLimits(rpd=1_440, tpd=1_440_000), 0.0)
    for _ in range(1_440):
        assert quota.free_at(Demand(500, 500), 0.0) == 0.0
        quota.reserve(Demand(500, 500), 0.0)
    assert quota.free_at(Demand(100, 0), 0.0) == pytest.approx(60.0), "a request flows in each minute"
    assert quota.free_at(Demand(2_000, 0), 0.0) == pytest.approx(120.0)


@pytest.mark.parametrize(
    ("requests", "tokens", "free_at"),
    [
        pytest.param(100, 0, 864.0, id="requests used up"),
        pytest.param(0, 100_000, 86.4, id="tokens used up"),
        pytest.param(0, 100_050, 129.6, id="and beyond"),
        pytest.param(99, 99_900, 0.0, id="just enough left"),
    ],
)
def test_a_run_opens_with_what_was_used_before(requests: int, tokens: int, free_at: float) -> None:
    quota = Quota(QuotaLimits(rpd=100, tpd=100_000), 5.0)
    quota.day_used(requests, tokens, 5.0)
    assert quota.free_at(Demand(100, 0), 5.0) == pytest.approx(5.0 + free_at)


def test_what_was_used_before_does_not_matter_without_a_limit() -> None:
    quota = Quota(QuotaLimits(), 0.0)
    quota.day_used(10**9, 10**12, 0.0)
    assert quota.free_at(Demand(1, 1), 0.0) == 0.0


def test_a_refused_request_is_not_counted_and_an_answered_one_is() -> None:
    quota = Quota(QuotaLimits(rpd=1), 0.0)
    reservation = quota.reserve(Demand(1, 1), 0.0)
    quota.settle(reservation, None, 0.0, admitted=False)
    assert quota.free_at(Demand(1, 1), 0.0) == 0.0
    quota.settle(quota.reserve(Demand(1, 1), 0.0), Demand(0, 0), 0.0)
    assert quota.free_at(Demand(1, 1), 0.0) == pytest.approx(DAY_S)


def test_the_provider_s_own_count_of_the_day_is_believed() -> None:
    quota = Quota(QuotaLimits(rpd=1_000), 0.0)
    reservation = quota.reserve(Demand(1, 1), 0.0)
    seen = RateLimits(requests=1_000, requests_window_s=DAY_S, requests_left=0)
    assert quota.adopt(seen, reservation, 0.0) == []
    assert quota.free_at(Demand(1, 1), 0.0) == pytest.approx(86.4)


@given(
    start=st.sampled_from([0.0, 1e6 + 0.1, 2e9 + 0.7]),
    tpd=st.integers(1, 10**9),
    steps=st.lists(st.tuples(st.floats(0.001, 1), st.floats(0, 1), st.floats(0, DAY_S)), max_size=30),
)
@settings(max_examples=150, deadline=None)
def test_a_day_s_tokens_follow_a_plain_bucket_and_its_timer_ends(
    start: float, tpd: int, steps: list[tuple[float, float, float]]
) -> None:
    quota, now, level = Quota(QuotaLimits(tpd=tpd), start), start, float(tpd)
    for share, used_share, pause in steps:
        demand = Demand(max(1, int(tpd * share)), 0)
        for _ in range(10):
            at = quota.free_at(demand, now)
            expected = now + max(0.0, demand[0] - level) * DAY_S / tpd
            assert at == pytest.approx(expected, abs=0.01 + 1e-6 * DAY_S)
            level = min(tpd, level + (at - now) * tpd / DAY_S)
            if at == now:
                break
            now = at
        else:
            pytest.fail(f"the timer is set again and again: {quota!r}")
        reservation = quota.reserve(demand, now)
        used = int(demand[0] * used_share)
        now += pause
        quota.settle(reservation, Demand(used, 0), now)
        level = min(tpd, min(tpd, level - demand[0] + pause * tpd / DAY_S) + demand[0] - used)
    assert quota.free_at(Demand(tpd, 0), now + 2 * DAY_S) < math.inf


def test_others_that_use_more_than_there_is_cost_a_day_at_most() -> None:
    quota = Quota(QuotaLimits(rpd=1_000, tpd=100_000), 0.0)
    for _ in range(3):
        quota.day_used(5_000, 10**6, 0.0)
    assert quota.free_at(Demand(0, 1), 0.0) == pytest.approx(DAY_S)
    quota.day_used(5_000, 10**6, DAY_S / 2)
    assert quota.free_at(Demand(0, 1), DAY_S / 2) == pytest.approx(1.5 * DAY_S)
