"""Tokens a minute: bounded in every window, used nearly to the full, corrected by what answers cost."""

import heapq
import math
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.limits.limit import Reservation, TokenQuota

MINUTE_S = 60.0


class Spender:
    """Asks a quota for one request after the other, each as early as it may go, and keeps the books."""

    def __init__(self, tokens_per_minute: int, start: float) -> None:
        self.now = start
        self.quota = TokenQuota(tokens_per_minute, start)
        self.limit = tokens_per_minute
        self.admitted: list[tuple[float, int]] = []  # (when, tokens as far as they are known)
        self.fullness: list[float] = []  # of the last minute, at each admission
        self._open: list[tuple[float, int, Reservation, int]] = []  # (ends, number, reservation, used)

    def spend(self, tokens: int, used: int, latency_s: float) -> None:
        for _ in range(200):
            free_at = self.quota.free_at(tokens, self.now)
            assert free_at >= self.now
            if free_at == self.now:
                break
            ends = self._open[0][0] if self._open else math.inf
            self.now = min(free_at, max(self.now, ends))
            self._settle_until(self.now)
        else:
            pytest.fail(f"the timer is set again and again: {self.quota!r}")
        reservation = self.quota.reserve(tokens, self.now)
        self.admitted.append((self.now, tokens))
        in_window = sum(amount for at, amount in self.admitted if at > self.now - MINUTE_S)
        assert in_window <= self.limit
        self.fullness.append(in_window / self.limit)
        heapq.heappush(self._open, (self.now + latency_s, len(self.admitted) - 1, reservation, used))

    def _settle_until(self, now: float) -> None:
        while self._open and self._open[0][0] <= now:
            _, number, reservation, used = heapq.heappop(self._open)
            self.quota.settle(reservation, used, now)
            self.admitted[number] = (self.admitted[number][0], used)


@given(
    limit=st.integers(1, 100_000),
    start=st.sampled_from([0.0, 1e6 + 0.1, 2e9 + 0.7]),
    requests=st.lists(
        st.tuples(st.floats(0.0001, 1.0), st.floats(0.0, 1.5), st.floats(0.0, 90.0)), min_size=1, max_size=60
    ),
)
@settings(max_examples=150, deadline=None)
def test_no_minute_holds_more_than_the_limit_as_reserved_or_as_used(
    limit: int, start: float, requests: list[tuple[float, float, float]]
) -> None:
    spender = Spender(limit, start)
    for share, used_share, latency_s in requests:
        tokens = max(1, int(limit * share))
        spender.spend(tokens, int(tokens * used_share), latency_s)


@pytest.mark.parametrize(
    ("limit", "tokens", "used", "latency_s"),
    [
        pytest.param(6_000, 50, 50, 1.0, id="small limit"),
        pytest.param(250_000, 1_500, 1_500, 2.0, id="large limit"),
        pytest.param(250_000, 1_500, 400, 2.0, id="answers shorter than reserved"),
        pytest.param(30_000, 1_000, 1_200, 5.0, id="answers longer than reserved"),
        pytest.param(30_000, 300, 300, 100.0, id="answers that take longer than the minute"),
    ],
)
def test_nearly_all_of_the_limit_is_used(limit: int, tokens: int, used: int, latency_s: float) -> None:
    spender = Spender(limit, 0.0)
    while spender.now < 2 * MINUTE_S:
        spender.spend(tokens, used, latency_s)
    spender.fullness.clear()
    while spender.now < 10 * MINUTE_S:
        spender.spend(tokens, used, latency_s)
    assert fmean(spender.fullness) >= 0.97


def test_spending_is_even_from_the_start() -> None:
    spender = Spender(60_000, 0.0)
    while spender.now < 10.0:
        spender.spend(100, 100, 1.0)
    first_second = sum(amount for at, amount in spender.admitted if at < 1.0)
    assert first_second <= 0.05 * 60_000 + 1_000
    assert sum(amount for _, amount in spender.admitted) == pytest.approx(13_000, rel=0.02)


@pytest.mark.parametrize(
    ("used", "free_at"),
    [
        pytest.param(0, 1.0, id="not admitted: all of it comes back"),
        pytest.param(500, 30.125, id="half used: its share of the minute"),
        pytest.param(1_000, 60.35, id="as reserved: all of the minute"),
        pytest.param(1_100, 66.275, id="more than reserved: a debt beyond the minute"),
    ],
)
def test_an_answer_corrects_what_was_reserved(used: int, free_at: float) -> None:
    quota = TokenQuota(1_000, 0.0)
    reservation = quota.reserve(1_000, 0.0)
    quota.settle(reservation, used, 1.0)
    assert quota.free_at(50, 1.0) == pytest.approx(free_at)


def test_what_is_above_the_limit_never_fits() -> None:
    quota = TokenQuota(1_000, 0.0)
    assert quota.fits(1_000)
    assert not quota.fits(1_001)
    assert quota.free_at(1_001, 0.0) == math.inf
    assert repr(quota) == "<TokenQuota <SlotRing 0 of 1000> <TokenBucket 50 of 50, 16.5975/s>>"
