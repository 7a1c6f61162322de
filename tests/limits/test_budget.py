"""A budget is never exceeded by what is spent and reserved."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from batcher.limits.budget import ROUNDING_USD, Budget


def test_what_was_spent_before_counts() -> None:
    budget = Budget(10.0, spent_usd=9.0)
    assert budget.fits(1.0)
    assert not budget.fits(1.01)
    assert repr(budget) == "<Budget $9.0000 + $0.0000 of $10>"


def test_a_call_that_costs_less_gives_the_rest_back() -> None:
    budget = Budget(10.0)
    budget.reserve(6.0)
    assert not budget.fits(5.0)
    assert not budget.idle
    budget.settle(6.0, 1.5)
    assert budget.fits(8.5)
    assert budget.idle
    assert budget.spent_usd == 1.5


def test_the_words_name_the_cheapest_call_that_was_turned_down() -> None:
    budget = Budget(1.0, spent_usd=0.999)
    budget.turn_down(3.0)
    budget.turn_down(2.0)
    budget.turn_down(2.5)
    spent = "the cost budget of $1 is reached: $0.9990 are spent"
    assert budget.reached == f"{spent}, and the next call may cost $2.00: raise --max-cost to go on"
    budget.turn_down(0.00125)
    assert "may cost $0.001250:" in budget.reached


def test_what_can_fit_needs_what_is_in_flight_to_be_free() -> None:
    budget = Budget(10.0, spent_usd=5.0)
    budget.reserve(4.0)
    assert not budget.fits(5.0)
    assert budget.can_fit(5.0)
    assert not budget.can_fit(5.01)


class BudgetMachine(RuleBasedStateMachine):
    """Calls that cost at most what was reserved for them."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(100.0)
        self.out: list[float] = []
        self.cost = 0.0

    @rule(amount=st.floats(0.0, 40.0))
    def start(self, amount: float) -> None:
        if self.budget.fits(amount):
            self.budget.reserve(amount)
            self.out.append(amount)

    @precondition(lambda self: self.out)
    @rule(share=st.floats(0.0, 1.0), data=st.data())
    def end(self, share: float, data: st.DataObject) -> None:
        amount = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        self.budget.settle(amount, amount * share)
        self.cost += amount * share

    @invariant()
    def the_limit_holds(self) -> None:
        assert self.cost + sum(self.out) <= 100.0 + 1e-9 + ROUNDING_USD
        assert self.budget.spent_usd == pytest.approx(self.cost)
        assert self.budget.reserved_usd == pytest.approx(sum(self.out), abs=1e-9)
        assert self.budget.idle == (not self.out)


TestBudget = BudgetMachine.TestCase
TestBudget.settings = settings(max_examples=50, stateful_step_count=40)
