"""How many retries a lane may make: few while all is well, so that an outage meets no storm of them."""

CAPACITY = 100.0
COST = 2.0
PER_SUCCESS = 1.0
PER_S = 5.0


class RetryBudget:
    """A bucket of `CAPACITY`: a retry takes 2, a success gives back 1, time gives 5 a second."""

    def __init__(self, now: float) -> None:
        self._level = CAPACITY
        self._at = now

    def __repr__(self) -> str:
        return f"<RetryBudget {self._level:g} of {CAPACITY:g}>"

    def free_at(self, now: float) -> float:
        """Return when a retry may start: `now` or later."""
        missing = COST - self._refilled(now)
        return now if missing <= 1e-9 else now + missing / PER_S

    def spend(self, now: float) -> None:
        """Pay for a retry, into debt if need be."""
        self._level = self._refilled(now) - COST

    def succeeded(self, now: float) -> None:
        """Take note of a success."""
        self._level = min(CAPACITY, self._refilled(now) + PER_SUCCESS)

    def _refilled(self, now: float) -> float:
        if now > self._at:
            self._level = min(CAPACITY, self._level + PER_S * (now - self._at))
            self._at = now
        return self._level
