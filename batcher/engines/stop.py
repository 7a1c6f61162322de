"""Why a run ends before its last job, and how it is told."""

import asyncio
from enum import IntEnum

from batcher.errors import BatcherError


class StopReason(IntEnum):
    """Exit codes of runs that end early, strongest first when several hold."""

    BUG = 70
    OUTPUT = 74
    INPUT = 66
    CONFIG = 78
    KEYS_REFUSED = 77
    FORCED_INT = 130
    FORCED_TERM = 143
    BUDGET = 4
    INTERRUPTED = 75
    UNREACHABLE = 69


_STRENGTH = {reason: -rank for rank, reason in enumerate(StopReason)}


class Stop:
    """Asks a run to end: `drain` lets calls in flight finish, `abort` cancels them.

    The strongest reason given wins; a weaker one that comes later changes nothing.
    """

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self.message = ""
        self.resume_in_s: float | None = None
        self.draining = asyncio.Event()
        self.aborting = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Stop {self.reason!r} {self.message!r}>"

    def drain(self, reason: StopReason, message: str, *, resume_in_s: float | None = None) -> None:
        """End the run; what is in flight may finish."""
        if self.reason is None or _STRENGTH[reason] > _STRENGTH[self.reason]:
            self.reason, self.message, self.resume_in_s = reason, message, resume_in_s
        self.draining.set()

    def abort(self, reason: StopReason, message: str) -> None:
        """End the run at once; what is in flight is given up."""
        self.drain(reason, message)
        self.aborting.set()

    def fail(self, error: BatcherError) -> None:
        """End the run at once because of an error that concerns all of it."""
        self.abort(StopReason(error.exit_code), str(error))
