"""The run's concurrency: one count of calls in flight, shared by all lanes."""

import heapq
from collections.abc import Callable
from itertools import count
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
        self._waiting: list[tuple[tuple[int, float], int, SlotTaker]] = []
        self._queued: set[SlotTaker] = set()
        self._order: Callable[[], int] = count().__next__

    def __repr__(self) -> str:
        return f"<RunSlots {self.taken}/{self.limit} lanes waiting={len(self._queued)}>"

    def free_for(self, lane: SlotTaker) -> bool:
        """Return whether a call may start; if not, `lane` is told as soon as one may."""
        if self.taken < self.limit:
            return True
        wanted = lane.wants_slot()
        if wanted is not None and lane not in self._queued:
            self._queued.add(lane)
            heapq.heappush(self._waiting, (wanted, self._order(), lane))
        return False

    def take(self) -> None:
        """Count one more call in flight."""
        self.taken += 1

    def give_back(self) -> None:
        """Count one call less, and offer the slot to the lane whose best waiter is first in order."""
        self.taken -= 1
        while self._waiting and self.taken < self.limit:
            _, order, lane = heapq.heappop(self._waiting)
            wanted = lane.wants_slot()
            if wanted is not None and self._waiting and wanted > self._waiting[0][0]:
                heapq.heappush(self._waiting, (wanted, order, lane))  # its best waiter has gone meanwhile
                continue
            self._queued.discard(lane)
            lane.slot_free()
