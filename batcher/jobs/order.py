"""The order in which one lane takes its jobs."""

import math
from array import array
from bisect import insort

# A key is the priority and, in the low bits, the rank of the deadline: 0 for none, the higher the earlier.
_RANK_BITS = 12
_MOST_RANKS = 1 << _RANK_BITS
_EXACT_BITS = 8
_LATEST_S = 1 << 31


class LaneOrder:
    """Row numbers of one model's jobs: by priority, then by deadline, then first come first out.

    The highest priority and the earliest deadline go first, jobs without a deadline after those with one.
    Deadlines are rounded up to seconds, from 256 s on to steps of less than 1 %, so that they are few.

    Takes 4 bytes a row. All rows are pushed before the first is popped.
    """

    def __init__(self) -> None:
        self._rows: dict[int, array[int]] = {}
        self._keys: list[int] = []
        self._popped = 0
        self._remaining = 0

    def __len__(self) -> int:
        return self._remaining

    def __repr__(self) -> str:
        priorities = dict.fromkeys(key >> _RANK_BITS for key in reversed(self._keys))
        return f"<LaneOrder {self._remaining} left, priorities {list(priorities)}>"

    @property
    def next_priority(self) -> int | None:
        """Priority of the row that `pop` would return, or None."""
        return self._keys[-1] >> _RANK_BITS if self._keys else None

    def push(self, priority: int, row: int, deadline_s: float | None = None) -> None:
        """Put a row behind all others of its priority and deadline (> 0, None for no deadline)."""
        key = priority << _RANK_BITS
        if deadline_s is not None:
            key |= _deadline_rank(deadline_s)
        rows = self._rows.get(key)
        if rows is None:
            rows = self._rows[key] = array("I")
            insort(self._keys, key)
        rows.append(row)
        self._remaining += 1

    def pop(self) -> int | None:
        """Take the next row, or None if there is none."""
        if not self._keys:
            return None
        rows = self._rows[self._keys[-1]]
        row = rows[self._popped]
        self._popped += 1
        self._remaining -= 1
        if self._popped == len(rows):
            del self._rows[self._keys.pop()]
            self._popped = 0
        return row

    def clear(self) -> int:
        """Drop all rows that are left, and return how many those were."""
        dropped = self._remaining
        self._rows.clear()
        self._keys.clear()
        self._popped = self._remaining = 0
        return dropped


def _deadline_rank(deadline_s: float) -> int:
    """Rank a deadline, rounded up to a step: the earlier, the higher, and never 0."""
    seconds = min(math.ceil(deadline_s), _LATEST_S)
    shift = max(0, seconds.bit_length() - _EXACT_BITS)
    steps = (shift << (_EXACT_BITS - 1)) - (-seconds >> shift)
    return _MOST_RANKS - steps
