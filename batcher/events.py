"""What happened, for those who watch: written down once, told to those who listen."""

from collections.abc import Callable
from typing import Any, TypeAlias, get_args

import msgspec

from batcher.types import Outcome, Result, Usage


class JobStarted(msgspec.Struct, frozen=True, kw_only=True):
    """A job left the queue."""

    job_id: str
    model: str


class AttemptFinished(msgspec.Struct, frozen=True, kw_only=True):
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


class LaneChanged(msgspec.Struct, frozen=True, kw_only=True):
    """A lane was paused, closed, or learned a limit; `message` says it in a user's words."""

    route: str
    message: str


class CircuitChanged(msgspec.Struct, frozen=True, kw_only=True):
    """A circuit breaker moved between `closed`, `open` and `half-open`."""

    route: str
    state: str
    message: str


class KeyDisabled(msgspec.Struct, frozen=True, kw_only=True):
    """A key of an account was refused for good; `message` names the variable that holds it."""

    account: str
    message: str


class FallbackTaken(msgspec.Struct, frozen=True, kw_only=True):
    """A job goes on with another model than the one it asked for; `reason` says why."""

    job_id: str
    wanted: str
    taken: str
    reason: str


class JobFinished(msgspec.Struct, frozen=True, kw_only=True):
    """A job's result line is on disk."""

    result: Result


class BudgetReached(msgspec.Struct, frozen=True, kw_only=True):
    """The cost budget lets nothing more through."""

    spent_usd: float
    budget_usd: float


Notice: TypeAlias = LaneChanged | CircuitChanged | KeyDisabled | FallbackTaken | BudgetReached
"""What a user is told of, as there are few."""

Event: TypeAlias = JobStarted | AttemptFinished | JobFinished | Notice
Emit: TypeAlias = Callable[[Event], None]


class Listeners:
    """Tells every event to those who asked for its kind, in the order in which they joined."""

    def __init__(self) -> None:
        self._by_kind: dict[type, list[Callable[[Any], None]]] = {kind: [] for kind in get_args(Event)}

    def __call__(self, event: Event) -> None:
        """Tell one event."""
        for listener in self._by_kind[event.__class__]:
            listener(event)

    def join(self, listener: Callable[[Any], None], *kinds: type) -> None:
        """Tell `listener` the events of some kinds from now on, of all kinds if it names none."""
        for kind in kinds or self._by_kind:
            self._by_kind[kind].append(listener)
