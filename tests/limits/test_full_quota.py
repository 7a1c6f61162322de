"""Every limit of an account at once: kept in any minute, corrected by answers, learned from headers."""

import heapq
import math
import random
from collections import deque
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.limits.limit import Demand, NamedLimit
from batcher.limits.quota import Quota, QuotaLimits, QuotaReservation
from batcher.types import RateLimits

starts = st.sampled_from([0.0, 1234.567, 3e7 + 1 / 3, 2e9 + 0.7])
requests = st.lists(
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0, 1.5), st.floats(0, 70)),
    min_size=1,
    max_size=40,
)


def when_free(quota: Quota, demand: Demand, now: float) -> float:
    """Follow the quota's timer as a lane does; fail if it never comes to an end."""
    for _ in range(10):
        at = quota.free_at(demand, now)
        assert now <= at < math.inf
        if at == now:
            return now
        now = at
    pytest.fail(f"the timer is set again and again: {quota!r}")


@given(start=starts, tpm=st.integers(50, 5_000), itpm=st.integers(20, 3_000), steps=requests)
@settings(max_examples=100, deadline=None)
def test_no_minute_holds_more_than_any_of_its_limits(
    start: float, tpm: int, itpm: int, steps: list[tuple[float, float, float, float]]
) -> None:
    otpm = tpm // 2
    quota, now = Quota(QuotaLimits(tpm=tpm, itpm=itpm, otpm=otpm), start), start
    books: list[list[float]] = []  # [when, input, output] as far as they are known
    out: list[tuple[float, int, QuotaReservation, Demand]] = []
    for input_share, output_share, used_share, latency_s in steps:
        demand = Demand(int(min(itpm, tpm / 2) * input_share), int(otpm * output_share))
        assert quota.fits(demand) == ""
        for _ in range(400):
            at = quota.free_at(demand, now)
            if at == now:
                break
            now = min(at, max(now, out[0][0])) if out else at
            while out and out[0][0] <= now:
                _, number, reservation, used = heapq.heappop(out)
                quota.settle(reservation, used, now)
                books[number][1:] = used
        else:
            pytest.fail(f"the timer is set again and again: {quota!r}")
        reservation = quota.reserve(demand, now)
        books.append([now, *demand])
        minute = [entry for entry in books if entry[0] > now - 60]
        inputs, outputs = sum(entry[1] for entry in minute), sum(entry[2] for entry in minute)
        assert inputs <= itpm
        assert outputs <= otpm
        assert inputs + outputs <= tpm
        used = Demand(int(demand[0] * used_share), int(demand[1] * used_share))
        heapq.heappush(out, (now + latency_s, len(books) - 1, reservation, used))


@pytest.mark.parametrize(
    ("limits", "demand", "reason"),
    [
        pytest.param(QuotaLimits(), Demand(10**9, 10**9), "", id="no limit"),
        pytest.param(QuotaLimits(tpm=7000), Demand(4000, 3000), "", id="just fits"),
        pytest.param(
            QuotaLimits(tpm=7000, tpd=10**6),
            Demand(10_000, 2_903),
            "the request may use 12,903 tokens, 5,903 more than the 7,000 a minute that are allowed (TPM)",
            id="tokens a minute",
        ),
        pytest.param(
            QuotaLimits(itpm=100, otpm=10),
            Demand(100, 11),
            "the request may use 11 output tokens, 1 more than the 10 a minute that are allowed (OTPM)",
            id="output tokens",
        ),
        pytest.param(
            QuotaLimits(tpd=1000),
            Demand(1000, 500),
            "the request may use 1,500 tokens, 500 more than the 1,000 a day that are allowed (TPD)",
            id="tokens a day",
        ),
    ],
)
def test_what_can_never_fit_is_told_with_limit_and_excess(
    limits: QuotaLimits, demand: Demand, reason: str
) -> None:
    assert Quota(limits, 0.0).fits(demand) == reason


def test_a_full_bucket_goes_out_at_once_where_the_user_says_so() -> None:
    quota = Quota(QuotaLimits(tpm=6000, window="bucket"), 0.0)
    for _ in range(6):
        assert quota.free_at(Demand(500, 500), 0.0) == 0.0
        quota.reserve(Demand(500, 500), 0.0)
    assert quota.free_at(Demand(500, 500), 0.0) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("used", "admitted", "free_at"),
    [
        pytest.param(Demand(100, 100), True, 2.0, id="what was not used comes back"),
        pytest.param(None, True, 10.0, id="unknown: charged as reserved"),
        pytest.param(Demand(500, 600), True, 11.0, id="more than reserved is a debt"),
        pytest.param(Demand(500, 600), False, 0.0, id="not let in: nothing is charged"),
    ],
)
def test_an_answer_corrects_what_was_reserved(used: Demand | None, admitted: bool, free_at: float) -> None:
    quota = Quota(QuotaLimits(tpm=6000, window="bucket"), 0.0)
    reservation = quota.reserve(Demand(500, 500), 0.0)
    quota.settle(reservation, used, 0.0, admitted=admitted)
    assert quota.free_at(Demand(6000, 0), 0.0) == pytest.approx(free_at)


