"""What a user should know of a run: its events in words, for the log, the journal and the summary."""

import contextlib
import logging
import math
import textwrap
from collections.abc import Callable
from datetime import datetime
from typing import get_args

from batcher.clock import loop_clock, utcnow
from batcher.errors import OutputError
from batcher.events import (
    AttemptFinished,
    BudgetReached,
    CircuitChanged,
    Event,
    FallbackTaken,
    JobFinished,
    JobStarted,
    KeyDisabled,
    LaneChanged,
    Listeners,
    Notice,
)

log = logging.getLogger(__name__)

_MANY = (AttemptFinished, JobStarted, JobFinished)
"""Of these there are millions, and a user is told of none."""

NOTICES_KEPT = 50
WRITTEN_CHARACTERS = 500
EQUAL_EVERY_S = 60.0
LOOK_EVERY_S = 1.0
WRITTEN_AT_ONCE = 200
WRITTEN_A_RUN = 10_000
HELD_BACK = 5


class Wording:
    """Puts events into a user's words; a fallback is told once for each pair of models, not for each job."""

    def __init__(self) -> None:
        self._pairs: set[tuple[str, str]] = set()

    def __call__(self, event: Event) -> str:
        """Return what to tell, "" if there is nothing."""
        if isinstance(event, _MANY):
            return ""
        match event:
            case LaneChanged() | CircuitChanged() | KeyDisabled():
                return event.message
            case FallbackTaken(wanted=wanted, taken=taken, reason=reason):
                if (wanted, taken) in self._pairs:
                    return ""
                self._pairs.add((wanted, taken))
                return f"{wanted}: jobs go on with {taken}: {reason}"
            case BudgetReached(budget_usd=budget_usd):
                return f"the cost budget of ${budget_usd:g} is reached"


class LogNotices:
    """A listener that tells the log; what must be mended by a person is a warning."""

    def __init__(self) -> None:
        self._words = Wording()

    def __call__(self, event: Event) -> None:
        """Log one event, if there is something to tell."""
        if message := self._words(event):
            log.log(logging.WARNING if isinstance(event, KeyDisabled) else logging.INFO, "%s", message)


class Notices:
    """The newest `kept` different notices, each with how often it came and when it came last."""

    def __init__(self, kept: int = NOTICES_KEPT) -> None:
        self._kept = kept
        self._told: dict[str, tuple[int, datetime]] = {}  # the one that came last stands last

    def add(self, message: str, at: datetime) -> None:
        """Note that `message` was told at `at`, which is not naive."""
        times, _ = self._told.pop(message, (0, at))
        self._told[message] = (times + 1, at)
        if len(self._told) > self._kept:
            del self._told[next(iter(self._told))]

    def lines(self) -> list[str]:
        """Return one line for each, the newest last: `... (14 times, last 2026-11-21 09:15:02+01:00)`."""
        return [f"{message} ({_when(*told)})" for message, told in self._told.items()]


class Throttle:
    """Says which notices are written down, so that a lane that flaps for days fills no disk.

    Equal ones are let through once in `EQUAL_EVERY_S`; of all, `WRITTEN_AT_ONCE` and one a minute from then
    on, `WRITTEN_A_RUN` at most. The newest that are held back come through when it is their time, so that the
    last one that was let through is never the word on a state that is long over.

    Args:
        now: loop time of the start.
    """

    def __init__(self, now: float) -> None:
        self._began_at = now
        self._count = 0
        self._let_through: dict[str, float] = {}  # when, oldest first, for as long as it matters
        self._held: dict[str, datetime] = {}  # oldest first

    def __repr__(self) -> str:
        return f"<Throttle let_through={self._count} held={len(self._held)}>"

    @property
    def holds(self) -> bool:
        """Whether something waits for its time."""
        return bool(self._held)

    def offer(self, message: str, at: datetime) -> None:
        """Add a notice of `at`; the oldest of those held back is forgotten if there are too many."""
        self._held.pop(message, None)
        self._held[message] = at
        if len(self._held) > HELD_BACK:
            del self._held[next(iter(self._held))]

    def take(self, now: float) -> list[tuple[str, datetime]]:
        """Return what may be written now, oldest first."""
        while self._let_through:
            message, at = next(iter(self._let_through.items()))
            if now - at < EQUAL_EVERY_S:
                break
            del self._let_through[message]
        minutes = int((now - self._began_at) // 60)
        room = min(WRITTEN_A_RUN, WRITTEN_AT_ONCE + minutes) - self._count
        new = [message for message in self._held if message not in self._let_through]
        taken = [(message, self._held.pop(message)) for message in new[max(0, len(new) - room) :]]
        self._let_through.update((message, now) for message, _ in taken)
        self._count += len(taken)
        return taken


class WriteNotices:
    """A listener that has notices written down for those who ask while the run goes on.

    A notice that cannot be written is lost, as a lane must not stumble over it; the calls that follow tell of
    a disk that is full.

    Args:
        write: appends a notice and the time at which it happened.
    """

    def __init__(self, write: Callable[[str, datetime], None]) -> None:
        self._write = write
        self._words = Wording()
        self._now = loop_clock()
        self._throttle = Throttle(self._now())
        self._look_at = math.inf  # when something that is held back may be let through

    def __call__(self, event: Event) -> None:
        """Write one event down, if there is something to tell."""
        if isinstance(event, KeyDisabled | FallbackTaken):
            if message := self._words(event):
                self._append(message, utcnow())  # there are no more of these than keys and pairs of models
        elif message := self._words(event):
            self._throttle.offer(message, utcnow())
            self._look_at = self._now()
        self._look(event)

    def join(self, emit: Listeners) -> None:
        """Listen to a run from now on."""
        emit.join(self, *get_args(Notice))
        emit.join(self._look, AttemptFinished)

    def _look(self, _: Event) -> None:
        if self._look_at < math.inf and (now := self._now()) >= self._look_at:
            for held, at in self._throttle.take(now):
                self._append(held, at)
            self._look_at = now + LOOK_EVERY_S if self._throttle.holds else math.inf

    def _append(self, message: str, at: datetime) -> None:
        with contextlib.suppress(OutputError):
            self._write(textwrap.shorten(message, WRITTEN_CHARACTERS, placeholder=" ..."), at)


def _when(times: int, last: datetime) -> str:
    local = last.astimezone().isoformat(sep=" ", timespec="seconds")
    return f"{times:,} times, last {local}" if times > 1 else local
