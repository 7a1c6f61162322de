"""Concurrency in any order of starts and ends: in its bounds, one cut an episode, growth only when in use."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from state_machines import run_briefly, run_long

from batcher.limits.aimd import AdaptiveConcurrency, Grant
from batcher.types import Outcome


class ConcurrencyMachine(RuleBasedStateMachine):
    """Calls start while they may and end in any order; a model knows of cuts and of what was in use."""

    @initialize(ceiling=st.integers(1, 64), start=st.integers(1, 80))
    def begin(self, ceiling: int, start: int) -> None:
        self.ceiling = ceiling
        self.concurrency = AdaptiveConcurrency(ceiling, start=start)
        self.now = 100.0
        self.out: list[tuple[int, Grant]] = []  # (cuts before it started, grant)
        self.cuts = 0
        self.most_in_use = 0  # since the limit changed last

    @rule(seconds=st.floats(0, 60))
    def advance(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: len(self.out) < self.concurrency.limit)
    @rule(count=st.integers(1, 64))
    def start_while_it_may(self, count: int) -> None:
        for _ in range(min(count, self.concurrency.limit - len(self.out))):
            self.out.append((self.cuts, self.concurrency.granted(self.now)))

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 99), outcome=st.sampled_from(list(Outcome)))
    def end(self, which: int, outcome: Outcome) -> None:
        before, in_flight = self.concurrency.limit, len(self.out)
        started, grant = self.out.pop(which % in_flight)
        number = self.concurrency.granted(self.now).number
        self.concurrency.settled(grant, outcome, in_flight, self.now)
        after = self.concurrency.limit
        self.most_in_use = max(self.most_in_use, in_flight)
        stale = started < self.cuts
        if stale or outcome is Outcome.IGNORED:
            assert after == before, "what says nothing changed something"
        elif outcome is Outcome.OVERLOADED:
            assert after == max(1, int(0.7 * before))
            self.cuts += 1
        elif outcome is Outcome.FAILED:
            assert after in (before, max(1, int(0.7 * before)))
            self.cuts += self.concurrency.granted(self.now).number > number  # also where it is 1 already
        if after > before:
            assert outcome is Outcome.SUCCESS
            assert after <= 2 * before
            assert self.most_in_use >= 0.8 * before, "it grew unused"
        if after != before:
            self.most_in_use = 0

    @precondition(lambda self: not self.out)
    @rule(share=st.floats(0.1, 1.0), latency_s=st.floats(0.1, 5), outcome=st.sampled_from(list(Outcome)))
    def round_trips(self, share: float, latency_s: float, outcome: Outcome) -> None:
        """Keep a share of the limit in use for a few good round trips, then end one of them as `outcome`."""
        for trip in range(4):
            self.start_while_it_may(max(1, int(share * self.concurrency.limit)))
            self.now += latency_s
            if trip == 3:
                self.end(0, outcome)
            while self.out:
                self.end(0, Outcome.SUCCESS)

    @invariant()
    def it_stays_in_its_bounds(self) -> None:
        if hasattr(self, "concurrency"):
            assert 1 <= self.concurrency.limit <= self.ceiling


def test_concurrency_keeps_its_rules_in_any_order_of_ends() -> None:
    run_briefly(ConcurrencyMachine)


@pytest.mark.long
def test_concurrency_keeps_its_rules_in_a_hundred_thousand_steps() -> None:
    run_long(ConcurrencyMachine)
