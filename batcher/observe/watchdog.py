"""Says what a run waits for when nothing has moved for a while, and when this process stood still itself."""

import asyncio
import logging
from collections.abc import Callable

from batcher.clock import monotonic
from batcher.events import AttemptFinished, JobFinished

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
STALL_S = 2.0
QUIET_S = 300.0


class Watchdog:
    """A listener that hears when something moves, and a task that tells when nothing does.

    Args:
        waits_for: says in words what the run waits for.
        quiet_s: silence of this length is told, and again after each further one (seconds, > 0).
    """

    def __init__(self, waits_for: Callable[[], str], *, quiet_s: float = QUIET_S) -> None:
        self._waits_for = waits_for
        self._quiet_s = quiet_s
        self._has_moved = False  # since the last look
        self._moved_at = self._told_at = monotonic()

    def __call__(self, event: AttemptFinished | JobFinished) -> None:
        """Hear that something moved; what lanes say of themselves would be no progress."""
        self._has_moved = True

    async def watch(self) -> None:
        """Look on until cancelled."""
        while True:
            asleep_at = monotonic()
            await asyncio.sleep(LOOK_EVERY_S)
            now = monotonic()
            if now - asleep_at > LOOK_EVERY_S + STALL_S:
                stood_still_s = now - asleep_at - LOOK_EVERY_S
                log.warning("this process stood still for %.0f s: busy, or asleep", stood_still_s)
                self._has_moved = True  # no answer could be heard
            if self._has_moved:
                self._has_moved, self._moved_at = False, now
            if now - max(self._moved_at, self._told_at) >= self._quiet_s:
                self._told_at = now
                quiet_s = now - self._moved_at
                log.warning("nothing has moved for %.0f s; the run waits for: %s", quiet_s, self._waits_for())
