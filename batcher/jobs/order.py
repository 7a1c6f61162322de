"""The order in which one lane takes its jobs."""

from array import array
from bisect import insort


class LaneOrder:
    """Row numbers of one model's jobs: the highest priority first, first come first out within one.

    Takes 4 bytes a row. All rows are pushed before the first is popped.
    """

    def __init__(self) -> None:
        self._rows: dict[int, array[int]] = {}
        self._priorities: list[int] = []
        self._popped = 0
        self._remaining = 0

    def __len__(self) -> int:
        return self._remaining

    def __repr__(self) -> str:
        return f"<LaneOrder {self._remaining} left, priorities {self._priorities[::-1]}>"

    @property
    def next_priority(self) -> int | None:
        """Priority of the row that `pop` would return, or None."""
        return self._priorities[-1] if self._priorities else None

    def push(self, priority: int, row: int) -> None:
        """Put a row behind all others of its priority."""
        rows = self._rows.get(priority)
        if rows is None:
            rows = self._rows[priority] = array("I")
            insort(self._priorities, priority)
        rows.append(row)
        self._remaining += 1

    def pop(self) -> int | None:
        """Take the next row, or None if there is none."""
        if not self._priorities:
            return None
        rows = self._rows[self._priorities[-1]]
        row = rows[self._popped]
        self._popped += 1
        self._remaining -= 1
        if self._popped == len(rows):
            del self._rows[self._priorities.pop()]
            self._popped = 0
        return row
