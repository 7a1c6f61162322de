"""Requests a minute, spent evenly: at most one pacing token in hand, fetched before a waiter is chosen."""

import asyncio
from collections.abc import Callable

from aiolimiter import AsyncLimiter

from batcher.limits.bucket import WINDOW_S

BURST_S = 0.05
"""Seconds' worth of requests that may go out at once, besides the one that always may."""


class Pacer:
    """Hands out one token at a time, so that no 60 s window ever holds more than `requests_per_minute`.

    With r = limit / 60.25 s a window of 60 s holds at most 1 + 0.05 r + 60 r < limit + 1 requests.
    `AsyncLimiter` can only be awaited, while the choice of a waiter must be one synchronous step: so the
    token is fetched ahead by a task that lives only while somebody waits, and `on_token` is called.
    """

    def __init__(self, requests_per_minute: int, on_token: Callable[[], None]) -> None:
        rate = requests_per_minute / WINDOW_S
        burst = 1 + BURST_S * rate
        self._limiter = AsyncLimiter(burst, burst / rate)
        self._on_token = on_token
        self._fetching: asyncio.Task[None] | None = None
        self.token_in_hand = False

    def __repr__(self) -> str:
        return f"<Pacer token_in_hand={self.token_in_hand}>"

    def fetch(self) -> None:
        """See to it that a token comes, unless one is in hand or on its way."""
        if not self.token_in_hand and self._fetching is None:
            self._fetching = asyncio.get_running_loop().create_task(self._fetch())

    def spend(self) -> None:
        """Use the token in hand."""
        self.token_in_hand = False

    def close(self) -> None:
        """Stop fetching."""
        if self._fetching is not None:
            self._fetching.cancel()

    async def _fetch(self) -> None:
        try:
            await self._limiter.acquire()
            self.token_in_hand = True
        finally:
            self._fetching = None
        self._on_token()