def test_limits_untold_are_learned_and_what_is_left_counts_at_once() -> None:
    quota = Quota(QuotaLimits(), 0.0)
    first = quota.reserve(Demand(300, 200), 0.0)
    quota.settle(first, Demand(300, 100), 1.0)
    seen = RateLimits(
        requests=14_400,
        requests_window_s=86_400,
        requests_left=0,
        tokens_per_minute=6_000,
        tokens_left=5_600,
    )
    assert quota.adopt(seen, first, 1.0) == [
        "the provider allows 14,400 requests a day (RPD)",
        "the provider allows 6,000 tokens a minute (TPM)",
    ]
    assert quota.limits == QuotaLimits(rpd=14_400, tpm=6_000)
    assert quota.adopt(seen, first, 1.0) == []
    assert quota.free_at(Demand(10, 10), 1.0) == pytest.approx(7.0), "one request a day flows in within 6 s"


def test_a_learned_limit_counts_what_passed_before_it() -> None:
    quota = Quota(QuotaLimits(), 0.0)
    held = [quota.reserve(Demand(500, 500), 0.0) for _ in range(5)]
    quota.adopt(RateLimits(tokens_per_minute=5_000), held[0], 0.5)
    assert quota.free_at(Demand(1, 0), 0.5) == pytest.approx(60.35), "a whole minute's worth has gone out"


@given(
    told=st.none() | st.integers(1, 10_000),
    seen=st.lists(st.tuples(st.integers(-5, 20_000), st.floats(0, 120)), min_size=1, max_size=20),
)
@settings(max_examples=150, deadline=None)
def test_a_limit_never_rises_above_what_was_told_or_seen(
    told: int | None, seen: list[tuple[int, float]]
) -> None:
    quota, now = Quota(QuotaLimits(tpm=told), 0.0), 0.0
    kept = math.inf if told is None else told
    for limit, pause in seen:
        now += pause
        quota.adopt(RateLimits(tokens_per_minute=limit), quota.reserve(Demand(0, 0), now), now)
        after = quota.limits.tpm or math.inf
        if limit < 1:
            assert after == int(kept) if kept < math.inf else after == math.inf, "nonsense teaches nothing"
        elif limit <= kept:
            assert after == limit
        else:
            most = min(limit, told or math.inf)
            assert int(kept) <= after <= most
            assert after <= kept + 0.2 * most + 1  # whole tokens are shown
        kept = quota.limits.tpm or math.inf


def test_a_raised_limit_is_used_step_by_step() -> None:
    quota = Quota(QuotaLimits(tpm=6_000), 0.0)
    words = []
    for now, limit in ((1.0, 1_000), (31.0, 9_000), (3600.0, 9_000), (3660.0, 9_000), (7200.0, 9_000)):
        words += quota.adopt(RateLimits(tokens_per_minute=limit), quota.reserve(Demand(0, 0), now), now)
    assert words == ["the provider allows 1,000 tokens a minute (TPM), not 6,000"]
    assert quota.limits.tpm == 1_000 + 600 + 3 * 1_200
    words = quota.adopt(RateLimits(tokens_per_minute=9_000), quota.reserve(Demand(0, 0), 9e3), 9e3)
    assert quota.limits.tpm == 6_000
    assert words == ["the provider allows 6,000 tokens a minute (TPM), not 1,000"], "once it has arrived"


@pytest.mark.parametrize(
    ("seen", "tpm"),
    [
        pytest.param(RateLimits(tokens_per_minute=0), None, id="zero"),
        pytest.param(RateLimits(tokens_per_minute=599), None, id="less than it has just let through"),
        pytest.param(RateLimits(requests=5, requests_window_s=3600), None, id="a window nobody has"),
        pytest.param(RateLimits(tokens_per_minute=600), 600, id="sense"),
    ],
)
def test_nonsense_teaches_nothing(seen: RateLimits, tpm: int | None) -> None:
    quota = Quota(QuotaLimits(), 0.0)
    reservation = quota.reserve(Demand(500, 500), 0.0)
    quota.settle(reservation, Demand(500, 100), 1.0)
    quota.adopt(seen, reservation, 1.0)
    assert quota.limits == QuotaLimits(tpm=tpm)


def test_what_the_provider_has_left_lowers_our_own_level_less_what_went_out_since() -> None:
    quota = Quota(QuotaLimits(tpm=6_000, window="bucket"), 0.0)
    first = quota.reserve(Demand(100, 0), 0.0)
    later = quota.reserve(Demand(500, 0), 0.0)
    quota.settle(first, Demand(100, 0), 1.0)
    quota.adopt(RateLimits(tokens_per_minute=6_000, tokens_left=1_000), first, 1.0)
    # 1,000 left, 500 sent since, of which 100 have flowed in again.
    assert quota.free_at(Demand(600, 0), 1.0) == 1.0
    assert quota.free_at(Demand(700, 0), 1.0) == pytest.approx(2.0)
    quota.adopt(RateLimits(tokens_per_minute=6_000, tokens_left=6_000), later, 1.0)
    assert quota.free_at(Demand(700, 0), 1.0) == pytest.approx(2.0), "it rises by what flows in, only"


