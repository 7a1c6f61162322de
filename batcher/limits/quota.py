"""The quota of one route: what a request reserves, what its answer really cost, what headers teach."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from batcher.limits.bucket import WINDOW_S, SlotRing, TokenBucket
from batcher.types import RateLimits

EVEN_SHARE = 0.05
"""Share of the minute's tokens that may go out at once; the rest flows at the even rate."""

MINUTE_S = 60.0
DAY_S = 86_400.0

RAISED_PER_MINUTE = 0.2
"""Share of a higher limit in the headers by which the limit kept rises in a minute."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens held for one attempt until it is settled."""

    tokens: int
    slot: int


class TokenQuota:
    """Tokens a minute: reserved at admission, settled with the real usage.

    Over any 60 s what was admitted stays at or below `tokens_per_minute`, as reserved or, once it is
    known, as used.
    """

    def __init__(self, tokens_per_minute: float, now: float) -> None:
        self.tokens_per_minute = tokens_per_minute
        self._ring = SlotRing(tokens_per_minute)
        self._even = TokenBucket(tokens_per_minute / WINDOW_S, tokens_per_minute * EVEN_SHARE, now)

    def __repr__(self) -> str:
        return f"<TokenQuota {self._ring!r} {self._even!r}>"

    def fits(self, tokens: int) -> bool:
        """Return whether a request of `tokens` can ever pass."""
        return tokens <= self.tokens_per_minute

    def free_at(self, tokens: float, now: float) -> float:
        """Return when `tokens` may pass: `now` or later, `inf` if never."""
        at = self._ring.free_at(tokens, now)
        return at if math.isinf(at) else max(at, self._even.free_at(tokens, now))

    def reserve(self, tokens: int, now: float) -> Reservation:
        """Hold `tokens` for an attempt that starts now."""
        self._even.take(tokens, now)
        return Reservation(tokens, self._ring.add(tokens, now))

    def settle(self, reservation: Reservation, used: int, now: float) -> None:
        """Correct a reservation to the tokens really used (0 if the provider did not admit it)."""
        delta = used - reservation.tokens
        if delta:
            self._even.give_back(-delta, now)
            self._ring.correct(reservation.slot, delta, now)

    def resize(self, tokens_per_minute: float, now: float) -> None:
        """Keep another limit from now on; what was admitted already counts against it."""
        self.tokens_per_minute = self._ring.limit = tokens_per_minute
        _resize(self._even, tokens_per_minute / WINDOW_S, tokens_per_minute * EVEN_SHARE, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaLimits:
    """The limits of one account and model; None is no limit, or one that the headers may teach.

    Attributes:
        rpm: requests a minute.
        rpd: requests a day.
        tpm: tokens a minute, input and output together.
        tpd: tokens a day, input and output together.
        itpm: input tokens a minute.
        otpm: output tokens a minute.
        window: `any` keeps the minute's token limits over every 60 s and spends them evenly; `bucket` lets
            the full bucket go out at once and refills it with a sixtieth of the limit a second.
    """

    rpm: int | None = None
    rpd: int | None = None
    tpm: int | None = None
    tpd: int | None = None
    itpm: int | None = None
    otpm: int | None = None
    window: Literal["any", "bucket"] = "any"


class Demand(NamedTuple):
    """Tokens that a request may use, or that its answer did use (both >= 0)."""

    input_tokens: int
    output_tokens: int


class QuotaReservation:
    """What one attempt holds of every limit, from `Quota.reserve` until `Quota.settle` and `Quota.adopt`."""

    __slots__ = ("at", "counted", "holds")

    def __init__(self, at: float, counted: Demand | None, holds: "list[_Hold]") -> None:
        self.at = at
        self.counted = counted
        self.holds = holds

    def __repr__(self) -> str:
        return f"<QuotaReservation {self.counted} at={self.at:g}>"


class Quota:
    """All limits of one account and model as one: a request passes when each of them lets it.

    Minute limits on tokens hold over any 60 s. Day limits are counted and never paced: a bucket of 24 h that
    refills all the time. Requests a minute are paced by the caller, at `limits.rpm`; here they count only
    against what the provider says is left.
    """

    def __init__(self, limits: QuotaLimits, now: float, *, share: float = 1.0) -> None:
        self._window = limits.window
        told = {
            "RPM": limits.rpm,
            "RPD": limits.rpd,
            "TPM": limits.tpm,
            "TPD": limits.tpd,
            "ITPM": limits.itpm,
            "OTPM": limits.otpm,
        }
        evenly = limits.window == "any"
        self._limits = {
            name: _Limit(kind, told[name], now, evenly=evenly and kind.window_s == MINUTE_S and name != "RPM")
            for name, kind in _KINDS.items()
            if told[name] is not None or name in _IN_HEADERS
        }
        self._nothing_before = -math.inf
        self._newest_used = -math.inf
        if share != 1.0:
            self.set_share(share, now)

    def __repr__(self) -> str:
        return f"<Quota {' '.join(map(repr, self._limits.values()))}>"

    @property
    def limits(self) -> QuotaLimits:
        """The limits kept now: as told or learned, times the share."""
        kept = {name.lower(): int(one.size) for name, one in self._limits.items() if one.size < math.inf}
        return QuotaLimits(window=self._window, **kept)

    def fits(self, demand: Demand) -> str:
        """Return "" if the request can pass some time, else which limit it exceeds and by how much."""
        for one in self._limits.values():
            amount = one.kind.amount(demand)
            if amount > one.limit:
                return (
                    f"the request may use {amount:,} {one.kind.unit}, {amount - int(one.limit):,} more than "
                    f"the {int(one.limit):,} {one.kind.per} that are allowed ({one.kind.name})"
                )
        return ""

    def free_at(self, demand: Demand, now: float) -> float:
        """Return when the request may pass: `now` or later; it must fit."""
        at = max(now, self._nothing_before)
        for one in self._limits.values():
            at = max(at, one.free_at(one.kind.amount(demand), now))
        return at

    def reserve(self, demand: Demand, now: float) -> QuotaReservation:
        """Hold what an attempt that starts now may use."""
        holds = [one.reserve(one.kind.amount(demand), now) for one in self._limits.values()]
        return QuotaReservation(now, demand, holds)

    def settle(
        self, reservation: QuotaReservation, used: Demand | None, now: float, *, admitted: bool = True
    ) -> None:
        """Correct a reservation to what was really used.

        Args:
            reservation: of the attempt that has ended, settled once.
            used: as the provider counts it, cached tokens left out where it does; None keeps what was
                reserved.
            now: the end of the attempt.
            admitted: False if the provider never let the request in: nothing is charged, `used` is moot.
        """
        if not admitted:
            used = None
        elif used is None:
            return
        for one, hold in zip(self._limits.values(), reservation.holds, strict=True):
            one.settle(hold, 0 if used is None else one.kind.amount(used), now)
        reservation.counted = used

    def adopt(self, seen: RateLimits, reservation: QuotaReservation, now: float) -> list[str]:
        """Learn from the headers of an answer; call it after the attempt was settled.

        A limit that was told is only ever lowered by it. A lower limit holds at once, a higher one step by
        step. An answer to an older request than the newest one used teaches nothing, nor does nonsense.

        Returns:
            What was learned, in words for the user.
        """
        if reservation.at < self._newest_used:
            return []
        self._newest_used = reservation.at
        requests = {MINUTE_S: "RPM", DAY_S: "RPD"}.get(seen.requests_window_s)
        learned = []
        for (name, one), hold in zip(self._limits.items(), reservation.holds, strict=True):
            if name == requests:
                limit, left = seen.requests, seen.requests_left
            elif name == "TPM":
                limit, left = seen.tokens_per_minute, seen.tokens_left
            else:
                continue
            # A limit below what the provider has just let through is not one.
            least = one.kind.amount(reservation.counted) if reservation.counted else 1
            if limit is not None and limit >= max(1, least) and (words := one.learn(limit, now)):
                learned.append(words)
            if left is not None and left >= 0:
                one.believe(left, hold, now - reservation.at, now)
        return learned

    def refused(
        self, limit_name: str | None, wait_s: float, now: float, *, demand: Demand | None = None
    ) -> None:
        """Take note of a 429: nothing passes for `wait_s`, and then as much as was refused.

        Args:
            limit_name: the limit that its text names (`RPM`, `TPD` ...), if it does.
            wait_s: how long the provider asks to wait (seconds, >= 0).
            now: when it came.
            demand: of the refused request; without it the named limit is taken to be empty after the wait.
        """
        self._nothing_before = max(self._nothing_before, now + wait_s)
        if one := self._limits.get(limit_name or ""):
            one.deplete(wait_s, one.kind.amount(demand) if demand else 0, now)

    def day_used(self, requests: int, tokens: int, *, age_s: float, now: float) -> None:
        """Count what was used of the day's limits elsewhere: before this run, or by others beside it.

        Args:
            requests: how many.
            tokens: input and output together.
            age_s: how long ago that was so (seconds, >= 0); what has refilled since does not count.
            now: the present.
        """
        for name, used in (("RPD", requests), ("TPD", tokens)):
            if one := self._limits.get(name):
                one.used_elsewhere(used, age_s, now)

    def set_share(self, share: float, now: float) -> None:
        """Keep to `share` (above 0, at most 1) of each minute limit: others on this account have the rest."""
        for one in self._limits.values():
            if one.kind.window_s == MINUTE_S:
                one.set_share(share, now)


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    window_s: float
    unit: str
    amount: Callable[[Demand], int]

    @property
    def per(self) -> str:
        return "a minute" if self.window_s == MINUTE_S else "a day"


def _one(_: Demand) -> int:
    return 1


def _all_tokens(demand: Demand) -> int:
    return demand[0] + demand[1]


def _input(demand: Demand) -> int:
    return demand[0]


def _output(demand: Demand) -> int:
    return demand[1]


_KINDS = {
    kind.name: kind
    for kind in (
        _Kind("RPM", MINUTE_S, "requests", _one),
        _Kind("RPD", DAY_S, "requests", _one),
        _Kind("TPM", MINUTE_S, "tokens", _all_tokens),
        _Kind("TPD", DAY_S, "tokens", _all_tokens),
        _Kind("ITPM", MINUTE_S, "input tokens", _input),
        _Kind("OTPM", MINUTE_S, "output tokens", _output),
    )
}
_IN_HEADERS = ("RPM", "RPD", "TPM")


class _Hold(NamedTuple):
    amount: int
    spent: float  # by this run when the hold was made, it included
    minute: Reservation | None


class _Limit:
    """One limit: what the provider is believed to have left, and our own bound on any minute if there is one.

    While the limit is unknown it is infinite, and what passes counts all the same.
    """

    __slots__ = ("_belief", "_learned_at", "_minute", "_share", "_spent", "_told", "kind", "limit")

    def __init__(self, kind: _Kind, told: int | None, now: float, *, evenly: bool) -> None:
        self.kind = kind
        self.limit: float = math.inf if told is None else told
        self._told = self.limit
        self._share = 1.0
        self._belief = TokenBucket(self.limit / kind.window_s, self.limit, now)
        self._minute = TokenQuota(self.limit, now) if evenly else None
        self._spent = 0.0
        self._learned_at = now

    def __repr__(self) -> str:
        return f"<{self.kind.name} {self._belief!r} {self._minute!r}>"

    @property
    def size(self) -> float:
        return self.limit * self._share

    def free_at(self, amount: int, now: float) -> float:
        if math.isinf(self.limit):
            return now
        at = self._belief.free_at(amount, now)
        if self._minute is None:
            return at
        # What is above our share passes, alone, once a minute of ours is empty: others may go any time.
        return max(at, self._minute.free_at(min(amount, self._minute.tokens_per_minute), now))

    def reserve(self, amount: int, now: float) -> _Hold:
        self._spent += amount
        self._belief.take(amount, now)
        return _Hold(amount, self._spent, self._minute.reserve(amount, now) if self._minute else None)

    def settle(self, hold: _Hold, used: int, now: float) -> None:
        if used == hold.amount:
            return
        self._spent += used - hold.amount
        self._belief.give_back(hold.amount - used, now)
        if self._minute is not None and hold.minute is not None:
            self._minute.settle(hold.minute, used, now)

    def learn(self, seen: int, now: float) -> str:
        before, target = self.limit, min(seen, self._told)
        elapsed_s = min(now - self._learned_at, MINUTE_S)
        self._learned_at = now
        if target == before:
            return ""
        self.limit = min(target, before + RAISED_PER_MINUTE * target * elapsed_s / MINUTE_S)
        self._resize(now)
        if self.limit < target:
            return ""
        now_allowed = f"{target:,.0f} {self.kind.unit} {self.kind.per} ({self.kind.name})"
        return f"the provider allows {now_allowed}" + ("" if math.isinf(before) else f", not {before:,.0f}")

    def believe(self, left: int, hold: _Hold, elapsed_s: float, now: float) -> None:
        """Lower what is left to what the provider said, counted when the call came in or when it ended."""
        if math.isinf(self.limit):
            return
        since = self._spent - hold.spent - self._belief.rate * elapsed_s
        excess = self._belief.level(now) - (left * self._share - max(0.0, since))
        if excess > 0:
            self._belief.take(excess, now)

    def deplete(self, wait_s: float, amount: int, now: float) -> None:
        """Lower what is left so far that `amount` is there again after `wait_s`."""
        excess = self._belief.level(now) - (amount - self._belief.rate * wait_s)
        if not math.isinf(self.limit) and excess > 0:
            self._belief.take(excess, now)

    def used_elsewhere(self, used: int, age_s: float, now: float) -> None:
        if not math.isinf(self.limit):
            self._belief.take(max(0.0, used - self._belief.rate * age_s), now)

    def set_share(self, share: float, now: float) -> None:
        self._share = share
        self._resize(now)

    def _resize(self, now: float) -> None:
        _resize(self._belief, self.size / self.kind.window_s, self.size, now)
        if self._minute is not None:
            self._minute.resize(self.size, now)


def _resize(bucket: TokenBucket, rate: float, capacity: float, now: float) -> None:
    bucket.level(now)  # what has flowed in so far came at the old rate
    bucket.rate, bucket.capacity = rate, capacity
    bucket.give_back(0.0, now)
