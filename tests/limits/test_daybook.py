from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.limits.daybook import SLOT_S, Counts, Spent, added, count, day_use, merged, slot_of
from batcher.limits.limit import DAY_S

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MODEL = "openai/gpt-oss-20b"
SLOTS_A_DAY = 96

slots = st.integers(0, 3 * SLOTS_A_DAY)
books = st.dictionaries(
    st.sampled_from(["a", "b"]),
    st.dictionaries(slots, st.builds(Spent, st.integers(0, 100), st.integers(0, 1000)), max_size=8),
)


def used(requests: int, tokens: int, at: datetime = NOON) -> Counts:
    return {MODEL: {slot_of(at): Spent(requests, tokens)}}


def seen(counts: Counts, now: datetime) -> Counts:
    return merged(counts, {}, slot_of(now))


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (timedelta(hours=11, minutes=59), (1, 10)),
        (timedelta(hours=12), (0, 0)),
        (timedelta(days=400), (0, 0)),
        (timedelta(hours=-3), (1, 10)),
        (timedelta(days=-400), (1, 10)),
    ],
    ids=["same day", "midnight", "far ahead", "set back", "set far back"],
)
def test_the_calendar_day_ends_at_midnight_utc_and_the_future_counts_as_now(
    later: timedelta, expected: tuple[int, int]
) -> None:
    use = day_use(seen(used(1, 10), NOON + later).get(MODEL, {}), NOON + later)
    assert (use.requests, use.tokens) == expected


def test_use_from_the_future_ages_from_the_moment_the_clock_was_set_back() -> None:
    counts = seen(used(100, 0, NOON + timedelta(days=3650)), NOON)
    levels = []
    for hours in (0, 12, 25):
        now = NOON + timedelta(hours=hours)
        levels.append(day_use(seen(counts, now)[MODEL], now).requests_level(100))
    assert levels == [100, pytest.approx(50, abs=2), 0]


def test_what_is_older_than_two_days_is_forgotten() -> None:
    assert seen(used(1, 10), NOON + timedelta(hours=47)) == used(1, 10)
    assert seen(used(1, 10), NOON + timedelta(hours=49)) == {}


def test_growth_is_that_of_the_others_by_model() -> None:
    before = {"a": {10: Spent(1, 10)}, "b": {10: Spent(1, 10)}}
    after = {"a": {10: Spent(3, 10), 11: Spent(1, 5)}, "b": {10: Spent(1, 10)}, "c": {11: Spent(0, 7)}}
    assert added(before, after, 11) == {"a": (3, 5), "c": (0, 7)}


def test_slots_that_leave_hide_no_growth() -> None:
    before = {"a": {10: Spent(100, 0)}}
    assert added(before, {"a": {250: Spent(1, 0)}}, 250) == {"a": (1, 0)}


@given(before=books, more=books, then=slots, now=slots)
def test_growth_is_never_negative_nor_more_than_what_came(
    before: Counts, more: Counts, then: int, now: int
) -> None:
    # `then`: when another run wrote, by a clock that may have been set since.
    growth = added(before, merged(before, more, then), now)
    for model, spent in growth.items():
        assert 0 <= spent.requests <= sum(each.requests for each in more[model].values())
        assert 0 <= spent.tokens <= sum(each.tokens for each in more[model].values())
    assert added(before, merged(before, {}, then), now) == {}


@given(before=books, more=books, now=slots)
def test_growth_is_all_that_came_and_still_counts(before: Counts, more: Counts, now: int) -> None:
    totals = {
        model: tuple(map(sum, zip(*slots.values(), strict=True)))
        for model, slots in merged(more, {}, now).items()
    }
    expected = {model: total for model, total in totals.items() if any(total)}
    assert added(before, merged(before, more, now), now) == expected


@given(
    spends=st.lists(st.tuples(st.integers(0, int(DAY_S) - 1), st.integers(0, 1000)), max_size=30),
    limit=st.integers(1, 10_000),
)
def test_the_level_is_that_of_a_bucket_and_never_too_low(spends: list[tuple[int, int]], limit: int) -> None:
    counts: Counts = {}
    now = NOON + timedelta(seconds=DAY_S)
    exact = at = 0.0
    for second, tokens in sorted(spends):
        count(counts, MODEL, slot_of(NOON + timedelta(seconds=second)), Spent(1, tokens))
        exact = min(limit, max(0.0, exact - limit / DAY_S * (second - at)) + tokens)
        at = second
    exact = max(0.0, exact - limit / DAY_S * (DAY_S - at))
    level = day_use(counts.get(MODEL, {}), now).tokens_level(limit)
    assert exact - 1e-6 <= level <= exact + limit * SLOT_S / DAY_S + 1e-6


def test_use_by_a_higher_limit_is_no_debt_of_many_days() -> None:
    counts = used(10_000, 10**9, NOON - timedelta(hours=1))
    use = day_use(seen(counts, NOON)[MODEL], NOON)
    assert use.requests_level(1_000) == pytest.approx(1_000 * 23 / 24, rel=0.02)
    assert use.tokens_level(100_000) == pytest.approx(100_000 * 23 / 24, rel=0.02)
