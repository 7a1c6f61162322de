"""The run's concurrency: one count of calls in flight, shared by all lanes."""

import math
from typing import Protocol


class SlotTaker(Protocol):
    """A lane, as far as the shared slots know it."""

    def wants_slot(self) -> tuple[int, float] | None:
        """Return (-priority, waiting since) of the best waiter, or None if nobody waits."""

    def slot_free(self) -> None:
        """Look again whether a waiter can be let through."""


class RunSlots:
    """At most `limit` calls in flight over the whole run.

    A slot that comes free is offered to the lane with the best waiter, so that priority holds across lanes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self._waiting: dict[SlotTaker, None] = {}  # a set that keeps its order

    def __repr__(self) -> str:
        return f"<RunSlots {self.taken}/{self.limit} lanes waiting={len(self._waiting)}>"

    def free_for(self, lane: SlotTaker) -> bool:
        """Return whether a call may start; if not, `lane` is told as soon as one may."""
        if self.taken < self.limit:
            return True
        self._waiting[lane] = None
        return False

    def take(self) -> None:
        """Count one more call in flight."""
        self.taken += 1

    def give_back(self) -> None:
        """Count one call less, and offer the slot to the lane whose best waiter is first in order."""
        self.taken -= 1
        while self._waiting and self.taken < self.limit:
            # Waiters come and go while their lane waits, so the order is found when it is needed.
            lane = min(self._waiting, key=_order)
            del self._waiting[lane]
            lane.slot_free()


def _order(lane: SlotTaker) -> tuple[float, float]:
    return lane.wants_slot() or (math.inf, math.inf)
