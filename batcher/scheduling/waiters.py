"""Who waits for a lane, best first."""

import asyncio
import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from batcher.limits.limit import Demand

T = TypeVar("T")

OVERTAKERS = 8
"""How many behind the first are looked at, where smaller ones may go before it."""

ROUNDING_S = 1e-6
"""Patience is over so much earlier, lest a timer for its end comes too early and is set again and again."""


@dataclass(slots=True, order=True)
class Waiter(Generic[T]):
    """An attempt that waits; the smaller one is let through first.

    Attributes:
        urgency: the job's priority times -1.
        since: when the job began to wait (loop time).
        number: tells waiters apart that are equal otherwise, in the order of their coming.
        demand: tokens that the attempt may use.
        patience_s: it goes elsewhere once the lane is held up for longer than this.
        future: gets the permit.
        first_at: when it was first in line and its tokens were not there yet.
    """

    urgency: int
    since: float
    number: int
    demand: Demand = field(compare=False)
    patience_s: float = field(compare=False)
    future: asyncio.Future[T] = field(compare=False)
    first_at: float | None = field(compare=False, default=None)


class Waiters(Generic[T]):
    """A line ordered by priority, then by age."""

    def __init__(self) -> None:
        self._line: list[Waiter[T]] = []
        self._arrivals = 0
        self._shortest_patience_s = math.inf  # nobody in the line has less

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Waiter[T]]:
        return iter(list(self._line))

    def __repr__(self) -> str:
        return f"<Waiters {len(self._line)}>"

    @property
    def best(self) -> Waiter[T] | None:
        """The one to be let through next, None if nobody waits."""
        while self._line and self._line[0].future.done():
            del self._line[0]  # cancelled, and not yet aware of it
        return self._line[0] if self._line else None

    def add(self, priority: int, since: float, demand: Demand, patience_s: float) -> Waiter[T]:
        """Let somebody join the line."""
        self._arrivals += 1
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        waiter = Waiter(-priority, since, self._arrivals, demand, patience_s, future)
        insort(self._line, waiter)
        self._shortest_patience_s = min(self._shortest_patience_s, patience_s)
        return waiter

    def remove(self, waiter: Waiter[T]) -> None:
        """Let somebody leave the line; who has left before stays away."""
        place = bisect_left(self._line, waiter)
        if place < len(self._line) and self._line[place] is waiter:
            del self._line[place]

    def impatient(self, held_up_s: float) -> "tuple[list[Waiter[T]], float]":
        """Return those who do not wait for so long, and the shortest patience of the others, or less."""
        held_up_s += ROUNDING_S
        if self._shortest_patience_s > held_up_s:
            return [], self._shortest_patience_s
        leaving = [waiter for waiter in self._line if waiter.patience_s <= held_up_s]
        staying = (waiter.patience_s for waiter in self._line if waiter.patience_s > held_up_s)
        self._shortest_patience_s = min(staying, default=math.inf)
        return leaving, self._shortest_patience_s

    def behind_first(self) -> list[Waiter[T]]:
        """Return the next few who wait behind the first with the same priority, best first."""
        urgency = self._line[0].urgency
        near = self._line[1 : OVERTAKERS + 1]
        return [waiter for waiter in near if waiter.urgency == urgency and not waiter.future.done()]
