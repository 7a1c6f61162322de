"""Says what a run waits for when nothing has moved for a while, and when this process stood still itself."""

import asyncio
import logging
from collections.abc import Callable

from batcher.clock import monotonic

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
STALL_S = 2.0
QUIET_S = 300.0


class Watchdog:
    """Tells when nothing moves.

    Args:
        waits_for: says in words what the run waits for.
        progress: a number that changes with every call and every job that ends. What lanes say of themselves
            would be no progress.
        quiet_s: silence of this length is told, and again after each further one (seconds, > 0).
    """

    def __init__(
        self, waits_for: Callable[[], str], progress: Callable[[], int], *, quiet_s: float = QUIET_S
    ) -> None:
        self._waits_for = waits_for
        self._progress = progress
        self._quiet_s = quiet_s

    async def watch(self) -> None:
        """Look on until cancelled."""
        moved_at = told_at = monotonic()
        seen = self._progress()
        while True:
            asleep_at = monotonic()
            await asyncio.sleep(LOOK_EVERY_S)
            now = monotonic()
            if now - asleep_at > LOOK_EVERY_S + STALL_S:
                stood_still_s = now - asleep_at - LOOK_EVERY_S
                log.warning("this process stood still for %.0f s: busy, or asleep", stood_still_s)
                moved_at = now  # no answer could be heard
            if (progress := self._progress()) != seen:
                seen, moved_at = progress, now
            if now - max(moved_at, told_at) >= self._quiet_s:
                told_at = now
                quiet_s = now - moved_at
                log.warning("nothing has moved for %.0f s; the run waits for: %s", quiet_s, self._waits_for())
