"""The ring never lets more than its limit into any window, and neither it nor the bucket stands still."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.limits.bucket import WINDOW_S, SlotRing, TokenBucket

MINUTE_S = 60.0
SLOT_S = 0.1

# Uptimes from none to decades: the coarser the clock's floats, the more a timer's arithmetic is rounded.
starts = st.sampled_from([0.0, 0.05, 1234.567, 1e6 + 0.1, 3e7 + 1 / 3, 2e9 + 0.7])
steps = st.lists(
    st.tuples(
        st.floats(0, 40),  # seconds to go on
        st.integers(0, 100),  # amount to let in
        st.integers(0, 30),  # which earlier amount to correct
        st.integers(0, 150),  # what it becomes
    ),
    max_size=40,
)


class Minute:
    """The naive model: everything ever let in, summed up anew for each question."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, int]] = []

    def total(self, now: float, window_s: float) -> int:
        return sum(amount for at, amount in self.entries if at > now - window_s)


@given(start=starts, steps=steps, limit=st.integers(1, 300))
@settings(max_examples=200, deadline=None)
def test_no_window_of_a_minute_holds_more_than_the_limit(
    start: float, steps: list[tuple[float, int, int, int]], limit: int
) -> None:
    ring, minute, slots = SlotRing(limit), Minute(), list[int]()
    now = start
    for pause, amount, which, corrected in steps:
        now += pause
        at = ring.free_at(amount, now)
        if amount > limit:
            assert math.isinf(at)
        elif at == now:
            assert minute.total(now, MINUTE_S) + amount <= limit
        else:
            assert now < at <= now + WINDOW_S + SLOT_S + 1e-6
            assert minute.total(now, WINDOW_S + SLOT_S + 1e-6) + amount > limit, "kept waiting for nothing"
            assert ring.free_at(amount, at) == at, "the moment it named was not enough"
            now = at
        if amount <= limit:
            slots.append(ring.add(amount, now))
            minute.entries.append((now, amount))
        if which < len(slots):
            counted_at, counted = minute.entries[which]
            ring.correct(slots[which], corrected - counted, now)
            # Between a minute and its slack the ring may have forgotten the slot already, or not.
            certain = now - counted_at <= MINUTE_S
            minute.entries[which] = (counted_at, corrected if certain else max(counted, corrected))


def test_an_amount_counts_for_a_minute_and_its_slack() -> None:
    ring = SlotRing(10)
    ring.add(10, 100.0)
    assert ring.free_at(1, 160.2) == pytest.approx(160.35)
    assert ring.total(160.34) == 10
    assert ring.total(160.36) == 0
    assert repr(ring) == "<SlotRing 0 of 10>"


@pytest.mark.parametrize(
    ("delta", "amount", "free_at"),
    [
        pytest.param(-4, 6, 101.0, id="a refund lets the next one in at once"),
        pytest.param(0, 6, 160.35, id="nothing corrected, nothing gained"),
        pytest.param(6, 1, 160.35, id="a debt holds until the amount that made it has left"),
        pytest.param(6, 8, 161.35, id="and longer for more than it leaves behind"),
    ],
)
def test_a_correction_counts_where_the_amount_was_let_in(delta: int, amount: int, free_at: float) -> None:
    ring = SlotRing(10)
    first = ring.add(5, 100.0)
    ring.add(3, 101.0)
    ring.correct(first, delta, 101.0)
    assert ring.free_at(amount, 101.0) == pytest.approx(free_at)


def test_a_correction_of_a_forgotten_slot_changes_nothing() -> None:
    ring = SlotRing(10)
    slot = ring.add(10, 0.0)
    ring.add(2, 100.0)
    ring.correct(slot, 1000, 100.0)
    assert ring.total(100.0) == 2


@given(
    start=starts,
    per_minute=st.integers(1, 10_000_000),
    share=st.floats(0.001, 1.0),
    demands=st.lists(st.tuples(st.integers(1, 10_000_000), st.floats(0, 30)), min_size=1, max_size=30),
)
@settings(max_examples=200, deadline=None)
def test_a_bucket_spends_at_its_rate_and_never_sets_an_endless_timer(
    start: float, per_minute: int, share: float, demands: list[tuple[int, float]]
) -> None:
    rate, capacity = per_minute / MINUTE_S, per_minute * share
    bucket = TokenBucket(rate, capacity, start)
    now, spent, largest = start, 0, 0
    for amount, pause in demands:
        now += pause
        for _ in range(4):
            at = bucket.free_at(amount, now)
            assert at >= now
            if at == now:
                break
            now = at
        else:
            pytest.fail(f"the timer is set again and again: {bucket!r}")
        # What is spent lies within what flowed in, and what one large amount may leave as debt.
        largest = max(largest, amount)
        rounding = 1e-6 * capacity + rate * 4 * math.ulp(now) * len(demands)
        assert spent <= capacity + rate * (now - start) + max(0, largest - capacity) + rounding
        bucket.take(amount, now)
        spent += amount
    assert bucket.level(now + 1e9) == capacity


def test_a_bucket_gives_back_no_more_than_it_holds() -> None:
    bucket = TokenBucket(1.0, 10.0, 0.0)
    bucket.take(4, 0.0)
    bucket.give_back(100, 0.0)
    assert bucket.level(0.0) == 10.0
    bucket.give_back(-15, 0.0)
    assert bucket.free_at(10, 0.0) == 15.0
    assert repr(bucket) == "<TokenBucket -5 of 10, 1/s>"


def test_a_share_of_one_request_lets_it_through() -> None:
    ring = SlotRing(49)
    ring.rescale(1 / 49, 1)
    assert ring.free_at(1, 0.0) == 0.0


@pytest.mark.parametrize("limit", [10, 14, 28, 31, 34, 59])
def test_shares_that_come_back_cost_no_request_by_rounding(limit: int) -> None:
    ring = SlotRing(limit)
    for second in range(limit - 1):
        ring.add(1, second)
    for share in (limit / 3, limit / 4, limit):
        ring.rescale(share / ring.limit, share)
    assert ring.free_at(1, 59.0) == 59.0
