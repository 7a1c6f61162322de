"""The run's concurrency: one count of calls in flight, shared by all lanes."""

import heapq
from typing import Protocol, TypeAlias

LEFT_PLACES = 64
"""So many places that were left for better ones may stand in the line besides one for each lane."""

_Order: TypeAlias = tuple[int, float]


class SlotTaker(Protocol):
    """A lane, as far as the shared slots know it."""

    def wants_slot(self) -> tuple[int, float] | None:
        """Return (-priority, waiting since) of the best waiter, or None if nobody waits."""

    def slot_free(self) -> None:
        """Look again whether a waiter can be let through."""


class RunSlots:
    """At most `limit` calls in flight over the whole run.

    A slot that comes free is offered to the lane with the best waiter, so that priority holds across lanes.
    A lane stands in line as its best waiter did when it last asked; if that one has gone by the time the
    lane's turn comes, the lane goes back to where its next one belongs.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self._places: dict[SlotTaker, _Order] = {}
        self._line: list[tuple[_Order, int, SlotTaker]] = []  # with places that were left for better ones
        self._asked = 0

    def __repr__(self) -> str:
        return f"<RunSlots {self.taken}/{self.limit} lanes waiting={len(self._places)}>"

    def free_for(self, lane: SlotTaker) -> bool:
        """Return whether a call may start; if not, `lane` is told as soon as one may."""
        if self.taken < self.limit:
            return True
        self._stand_in_line(lane, lane.wants_slot())
        return False

    def take(self) -> None:
        """Count one more call in flight."""
        self.taken += 1

    def give_back(self) -> None:
        """Count one call less, and offer the slot to the lane whose best waiter is first in order."""
        self.taken -= 1
        while self._line and self.taken < self.limit:
            place, _, lane = heapq.heappop(self._line)
            if self._places.get(lane) != place:
                continue
            del self._places[lane]
            wants = lane.wants_slot()
            if wants is not None and wants > place:
                self._stand_in_line(lane, wants)
            elif wants is not None:
                lane.slot_free()

    def _stand_in_line(self, lane: SlotTaker, wants: _Order | None) -> None:
        place = self._places.get(lane)
        if wants is None or (place is not None and place <= wants):
            return
        self._places[lane] = wants
        self._asked += 1
        heapq.heappush(self._line, (wants, self._asked, lane))
        # Who is overtaken again and again would else leave a place behind each time.
        if len(self._line) > LEFT_PLACES + 2 * len(self._places):
            held = {lane: entry for entry in self._line if self._places.get(lane := entry[2]) == entry[0]}
            self._line = sorted(held.values(), key=lambda entry: entry[:2])
