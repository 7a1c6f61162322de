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
