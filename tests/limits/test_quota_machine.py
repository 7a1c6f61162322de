"""A quota in any order of calls, answers, headers, refusals and shares: never more granted than allowed."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from state_machines import run_briefly, run_long

from batcher.limits.limit import KINDS, MINUTE_S, Demand, NamedLimit
from batcher.limits.quota import Quota, QuotaLimits, QuotaReservation
from batcher.types import RateLimits

NAMES = list(KINDS)
RINGS = ("TPM", "ITPM", "OTPM")
small = st.none() | st.integers(50, 3_000)


@dataclass
class Call:
    """One attempt: when it was let through, what it cost as far as that is known, and our part of that.

    Others who have the rest of a limit answer for the rest of what was spent before.
    """

    number: int
    at: float
    cost: Demand
    reservation: QuotaReservation
    ours: float = 1.0


class QuotaMachine(RuleBasedStateMachine):
    """Attempts of one route; the model keeps every attempt with its cost and sums them up anew."""

    @initialize(
        start=st.sampled_from([0.0, 1234.567, 1e6 + 0.1]),
        told=st.fixed_dictionaries({name.lower(): small for name in NAMES}),
        bucket=st.booleans(),
    )
    def begin(self, start: float, told: dict[str, int | None], bucket: bool) -> None:
        self.began_at = self.now = start
        self.told = {name: told[name.lower()] for name in NAMES}
        self.evenly = not bucket
        limits = QuotaLimits(**told, window="bucket" if bucket else "any")
        self.quota = Quota(limits, start)
        self.share = 1.0
        self.was_shared = False
        self.calls: list[Call] = []
        self.out: list[Call] = []
        self.newest_used = -math.inf
        self.nothing_before = -math.inf
        self.made = 0
        self.known_since = {name: (0, start) for name in NAMES if self.told[name]}  # (calls made, when)
        self.largest = {name: float(limit) for name, limit in self.told.items() if limit}

    def size(self, name: str) -> float:
        size = getattr(self.quota.limits, name.lower())
        return math.inf if size is None else size + 1  # whole ones are shown

    def whole(self, name: str, size: float) -> float:
        """Return the limit of which `size` is our share."""
        return size / self.share if KINDS[name].window_s == MINUTE_S else size

    def charged(self, name: str, *, after: int) -> int:
        amount = KINDS[name].amount
        return sum(amount(call.cost) for call in self.calls if call.number > after)

    def ours_lately(self, name: str, *, after: int) -> float:
        amount = KINDS[name].amount
        since = self.now - MINUTE_S
        lately = (call for call in self.calls if call.number > after and call.at > since)
        return sum(amount(call.cost) * call.ours for call in lately)

    def note_limits(self) -> None:
        """Remember since when each limit is known, and the most that it ever was."""
        for name in NAMES:
            if (size := self.size(name)) < math.inf:
                self.known_since.setdefault(name, (self.made, self.now))
                self.largest[name] = max(self.largest.get(name, 0.0), self.whole(name, size))

    @rule(seconds=st.floats(0, 2) | st.floats(0, 90) | st.floats(0, 90_000))
    def advance(self, seconds: float) -> None:
        self.now += seconds

    @rule(sizes=st.tuples(st.integers(0, 400), st.integers(0, 400)), count=st.integers(1, 8))
    def call_when_it_may(self, sizes: tuple[int, int], count: int) -> None:
        demand = Demand(*sizes)
        if self.quota.fits(demand):
            least = {name: self.whole(name, self.size(name) - 1) for name in NAMES}
            too_much = [name for name in NAMES if KINDS[name].amount(demand) > least[name] - 1e-6]
            assert too_much, "it says that something does not fit that does"
            return
        for _ in range(count):
            self.wait_for(demand)
            before = {
                name: self.ours_lately(name, after=self.known_since[name][0])
                for name in RINGS
                if name in self.known_since
            }
            self.made += 1
            call = Call(self.made, self.now, demand, self.quota.reserve(demand, self.now))
            self.calls.append(call)
            self.out.append(call)
            self.check_grant(call, before)

    def wait_for(self, demand: Demand) -> None:
        for _ in range(60):
            free_at = self.quota.free_at(demand, self.now)
            assert self.now <= free_at < math.inf
            assert free_at >= self.nothing_before
            if free_at == self.now:
                return
            self.now = free_at
        pytest.fail(f"the timer is set again and again: {self.quota!r}")

    def check_grant(self, call: Call, before: dict[str, float]) -> None:
        for name, (number, since) in self.known_since.items():
            kind, limit = KINDS[name], self.size(name)
            amount = kind.amount(call.cost)
            if name in RINGS and self.evenly:
                if amount <= limit:
                    assert before[name] + amount <= limit + 1e-6, f"{name}: more than allowed in a minute"
                elif self.share < 1:
                    assert before[name] <= 1, f"{name}: what is above our share passes alone"
            # No more than a full bucket and what has flowed in since, and where what is above our share
            # may pass alone, once that.
            whole = self.largest[name]
            at_once = 2 * whole if self.was_shared else whole
            flowed_in = whole * (self.now - since) / kind.window_s
            assert self.charged(name, after=number) <= at_once + flowed_in + 1

    def settled(self, which: int, cost: Demand | None, *, admitted: bool) -> Call:
        call = self.out.pop(which % len(self.out))
        self.quota.settle(call.reservation, cost, self.now, admitted=admitted)
        if not admitted:
            cost = Demand(0, 0)
            self.calls.remove(call)
        call.cost = cost or call.cost
        return call

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 99), used=st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1.2)))
    def answer(self, which: int, used: tuple[float, float] | None) -> None:
        reserved = self.out[which % len(self.out)].cost
        cost = Demand(int(reserved[0] * used[0]), int(reserved[1] * used[1])) if used else None
        self.settled(which, cost, admitted=True)

    @precondition(lambda self: self.out)
    @rule(
        which=st.integers(0, 99),
        tokens=st.none() | st.integers(-5, 4_000),
        left=st.none() | st.floats(-0.1, 1.0),
        window_s=st.sampled_from([60.0, 86_400.0, 3_600.0]),
        requests=st.none() | st.integers(0, 2_000),
    )
    def answer_with_headers(
        self, which: int, tokens: int | None, left: float | None, window_s: float, requests: int | None
    ) -> None:
        call = self.settled(which, None, admitted=True)
        looks, before = repr(self.quota), self.quota.limits
        seen = RateLimits(
            requests=requests,
            requests_window_s=window_s,
            requests_left=None if left is None or requests is None else int(left * requests),
            tokens_per_minute=tokens,
            tokens_left=None if left is None or tokens is None else int(left * tokens),
        )
        words = self.quota.adopt(seen, call.reservation, self.now)
        if call.at < self.newest_used:
            assert repr(self.quota) == looks, "a stale answer changed something"
            assert words == []
        self.newest_used = max(self.newest_used, call.at)
        after = self.quota.limits
        assert (after.tpd, after.itpm, after.otpm) == (before.tpd, before.itpm, before.otpm)
        self.note_limits()

    @precondition(lambda self: self.out)
    @rule(
        which=st.integers(0, 99),
        name=st.none() | st.sampled_from([*NAMES, "ASH"]),
        limit=st.none() | st.integers(0, 4_000),
        used=st.none() | st.integers(0, 5_000),
        wait_s=st.just(0.0) | st.floats(0.001, 100),
    )
    def refuse(
        self, which: int, name: str | None, limit: int | None, used: int | None, wait_s: float
    ) -> None:
        demand = self.out[which % len(self.out)].cost
        self.settled(which, None, admitted=False)
        before = self.quota.limits
        named = None if name is None else NamedLimit(name, limit, used, None)
        words = self.quota.refused(named, wait_s, self.now, demand=demand)
        self.nothing_before = max(self.nothing_before, self.now + wait_s)
        after = self.quota.limits
        for other in NAMES:
            if other != name:
                assert getattr(before, other.lower()) == getattr(after, other.lower())
        assert not words or before != after
        self.note_limits()

    @rule(share=st.sampled_from([0.25, 0.5, 1.0]))
    def keep_to_a_share(self, share: float) -> None:
        self.quota.set_share(share, self.now)
        for call in self.calls:
            call.ours *= share / self.share
        self.share = share
        self.was_shared |= share < 1

    @rule(requests=st.integers(0, 50), tokens=st.integers(0, 3_000))
    def others_use_some_of_the_day(self, requests: int, tokens: int) -> None:
        self.quota.day_used(requests, tokens, self.now)

    @invariant()
    def what_was_told_is_never_exceeded(self) -> None:
        if hasattr(self, "quota"):
            for name, told in self.told.items():
                kept = getattr(self.quota.limits, name.lower())
                assert told is None or kept <= told

    def teardown(self) -> None:
        """Once all have ended and ages have passed, a full limit may pass at once: nothing is lost."""
        if not hasattr(self, "quota"):
            return
        while self.out:
            self.settled(0, None, admitted=False)
        self.quota.set_share(1.0, self.now)
        self.now = max(self.now, self.nothing_before) + 1e9
        sizes = [self.size(name) - 1 for name in ("TPM", "TPD", "ITPM")]
        most = Demand(int(min([*sizes, 10.0**6])), 0)
        assert self.quota.fits(most) == ""
        assert self.quota.free_at(most, self.now) == self.now


def test_a_quota_grants_no_more_than_is_allowed() -> None:
    run_briefly(QuotaMachine)


@pytest.mark.long
def test_a_quota_grants_no_more_than_is_allowed_in_a_hundred_thousand_steps() -> None:
    run_long(QuotaMachine)
