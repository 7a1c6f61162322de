"""Circuit breaker of one lane: an outage costs a handful of probes and fails no job."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from batcher.types import Outcome


class Circuit(Enum):
    """The state of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a circuit opens, and how it finds its way back.

    A failure opens it when it is the last of `failures_in_a_row`, or when `failure_rate` of at least
    `minimum_volume` attempts in `window_s` have failed. The k-th opening in a row lasts
    `first_wait_s * 2^k`, at most `longest_wait_s`, times 0.8 to 1.2; a provider that asks for more gets up to
    `longest_wait_s`. Then one probe goes out, after n good ones n + 1 at once; `successes_to_close` close it.
    Probes of which nothing is heard for `probe_timeout_s * 2^k` (at most `longest_wait_s`) are given up, and
    the next one goes out as if it had opened once more.
    """

    window_s: float = 60.0
    minimum_volume: int = 20
    failure_rate: float = 0.5
    failures_in_a_row: int = 10
    first_wait_s: float = 5.0
    longest_wait_s: float = 300.0
    probe_timeout_s: float = 60.0
    successes_to_close: int = 8


class Ticket(NamedTuple):
    """Says under which generation of the breaker an attempt was let through, and whether as a probe."""

    generation: int
    probe: bool


class CircuitBreaker:
    """Counts outcomes of attempts and says from when on the next one may pass.

    An outcome whose ticket is of an older generation than the current one changes nothing: a late answer
    from before an outage says nothing about now.

    Attributes:
        state: closed, open or half-open.
        open_since: when it was closed last, None while it is closed.
    """

    def __init__(
        self,
        policy: BreakerPolicy,
        *,
        random: Callable[[], float],
        on_change: Callable[[Circuit], None] = lambda state: None,
    ) -> None:
        self.state = Circuit.CLOSED
        self.open_since: float | None = None
        self._policy = policy
        self._random = random
        self._on_change = on_change
        self._generation = 0
        self._ticket = Ticket(0, probe=False)  # the same for all attempts while it is closed
        self._openings = 0
        self._open_until = 0.0
        self._probes_out = 0
        self._heard_at = 0.0  # when the first of the probes went out, or one last came back
        self._successes = 0
        self._in_a_row = 0
        self._seconds: deque[list[int]] = deque()  # [second, attempts, failures], oldest first
        self._attempts = 0
        self._failures = 0

    def __repr__(self) -> str:
        return (
            f"<CircuitBreaker {self.state.value} {self._failures}/{self._attempts} probes={self._probes_out}>"
        )

    def free_at(self, now: float) -> float:
        """Return when an attempt may pass: `now`, or later; an answer may make it sooner."""
        if self.state is Circuit.CLOSED:
            return now
        if self.state is Circuit.OPEN:
            return max(now, self._open_until)
        return now if self._probes_out < self._probes_allowed else max(now, self._lost_at)

    def grant(self, now: float) -> Ticket:
        """Let one attempt through; `free_at(now)` must have said `now`."""
        if self.state is Circuit.CLOSED:
            return self._ticket
        if self.state is Circuit.OPEN:
            self._enter(Circuit.HALF_OPEN)
        elif self._probes_out >= self._probes_allowed:  # they are lost
            self._count_opening()
            self._enter(Circuit.HALF_OPEN)
        if not self._probes_out:
            self._heard_at = now
        self._probes_out += 1
        return Ticket(self._generation, probe=True)

    def settle(self, ticket: Ticket, outcome: Outcome, now: float, *, wait_s: float = 0.0) -> None:
        """Count the outcome of an attempt; `wait_s` is what a failing provider asked for (Retry-After)."""
        if ticket.generation != self._generation:
            return
        if ticket.probe:
            self._probes_out -= 1
            self._heard_at = now
            if outcome is Outcome.FAILED:
                self._open(now, wait_s)
            elif outcome is not Outcome.IGNORED:
                self._successes += 1
                if self._successes >= self._policy.successes_to_close:
                    self._openings = max(0, self._openings - 1)
                    self.open_since = None
                    self._enter(Circuit.CLOSED)
            return
        if outcome is Outcome.SUCCESS or outcome is Outcome.FAILED:
            self._count(outcome is Outcome.FAILED, now)
            if outcome is Outcome.FAILED and self._unhealthy():  # an answer is no reason to stop asking
                self._open(now, wait_s)

    @property
    def _probes_allowed(self) -> int:
        return 1 + self._successes

    @property
    def _lost_at(self) -> float:
        policy = self._policy
        timeout_s = policy.probe_timeout_s * 2.0 ** max(0, self._openings - 1)
        return self._heard_at + max(policy.probe_timeout_s, min(timeout_s, policy.longest_wait_s))

    def _count(self, failed: bool, now: float) -> None:
        if not self._seconds or now >= self._seconds[-1][0] + 1:
            self._begin_second(now)
        second = self._seconds[-1]
        second[1] += 1
        second[2] += failed
        self._attempts += 1
        self._failures += failed
        self._in_a_row = self._in_a_row + 1 if failed else 0

    def _begin_second(self, now: float) -> None:
        self._seconds.append([math.floor(now), 0, 0])
        while self._seconds[0][0] <= now - self._policy.window_s:
            _, attempts, failures = self._seconds.popleft()
            self._attempts -= attempts
            self._failures -= failures

    def _unhealthy(self) -> bool:
        policy = self._policy
        return self._in_a_row >= policy.failures_in_a_row or (
            self._attempts >= policy.minimum_volume and self._failures >= policy.failure_rate * self._attempts
        )

    def _open(self, now: float, wait_s: float) -> None:
        policy = self._policy
        wait = min(policy.longest_wait_s, policy.first_wait_s * 2.0**self._openings)
        asked_s = min(wait_s, policy.longest_wait_s)
        self._open_until = now + max(asked_s, wait * (0.8 + 0.4 * self._random()))
        self._count_opening()
        self.open_since = now if self.open_since is None else self.open_since
        self._enter(Circuit.OPEN)

    def _count_opening(self) -> None:
        # Past 2^16 the longest wait rules anyway; an endless outage must not overflow a float.
        self._openings = min(self._openings + 1, 16)

    def _enter(self, state: Circuit) -> None:
        before, self.state = self.state, state
        self._generation += 1
        self._ticket = Ticket(self._generation, probe=False)
        self._probes_out = self._successes = self._in_a_row = 0
        self._seconds.clear()
        self._attempts = self._failures = 0
        if state is not before:
            self._on_change(state)
