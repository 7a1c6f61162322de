"""What the text of a 429 teaches: limits of every kind, and how much of them is used."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.limits.limit import KINDS, Demand, NamedLimit
from batcher.limits.quota import Quota, QuotaLimits
from batcher.types import RateLimits

HOUR_S = 3600.0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("RPM", "the provider allows 500 requests a minute (RPM); 480 of them are used"),
        ("RPD", "the provider allows 500 requests a day (RPD); 480 of them are used"),
        ("TPM", "the provider allows 500 tokens a minute (TPM); 480 of them are used"),
        ("TPD", "the provider allows 500 tokens a day (TPD); 480 of them are used"),
        ("ITPM", "the provider allows 500 input tokens a minute (ITPM); 480 of them are used"),
        ("OTPM", "the provider allows 500 output tokens a minute (OTPM); 480 of them are used"),
    ],
)
def test_a_lane_that_was_told_none_learns_any_limit(name: str, words: str) -> None:
    quota = Quota(QuotaLimits(), 0.0)
    quota.reserve(Demand(1, 1), 0.0)
    before = quota.reserve(Demand(50, 50), 0.0)
    named = NamedLimit(name, 500, 480, 30)
    assert quota.refused(named, 0.0, 600.0, demand=Demand(30, 30)) == [words]
    assert getattr(quota.limits, name.lower()) == 500
    assert quota.refused(named, 0.0, 600.0, demand=Demand(30, 30)) == [], "the second says nothing new"
    kind = KINDS[name]
    ten = Demand(5, 5) if name.startswith("TP") else Demand(10, 10)
    passed, now = 0, 600.0
    while quota.free_at(ten, now) == now and passed < 100:
        quota.settle(quota.reserve(ten, now), ten, now)
        passed += kind.amount(ten)
    assert passed == 20, "what is left"
    later = quota.free_at(ten, now)
    assert 0 < later - now <= kind.window_s
    quota.settle(before, Demand(10, 10), later)  # from before the limit was known


def test_the_days_tokens_are_waited_for_as_long_as_the_provider_says() -> None:
    quota = Quota(QuotaLimits(), 0.0)
    asked = Demand(3_000, 619)
    named = NamedLimit("TPD", 100_000, 97_050, 3_619)
    assert quota.refused(named, 578.016, 0.0, demand=asked) == [
        "the provider allows 100,000 tokens a day (TPD); 97,050 of them are used"
    ]
    assert quota.free_at(asked, 0.0) == 578.016
    assert quota.free_at(asked, 578.016) == pytest.approx(578.016, abs=0.1)
    quota.reserve(asked, 578.1)
    assert quota.free_at(asked, 578.1) == pytest.approx(578.1 + 3_619 * 86_400 / 100_000, abs=1)


@pytest.mark.parametrize("demand", [None, Demand(0, 0), Demand(9_000, 0)])
def test_a_wrong_estimate_of_the_refused_one_does_not_lengthen_the_wait(demand: Demand | None) -> None:
    quota = Quota(QuotaLimits(), 0.0)
    quota.refused(NamedLimit("TPD", 100_000, 97_050, 3_619), 578.016, 0.0, demand=demand)
    least = demand or Demand(3_619, 0)
    assert quota.free_at(least, 578.016) == pytest.approx(578.016, abs=0.1)


@pytest.mark.parametrize(
    ("told", "named", "kept", "words"),
    [
        (1_000, NamedLimit("TPM", 600), 600, "the provider allows 600 tokens a minute (TPM), not 1,000"),
        (1_000, NamedLimit("TPM", 2_000, 1_900, 200), 1_000, ""),
        (1_000, NamedLimit("TPM", 1_000, 990, 20), 1_000, ""),
        (1_000, NamedLimit("TPM"), 1_000, ""),
        (None, NamedLimit("TPM"), None, ""),
        (None, NamedLimit("TPM", 90, 10, 5), None, ""),
        (None, NamedLimit("TPM", 150, 10, 200), None, ""),
        (None, NamedLimit("ASH", 7_200, 7_200, 60), None, ""),
    ],
    ids=[
        "lower",
        "higher",
        "equal",
        "no number",
        "nothing told, no number",
        "less than was asked for",
        "less than the provider says was asked for",
        "what nobody counts",
    ],
)
def test_a_limit_that_was_told_is_only_lowered_and_nonsense_is_ignored(
    told: int | None, named: NamedLimit, kept: int | None, words: str
) -> None:
    quota = Quota(QuotaLimits(tpm=told), 0.0)
    assert quota.refused(named, 0.0, 0.0, demand=Demand(60, 40)) == ([words] if words else [])
    assert quota.limits == QuotaLimits(tpm=kept)
    assert quota.free_at(Demand(60, 40), 0.0) < math.inf


def test_what_the_provider_has_left_counts_where_the_limit_told_is_lower() -> None:
    quota = Quota(QuotaLimits(tpm=1_000, window="bucket"), 0.0)
    quota.refused(NamedLimit("TPM", 6_000, 5_950, 100), 0.0, 0.0, demand=Demand(100, 0))
    assert quota.free_at(Demand(50, 0), 0.0) == 0.0
    assert quota.free_at(Demand(100, 0), 0.0) == pytest.approx(50 * 60 / 1_000)


@given(used=st.integers(0, 10**12), wait_s=st.just(0.0) | st.floats(0.001, HOUR_S))
def test_a_nonsensical_debt_does_not_shut_the_lane_for_good(used: int, wait_s: float) -> None:
    quota = Quota(QuotaLimits(tpm=1_000, itpm=1_000), 0.0)
    for name in ("TPM", "ITPM", "OTPM"):
        quota.refused(NamedLimit(name, 1_000, used, 10), wait_s, 0.0, demand=Demand(10, 10))
    assert quota.free_at(Demand(10, 10), wait_s) <= wait_s + 125.0


def test_a_minute_learned_late_counts_what_was_used_before_as_it_leaves() -> None:
    quota = Quota(QuotaLimits(), 0.0)
    quota.refused(NamedLimit("OTPM", 600, 600, 10), 1.0, 300.0, demand=Demand(0, 10))
    assert quota.free_at(Demand(0, 10), 300.0) == pytest.approx(301.35), "the oldest of the minute leaves"
    quota = Quota(QuotaLimits(), 299.0)
    quota.refused(NamedLimit("OTPM", 600, 600, 10), 1.0, 300.0, demand=Demand(0, 10))
    assert quota.free_at(Demand(0, 10), 300.0) == pytest.approx(359.35, abs=0.2), "all of it is of one second"


def test_a_limit_learned_from_a_refusal_keeps_to_our_share() -> None:
    quota = Quota(QuotaLimits(), 0.0, share=0.5)
    quota.refused(NamedLimit("ITPM", 1_000, 1_000, 10), 1.0, 0.0)
    quota.refused(NamedLimit("TPD", 1_000, 1_000, 10), 1.0, 0.0)
    assert quota.limits == QuotaLimits(itpm=500, tpd=1_000)
    quota.set_share(1.0, 0.0)
    assert quota.limits == QuotaLimits(itpm=1_000, tpd=1_000)


def test_headers_are_still_understood_once_a_limit_was_learned_from_a_refusal() -> None:
    quota = Quota(QuotaLimits(), 0.0)
    early = quota.reserve(Demand(10, 10), 0.0)
    quota.refused(NamedLimit("OTPM", 1_000, 0, 10), 0.0, 0.0)
    late = quota.reserve(Demand(10, 10), 1.0)
    seen = RateLimits(tokens_per_minute=5_000, tokens_left=4_000)
    assert len(quota.adopt(seen, early, 2.0)) == 1
    assert quota.adopt(seen, late, 2.0) == []
    quota.settle(early, None, 2.0, admitted=False)
    quota.settle(late, None, 2.0, admitted=False)
    assert quota.limits == QuotaLimits(tpm=5_000, otpm=1_000)


def answered(quota: Quota, requests: int, now: float) -> None:
    for _ in range(requests):
        quota.settle(quota.reserve(Demand(10, 10), now), Demand(10, 10), now)


@pytest.mark.parametrize("name", ["RPM", "RPD"])
def test_a_limit_far_below_what_was_just_answered_is_nonsense(name: str) -> None:
    quota = Quota(QuotaLimits(rpm=600, rpd=10_000), 0.0)
    answered(quota, 21, 0.0)
    assert quota.refused(NamedLimit(name, 10, 10, 1), 2.0, 1.0, demand=Demand(10, 10)) == []
    assert quota.limits == QuotaLimits(rpm=600, rpd=10_000)
    answered(quota, 1, 3.0)
    assert quota.free_at(Demand(10, 10), 3.0) == 3.0, "nor is it believed that nothing is left"


@pytest.mark.parametrize(("name", "window_s"), [("RPM", 60.0), ("RPD", 86_400.0)])
def test_a_full_bucket_lets_through_twice_its_limit_and_what_is_long_ago_proves_nothing(
    name: str, window_s: float
) -> None:
    quota = Quota(QuotaLimits(), 0.0)
    answered(quota, 20, 0.0)
    assert len(quota.refused(NamedLimit(name, 10, 10, 1), 2.0, 1.0)) == 1
    quota = Quota(QuotaLimits(), 0.0)
    answered(quota, 21, 0.0)
    assert quota.refused(NamedLimit(name, 10, 10, 1), 2.0, 0.95 * window_s) == []
    assert len(quota.refused(NamedLimit(name, 10, 10, 1), 2.0, window_s)) == 1


def test_what_was_refused_or_is_on_its_way_proves_nothing() -> None:
    quota = Quota(QuotaLimits(), 0.0)
    for _ in range(50):
        refused = quota.reserve(Demand(1, 1), 0.0)
        quota.reserve(Demand(1, 1), 0.0)
        quota.settle(refused, None, 1.0, admitted=False)
    assert len(quota.refused(NamedLimit("RPM", 10, 10, 1), 2.0, 1.0)) == 1


def test_calls_that_end_together_count_when_they_started() -> None:
    quota = Quota(QuotaLimits(), 0.0)
    calls = [quota.reserve(Demand(1, 1), 6.0 * number) for number in range(40)]
    for call in calls:
        quota.settle(call, Demand(1, 1), 240.0)
    assert len(quota.refused(NamedLimit("RPM", 10, 10, 1), 2.0, 240.0)) == 1
