"""Requests a minute, spent evenly: at most one pacing token in hand, fetched before a waiter is chosen."""

import asyncio
import math
from collections.abc import Callable

from aiolimiter import AsyncLimiter

from batcher.clock import monotonic
from batcher.limits.bucket import WINDOW_S, SlotRing

BURST_S = 0.05
"""Seconds' worth of requests that may go out at once, besides the one that always may."""


class Pacer:
    """Says when the next request may start, so that no 60 s window holds more than `requests_per_minute`.

    A limiter with r = limit / 60.25 s spreads the requests, and a ring bounds every window: a token kept in
    hand while the limiter recovers would be one request too many. `AsyncLimiter` can only be awaited, while
    the choice of a waiter must be one synchronous step: so the token is fetched ahead by a task that lives
    only while somebody waits, and `on_token` is called.
    """

    def __init__(self, requests_per_minute: int, on_token: Callable[[], None]) -> None:
        self._limiter = _even_limiter(requests_per_minute)
        self._ring = SlotRing(requests_per_minute)
        self._on_token = on_token
        self._fetching: asyncio.Task[None] | None = None
        self._token_in_hand = False
        self._started_at: float | None = None
        self._not_before = -math.inf

    def __repr__(self) -> str:
        return f"<Pacer token_in_hand={self._token_in_hand}>"

    def free_at(self, now: float) -> float:
        """Return when a request may start: `now`, later, or `inf` while its token is still on its way."""
        if now < self._not_before:
            return self._not_before
        if self._token_in_hand:
            return self._ring.free_at(1, now)
        if self._fetching is None:
            self._fetching = asyncio.get_running_loop().create_task(self._fetch())
        return math.inf

    def resize(self, requests_per_minute: int) -> None:
        """Keep another limit from now on; what was started already counts against it."""
        if requests_per_minute != self._ring.limit:
            self._limiter = _even_limiter(requests_per_minute)
            self._ring.limit = requests_per_minute

    def share(self, requests_per_minute: int) -> None:
        """Keep another limit from now on, of which others answer for the difference, before and after.

        A token of the old limit is void, and the next request comes an even distance after the one before, or
        after this moment if there was none: of many runs that change at once, each would be one too many.
        """
        if requests_per_minute == self._ring.limit:
            return
        self._ring.rescale(requests_per_minute / self._ring.limit, requests_per_minute)
        self._limiter = _even_limiter(requests_per_minute)
        self._token_in_hand = False
        if self._fetching is not None:
            self._fetching.cancel()
            self._fetching = None
        if self._started_at is None:
            self._started_at = monotonic()
        self._not_before = self._started_at + WINDOW_S / requests_per_minute

    def spend(self, now: float) -> None:
        """Use the token in hand for a request that starts now."""
        self._token_in_hand = False
        self._started_at = now
        self._ring.add(1, now)

    def close(self) -> None:
        """Stop fetching."""
        if self._fetching is not None:
            self._fetching.cancel()

    async def _fetch(self) -> None:
        await self._limiter.acquire()
        self._fetching = None
        self._token_in_hand = True
        self._on_token()


def _even_limiter(requests_per_minute: int) -> AsyncLimiter:
    rate = requests_per_minute / WINDOW_S
    burst = 1 + BURST_S * rate
    return AsyncLimiter(burst, burst / rate)
