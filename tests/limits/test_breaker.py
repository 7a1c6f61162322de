"""The breaker lets nothing through while it is open, probes with care, and always finds its way back."""

import math
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from state_machines import run_briefly, run_long

from batcher.limits.breaker import BreakerPolicy, Circuit, CircuitBreaker, Ticket
from batcher.types import Outcome

S, O, F, I = Outcome.SUCCESS, Outcome.OVERLOADED, Outcome.FAILED, Outcome.IGNORED  # noqa: E741 - a table's columns
POLICY = BreakerPolicy()


def breaker(policy: BreakerPolicy = POLICY) -> CircuitBreaker:
    return CircuitBreaker(policy, random=lambda: 0.5)  # waits exactly first_wait_s * 2^k


@dataclass
class Out:
    """An attempt under way, and the era of the breaker in which it was let through."""

    ticket: Ticket
    era: int


class BreakerMachine(RuleBasedStateMachine):
    """Attempts start, end late or never, and time passes; a model of a few numbers keeps watch."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = BreakerPolicy(
            failures_in_a_row=3, minimum_volume=6, successes_to_close=4, probe_timeout_s=20.0
        )
        self.breaker = CircuitBreaker(self.policy, random=Random(1).random)
        self.now = 1000.5
        self.out: list[Out] = []
        self.era = 0
        self.openings = 0
        self.successes = 0
        self.heard_at = 0.0
        self.open_since: float | None = None
        self.open_from = self.open_to = 0.0

    @property
    def probes_out(self) -> int:
        return sum(attempt.era == self.era for attempt in self.out)

    @property
    def lost_at(self) -> float:
        timeout_s = self.policy.probe_timeout_s * 2.0 ** max(0, min(16, self.openings) - 1)
        return self.heard_at + min(self.policy.longest_wait_s, timeout_s)

    def follow(self, before: Circuit, *, wait_s: float = 0.0) -> None:
        """Keep the model in step with a change of state, and check that it is a legal one."""
        after = self.breaker.state
        if after is before:
            return
        self.era += 1
        self.successes = 0
        if after is Circuit.OPEN:
            wait = min(self.policy.longest_wait_s, self.policy.first_wait_s * 2**self.openings)
            asked_s = min(wait_s, self.policy.longest_wait_s)
            self.open_from = self.now + max(asked_s, 0.8 * wait)
            self.open_to = self.now + max(asked_s, 1.2 * wait)
            self.openings += 1
            if before is Circuit.CLOSED:
                self.open_since = self.now
        elif after is Circuit.HALF_OPEN:
            assert before is Circuit.OPEN
        else:
            assert before is Circuit.HALF_OPEN
            self.openings = max(0, min(16, self.openings) - 1)
            self.open_since = None

    @rule(seconds=st.floats(0, 400))
    def advance(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def advance_to_the_moment_it_names(self) -> None:
        free_at = self.breaker.free_at(self.now)
        if free_at < math.inf:
            self.now = free_at

    @precondition(lambda self: self.breaker.free_at(self.now) == self.now)
    @rule()
    def grant(self) -> None:
        before = self.breaker.state
        if before is Circuit.HALF_OPEN and self.probes_out == 1 + self.successes:
            assert self.now >= self.lost_at
            self.era, self.openings, self.successes = self.era + 1, self.openings + 1, 0
        ticket = self.breaker.grant(self.now)
        self.follow(before)
        if ticket.probe and not self.probes_out:
            self.heard_at = self.now
        assert self.breaker.state is not Circuit.OPEN
        assert ticket.probe == (self.breaker.state is Circuit.HALF_OPEN)
        self.out.append(Out(ticket, self.era))

    @precondition(lambda self: self.out)
    @rule(
        which=st.integers(0, 99), outcome=st.sampled_from([S, O, F, F, I]), wait_s=st.sampled_from([0, 700])
    )
    def settle(self, which: int, outcome: Outcome, wait_s: float) -> None:
        attempt = self.out.pop(which % len(self.out))
        before, looks = self.breaker.state, repr(self.breaker)
        self.breaker.settle(attempt.ticket, outcome, self.now, wait_s=wait_s)
        if attempt.era != self.era:
            assert repr(self.breaker) == looks, "a late answer changed something"
            return
        self.successes += attempt.ticket.probe and outcome in {S, O}
        self.heard_at = self.now
        if attempt.ticket.probe and outcome is F:
            assert self.breaker.state is Circuit.OPEN
        if outcome is not F:
            assert self.breaker.state in {before, Circuit.CLOSED}
        self.follow(before, wait_s=wait_s)

    @invariant()
    def nothing_passes_before_its_time(self) -> None:
        free_at = self.breaker.free_at(self.now)
        assert free_at >= self.now
        if self.breaker.state is Circuit.OPEN:
            assert free_at >= self.open_from - 1e-9
            assert free_at <= max(self.now, self.open_to + 1e-9)

    @invariant()
    def probes_come_one_by_one_at_first(self) -> None:
        if self.breaker.state is not Circuit.HALF_OPEN:
            return
        most = 1 + self.successes
        assert self.probes_out <= most
        free_at = self.now if self.probes_out < most else max(self.now, self.lost_at)
        assert self.breaker.free_at(self.now) == pytest.approx(free_at)

    @invariant()
    def it_remembers_since_when_it_has_not_been_closed(self) -> None:
        assert self.breaker.open_since == self.open_since
        assert (self.open_since is None) == (self.breaker.state is Circuit.CLOSED)

    def teardown(self) -> None:
        """Whatever has happened: once the provider answers, all is well after a few calls."""
        for attempt in self.out:
            before = self.breaker.state
            self.breaker.settle(attempt.ticket, I, self.now)
            assert self.breaker.state is before
        for _ in range(self.policy.successes_to_close):
            self.now = self.breaker.free_at(self.now)
            assert self.now < math.inf
            self.breaker.settle(self.breaker.grant(self.now), S, self.now)
        assert self.breaker.state is Circuit.CLOSED


def test_only_probes_pass_until_the_provider_answers_again() -> None:
    run_briefly(BreakerMachine)


@pytest.mark.long
def test_only_probes_pass_in_a_hundred_thousand_steps() -> None:
    run_long(BreakerMachine)


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        pytest.param([F] * 9, Circuit.CLOSED, id="nine in a row"),
        pytest.param([F] * 10, Circuit.OPEN, id="ten in a row"),
        pytest.param([F] * 9 + [S] + [F] * 9, Circuit.CLOSED, id="a success between, few attempts"),
        pytest.param([S, F] * 10, Circuit.OPEN, id="half of twenty"),
        pytest.param([F] * 9 + [S] * 4 + [F] * 6 + [S], Circuit.CLOSED, id="more than half, but it answers"),
        pytest.param([F] * 9 + [S] * 4 + [F] * 6 + [S, F], Circuit.OPEN, id="and now it fails again"),
        pytest.param([S, S, F] * 20, Circuit.CLOSED, id="a third of many"),
        pytest.param(
            [S, F] * 9 + [O] * 9 + [I] * 9, Circuit.CLOSED, id="429s and faults of ours say nothing"
        ),
        pytest.param([O] * 100, Circuit.CLOSED, id="nothing but 429s"),
    ],
)
def test_what_opens_a_circuit(outcomes: list[Outcome], state: Circuit) -> None:
    circuit = breaker()
    for outcome in outcomes:
        assert circuit.free_at(5.0) == 5.0
        circuit.settle(circuit.grant(5.0), outcome, 5.0)
    assert circuit.state is state


def test_failures_older_than_the_window_are_forgotten() -> None:
    circuit = breaker()
    for number in range(100):
        now = number * 7.0  # at most 9 attempts in any minute
        circuit.settle(circuit.grant(now), F if number % 2 else S, now)
    assert circuit.state is Circuit.CLOSED
    assert repr(circuit) == "<CircuitBreaker closed 5/9 probes=0>"


def fail_open(circuit: CircuitBreaker, now: float) -> None:
    for _ in range(POLICY.failures_in_a_row):
        circuit.settle(circuit.grant(now), F, now)


def test_each_failed_probe_doubles_the_wait_up_to_five_minutes() -> None:
    circuit = breaker()
    fail_open(circuit, 0.0)
    now, waits = 0.0, []
    for _ in range(40):
        free_at = circuit.free_at(now)
        waits.append(free_at - now)
        now = free_at
        circuit.settle(circuit.grant(now), F, now)
    assert waits[:7] == pytest.approx([5, 10, 20, 40, 80, 160, 300])
    assert waits[7:] == pytest.approx([300] * 33)


@pytest.mark.parametrize(
    ("asked_s", "waited_s"),
    [(42.0, 42.0), (7200.0, POLICY.longest_wait_s)],
    ids=["a minute", "hours: five minutes of them"],
)
def test_a_failing_provider_that_names_a_longer_wait_gets_it(asked_s: float, waited_s: float) -> None:
    circuit = breaker()
    for _ in range(POLICY.failures_in_a_row):
        circuit.settle(circuit.grant(0.0), F, 0.0, wait_s=asked_s)
    assert circuit.free_at(0.0) == waited_s


def test_recovery_is_one_probe_then_two_four_and_more_until_it_closes() -> None:
    circuit = breaker()
    fail_open(circuit, 0.0)
    allowed = []
    while circuit.state is not Circuit.CLOSED:
        wave: list[Ticket] = []
        while circuit.free_at(10.0) == 10.0 and len(wave) < 99:
            wave.append(circuit.grant(10.0))
        allowed.append(len(wave))
        for ticket in wave:
            circuit.settle(ticket, S, 10.0)
    assert allowed == [1, 2, 4, 8]


def test_probes_that_bring_no_news_are_replaced() -> None:
    circuit = breaker()
    fail_open(circuit, 0.0)
    for _ in range(20):
        assert circuit.free_at(10.0) == 10.0
        probe = circuit.grant(10.0)
        assert circuit.free_at(10.0) == 70.0
        circuit.settle(probe, I, 10.0)
    assert circuit.state is Circuit.HALF_OPEN


def test_a_probe_that_hangs_is_given_up_and_the_next_one_waits_longer() -> None:
    circuit = breaker()
    fail_open(circuit, 0.0)
    now, hanging, patience_s = circuit.free_at(0.0), list[Ticket](), list[float]()
    for _ in range(6):
        hanging.append(circuit.grant(now))
        lost_at = circuit.free_at(now)
        assert circuit.free_at(lost_at - 0.001) == lost_at, "only one is out at a time"
        patience_s.append(lost_at - now)
        now = lost_at
    assert patience_s == pytest.approx([60, 120, 240, 300, 300, 300])
    looks = repr(circuit)
    for ticket, outcome in zip(hanging[:-1], [S, F, O, I, S], strict=True):
        circuit.settle(ticket, outcome, now)
    assert repr(circuit) == looks, "what was given up says nothing any more"
    assert circuit.open_since == 0.0
    circuit.settle(hanging[-1], F, now)
    assert circuit.free_at(now) == now + 300.0, "each lost probe counts as a failed one"


def test_news_of_one_probe_gives_the_others_their_time_again() -> None:
    circuit = breaker()
    fail_open(circuit, 0.0)
    circuit.settle(circuit.grant(5.0), S, 30.0)
    circuit.grant(31.0)
    circuit.settle(circuit.grant(32.0), I, 50.0)
    circuit.grant(51.0)
    assert circuit.free_at(52.0) == 50.0 + POLICY.probe_timeout_s


def test_while_probes_come_back_the_hanging_ones_cost_no_time() -> None:
    circuit = breaker()
    fail_open(circuit, 0.0)
    circuit.settle(circuit.grant(5.0), S, 5.0)
    circuit.grant(5.0)  # hangs
    for number in range(POLICY.successes_to_close - 1):
        now = 6.0 + number
        assert circuit.free_at(now) == now
        circuit.settle(circuit.grant(now), S, now)
    assert circuit.state is Circuit.CLOSED
    assert circuit.open_since is None
