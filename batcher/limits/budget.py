"""Money as a limit: reserved before a call, settled with what the call really cost."""

ROUNDING_USD = 1e-12


class Budget:
    """Dollars that may be spent; what is reserved for calls in flight counts as spent until it is settled.

    Args:
        limit_usd: the most that may be spent (> 0).
        spent_usd: what was spent before (>= 0).

    Attributes:
        spent_usd: what ended calls have cost, those before this run included.
        reserved_usd: what calls in flight may cost.
        turned_down_usd: the least that a call might have cost that was turned down, None if none was.
    """

    def __init__(self, limit_usd: float, *, spent_usd: float = 0.0) -> None:
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self.reserved_usd = 0.0
        self.turned_down_usd: float | None = None
        self._calls = 0

    def __repr__(self) -> str:
        return f"<Budget ${self.spent_usd:.4f} + ${self.reserved_usd:.4f} of ${self.limit_usd:g}>"

    @property
    def idle(self) -> bool:
        """Whether no call is in flight, so that nothing reserved can come back."""
        return self._calls == 0

    @property
    def reached(self) -> str:
        """How the budget stands, in words, once it has turned a call down."""
        words = f"the cost budget of ${self.limit_usd:g} is reached: ${self.spent_usd:.4f} are spent"
        if self.turned_down_usd is None:
            return words
        next_usd = self.turned_down_usd
        price = f"{next_usd:.2f}" if next_usd >= 1.0 else f"{next_usd:.6f}"
        return f"{words}, and the next call may cost ${price}: raise --max-cost to go on"

    def fits(self, amount_usd: float) -> bool:
        """Return whether a call that may cost `amount_usd` can start now."""
        return self.spent_usd + self.reserved_usd + amount_usd <= self.limit_usd + ROUNDING_USD

    def can_fit(self, amount_usd: float) -> bool:
        """Return whether a call that may cost `amount_usd` could start if all calls in flight were free."""
        return self.spent_usd + amount_usd <= self.limit_usd + ROUNDING_USD

    def turn_down(self, amount_usd: float) -> None:
        """Take note that a call that may cost `amount_usd` was not let through."""
        known_usd = self.turned_down_usd
        self.turned_down_usd = amount_usd if known_usd is None else min(known_usd, amount_usd)

    def reserve(self, amount_usd: float) -> None:
        """Hold what a call that starts now may cost; it must fit."""
        self._calls += 1
        self.reserved_usd += amount_usd

    def settle(self, reserved_usd: float, cost_usd: float) -> None:
        """Replace what was reserved for a call by what it cost."""
        self._calls -= 1
        self.spent_usd += cost_usd
        # Sums of differences leave dust, which must not outlive the last call.
        self.reserved_usd = self.reserved_usd - reserved_usd if self._calls else 0.0
