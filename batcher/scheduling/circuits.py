"""Circuit breakers that tell what becomes of them: of one lane, and of all lanes at one address."""

import random
from collections.abc import Callable
from typing import NamedTuple

from batcher.events import CircuitChanged, Emit
from batcher.limits.breaker import BreakerPolicy, Circuit, CircuitBreaker, Ticket
from batcher.text.durations import in_words
from batcher.types import Outcome

_WORDS = {
    Circuit.OPEN: "too many calls failed, waiting before the next try",
    Circuit.HALF_OPEN: "trying again, with a single call at first",
    Circuit.CLOSED: "the provider answers again",
}


class WatchedCircuit:
    """A circuit breaker that tells what becomes of it.

    Args:
        name: of what it protects, for messages.
        policy: when it opens and closes.
        emit: who is told.

    Attributes:
        breaker: the circuit breaker itself.
    """

    def __init__(self, name: str, policy: BreakerPolicy, emit: Emit) -> None:
        self._name = name
        self.breaker = CircuitBreaker(policy, random=random.random, on_change=self._tell)
        self._emit = emit

    def __repr__(self) -> str:
        return repr(self.breaker)

    def fails_for_s(self, now: float) -> float:
        """Return how long ago it opened, 0 if it is closed."""
        since = self.breaker.open_since
        return 0.0 if since is None else now - since

    def held_up_s(self, now: float) -> float:
        """Return for how long nothing, or only probes, pass: since it opened or until the next probe."""
        if self.breaker.open_since is None:
            return 0.0
        return max(self.fails_for_s(now), self.next_try_in_s(now))

    def next_try_in_s(self, now: float) -> float:
        """Return in how many seconds the next attempt may pass, as far as is known.

        While probes are out nobody knows how long it will be: they may be answered at once.
        """
        return max(0.0, self.breaker.free_at(now) - now) if self.breaker.state is Circuit.OPEN else 0.0

    def hindrance(self, now: float) -> str:
        """Return what holds everything back at `now`, in words, or ""."""
        if self.breaker.state is not Circuit.OPEN:
            return ""
        return f"{self._name} fails, next try in {in_words(self.next_try_in_s(now))}"

    def _tell(self, state: Circuit) -> None:
        message = f"{self._name}: {_WORDS[state]}"
        self._emit(CircuitChanged(route=self._name, state=state.value, message=message))


class HostCircuit(WatchedCircuit):
    """The circuit of an address: refused connections, names that do not resolve, a firewall in front of it.

    While it only probes, a lane that is kept waiting is told when that may have changed.
    """

    def __init__(self, name: str, policy: BreakerPolicy, emit: Emit) -> None:
        super().__init__(name, policy, emit)
        self._lanes: list[Callable[[], None]] = []

    def join(self, look_again: Callable[[], None]) -> None:
        """Tell `look_again` whenever a waiting lane may be let through by a change here."""
        self._lanes.append(look_again)

    def settle(self, ticket: Ticket, outcome: Outcome, now: float, *, wait_s: float = 0.0) -> None:
        """Count the outcome of an attempt for the host; `SUCCESS` is any reply of its API."""
        before = self.breaker.state
        self.breaker.settle(ticket, outcome, now, wait_s=wait_s)
        if before is Circuit.HALF_OPEN or self.breaker.state is not before:
            for look_again in self._lanes:
                look_again()


class Tickets(NamedTuple):
    """What an attempt holds of both circuits."""

    route: Ticket
    host: Ticket

    @property
    def probe(self) -> bool:
        """Whether the attempt finds out for all if the provider is back."""
        return self.route.probe or self.host.probe


class Circuits:
    """The circuit of a route and that of its host as one gate."""

    def __init__(self, route: WatchedCircuit, host: HostCircuit) -> None:
        self._route = route
        self._host = host
        self._of_route = route.breaker
        self._of_host = host.breaker

    def __repr__(self) -> str:
        return repr(self._route)

    @property
    def closed(self) -> bool:
        """Whether everything may pass."""
        return self._of_route.state is Circuit.CLOSED and self._of_host.state is Circuit.CLOSED

    def free_at(self, now: float) -> float:
        """Return when an attempt may pass: `now` or later; a settlement may make it sooner."""
        return now if self.closed else max(self._of_route.free_at(now), self._of_host.free_at(now))

    def grant(self, now: float) -> Tickets:
        """Let one attempt through."""
        return Tickets(self._of_route.grant(now), self._of_host.grant(now))

    def settle(
        self, tickets: Tickets, outcome: Outcome, of_host: Outcome, now: float, *, wait_s: float
    ) -> bool:
        """Count the outcome of an attempt: what it taught about the route, and about the host.

        Returns:
            Whether it closed what was open, so that everything may pass again.
        """
        were_closed = self.closed
        # What fails at the address says nothing about this model.
        of_route = Outcome.IGNORED if of_host is Outcome.FAILED else outcome
        self._of_route.settle(tickets.route, of_route, now, wait_s=wait_s)
        self._host.settle(tickets.host, of_host, now, wait_s=wait_s)
        return not were_closed and self.closed

    def fails_for_s(self, now: float) -> float:
        """Return how long ago the first of them opened, 0 if both are closed."""
        return max(self._route.fails_for_s(now), self._host.fails_for_s(now))

    def held_up_s(self, now: float) -> float:
        """Return for how long nothing, or only probes, pass."""
        return max(self._route.held_up_s(now), self._host.held_up_s(now))

    def next_try_in_s(self, now: float) -> float:
        """Return in how many seconds the next attempt may pass, as far as is known."""
        return max(self._route.next_try_in_s(now), self._host.next_try_in_s(now))

    def hindrance(self, now: float) -> str:
        """Return what holds everything back at `now`, in words, or ""."""
        return self._host.hindrance(now) or self._route.hindrance(now)
