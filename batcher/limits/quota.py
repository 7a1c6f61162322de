"""The token quota of one route: what a request reserves, and what its answer really cost."""

import math
from dataclasses import dataclass

from batcher.limits.bucket import WINDOW_S, SlotRing, TokenBucket

EVEN_SHARE = 0.05
"""Share of the minute's tokens that may go out at once; the rest flows at the even rate."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens held for one attempt until it is settled."""

    tokens: int
    slot: int


class TokenQuota:
    """Tokens a minute: reserved at admission, settled with the real usage.

    Over any 60 s what was admitted stays at or below `tokens_per_minute`, as reserved or, once it is
    known, as used.
    """

    def __init__(self, tokens_per_minute: int, now: float) -> None:
        self.tokens_per_minute = tokens_per_minute
        self._ring = SlotRing(tokens_per_minute)
        self._even = TokenBucket(tokens_per_minute / WINDOW_S, tokens_per_minute * EVEN_SHARE, now)

    def __repr__(self) -> str:
        return f"<TokenQuota {self._ring!r} {self._even!r}>"

    def fits(self, tokens: int) -> bool:
        """Return whether a request of `tokens` can ever pass."""
        return tokens <= self.tokens_per_minute

    def free_at(self, tokens: int, now: float) -> float:
        """Return when `tokens` may pass: `now` or later, `inf` if never."""
        at = self._ring.free_at(tokens, now)
        return at if math.isinf(at) else max(at, self._even.free_at(tokens, now))

    def reserve(self, tokens: int, now: float) -> Reservation:
        """Hold `tokens` for an attempt that starts now."""
        self._even.take(tokens, now)
        return Reservation(tokens, self._ring.add(tokens, now))

    def settle(self, reservation: Reservation, used: int, now: float) -> None:
        """Correct a reservation to the tokens really used (0 if the provider did not admit it)."""
        delta = used - reservation.tokens
        if delta:
            self._even.give_back(-delta, now)
            self._ring.correct(reservation.slot, delta, now)
