"""Ring and bucket against sums of all that ever went in: any order of spending, correcting and resizing."""

import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from state_machines import run_briefly, run_long

from batcher.limits.bucket import WINDOW_S, SlotRing, TokenBucket

SLOT_S = 0.1
starts = st.sampled_from([0.0, 1234.567, 1e6 + 0.1, 2e9 + 0.7])


class RingMachine(RuleBasedStateMachine):
    """Amounts come in, are corrected and leave; the model keeps each with its moment."""

    @initialize(start=starts, limit=st.integers(1, 300))
    def begin(self, start: float, limit: int) -> None:
        self.now = start
        self.ring = SlotRing(limit)
        self.entries: list[tuple[float, int, int]] = []  # (when, slot, amount as far as it is known)

    def held(self, window_s: float) -> int:
        return sum(amount for at, _, amount in self.entries if at > self.now - window_s)

    @rule(seconds=st.floats(0, 5) | st.floats(0, 100))
    def advance(self, seconds: float) -> None:
        self.now += seconds

    @rule(amount=st.integers(0, 100), patient=st.booleans())
    def add(self, amount: int, patient: bool) -> None:
        free_at = self.ring.free_at(amount, self.now)
        if amount > self.ring.limit:
            assert free_at == math.inf
            return
        if free_at > self.now:
            assert self.held(WINDOW_S + SLOT_S + 1e-6) + amount > self.ring.limit, "kept waiting for nothing"
            if not patient:
                return
            self.now = free_at
            assert self.ring.free_at(amount, self.now) == self.now, "the moment it named was not enough"
        self.entries.append((self.now, self.ring.add(amount, self.now), amount))
        assert self.held(60.0) <= self.ring.limit

    @precondition(lambda self: self.entries)
    @rule(which=st.integers(0, 999), amount=st.integers(0, 150))
    def correct(self, which: int, amount: int) -> None:
        index = len(self.entries) - 1 - which % len(self.entries)
        at, slot, before = self.entries[index]
        if self.now - at <= 60.0:  # between a minute and its slack the ring may have forgotten it already
            self.ring.correct(slot, amount - before, self.now)
            self.entries[index] = (at, slot, amount)
        elif self.now - at > WINDOW_S + SLOT_S + 1e-6:
            before_s = self.ring.total(self.now)
            self.ring.correct(slot, 10.0**6, self.now)
            assert self.ring.total(self.now) == before_s, "what was forgotten came back"

    @rule(limit=st.integers(1, 300))
    def resize(self, limit: int) -> None:
        self.ring.limit = limit

    @invariant()
    def it_counts_a_minute_and_its_slack(self) -> None:
        if not hasattr(self, "ring"):
            return
        total = self.ring.total(self.now)
        assert self.held(60.0) <= total + 1e-6
        assert total <= self.held(WINDOW_S + SLOT_S + 1e-6) + 1e-6


class BucketMachine(RuleBasedStateMachine):
    """Spending, giving back and time; the model is the formula, and a sum of all that was granted."""

    @initialize(start=starts, per_minute=st.integers(1, 10**6), share=st.floats(0.01, 1.0))
    def begin(self, start: float, per_minute: int, share: float) -> None:
        self.began_at = self.now = start
        self.rate, self.capacity = per_minute / 60, per_minute * share
        self.bucket = TokenBucket(self.rate, self.capacity, start)
        self.level = self.capacity
        self.granted = self.given_back = self.overdrawn = 0.0
        self.moves = 1

    @property
    def rounding(self) -> float:
        return 1e-6 * self.capacity + 4 * self.rate * math.ulp(self.now) * self.moves

    @rule(seconds=st.floats(0, 10) | st.floats(0, 1000))
    def advance(self, seconds: float) -> None:
        before, self.now = self.now, self.now + seconds
        self.level = min(self.capacity, self.level + self.rate * (self.now - before))
        self.moves += 1

    @rule(share=st.floats(0.001, 2.0))
    def take_when_it_may(self, share: float) -> None:
        amount = share * self.capacity
        for _ in range(4):
            free_at = self.bucket.free_at(amount, self.now)
            assert free_at >= self.now
            wait_s = max(0.0, (min(amount, self.capacity) - self.level) / self.rate)
            assert free_at - self.now == pytest.approx(wait_s, abs=self.rounding / self.rate + 1e-6)
            if free_at == self.now:
                break
            self.advance(free_at - self.now)
            self.now = max(self.now, free_at)
        else:
            pytest.fail(f"the timer is set again and again: {self.bucket!r}")
        self.bucket.take(amount, self.now)
        self.level -= amount
        self.granted += amount
        self.overdrawn = max(self.overdrawn, amount - self.capacity)
        paid_in = self.capacity + self.rate * (self.now - self.began_at) + self.given_back
        assert self.granted <= paid_in + self.overdrawn + self.rounding

    @rule(share=st.floats(0.0, 2.0))
    def take_regardless(self, share: float) -> None:
        self.bucket.take(share * self.capacity, self.now)
        self.level -= share * self.capacity

    @rule(share=st.floats(0.0, 2.0))
    def give_back(self, share: float) -> None:
        self.bucket.give_back(share * self.capacity, self.now)
        self.level = min(self.capacity, self.level + share * self.capacity)
        self.given_back += share * self.capacity

    @invariant()
    def its_level_is_that_of_the_formula(self) -> None:
        if hasattr(self, "bucket"):
            level = self.bucket.level(self.now)
            assert level <= self.capacity
            assert level == pytest.approx(self.level, abs=self.rounding, rel=1e-6)


@pytest.mark.parametrize("machine", [RingMachine, BucketMachine])
def test_no_more_is_granted_than_came_in(machine: type[RuleBasedStateMachine]) -> None:
    run_briefly(machine)


@pytest.mark.long
@pytest.mark.parametrize("machine", [RingMachine, BucketMachine])
def test_no_more_is_granted_in_a_hundred_thousand_steps(machine: type[RuleBasedStateMachine]) -> None:
    run_long(machine)
