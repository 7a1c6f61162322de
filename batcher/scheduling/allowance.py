"""What the provider lets one route do: its quota, its pace, its concurrency and its pauses."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from batcher.errors import TooLarge
from batcher.limits.aimd import AdaptiveConcurrency, Grant
from batcher.limits.limit import Demand, NamedLimit
from batcher.limits.pause import Pause
from batcher.limits.quota import Quota, QuotaLimits, QuotaReservation
from batcher.scheduling.pacer import Pacer
from batcher.text.tokens import TokenEstimator
from batcher.types import Outcome, RateLimits, Usage

NOTHING = Demand(0, 0)
READY = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRules:
    """How a provider counts.

    Attributes:
        admits_maximum: a request is admitted only if its prompt and its whole maximum fit (Groq).
        cached_tokens_count: input tokens from the provider's cache count towards limits (not on Groq).
    """

    admits_maximum: bool = False
    cached_tokens_count: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneLimits:
    """What a lane was told to keep.

    Attributes:
        quota: requests and tokens; what is None may be learned from the provider.
        concurrency: the most calls in flight.
        rules: how the provider counts.
        longest_pause_s: a provider that asks for a longer pause parks the lane instead.
        longest_outage_s: a lane that has failed for longer is parked, so that every run ends.
        deadline_at: the run's end in loop time; a pause beyond it parks the lane, too.
    """

    quota: QuotaLimits = field(default_factory=QuotaLimits)
    concurrency: int = 256
    rules: ProviderRules = field(default_factory=ProviderRules)
    longest_pause_s: float = 3600.0
    longest_outage_s: float = 86_400.0
    deadline_at: float = math.inf

    def too_long(self, wait_s: float, now: float) -> bool:
        """Tell whether nobody is to wait for so long in this run."""
        return wait_s > min(self.longest_pause_s, self.deadline_at - now)


class Admission(NamedTuple):
    """What one attempt holds until it has ended."""

    reservation: QuotaReservation | None
    grant: Grant


class Lesson(msgspec.Struct, frozen=True, kw_only=True):
    """What the end of an attempt teaches.

    Attributes:
        outcome: what it came to.
        usage: tokens as the provider counted them; None keeps the reservation as charged.
        sent_bytes: size of the request's body, that `usage` belongs to.
        admitted: False if the provider never let the request in, so that nothing is charged.
        seen: what the headers said about limits.
        refused: a 429: nothing gets through for now.
        retry_after_s: the pause that the provider asked for, if it did.
        named: the limit that a refusal names, with its numbers, if it does.
        host: what it taught about the address: any reply of the API is a `SUCCESS`.
        short_here: this machine had no descriptor, port or memory left for the call.
    """

    outcome: Outcome
    usage: Usage | None = None
    sent_bytes: int = 0
    admitted: bool = True
    seen: RateLimits | None = None
    refused: bool = False
    retry_after_s: float | None = None
    named: NamedLimit | None = None
    host: Outcome = Outcome.IGNORED
    short_here: bool = False

    @property
    def limit_name(self) -> str:
        """The name of the limit that a refusal names (`RPM`, `TPD` ...), or ""."""
        return self.named.name if self.named is not None else ""


class Allowance:
    """Keeps the limits that were told and learns those that were not.

    Args:
        limits: as told.
        on_token: called when a request that was held back only by the pace may start.
    """

    def __init__(
        self,
        limits: LaneLimits,
        on_token: Callable[[], None],
        now: float,
    ) -> None:
        told = limits.quota
        self._rules = limits.rules
        self._on_token = on_token
        self._estimator = TokenEstimator(mirrors_admission=limits.rules.admits_maximum)
        self._concurrency = AdaptiveConcurrency(limits.concurrency)
        # Where nothing limits, counting would cost more than it is worth; the headers may change that.
        self._quota = None if told == QuotaLimits(window=told.window) else Quota(told, now)
        self._window = told.window
        self._share = 1.0
        self._pacer = Pacer(told.rpm, on_token) if told.rpm else None
        self.pause = Pause()

    def __repr__(self) -> str:
        return f"<Allowance {self._concurrency!r} {self._quota!r}>"

    @property
    def concurrency(self) -> int:
        """Calls that may be in flight now; few at first after a pause."""
        limit, most = self._concurrency.limit, self.pause.most_at_once
        return limit if limit <= most else int(most)

    @property
    def ready(self) -> int:
        """Requests to keep ready beyond those in flight: some where what the first needs may not be there."""
        return READY if self._quota is not None else 0

    @property
    def day_limits(self) -> tuple[int | None, int | None]:
        """Requests and tokens a day, as told or learned."""
        limits = self._quota.limits if self._quota is not None else QuotaLimits()
        return limits.rpd, limits.tpd

    def demand(self, body: bytes, *, answers: bool) -> Demand:
        """Estimate what a request may use; a limit may be learned while it waits."""
        return Demand(*self._estimator.estimate(body, answers=answers)) if self._counts_tokens else NOTHING

    def misfit(self, demand: Demand) -> TooLarge | None:
        """Return None if a request of `demand` can pass some time, else the error that names the limit."""
        if self._quota is None or not (exceeds := self._quota.fits(demand)):
            return None
        advice = "shorten the prompt, lower max_completion_tokens or raise the limit"
        return TooLarge(f"{exceeds}: {advice}", code="too_large", sent=False)

    def all_out(self, in_flight: int, now: float) -> bool:
        """Tell whether as many calls as may be in flight are, and no pause is on."""
        return 0 < self.concurrency <= in_flight and self.pause.until <= now

    def busy_until(self, in_flight: int, now: float) -> float:
        """Return when pause and concurrency let a request start: `now`, later, or `inf` until an end."""
        if self.pause.until > now:
            return self.pause.until
        return math.inf if in_flight >= self.concurrency else now

    def quota_until(self, demand: Demand, now: float) -> float:
        """Return when the quota lets a request of `demand` start: `now` or later."""
        return self._quota.free_at(demand, now) if self._quota is not None else now

    def paced_until(self, now: float) -> float:
        """Return when the pace lets a request start: `now`, later, or `inf` where `on_token` will tell.

        To be asked last: it orders the token for the next request.
        """
        return self._pacer.free_at(now) if self._pacer is not None else now

    def grant(self, demand: Demand, now: float) -> Admission:
        """Count a request that starts now."""
        if self._pacer is not None:
            self._pacer.spend(now)
        reservation = self._quota.reserve(demand, now) if self._quota is not None else None
        return Admission(reservation, self._concurrency.granted(now))

    def settle(self, hold: Admission, lesson: Lesson, in_flight: int, now: float) -> list[str]:
        """Learn from an attempt that has ended; `in_flight` includes it.

        Returns:
            What changed, in words for the user.
        """
        reservation = hold.reservation
        # The settlement forgets what was asked for where nothing was let in.
        asked = None if reservation is None else reservation.counted
        if self._quota is not None and reservation is not None:
            used = None if lesson.usage is None else self._counted(lesson.usage)
            self._quota.settle(reservation, used, now, admitted=lesson.admitted)
        if lesson.usage is not None and lesson.sent_bytes and self._counts_tokens:
            self._estimator.learn(lesson.sent_bytes, lesson.usage)
        said = self._adopt(lesson.seen, reservation, now) if lesson.seen is not None else []
        if lesson.refused and (self._quota is not None or lesson.named is not None):
            said += self._refused(lesson, asked, now)
        before = self._concurrency.limit
        self._concurrency.settled(hold.grant, self._load(lesson), in_flight, now)
        if (fewer := self._concurrency.limit) < before:
            said.append(f"{before} calls at once {_why_fewer(lesson)}: down to {fewer}")
        if lesson.outcome is Outcome.SUCCESS:
            self.pause.answered(hold.grant.at, self._concurrency.limit)
        elif lesson.refused and (
            begun := self.pause.refused(
                lesson.retry_after_s, now, random.random(), names_quota=lesson.named is not None
            )
        ):
            said.append(begun)
        return said

    def begin_again(self, calls: int) -> None:
        """Find out anew how many calls the provider can take, from so many on."""
        self._concurrency.begin_again(calls)

    def set_share(self, share: float, now: float) -> None:
        """Keep to a share of each minute limit, those that will be learned included."""
        self._share = share
        if self._quota is not None:
            self._quota.set_share(share, now)
            if self._pacer is not None and (rpm := self._quota.requests_per_minute) is not None:
                self._pacer.share(rpm)

    def used_elsewhere(self, requests: int, tokens: int, now: float) -> None:
        """Count what others have used of the day's limits; where none is known, the provider will tell."""
        if self._quota is not None:
            self._quota.day_used(requests, tokens, now)

    def close(self) -> None:
        """Stop fetching pacing tokens."""
        if self._pacer is not None:
            self._pacer.close()

    @property
    def _counts_tokens(self) -> bool:
        """Whether there is a limit, or may be one: a provider that has one says so in its first answers."""
        return self._quota is not None or not self._estimator.is_practised

    def _load(self, lesson: Lesson) -> Outcome:
        """What a refusal explains by a quota or a time, or a host by its failing, is no matter of load."""
        if lesson.short_here:
            return Outcome.OVERLOADED
        if lesson.host is Outcome.FAILED:
            return Outcome.IGNORED
        explained = lesson.named is not None or lesson.retry_after_s is not None
        return Outcome.IGNORED if lesson.refused and explained else lesson.outcome

    def _counted(self, usage: Usage) -> Demand:
        cached = 0 if self._rules.cached_tokens_count else usage.cached_tokens
        return Demand(usage.input_tokens - cached, usage.output_tokens)

    def _adopt(self, seen: RateLimits, reservation: QuotaReservation | None, now: float) -> list[str]:
        quota = self._counting(now)
        if reservation is None:
            # It started before anything counted: as far as the quota knows, it came and went just now.
            reservation = quota.reserve(NOTHING, now)
        said = quota.adopt(seen, reservation, now)
        self._follow_quota()
        return said

    def _refused(self, lesson: Lesson, asked: Demand | None, now: float) -> list[str]:
        said = self._counting(now).refused(lesson.named, lesson.retry_after_s or 0.0, now, demand=asked)
        self._follow_quota()
        return said

    def _counting(self, now: float) -> Quota:
        """Return the quota, which counts from now on at the latest."""
        if self._quota is None:
            self._quota = Quota(QuotaLimits(window=self._window), now, share=self._share)
        return self._quota

    def _follow_quota(self) -> None:
        """Pace at the requests a minute that the quota keeps now."""
        assert self._quota is not None
        rpm = self._quota.requests_per_minute
        if rpm is None:
            return
        if self._pacer is None:
            self._pacer = Pacer(rpm, self._on_token)
        else:
            self._pacer.resize(rpm)


def _why_fewer(lesson: Lesson) -> str:
    if lesson.short_here:
        return "are more than this machine can carry"
    return "bring no more answers" if lesson.outcome is Outcome.SUCCESS else "are more than it can take"
