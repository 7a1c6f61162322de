"""One limit of an account: what the provider is believed to have left, and a bound on any minute."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from batcher.limits.bucket import WINDOW_S, SlotRing, TokenBucket

EVEN_SHARE = 0.05
"""Share of the minute's tokens that may go out at once; the rest flows at the even rate."""

MINUTE_S = 60.0
DAY_S = 86_400.0

_PARTS = 60
"""Into so many parts is divided what was used evenly over a time."""

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

    def spread(self, tokens: float, wait_s: float, now: float) -> None:
        """Let no more than `tokens` out at once after `wait_s`."""
        excess = self._even.level(now) - (tokens - self._even.rate * wait_s)
        if excess > 0:
            self._even.take(excess, now)

    def used_before(self, tokens: float, since: float, now: float) -> None:
        """Count what was used evenly from `since` to `now`, as far as it is of the last minute.

        Call it before the first reservation.
        """
        since = max(since, now - MINUTE_S)
        for part in range(1, _PARTS + 1):
            self._ring.add(tokens / _PARTS, since + (now - since) * part / _PARTS)

    def resize(self, tokens_per_minute: float, now: float) -> None:
        """Keep another limit from now on; what was admitted already counts against it."""
        self._ring.limit = tokens_per_minute
        self._spend_evenly(tokens_per_minute, now)

    def share(self, factor: float, tokens_per_minute: float, now: float) -> None:
        """Keep another limit from now on, `factor` times the one before: others answer for the difference."""
        self._ring.rescale(factor, tokens_per_minute)
        self._spend_evenly(tokens_per_minute, now)
        if (at_once := self._even.level(now)) > 0:
            self._even.take(at_once, now)  # the others may just have spent as much

    def _spend_evenly(self, tokens_per_minute: float, now: float) -> None:
        self.tokens_per_minute = tokens_per_minute
        self._even.resize(tokens_per_minute / WINDOW_S, tokens_per_minute * EVEN_SHARE, now)


