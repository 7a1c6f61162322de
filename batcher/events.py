"""What happened, for those who watch: written down once, told to a tuple of listeners."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from batcher.types import Outcome, Result, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarted:
    """A job left the queue."""

    job_id: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFinished:
    """One HTTP call ended, the `call`-th of its job, counted from 1.

    `account` owns the quota, `route` is the model. `code` and `message` are "" for an answer; `sent` tells
    whether it may have been charged, `admitted` whether it counts against the provider's limits.
    """

    job_id: str
    call: int
    route: str
    outcome: Outcome
    code: str
    message: str
    status: int
    latency_s: float
    sent: bool
    usage: Usage | None
    account: str = ""
    admitted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneChanged:
    """A lane was paused, closed, or learned a limit; `message` says it in a user's words."""

    route: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitChanged:
    """A circuit breaker moved between `closed`, `open` and `half-open`."""

    route: str
    state: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDisabled:
    """A key of an account was refused for good; `message` names the variable that holds it."""

    account: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackTaken:
    """A job goes on with another model than the one it asked for; `reason` says why."""

    job_id: str
    wanted: str
    taken: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFinished:
    """A job's result line is on disk."""

    result: Result


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetReached:
    """The cost budget lets nothing more through."""

    spent_usd: float
    budget_usd: float


Event: TypeAlias = (
    JobStarted
    | AttemptFinished
    | LaneChanged
    | CircuitChanged
    | KeyDisabled
    | FallbackTaken
    | JobFinished
    | BudgetReached
)
Emit: TypeAlias = Callable[[Event], None]
