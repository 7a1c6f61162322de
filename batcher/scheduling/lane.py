"""The single gate of a route: one synchronous decision, one timer."""

import asyncio
import heapq
import math
import random
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from batcher.clock import monotonic
from batcher.errors import LaneParked, TooLarge
from batcher.events import CircuitChanged, Emit, LaneChanged
from batcher.limits.breaker import BreakerPolicy, Circuit, CircuitBreaker, Ticket
from batcher.limits.limit import Demand
from batcher.limits.quota import QuotaLimits
from batcher.scheduling.allowance import NOTHING, Allowance, Hold, Lesson, ProviderRules
from batcher.scheduling.slots import RunSlots
from batcher.types import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneLimits:
    """What a lane was told to keep.

    Attributes:
        quota: requests and tokens; what is None may be learned from the provider's headers.
        concurrency: the most calls in flight.
        rules: how the provider counts.
        longest_pause_s: a provider that asks for a longer pause parks the lane instead.
        deadline_at: the run's end in loop time; a pause beyond it parks the lane, too.
    """

    quota: QuotaLimits = field(default_factory=QuotaLimits)
    concurrency: int = 256
    rules: ProviderRules = field(default_factory=ProviderRules)
    longest_pause_s: float = 3600.0
    deadline_at: float = math.inf


class Permit:
    """Leave for one attempt, settled exactly once; left unsettled (cancelled), it counts as `IGNORED`."""

    __slots__ = ("_hold", "_lane", "_open", "_ticket")

    def __init__(self, lane: "Lane", hold: Hold, ticket: Ticket) -> None:
        self._lane = lane
        self._hold = hold
        self._ticket = ticket
        self._open = True

    def settle(self, lesson: Lesson) -> None:
        """Give the slot back and tell the lane what the attempt brought.

        Raises:
            RuntimeError: the permit was settled before.
        """
        if not self._open:
            raise RuntimeError("a permit is settled exactly once")
        self._open = False
        self._lane._settle(self._hold, self._ticket, lesson)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self.settle(Lesson(outcome=Outcome.IGNORED))


@dataclass(slots=True)
class _Waiter:
    future: asyncio.Future[Permit]
    demand: Demand