class Demand(NamedTuple):
    """Tokens that a request may use, or that its answer did use (both >= 0)."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Kind:
    """What a limit counts, over which window (seconds), and how much of it a request asks for."""

    name: str
    window_s: float
    unit: str
    amount: Callable[[Demand], int]

    @property
    def per(self) -> str:
        """The window in words."""
        return "a minute" if self.window_s == MINUTE_S else "a day"


def _one(_: Demand) -> int:
    return 1


def _all_tokens(demand: Demand) -> int:
    return demand.input_tokens + demand.output_tokens


def _input(demand: Demand) -> int:
    return demand.input_tokens


def _output(demand: Demand) -> int:
    return demand.output_tokens


KINDS = {
    kind.name: kind
    for kind in (
        Kind("RPM", MINUTE_S, "requests", _one),
        Kind("RPD", DAY_S, "requests", _one),
        Kind("TPM", MINUTE_S, "tokens", _all_tokens),
        Kind("TPD", DAY_S, "tokens", _all_tokens),
        Kind("ITPM", MINUTE_S, "input tokens", _input),
        Kind("OTPM", MINUTE_S, "output tokens", _output),
    )
}
IN_HEADERS = ("RPM", "RPD", "TPM")


class NamedLimit(NamedTuple):
    """A limit as the text of a refusal states it; None is what the text does not say.

    `name` is a key of `KINDS`, or of a limit that nothing here counts (`ASH`, `ASD`).
    """

    name: str
    limit: int | None = None
    used: int | None = None
    requested: int | None = None


class Hold(NamedTuple):
    """What one attempt holds of one limit."""

    amount: int
    spent: float  # by this run when the hold was made, it included
    minute: Reservation | None


class Limit:
    """One limit: what the provider is believed to have left, and our own bound on any minute if there is one.

    While the limit is unknown it is infinite, and what passes counts all the same.
    """

    __slots__ = ("_belief", "_learned_at", "_minute", "_named", "_share", "_spent", "_told", "kind", "limit")

    def __init__(self, kind: Kind, told: int | None, now: float, *, evenly: bool) -> None:
        self.kind = kind
        self.limit: float = math.inf if told is None else told
        self._told = self._named = self.limit
        self._share = 1.0
        self._belief = TokenBucket(self.limit / kind.window_s, self.limit, now)
        self._minute = TokenQuota(self.limit, now) if evenly else None
        self._spent = 0.0
        self._learned_at = now

    def __repr__(self) -> str:
        return f"<{self.kind.name} {self._belief!r} {self._minute!r}>"

    @property
    def size(self) -> float:
        """The limit that is kept: our share of it."""
        return self.limit * self._share

    def free_at(self, amount: int, now: float) -> float:
        """Return when `amount` may pass: `now` or later."""
        if math.isinf(self.limit):
            return now
        at = self._belief.free_at(amount, now)
        if self._minute is None:
            return at
        # What is above our share passes, alone, once a minute of ours is empty: others may go any time.
        return max(at, self._minute.free_at(min(amount, self._minute.tokens_per_minute), now))

    def reserve(self, amount: int, now: float) -> Hold:
        """Hold `amount` for an attempt that starts now."""
        self._spent += amount
        self._belief.take(amount, now)
        return Hold(amount, self._spent, self._minute.reserve(amount, now) if self._minute else None)

    def settle(self, hold: Hold, used: int, now: float) -> None:
        """Correct a hold to what was really used."""
        if used == hold.amount:
            return
        self._spent += used - hold.amount
        self._belief.give_back(hold.amount - used, now)
        if self._minute is not None and hold.minute is not None:
            self._minute.settle(hold.minute, used, now)

    def learn(self, seen: int, now: float) -> str:
        """Take over a limit that the provider stated; return in words what is allowed now, or nothing."""
        before, target = self.limit, min(seen, self._told)
        elapsed_s = min(now - self._learned_at, MINUTE_S)
        self._learned_at = now
        if target == before:
            return ""
        self.limit = min(target, before + RAISED_PER_MINUTE * target * elapsed_s / MINUTE_S)
        self._belief.resize(self.size / self.kind.window_s, self.size, now)
        if self._minute is not None:
            self._minute.resize(self.size, now)
        if self.limit < target:
            return ""
        named, self._named = self._named, target
        if named == target:
            return ""
        now_allowed = f"{target:,.0f} {self.kind.unit} {self.kind.per} ({self.kind.name})"
        return f"the provider allows {now_allowed}" + ("" if math.isinf(named) else f", not {named:,.0f}")

    def believe(self, left: int, hold: Hold, elapsed_s: float, now: float) -> None:
        """Lower what is left to what the provider said, counted when the call came in or when it ended."""
        if math.isinf(self.limit):
            return
        since = self._spent - hold.spent - self._belief.rate * elapsed_s
        excess = self._belief.level(now) - (left * self._share - max(0.0, since))
        if excess > 0:
            self._belief.take(excess, now)

    def deplete(self, wait_s: float, amount: int, left: int | None, now: float) -> None:
        """Lower what is left to what a refusal shows.

        Args:
            wait_s: after this the provider lets `amount` through, at the earliest (0 if it does not say).
            amount: what was refused.
            left: what the provider says is left now, below zero in debt; None if it does not say.
            now: the present.
        """
        if math.isinf(self.limit):
            return
        if self._minute is not None:
            self._minute.spread(amount, wait_s, now)
        level = amount - self._belief.rate * wait_s
        if left is not None:
            # A nonsensical debt must not shut the lane for good, and who has waited as asked may go.
            stated = max(left, -self.limit) * self._share
            level = max(stated, level) if wait_s else stated
        excess = self._belief.level(now) - level
        if excess > 0:
            self._belief.take(excess, now)

    def used_before(self, used: int, since: float, now: float) -> None:
        """Count in our own minute what was used between `since` and `now`, before anything else counted."""
        if self._minute is not None:
            self._minute.used_before(min(used, self.limit) * self._share, since, now)

    def used_elsewhere(self, used: int, now: float) -> None:
        """Count what others used; one request or token may pass after a window at the latest."""
        if not math.isinf(self.limit):
            # Others that keep a higher limit may use more than there is by ours.
            payable = self._belief.level(now) + self.limit - 1
            self._belief.take(min(used, max(0.0, payable)), now)

    def set_share(self, share: float, now: float) -> None:
        """Keep to a share of the limit from now on."""
        factor, self._share = share / self._share, share
        self._belief.resize(self.size / self.kind.window_s, self.size, now)
        if self._minute is not None:
            self._minute.share(factor, self.size, now)
