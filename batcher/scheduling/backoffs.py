"""Attempts that wait before they are tried again, and hold nothing meanwhile."""

import asyncio
from collections import deque
from collections.abc import Callable

from batcher.clock import monotonic
from batcher.limits.retry_budget import RetryBudget


class Backoffs:
    """The sleepers of one lane: each waits its own time, then, one after the other, for the retry budget.

    The budget only delays: where nothing else goes on, one retry is always let through.

    Args:
        idle: whether nothing else of this lane is under way.
    """

    def __init__(self, idle: Callable[[], bool]) -> None:
        self._idle = idle
        self._budget = RetryBudget(monotonic())
        self._asleep: set[asyncio.Future[None]] = set()
        self._line: deque[asyncio.Future[None]] = deque()
        self._setting_out: set[asyncio.Future[None]] = set()  # let through, and not yet back at the lane
        self._woken = False
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Backoffs asleep={len(self._asleep)} waiting={len(self._line)} {self._budget!r}>"

    async def sleep(self, seconds: float, *, counted: bool) -> None:
        """Sleep, and return early if everybody is woken.

        Args:
            seconds: how long (>= 0).
            counted: the retry is one that the budget bounds.
        """
        loop = asyncio.get_running_loop()
        if seconds > 0:
            awake: asyncio.Future[None] = loop.create_future()
            timer = loop.call_later(seconds, _wake, awake)
            self._asleep.add(awake)
            try:
                await awake
            finally:
                self._asleep.discard(awake)
                timer.cancel()
        if counted and not self._woken:
            turn: asyncio.Future[None] = loop.create_future()
            self._line.append(turn)
            self.look_again()
            try:
                await turn
            finally:
                self._setting_out.discard(turn)

    def succeeded(self, now: float) -> None:
        """Take note of a success, which makes room for retries."""
        self._budget.succeeded(now)

    def look_again(self) -> None:
        """Let through as many retries as there is budget for; one, if nothing else goes on."""
        if not self._line:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = monotonic()
        idle = self._idle() and not self._setting_out
        while self._line:
            if self._line[0].done():  # cancelled
                self._line.popleft()
                continue
            if (free_at := self._budget.free_at(now)) > now and not idle:
                self._timer = asyncio.get_running_loop().call_at(free_at, self.look_again)
                return
            idle = False
            self._budget.spend(now)
            turn = self._line.popleft()
            self._setting_out.add(turn)
            _wake(turn)

    def wake_all(self) -> None:
        """Wake all sleepers at once; from now on nobody waits for the budget."""
        self._woken = True
        if self._timer is not None:
            self._timer.cancel()
        for sleeper in (*self._asleep, *self._line):
            _wake(sleeper)
        self._line.clear()


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
