"""Who waits for a lane, best first."""

import asyncio
import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from batcher.limits.limit import Demand

T = TypeVar("T")

OVERTAKERS = 8
"""How many behind the first are looked at, where smaller ones may go before it."""

ROUNDING_S = 1e-6
"""Patience is over so much earlier, lest a timer for its end comes too early and is set again and again."""


@dataclass(slots=True, eq=False)
class Waiter(Generic[T]):
    """An attempt that waits.

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
    demand: Demand
    patience_s: float
    future: asyncio.Future[T]
    first_at: float | None = None


_Place: TypeAlias = tuple[int, float, int, Waiter[T]]
"""By urgency, then since when, then number, which no two have in common: the smallest goes first."""


class Waiters(Generic[T]):
    """A line ordered by priority, then by age."""

    def __init__(self) -> None:
        self._line: list[_Place[T]] = []
        self._loop = asyncio.get_running_loop()
        self._arrivals = 0
        self._shortest_patience_s = math.inf  # nobody in the line has less

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Waiter[T]]:
        return iter([waiter for *_, waiter in self._line])

    def __repr__(self) -> str:
        return f"<Waiters {len(self._line)}>"

    @property
    def best(self) -> Waiter[T] | None:
        """The one to be let through next, None if nobody waits."""
        line = self._line
        while line and line[0][-1].future.done():
            del line[0]  # cancelled, and not yet aware of it
        return line[0][-1] if line else None

    def add(self, priority: int, since: float, demand: Demand, patience_s: float) -> Waiter[T]:
        """Let somebody join the line."""
        self._arrivals += 1
        waiter = Waiter(-priority, since, self._arrivals, demand, patience_s, self._loop.create_future())
        insort(self._line, _place(waiter))
        self._shortest_patience_s = min(self._shortest_patience_s, patience_s)
        return waiter

    def remove(self, waiter: Waiter[T]) -> None:
        """Let somebody leave the line; who has left before stays away."""
        line = self._line
        place = bisect_left(line, _place(waiter))
        if place < len(line) and line[place][-1] is waiter:
            del line[place]

    def impatient(self, held_up_s: float) -> "tuple[list[Waiter[T]], float]":
        """Return those who do not wait for so long, and the shortest patience of the others, or less."""
        held_up_s += ROUNDING_S
        if self._shortest_patience_s > held_up_s:
            return [], self._shortest_patience_s
        leaving = [waiter for waiter in self if waiter.patience_s <= held_up_s]
        staying = (waiter.patience_s for waiter in self if waiter.patience_s > held_up_s)
        self._shortest_patience_s = min(staying, default=math.inf)
        return leaving, self._shortest_patience_s

    def behind_first(self) -> list[Waiter[T]]:
        """Return the next few who wait behind the first with the same priority, best first."""
        urgency = self._line[0][0]
        near = self._line[1 : OVERTAKERS + 1]
        return [waiter for *_, waiter in near if waiter.urgency == urgency and not waiter.future.done()]


def _place(waiter: Waiter[T]) -> _Place[T]:
    return waiter.urgency, waiter.since, waiter.number, waiter
