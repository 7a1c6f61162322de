"""The retry budget: full at the start, never above that, and an empty one only delays."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from state_machines import run_briefly, run_long

from batcher.limits.retry_budget import RetryBudget


class BudgetMachine(RuleBasedStateMachine):
    """Retries, successes and time, against a sum of all that ever came in and went out."""

    def __init__(self) -> None:
        super().__init__()
        self.began_at = self.now = 1e6 + 0.3
        self.budget = RetryBudget(self.now)
        self.level = 100.0
        self.paid = self.successes = 0

    @rule(seconds=st.floats(0, 60))
    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.level = min(100.0, self.level + 5.0 * seconds)

    @rule(count=st.integers(1, 60))
    def spend_while_it_may(self, count: int) -> None:
        for _ in range(count):
            if self.budget.free_at(self.now) > self.now:
                return
            self.budget.spend(self.now)
            self.level -= 2.0
            self.paid += 1

    @rule()
    def spend_as_a_lane_with_nothing_else_in_flight(self) -> None:
        self.budget.spend(self.now)
        self.level -= 2.0

    @rule()
    def succeed(self) -> None:
        self.budget.succeeded(self.now)
        self.level = min(100.0, self.level + 1.0)
        self.successes += 1

    @precondition(lambda self: self.budget.free_at(self.now) > self.now)
    @rule()
    def advance_to_the_moment_it_names(self) -> None:
        free_at = self.budget.free_at(self.now)
        self.level += 5.0 * (free_at - self.now)
        self.now = free_at
        assert self.budget.free_at(self.now) == pytest.approx(self.now, abs=1e-6)

    @invariant()
    def it_names_the_moment_at_which_a_retry_is_paid(self) -> None:
        wait_s = max(0.0, (2.0 - self.level) / 5.0)
        assert self.budget.free_at(self.now) == pytest.approx(self.now + wait_s, abs=1e-6)

    @invariant()
    def no_more_is_granted_than_was_paid_in(self) -> None:
        paid_in = 100.0 + 5.0 * (self.now - self.began_at) + self.successes
        assert 2.0 * self.paid <= paid_in + 1e-6


def test_retries_are_paid_by_time_and_successes() -> None:
    run_briefly(BudgetMachine)


@pytest.mark.long
def test_retries_are_paid_in_a_hundred_thousand_steps() -> None:
    run_long(BudgetMachine)


def retries(budget: RetryBudget, now: float) -> int:
    made = 0
    while budget.free_at(now) == now:
        budget.spend(now)
        made += 1
    return made


def test_an_outage_meets_fifty_retries_and_then_five_in_two_seconds() -> None:
    budget = RetryBudget(0.0)
    assert retries(budget, 0.0) == 50
    assert budget.free_at(0.0) == pytest.approx(0.4)
    assert retries(budget, 2.0) == 5
    assert repr(budget) == "<RetryBudget 0 of 100>"


def test_successes_pay_for_retries_and_are_not_hoarded() -> None:
    budget = RetryBudget(0.0)
    for _ in range(1000):
        budget.succeeded(0.0)
    assert retries(budget, 0.0) == 50
    for _ in range(10):
        budget.succeeded(0.0)
    assert retries(budget, 0.0) == 5
    assert retries(budget, 1e6) == 50