def test_an_answer_to_an_older_request_than_the_newest_one_used_is_stale() -> None:
    quota = Quota(QuotaLimits(tpm=6_000, window="bucket"), 0.0)
    old, new = quota.reserve(Demand(0, 0), 0.0), quota.reserve(Demand(0, 0), 1.0)
    quota.adopt(RateLimits(tokens_per_minute=6_000, tokens_left=6_000), new, 2.0)
    assert quota.adopt(RateLimits(tokens_per_minute=10, tokens_left=0), old, 3.0) == []
    assert quota.free_at(Demand(6_000, 0), 3.0) == 3.0


@pytest.mark.parametrize("name", ["TPM", "TPD", "RPD", "RPM", "ASH", None])
def test_after_a_refusal_nothing_passes_until_then_and_the_refused_one_does(name: str | None) -> None:
    quota = Quota(QuotaLimits(tpm=6_000, tpd=100_000, rpd=1_000), 0.0)
    words = quota.refused(NamedLimit(name) if name else None, 9.5, 0.0, demand=Demand(200, 50))
    assert words == []
    assert quota.free_at(Demand(1, 0), 0.0) == 9.5
    assert quota.free_at(Demand(200, 50), 9.5) == pytest.approx(9.5)
    if name == "TPD":
        assert quota.free_at(Demand(200, 60), 9.5) == pytest.approx(9.5 + 10 * 86_400 / 100_000)


def test_runs_that_share_an_account_split_the_minute_and_the_whole_comes_back() -> None:
    quota = Quota(QuotaLimits(rpm=60, tpm=6_000, rpd=1_000), 0.0, share=0.5)
    assert quota.limits == QuotaLimits(rpm=30, tpm=3_000, rpd=1_000)
    large = Demand(4_000, 0)
    assert quota.fits(large) == "", "it would fit if this run were alone"
    at = when_free(quota, large, 0.0)
    quota.reserve(large, at)
    assert 60 < when_free(quota, large, at) < 130
    quota.set_share(1.0, 200.0)
    assert quota.limits == QuotaLimits(rpm=60, tpm=6_000, rpd=1_000)


class Refusing:
    """A provider that counts tokens over a sliding minute or in a bucket, and says what is left."""

    def __init__(self, tpm: int, kind: Literal["sliding", "bucket"]) -> None:
        self.tpm = tpm
        self.kind = kind
        self.window: deque[tuple[float, int]] = deque()
        self.level, self.at = float(tpm), 0.0

    def admit(self, tokens: int, now: float) -> int | None:
        """Return what is left, or None if the request is refused."""
        if self.kind == "bucket":
            self.level, self.at = min(self.tpm, self.level + self.tpm / 60 * (now - self.at)), now
            if self.level < tokens:
                return None
            self.level -= tokens
            return int(self.level)
        while self.window and self.window[0][0] <= now - 60:
            self.window.popleft()
        left = self.tpm - sum(amount for _, amount in self.window) - tokens
        if left < 0:
            return None
        self.window.append((now, tokens))
        return left


@pytest.mark.parametrize("kind", ["sliding", "bucket"])
@pytest.mark.parametrize("told", [True, False])
def test_a_provider_that_tells_what_is_left_is_used_to_the_full(
    kind: Literal["sliding", "bucket"], told: bool
) -> None:
    server, tpm = Refusing(60_000, kind), 60_000
    quota, now, chance = Quota(QuotaLimits(tpm=tpm if told else None), 0.0), 0.0, random.Random(1)
    out: list[tuple[float, int, QuotaReservation, int | None, Demand]] = []
    sent, used_up, refusals = 0, 0, 0
    while now < 600:
        demand = Demand(chance.randint(100, 300), chance.randint(20, 200))
        while True:
            at = quota.free_at(demand, now) if len(out) < (100 if quota.limits.tpm else 4) else math.inf
            if at == now:
                break
            if out and out[0][0] <= at:
                now, _, reservation, left, asked = heapq.heappop(out)
                quota.settle(reservation, asked, now, admitted=left is not None)
                if left is None:
                    quota.refused(NamedLimit("TPM"), 1.0, now, demand=asked)
                else:
                    quota.adopt(RateLimits(tokens_per_minute=tpm, tokens_left=left), reservation, now)
            else:
                now = at
        left = server.admit(sum(demand), now)
        sent, refusals = sent + 1, refusals + (left is None)
        used_up += sum(demand) if left is not None and now >= 120 else 0
        heapq.heappush(out, (now + chance.uniform(0.5, 4), sent, quota.reserve(demand, now), left, demand))
    assert refusals <= 0.001 * sent
    assert used_up >= 0.97 * tpm * 8