class Lane:
    """Lets attempts of one route through while every gate says yes in the same step.

    The gates: not parked, the circuit breaker, the provider's allowance (pause, concurrency, quota, pace), a
    slot of the run. When one says no, a single timer is set to the earliest moment that can change the
    answer; a gate without such a moment calls back.
    """

    def __init__(
        self,
        route: str,
        limits: LaneLimits,
        *,
        slots: RunSlots,
        breaker: BreakerPolicy,
        emit: Emit,
    ) -> None:
        self.route = route
        self.in_flight = 0
        self.last_success_at = -math.inf
        self._limits = limits
        self._slots = slots
        self._breaker = CircuitBreaker(breaker, random=random.random)
        self._emit = emit
        self._allowance = Allowance(limits.quota, limits.concurrency, limits.rules, self._assign, monotonic())
        self._waiters: list[tuple[int, float, int, _Waiter]] = []  # (-priority, since, number, waiter)
        self._arrivals = 0
        self._timer: asyncio.TimerHandle | None = None
        self._parked: LaneParked | None = None
        self._sleepers: set[asyncio.Future[None]] = set()

    def __repr__(self) -> str:
        return f"<Lane {self.route} in_flight={self.in_flight} waiting={self.waiting} {self._breaker!r}>"

    @property
    def waiting(self) -> int:
        """Attempts that wait to be let through."""
        return sum(1 for *_, waiter in self._waiters if not waiter.future.done())

    @property
    def parked(self) -> LaneParked | None:
        """Why this lane lets nothing more through in this run, or None."""
        return self._parked

    @property
    def concurrency(self) -> int:
        """Calls that may be in flight on this lane now."""
        return self._allowance.concurrency

    def demand(self, body: bytes, *, answers: bool) -> Demand:
        """Estimate the tokens that a request may use, for `permit`.

        Args:
            body: the JSON object to be sent.
            answers: whether the endpoint writes text; embeddings do not.
        """
        return self._allowance.demand(body, answers=answers)

    def hindrance(self, now: float) -> str:
        """Return what holds this lane back at `now`, in words, or ""."""
        if self._parked is not None:
            return str(self._parked)
        if self._breaker.state is Circuit.OPEN:
            return f"{self.route} fails, next try in {max(0.0, self._breaker.free_at(now) - now):.0f} s"
        if self._allowance.pause.until > now:
            return f"{self.route} pauses for {self._allowance.pause.until - now:.0f} s"
        return ""

    async def permit(self, *, priority: int = 0, since: float = 0.0, demand: Demand = NOTHING) -> Permit:
        """Wait until an attempt may start.

        Args:
            priority: higher goes first.
            since: when the job began to wait (loop time); among equals the oldest goes first.
            demand: tokens that the attempt may use.

        Raises:
            LaneParked: nothing more passes in this run.
            TooLarge: that is more than the quota can ever let through.
        """
        self._refuse_if_parked()
        if misfit := self._allowance.misfit(demand):
            raise _too_large(misfit)
        waiter = _Waiter(asyncio.get_running_loop().create_future(), demand)
        self._arrivals += 1
        heapq.heappush(self._waiters, (-priority, since, self._arrivals, waiter))
        self._assign()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and not waiter.future.exception():
                waiter.future.result().settle(Lesson(outcome=Outcome.IGNORED, admitted=False))
            else:
                self._assign()  # the next in line may need less than the one that has gone
            raise

    async def backoff(self, seconds: float) -> None:
        """Sleep between two attempts without holding anything; parking the lane ends the sleep.

        Raises:
            LaneParked: nothing more passes in this run.
        """
        self._refuse_if_parked()
        if seconds <= 0:
            return
        loop = asyncio.get_running_loop()
        awake: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _wake, awake)
        self._sleepers.add(awake)
        try:
            await awake
        finally:
            self._sleepers.discard(awake)
            timer.cancel()
        self._refuse_if_parked()

    def park(self, reason: str, *, resume_in_s: float | None = None) -> None:
        """Let nothing more through in this run: who waits or sleeps gets `LaneParked`, calls in flight go on.

        Args:
            reason: for the user.
            resume_in_s: seconds from now after which a new run makes sense, if known.
        """
        if self._parked is not None:
            return
        self._parked = LaneParked(reason, resume_in_s=resume_in_s)
        if self._timer is not None:
            self._timer.cancel()
        self._allowance.close()
        waiters, self._waiters = self._waiters, []
        for *_, waiter in waiters:
            if not waiter.future.done():
                waiter.future.set_exception(LaneParked(reason, resume_in_s=resume_in_s))
        for sleeper in self._sleepers:
            _wake(sleeper)
        self._emit(LaneChanged(route=self.route, message=reason))

    def wants_slot(self) -> tuple[int, float] | None:
        """Return (-priority, waiting since) of the best waiter, or None if nobody waits."""
        while self._waiters and self._waiters[0][3].future.done():
            heapq.heappop(self._waiters)
        return self._waiters[0][:2] if self._waiters else None

    def slot_free(self) -> None:
        """Look again whether a waiter can be let through."""
        self._assign()

    def _refuse_if_parked(self) -> None:
        if self._parked is not None:
            # A new one for each: an exception raised twice keeps the frames of both callers alive.
            raise LaneParked(str(self._parked), resume_in_s=self._parked.resume_in_s)

    def _assign(self) -> None:
        """Let the best waiters through while all gates say yes; else set the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = monotonic()
        while self.wants_slot() is not None:
            waiter = self._waiters[0][3]
            if misfit := self._allowance.misfit(waiter.demand):
                heapq.heappop(self._waiters)
                waiter.future.set_exception(_too_large(misfit))  # a limit was learned while it waited
                continue
            free_at = self._free_at(waiter.demand, now)
            if free_at > now:
                if free_at < math.inf:
                    self._timer = asyncio.get_running_loop().call_at(free_at, self._assign)
                return
            heapq.heappop(self._waiters)
            waiter.future.set_result(self._grant(waiter.demand, now))

    def _free_at(self, demand: Demand, now: float) -> float:
        """Return when the best waiter may pass; `inf` where a gate will call back."""
        if (circuit := self._breaker.free_at(now)) > now:
            return circuit
        if (allowed := self._allowance.free_at(demand, self.in_flight, now)) > now:
            return allowed
        return now if self._slots.free_for(self) else math.inf

    def _grant(self, demand: Demand, now: float) -> Permit:
        before = self._breaker.state
        ticket = self._breaker.grant(now)
        self._tell_circuit(before)
        self._slots.take()
        hold = self._allowance.grant(demand, now)
        self.in_flight += 1
        return Permit(self, hold, ticket)

    def _settle(self, hold: Hold, ticket: Ticket, lesson: Lesson) -> None:
        now = monotonic()
        before = self._breaker.state
        self._breaker.settle(ticket, lesson.outcome, now, wait_s=lesson.retry_after_s or 0.0)
        self._tell_circuit(before)
        if lesson.outcome is Outcome.SUCCESS:
            self.last_success_at = now
        for words in self._allowance.settle(hold, lesson, self.in_flight, now):
            self._emit(LaneChanged(route=self.route, message=f"{self.route}: {words}"))
        self.in_flight -= 1
        self._park_if_hopeless(lesson, now)
        self._assign()  # before the slot is given back, so that this lane's best waiter is among those asked
        self._slots.give_back()

    def _park_if_hopeless(self, lesson: Lesson, now: float) -> None:
        wait_s = lesson.retry_after_s or 0.0
        if lesson.refused and wait_s > min(self._limits.longest_pause_s, self._limits.deadline_at - now):
            limit = f" ({lesson.limit_name})" if lesson.limit_name else ""
            reason = f"{self.route}: the provider asks to wait {wait_s:.0f} s{limit}"
            self.park(reason, resume_in_s=wait_s)

    def _tell_circuit(self, before: Circuit) -> None:
        after = self._breaker.state
        if after is before:
            return
        words = {
            Circuit.OPEN: "too many calls failed, waiting before the next try",
            Circuit.HALF_OPEN: "trying again with a single call",
            Circuit.CLOSED: "the provider answers again",
        }
        message = f"{self.route}: {words[after]}"
        self._emit(CircuitChanged(route=self.route, state=after.value, message=message))


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


def _too_large(misfit: str) -> TooLarge:
    advice = "shorten the prompt, lower max_completion_tokens or raise the limit"
    return TooLarge(f"{misfit}: {advice}", code="too_large", sent=False)
