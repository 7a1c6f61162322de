"""Token counting over time: a hard bound for any window, and a bucket that keeps spending even."""

import math
from collections import deque

WINDOW_S = 60.25
"""A minute plus the slack that a reply's way home can take from the provider's own minute."""

_ROUNDING = 1e-9  # of a limit: by so much a sum of shares may miss it


class SlotRing:
    """Bounds the sum of amounts over every window of `window_s`, whatever its start.

    Amounts lie in slots of `slot_s`. A slot counts until the youngest moment in it is older than the
    window, so the bound errs towards less by at most one slot's worth.
    """

    def __init__(self, limit: float, *, window_s: float = WINDOW_S, slot_s: float = 0.1) -> None:
        self.limit = limit
        self._window_s = window_s
        self._slot_s = slot_s
        self._slots: deque[list[float]] = deque()  # [slot number, amount, share], oldest first
        self._total = 0.0

    def __repr__(self) -> str:
        return f"<SlotRing {self._total:g} of {self.limit:g}>"

    def total(self, now: float) -> float:
        """Return the amount that counts at `now` (seconds)."""
        while self._slots and self._leaves_at(self._slots[0][0]) <= now:
            self._total -= self._slots.popleft()[1]
        if not self._slots:
            self._total = 0.0  # rounding errors do not outlive the last slot
        return self._total

    def free_at(self, amount: float, now: float) -> float:
        """Return when `amount` fits: `now` if it does already, `inf` if it is above the limit."""
        if amount > self.limit:
            return math.inf
        rounding = _ROUNDING * self.limit
        excess = self.total(now) + amount - self.limit
        if excess <= rounding:
            return now
        for number, held, _ in self._slots:
            excess -= held
            if excess <= rounding:
                return max(now, self._leaves_at(number))
        return now

    def add(self, amount: float, now: float) -> int:
        """Count `amount` at `now` and return the slot that a later correction names."""
        self.total(now)
        number = math.floor(now / self._slot_s)
        if not self._slots or self._slots[-1][0] < number:
            self._slots.append([number, 0.0, 1.0])
        self._slots[-1][1] += amount
        self._total += amount
        return number

    def correct(self, slot: int, delta: float, now: float) -> None:
        """Change what was counted in `slot` by `delta`; a slot that has left the window stays forgotten."""
        self.total(now)
        for entry in reversed(self._slots):
            if entry[0] == slot:
                entry[1] += delta * entry[2]
                self._total += delta * entry[2]
                return
            if entry[0] < slot:
                return

    def rescale(self, factor: float, limit: float) -> None:
        """Keep to `limit`, which is `factor` times the one before, and answer for that part of all counted.

        Whoever has the rest of the limit answers for the rest of it, so that neither has to stand still.
        """
        self.limit = limit  # as it is told: a hair less than one request would let nothing through
        self._total *= factor
        for entry in self._slots:
            entry[1] *= factor
            entry[2] *= factor

    def _leaves_at(self, number: float) -> float:
        return (number + 1) * self._slot_s + self._window_s


class TokenBucket:
    """Spends `rate` a second evenly, with at most `capacity` at once.

    An amount above the capacity passes when the bucket is full and leaves it in debt:
    `level' = min(capacity, level + rate * dt) - amount`.
    """

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self.rate = rate
        self.capacity = capacity
        self._level = capacity
        self._at = now

    def __repr__(self) -> str:
        return f"<TokenBucket {self._level:g} of {self.capacity:g}, {self.rate:g}/s>"

    def level(self, now: float) -> float:
        """Return the level at `now`; below zero is debt."""
        if now > self._at:
            self._level = min(self.capacity, self._level + self.rate * (now - self._at))
            self._at = now
        return self._level

    def free_at(self, amount: float, now: float) -> float:
        """Return when `amount` may pass: `now` or later."""
        missing = min(amount, self.capacity) - self.level(now)
        # A full bucket may fall short by a rounding error, which must not become an endless timer.
        return now if missing <= _ROUNDING * self.capacity else now + missing / self.rate

    def resize(self, rate: float, capacity: float, now: float) -> None:
        """Fill at another rate up to another capacity from now on; what does not fit is lost."""
        self.level(now)  # what has flowed in so far came at the old rate
        self.rate, self.capacity = rate, capacity
        self._level = min(capacity, self._level)

    def take(self, amount: float, now: float) -> None:
        """Spend `amount`, into debt if need be."""
        self._level = self.level(now) - amount

    def give_back(self, amount: float, now: float) -> None:
        """Undo a spending (or, below zero, spend more): never above the capacity."""
        self._level = min(self.capacity, self.level(now) + amount)
