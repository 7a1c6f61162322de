"""A virtual clock that never stands still, as no real one does."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from virtual_clock import VirtualClockLoop


class CreepingClockLoop(VirtualClockLoop):
    """Goes on by a nanosecond whenever it is read.

    A limiter that is short of its next token by a rounding error sets a timer for the moment it has: on a
    clock that waits for the timers, that moment would never pass.
    """

    def __init__(self) -> None:
        self._reads = 0
        super().__init__()

    def time(self) -> float:
        self._reads += 1
        return super().time() + self._reads * 1e-9

    @property
    def timers(self) -> int:
        """Timers that are still to fire."""
        return sum(not handle.cancelled() for handle in self._scheduled)  # type: ignore[attr-defined]


def on_creeping_clock(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end."""
    with asyncio.Runner(loop_factory=CreepingClockLoop) as runner:
        runner.run(main)
