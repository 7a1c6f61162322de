"""The single gate of a route: one synchronous decision, one timer."""

import asyncio
import math

from batcher.clock import loop_clock
from batcher.errors import LaneHeldUp, LaneParked, TooLarge
from batcher.events import Emit, LaneChanged
from batcher.limits.breaker import BreakerPolicy
from batcher.limits.bucket import WINDOW_S
from batcher.limits.limit import Demand
from batcher.scheduling.allowance import NOTHING, Allowance, LaneLimits, Lesson
from batcher.scheduling.backoffs import Backoffs
from batcher.scheduling.circuits import Circuits, HostCircuit, WatchedCircuit
from batcher.scheduling.permit import Permit
from batcher.scheduling.slots import RunSlots
from batcher.scheduling.waiters import Waiter, Waiters
from batcher.text.durations import in_words
from batcher.types import Outcome

OVERTAKEN_S = 10.0
"""How long the first in line, for which the tokens are not there yet, lets smaller ones go before it."""


class Lane:
    """Lets attempts of one route through while every gate says yes in the same step.

    The gates: not parked, the circuits of route and host, the provider's allowance (pause, concurrency,
    quota, pace), a slot of the run. When one says no, a single timer is set to the earliest moment that can
    change the answer; a gate without such a moment calls back. Where only tokens are missing for the first in
    line, smaller ones of its priority may go before it for `OVERTAKEN_S`; then it holds its place.

    Args:
        route: its name, for messages.
        limits: what it was told.
        slots: shared by all lanes of the run.
        breaker: when the route counts as failing.
        emit: who is told what changes.
        host: the circuit of the address, shared by all lanes that talk to it; None for one of its own.
        model: what is asked for; the route's name if "".

    Attributes:
        parked: why nothing more is let through in this run, or None.
    """

    def __init__(
        self,
        route: str,
        limits: LaneLimits,
        *,
        slots: RunSlots,
        breaker: BreakerPolicy,
        emit: Emit,
        host: HostCircuit | None = None,
        model: str = "",
    ) -> None:
        self.route = route
        self.model = model or route
        self.in_flight = 0
        self.last_success_at = -math.inf
        self._limits = limits
        self._slots = slots
        host = host or HostCircuit(route, breaker, emit)
        host.join(self._look_again)
        self._circuits = Circuits(WatchedCircuit(route, breaker, emit), host)
        self._emit = emit
        self._now = loop_clock()
        self._allowance = Allowance(limits, self._look_again, self._now())
        self._waiters: Waiters[Permit] = Waiters()
        self._backoffs = Backoffs(lambda: not self.in_flight and not self._waiters)
        self._timer: asyncio.TimerHandle | None = None
        self.parked: LaneParked | None = None
        self._used_up_told = False

    def __repr__(self) -> str:
        return f"<Lane {self.route} in_flight={self.in_flight} waiting={self.waiting} {self._circuits!r}>"

    @property
    def waiting(self) -> int:
        """Attempts that wait to be let through."""
        return len(self._waiters)

    @property
    def concurrency(self) -> int:
        """Calls that may be in flight on this lane now."""
        return self._allowance.concurrency

    @property
    def ready(self) -> int:
        """Jobs to choose from, beyond those in flight: some where limits bind."""
        return self._allowance.ready

    @property
    def day_limits(self) -> tuple[int | None, int | None]:
        """Requests and tokens a day, as told or learned."""
        return self._allowance.day_limits

    def demand(self, body: bytes, *, answers: bool) -> Demand:
        """Estimate the tokens that a request may use, for `permit`.

        Args:
            body: the JSON object to be sent.
            answers: whether the endpoint writes text; embeddings do not.
        """
        return self._allowance.demand(body, answers=answers)

    def hindrance(self, now: float) -> str:
        """Return what holds this lane back at `now`, in words, or ""."""
        if self.parked is not None:
            return str(self.parked)
        if fails := self._circuits.hindrance(now):
            return fails
        if self._allowance.pause.until > now:
            return f"{self.route} pauses for {in_words(self._allowance.pause.until - now)}"
        if used_up_s := self._used_up_s(now):
            return f"{self.route}: its limits are used up, next call in {in_words(used_up_s)}"
        return ""

    def held_up_s(self, now: float) -> float:
        """Return for how long the lane has been shut or will be: by failures, a pause, a day's limit."""
        return max(self._circuits.held_up_s(now), self._allowance.pause.until - now, self._used_up_s(now))

    def next_try_in_s(self, now: float) -> float:
        """Return in how many seconds a lane that is shut lets an attempt through, as far as is known."""
        return max(self._circuits.next_try_in_s(now), self._allowance.pause.until - now, self._used_up_s(now))

    async def permit(
        self,
        *,
        priority: int = 0,
        since: float = 0.0,
        demand: Demand = NOTHING,
        patience_s: float = math.inf,
    ) -> Permit:
        """Wait until an attempt may start.

        Args:
            priority: higher goes first.
            since: when the job began to wait (loop time); among equals the oldest goes first.
            demand: tokens that the attempt may use.
            patience_s: how long the lane may be shut before the job would rather go elsewhere.

        Raises:
            LaneParked: nothing more passes in this run.
            LaneHeldUp: the lane is shut for longer than `patience_s`.
            TooLarge: that is more than the quota can ever let through.
        """
        self._refuse_if_parked()
        if misfit := self._allowance.misfit(demand):
            raise misfit
        waiter = self._waiters.add(priority, since, demand, patience_s)
        self._look_again()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            self._waiters.remove(waiter)
            if waiter.future.done() and not waiter.future.cancelled() and not waiter.future.exception():
                waiter.future.result().settle(Lesson(outcome=Outcome.IGNORED, admitted=False))
            else:
                self._look_again()  # the next in line may need less than the one that has gone
            raise

    async def backoff(self, seconds: float, *, counted: bool = False) -> None:
        """Sleep between two attempts without holding anything; parking the lane ends the sleep.

        Args:
            seconds: how long (>= 0).
            counted: the failed attempt counted, so that the retry has to wait for the lane's retry budget.

        Raises:
            LaneParked: nothing more passes in this run.
        """
        self._refuse_if_parked()
        await self._backoffs.sleep(seconds, counted=counted)
        self._refuse_if_parked()

    def park(self, reason: str, *, resume_in_s: float | None = None, tell: bool = True) -> None:
        """Let nothing more through in this run: who waits or sleeps gets `LaneParked`, calls in flight go on.

        Args:
            reason: for the user.
            resume_in_s: seconds from now after which a new run makes sense, if known.
            tell: the user has not been told yet.
        """
        if self.parked is not None:
            return
        resume_at = None if resume_in_s is None else self._now() + resume_in_s
        self.parked = LaneParked(reason, resume_at=resume_at)
        if self._timer is not None:
            self._timer.cancel()
        self._allowance.close()
        for waiter in self._waiters:
            self._turn_down(waiter, LaneParked(reason, resume_at=resume_at))
        self._backoffs.wake_all()
        if tell:
            self._emit(LaneChanged(route=self.route, message=reason))

    def set_share(self, share: float) -> None:
        """Keep to `share` (above 0, at most 1) of each minute limit: other runs have the rest."""
        self._allowance.set_share(share, self._now())
        self._look_again()

    def used_elsewhere(self, requests: int, tokens: int) -> None:
        """Count what others have used of the day's limits (both >= 0)."""
        self._allowance.used_elsewhere(requests, tokens, self._now())
        self._look_again()

    def wants_slot(self) -> tuple[int, float] | None:
        """Return (-priority, waiting since) of the best waiter, or None if nobody waits."""
        return (best.urgency, best.since) if (best := self._waiters.best) else None

    def slot_free(self) -> None:
        """Look again whether a waiter can be let through."""
        self._look_again()

    def _refuse_if_parked(self) -> None:
        if self.parked is not None:
            # A new one for each: an exception raised twice keeps the frames of both callers alive.
            raise LaneParked(str(self.parked), resume_at=self.parked.resume_at)

    def _look_again(self) -> None:
        self._let_through(self._now())

    def _let_through(self, now: float) -> None:
        """Let the best waiters through while all gates say yes; else set the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while first := self._waiters.best:
            if self._allowance.all_out(self.in_flight, now) and self._circuits.closed:
                return  # the end of a call is all there is to wait for
            if misfit := self._allowance.misfit(first.demand):
                self._turn_down(first, misfit)  # a limit was learned while it waited
                continue
            waiter, free_at = self._next(first, now)
            if free_at > now:
                if free_at == math.inf and self.in_flight and self._circuits.closed:
                    return  # whoever is in the way calls back
                if self._park_if_used_up(now):
                    return
                look_at = min(free_at, self._send_away(now))
                if first.future.done():
                    continue
                if look_at < math.inf:
                    self._timer = asyncio.get_running_loop().call_at(look_at, self._look_again)
                return
            self._waiters.remove(waiter)
            waiter.future.set_result(self._grant(waiter.demand, now))

    def _next(self, first: Waiter[Permit], now: float) -> tuple[Waiter[Permit], float]:
        """Return who may pass next, and when: `inf` where a gate will call back."""
        if (shut := self._circuits.free_at(now)) > now:
            return first, shut
        if (busy := self._allowance.busy_until(self.in_flight, now)) > now:
            return first, busy
        waiter, free_at = self._fitting(first, now)
        if free_at > now or (free_at := self._allowance.paced_until(now)) > now:
            return waiter, free_at
        return waiter, now if self._slots.free_for(self) else math.inf

    def _fitting(self, first: Waiter[Permit], now: float) -> tuple[Waiter[Permit], float]:
        """Return the first in line, or a smaller one whose tokens are there already, and when they are."""
        free_at = self._allowance.quota_until(first.demand, now)
        if free_at <= now:
            return first, free_at
        if first.first_at is None:
            first.first_at = now
        if now - first.first_at >= OVERTAKEN_S:
            return first, free_at
        for other in self._waiters.behind_first():
            if self._allowance.misfit(other.demand):
                continue
            if (other_at := self._allowance.quota_until(other.demand, now)) <= now:
                return other, now
            free_at = min(free_at, other_at)
        return first, free_at

    def _grant(self, demand: Demand, now: float) -> Permit:
        tickets = self._circuits.grant(now)
        self._slots.take()
        hold = self._allowance.grant(demand, now)
        self.in_flight += 1
        self._used_up_told = False
        return Permit(hold, tickets, self._settle)

    def _settle(self, permit: Permit, lesson: Lesson) -> None:
        now = self._now()
        if lesson.outcome is Outcome.SUCCESS:
            self.last_success_at = now
            self._backoffs.succeeded(now)
        for words in self._allowance.settle(permit.hold, lesson, self.in_flight, now):
            self._emit(LaneChanged(route=self.route, message=f"{self.route}: {words}"))
        self.in_flight -= 1
        wait_s = lesson.retry_after_s or 0.0
        if self._circuits.settle(permit.tickets, lesson.outcome, lesson.host, now, wait_s=wait_s):
            self._allowance.begin_again(self.in_flight + 1)
        self._park_if_hopeless(lesson, now)
        # Before the slot is given back, so that this lane's best waiter is among those asked.
        self._let_through(now)
        self._slots.give_back()
        self._backoffs.look_again()

    def _park_if_hopeless(self, lesson: Lesson, now: float) -> None:
        if lesson.refused and self._limits.too_long(wait_s := lesson.retry_after_s or 0.0, now):
            limit = f" ({lesson.limit_name})" if lesson.limit_name else ""
            reason = f"{self.route}: the provider asks to wait {in_words(wait_s)}{limit}"
            self.park(reason, resume_in_s=wait_s)
        elif lesson.outcome is Outcome.FAILED:
            fails_for_s = self._circuits.fails_for_s(now)
            if fails_for_s > self._limits.longest_outage_s:
                self.park(f"{self.route}: no answer for {in_words(fails_for_s)}")

    def _park_if_used_up(self, now: float) -> bool:
        """Say that a day's limit of ours is used up; park if it is for too long, such as until tomorrow."""
        used_up_s = self._used_up_s(now)
        if not used_up_s:
            return False
        reason = f"{self.route}: its limits are used up, next call in {in_words(used_up_s)}"
        if self._limits.too_long(used_up_s, now):
            self.park(reason, resume_in_s=used_up_s)
            return True
        if not self._used_up_told:
            self._used_up_told = True
            self._emit(LaneChanged(route=self.route, message=reason))
        return False

    def _used_up_s(self, now: float) -> float:
        """Return how long a limit of ours holds everybody back, 0 if no longer than a minute's limit may."""
        best = self._waiters.best
        if best is None or self.in_flight:
            return 0.0  # calls in flight may give back what they do not use
        wait_s = self._allowance.quota_until(best.demand, now) - now
        return wait_s if wait_s > WINDOW_S or self._limits.too_long(wait_s, now) else 0.0

    def _send_away(self, now: float) -> float:
        """Let those go elsewhere for whom the lane is shut for too long; return when others may follow."""
        if not (held_up_s := self.held_up_s(now)):
            return math.inf
        leaving, patience_s = self._waiters.impatient(held_up_s)
        for waiter in leaving:
            why = self.hindrance(now) or f"{self.route}: only single calls pass after failures"
            self._turn_down(waiter, LaneHeldUp(why))
        return now - self._circuits.fails_for_s(now) + patience_s

    def _turn_down(self, waiter: Waiter[Permit], error: LaneHeldUp | LaneParked | TooLarge) -> None:
        self._waiters.remove(waiter)
        if not waiter.future.done():
            waiter.future.set_exception(error)
