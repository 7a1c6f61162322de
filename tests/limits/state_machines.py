"""How long state machines run: a few seconds in the normal suite, 100,000 steps in the long form."""

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

_HEALTH = [HealthCheck.too_slow, HealthCheck.filter_too_much]  # how fast a shared machine is proves nothing


def run_briefly(machine: type[RuleBasedStateMachine]) -> None:
    """Run `machine` for about 2,000 steps."""
    _run(machine, examples=40, steps=60)


def run_long(machine: type[RuleBasedStateMachine]) -> None:
    """Run `machine` for at least 100,000 steps: a run of 200 may end early, by up to a fifth on average."""
    _run(machine, examples=650, steps=200)


def _run(machine: type[RuleBasedStateMachine], *, examples: int, steps: int) -> None:
    chosen = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=_HEALTH
    )
    run_state_machine_as_test(machine, settings=chosen)
