"""How many calls may be in flight at once: found by growing gently and cutting once per episode."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from batcher.types import Outcome

CUT = 0.7
IN_USE = 0.8
FULL = 0.98
DOUBLING_GAIN = 0.7
"""Share of the calls added by a doubling that must come back as completions a second to double again."""

START = 4
USUAL_CEILING, START_OF = 256, 16
"""Who allows more than the usual has the room for a part of the rest at once."""

FEWEST_ANSWERS = 4
SURE_ANSWERS = 32
"""Answers that a pace is measured over: at least, and before it is held against a step."""

GROWTH_OF = 100
"""A large limit grows by this part of it where a small one grows by one: one of thousands takes as long."""

STEP = 1.1
STEP_GAIN = 1.05
PROPORTION = 0.97
FASTER = 1.4
"""So many times the completions a second at the same limit: the load has changed, the rest is over."""

FAILED_SHARE = 0.2
FIRST_REST_S = 30.0
LONGEST_REST_S = 480.0


class Grant(NamedTuple):
    """Says when an attempt was let through, and under which limit."""

    number: int
    at: float


@dataclass(frozen=True, slots=True)
class _Pace:
    limit: int
    per_second: float
    answers: int


class AdaptiveConcurrency:
    """A limit on calls in flight that follows what the provider can take.

    It doubles every one or two round trips until calls are refused or stop bringing more completions a
    second, then grows by one, or a hundredth, per full window of answers. A refusal or a burst of failures
    cuts it to 0.7, once for all attempts that were out at that time. A tenth more calls that brings less than
    5 % more completions a second is taken back, and tried again after 30 s, then ever more seldom, or once
    completions come faster.
    It grows only while at least 80 % of it is in use.

    Args:
        ceiling: the most it may reach, at least 1.
        start: where it begins, at least 1; a server that is full with less, and queues, is not found out.
            Unless it is given, 4 and a 16th of what the ceiling allows beyond 256.

    Attributes:
        limit: calls that may be in flight now, 1 to the ceiling.
    """

    def __init__(self, ceiling: int, *, start: int | None = None) -> None:
        self._ceiling = ceiling
        self.limit = max(1, min(_start(ceiling) if start is None else start, ceiling))
        self._number = 0  # of the limit now in force; attempts of an older one do not measure it
        self._cut_number = 0  # attempts older than this were out at the last cut
        self._doubling = True
        self._trusted = 0  # growth up to here is known to bring completions
        self._unloaded: _Pace | None = None  # from before the last doubling that paid
        self._base: _Pace | None = None  # the pace that the step under way is compared with
        self._rest_until = -math.inf
        self._rest_s = FIRST_REST_S
        self._answers = 0  # with `_failed` of the window of answers that may hold a burst of failures
        self._failed = 0
        self._clear()

    def __repr__(self) -> str:
        return f"<AdaptiveConcurrency {self.limit} of {self._ceiling}{' doubling' if self._doubling else ''}>"

    def begin_again(self, calls: int) -> None:
        """Double again from `calls` at once on: after an outage the provider may take fewer than before."""
        self._trusted = 0
        self._base = self._unloaded = None
        self._doubling = True
        self._answers = self._failed = 0
        self._set(min(calls, self.limit))

    def granted(self, now: float) -> Grant:
        """Take note of an attempt that starts now; `settled` gets back what this returns."""
        return Grant(self._number, now)

    def settled(self, grant: Grant, outcome: Outcome, in_flight: int, now: float) -> None:
        """Learn from the end of an attempt.

        Args:
            grant: what `granted` returned for it.
            outcome: `OVERLOADED` is a refusal that names no quota; one that names a quota is `IGNORED` here.
            in_flight: calls in flight just before it ended, itself included.
            now: its end.
        """
        if outcome is Outcome.IGNORED or grant.number < self._cut_number:
            return
        if outcome is Outcome.OVERLOADED:
            self._cut()
            return
        self._answers += 1
        if outcome is Outcome.FAILED:
            self._failed += 1
            if self._failed > max(1.0, FAILED_SHARE * self.limit):
                self._cut()
                return
        elif grant.number == self._number:
            self._measured += 1
            self._in_flight += in_flight
            self._latency_s += now - grant.at
            if self._measured % self.limit == 0 and self._measured >= FEWEST_ANSWERS:
                self._full_window(now)
        if self._answers >= 2 * self.limit:
            self._answers = self._failed = 0

    def _full_window(self, now: float) -> None:
        in_flight = self._in_flight / self._measured
        if in_flight < IN_USE * self.limit or self._latency_s <= 0:
            self._clear()
            return
        if in_flight < FULL * self.limit:
            self._grow()  # something else held calls back, too: no verdict on the limit
            return
        # By Little's law, so that pauses between calls do not count.
        per_second = in_flight * self._measured / self._latency_s
        settled = self._earlier + self._measured >= max(SURE_ANSWERS, 4 * self.limit)
        if self._doubling:
            self._double(_Pace(self.limit, per_second, self._measured), settled=settled)
        elif self.limit < self._trusted:
            self._grow()
        elif self._base is None:
            if settled:
                self._base = _Pace(self.limit, per_second, self._measured)
                self._clear()
        elif self.limit == self._base.limit:
            if now >= self._rest_until or per_second > FASTER * self._base.per_second:
                self._grow()
        elif self.limit < self._step_end(self._base.limit):
            self._grow(self._step_end(self._base.limit))
        elif settled:
            self._judge(_Pace(self.limit, per_second, self._measured), self._base, now)

    def _double(self, pace: _Pace, *, settled: bool) -> None:
        base = self._base
        if pace.answers >= SURE_ANSWERS and not self._earlier and base is None:
            self._leave_out(pace)
            return
        wanted = 1 + DOUBLING_GAIN * (pace.limit / base.limit - 1) if base else 0.0
        # A pace from few answers may have been luck, and a wrong verdict costs minutes.
        lucky = base is not None and base.answers < SURE_ANSWERS and settled
        if base is None or lucky or pace.per_second >= wanted * base.per_second:
            self._unloaded, self._base = base or pace, pace
            self._doubling = pace.limit < self._ceiling
            self._set(2 * pace.limit)
        elif settled:
            # The calls that the completions would have needed at the speed before the provider was full.
            unloaded = self._unloaded or base
            gain = pace.per_second / unloaded.per_second
            self._doubling = False
            self._base = None
            self._set(min(pace.limit, round(unloaded.limit * max(1.0, gain))))
        elif pace.answers >= SURE_ANSWERS and not self._earlier:
            self._leave_out(pace)

    def _leave_out(self, pace: _Pace) -> None:
        """Leave out the first answers at a limit: short ones come first, and connections are made."""
        self._earlier = pace.answers
        self._clear_window()

    def _judge(self, pace: _Pace, base: _Pace, now: float) -> None:
        if pace.per_second >= STEP_GAIN * base.per_second:
            self._base, self._rest_s = pace, FIRST_REST_S
            in_proportion = pace.per_second * base.limit >= PROPORTION * base.per_second * pace.limit
            if in_proportion and self._cut_number == 0:
                # Doubling has ended by chance; where calls were refused it would only provoke more of that.
                self._doubling, self._unloaded = True, base
                self._set(2 * pace.limit)
            else:
                self._clear()
            return
        self._rest_until = now + self._rest_s
        self._rest_s = min(LONGEST_REST_S, 2 * self._rest_s)
        self._set(base.limit)

    def _cut(self) -> None:
        self._trusted = self.limit
        self._doubling = False
        self._base = None
        self._answers = self._failed = 0
        self._set(int(CUT * self.limit))
        self._number += 1  # also where the limit cannot go lower: what was out then has been heard
        self._cut_number = self._number

    def _step_end(self, limit: int) -> int:
        return min(self._ceiling, math.ceil(STEP * limit))

    def _grow(self, most: int | None = None) -> None:
        grown = self.limit + max(1, self.limit // GROWTH_OF)
        self._set(grown if most is None else min(grown, most))

    def _set(self, limit: int) -> None:
        limit = max(1, min(limit, self._ceiling))
        self._number += limit != self.limit
        self.limit = limit
        self._clear()

    def _clear(self) -> None:
        self._earlier = 0  # answers at this limit that are not measured over
        self._clear_window()

    def _clear_window(self) -> None:
        self._measured = 0
        self._in_flight = 0
        self._latency_s = 0.0


def _start(ceiling: int) -> int:
    return START + max(0, ceiling - USUAL_CEILING) // START_OF
