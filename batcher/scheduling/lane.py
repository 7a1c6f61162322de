"""The single gate of a route: one synchronous decision, one timer."""

import asyncio
import heapq
import math
import random
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from batcher.clock import monotonic
from batcher.errors import CallError, LaneParked, TooLarge
from batcher.events import CircuitChanged, Emit, LaneChanged
from batcher.limits.breaker import BreakerPolicy, Circuit, CircuitBreaker, Ticket
from batcher.limits.pause import Pause
from batcher.limits.quota import Reservation, TokenQuota
from batcher.scheduling.pacer import Pacer
from batcher.scheduling.slots import RunSlots
from batcher.types import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneLimits:
    """What a lane was told to keep; None is no limit.

    Attributes:
        requests_per_minute: paced evenly.
        tokens_per_minute: reserved before a call, settled after it.
        longest_pause_s: a provider that asks for a longer pause parks the lane instead.
        deadline_at: the run's end in loop time; a pause beyond it parks the lane, too.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    longest_pause_s: float = 3600.0
    deadline_at: float = math.inf


class Permit:
    """Leave for one attempt, settled exactly once; left unsettled (cancelled), it counts as `IGNORED`."""

    __slots__ = ("_lane", "_open", "_reservation", "_ticket")

    def __init__(self, lane: "Lane", reservation: Reservation | None, ticket: Ticket) -> None:
        self._lane = lane
        self._reservation = reservation
        self._ticket = ticket
        self._open = True

    def settle(
        self,
        outcome: Outcome,
        *,
        used_tokens: int | None = None,
        retry_after_s: float | None = None,
        refused: bool = False,
    ) -> None:
        """Give the slot back and tell the lane what the attempt brought.

        Args:
            outcome: what the attempt teaches.
            used_tokens: tokens charged; None keeps the reservation as charged.
            retry_after_s: the pause the provider asked for, if it did.
            refused: the provider lets nothing through for now (429): the whole lane pauses.

        Raises:
            RuntimeError: the permit was settled before.
        """
        if not self._open:
            raise RuntimeError("a permit is settled exactly once")
        self._open = False
        self._lane._settle(
            self._reservation,
            self._ticket,
            outcome,
            used_tokens=used_tokens,
            retry_after_s=retry_after_s,
            refused=refused,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self.settle(Outcome.IGNORED)


@dataclass(slots=True)
class _Waiter:
    future: asyncio.Future[Permit]
    tokens: int


class Lane:
    """Lets attempts of one route through while every gate says yes in the same step.

    The gates: not paused or parked, a slot of the run, the circuit breaker, a pacing token, the token
    quota. When one says no, a single timer is set to the earliest moment that can change the answer; a
    gate without such a moment calls back.
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
        self.backing_off = 0
        self.last_success_at = -math.inf
        self._limits = limits
        self._slots = slots
        self._breaker = CircuitBreaker(breaker, random=random.random)
        self._emit = emit
        self._quota = TokenQuota(limits.tokens_per_minute, monotonic()) if limits.tokens_per_minute else None
        self._pacer = Pacer(limits.requests_per_minute, self._assign) if limits.requests_per_minute else None
        self._waiters: list[tuple[int, float, int, _Waiter]] = []  # (-priority, since, number, waiter)
        self._arrivals = 0
        self._timer: asyncio.TimerHandle | None = None
        self._pause = Pause()
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
    def counts_tokens(self) -> bool:
        """Whether an attempt must say how many tokens it may use."""
        return self._quota is not None

    def hindrance(self, now: float) -> str:
        """Return what holds this lane back at `now`, in words, or ""."""
        if self._parked is not None:
            return str(self._parked)
        if self._breaker.state is Circuit.OPEN:
            return f"{self.route} fails, next try in {max(0.0, self._breaker.free_at(now) - now):.0f} s"
        if self._pause.until > now:
            return f"{self.route} pauses for {self._pause.until - now:.0f} s"
        return ""

    async def permit(self, *, priority: int = 0, since: float = 0.0, tokens: int = 0) -> Permit:
        """Wait until an attempt may start.

        Args:
            priority: higher goes first.
            since: when the job began to wait (loop time); among equals the oldest goes first.
            tokens: input and output tokens that the attempt may use.

        Raises:
            LaneParked: nothing more passes in this run.
            TooLarge: `tokens` is more than the quota can ever let through.
        """
        self._refuse_if_parked()
        if self._quota is not None and not self._quota.fits(tokens):
            raise TooLarge(
                f"the request may use {tokens} tokens, but {self._quota.tokens_per_minute} a minute are "
                "allowed: shorten the prompt, lower max_completion_tokens or raise --tpm",
                code="too_large",
                sent=False,
            )
        waiter = _Waiter(asyncio.get_running_loop().create_future(), tokens)
        self._arrivals += 1
        heapq.heappush(self._waiters, (-priority, since, self._arrivals, waiter))
        self._assign()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and not waiter.future.exception():
                waiter.future.result().settle(Outcome.IGNORED, used_tokens=0)
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
        self.backing_off += 1
        try:
            await awake
        finally:
            self.backing_off -= 1
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
        if self._pacer is not None:
            self._pacer.close()
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
            free_at = self._free_at(waiter.tokens, now)
            if free_at > now:
                if free_at < math.inf:
                    self._timer = asyncio.get_running_loop().call_at(free_at, self._assign)
                return
            heapq.heappop(self._waiters)
            waiter.future.set_result(self._grant(waiter.tokens, now))

    def _free_at(self, tokens: int, now: float) -> float:
        """Return when the best waiter may pass; `inf` where a gate will call back."""
        if self._pause.until > now:
            return self._pause.until
        if (circuit := self._breaker.free_at(now)) > now:
            return circuit
        if self._quota is not None and (quota := self._quota.free_at(tokens, now)) > now:
            return quota
        if self._pacer is not None and (paced := self._pacer.free_at(now)) > now:
            return paced
        return now if self._slots.free_for(self) else math.inf

    def _grant(self, tokens: int, now: float) -> Permit:
        before = self._breaker.state
        ticket = self._breaker.grant(now)
        self._tell_circuit(before)
        self._slots.take()
        self.in_flight += 1
        if self._pacer is not None:
            self._pacer.spend(now)
        return Permit(self, self._quota.reserve(tokens, now) if self._quota else None, ticket)

    def _settle(
        self,
        reservation: Reservation | None,
        ticket: Ticket,
        outcome: Outcome,
        *,
        used_tokens: int | None,
        retry_after_s: float | None,
        refused: bool,
    ) -> None:
        now = monotonic()
        self.in_flight -= 1
        if self._quota is not None and reservation is not None and used_tokens is not None:
            self._quota.settle(reservation, used_tokens, now)
        before = self._breaker.state
        self._breaker.settle(ticket, outcome, now, wait_s=retry_after_s or 0.0)
        self._tell_circuit(before)
        if outcome is Outcome.SUCCESS:
            self.last_success_at = now
            self._pause.answered()
        elif refused:
            self._hold_back(retry_after_s, now)
        self._slots.give_back()
        self._assign()

    def _hold_back(self, retry_after_s: float | None, now: float) -> None:
        longest_s = min(self._limits.longest_pause_s, self._limits.deadline_at - now)
        if retry_after_s is not None and retry_after_s > longest_s:
            reason = f"{self.route}: the provider asks to wait {retry_after_s:.0f} s"
            self.park(reason, resume_in_s=retry_after_s)
        elif begun := self._pause.refused(retry_after_s, now, random.random()):
            self._emit(LaneChanged(route=self.route, message=f"{self.route}: {begun}"))

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


def used_tokens_after(error: CallError) -> int | None:
    """Return the tokens that a failed call is charged: none if it never got in, else unknown."""
    not_admitted = not error.sent or error.outcome is Outcome.OVERLOADED
    return 0 if not_admitted else None
