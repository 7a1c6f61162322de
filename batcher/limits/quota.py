"""The quota of one route: what a request reserves, what its answer really cost, what headers teach."""

import math
from dataclasses import dataclass
from typing import Literal

from batcher.limits.bucket import SlotRing
from batcher.limits.limit import DAY_S, IN_HEADERS, KINDS, MINUTE_S, Demand, Hold, Kind, Limit, NamedLimit
from batcher.types import RateLimits


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


_ANSWERED_SLOTS = 60
"""Into so many slots is divided the window in which answered requests are counted."""


class QuotaReservation:
    """What one attempt holds of every limit, from `Quota.reserve` until `Quota.settle` and `Quota.adopt`."""

    __slots__ = ("at", "counted", "holds", "slots")

    def __init__(self, at: float, counted: Demand | None, holds: "list[Hold]", slots: list[int]) -> None:
        self.at = at
        self.counted = counted
        self.holds = holds
        self.slots = slots

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
        self._share = 1.0
        self._began_at = now
        told = {
            "RPM": limits.rpm,
            "RPD": limits.rpd,
            "TPM": limits.tpm,
            "TPD": limits.tpd,
            "ITPM": limits.itpm,
            "OTPM": limits.otpm,
        }
        # Holds are in this order; a limit learned from a refusal comes at the end.
        self._limits = {
            name: self._limit(kind, told[name], now)
            for name, kind in KINDS.items()
            if told[name] is not None or name in IN_HEADERS
        }
        self._answered = {"RPM": _answered_within(MINUTE_S), "RPD": _answered_within(DAY_S)}
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

    @property
    def requests_per_minute(self) -> int | None:
        """The limit on requests that the caller paces by: as told or learned, times the share, at least 1."""
        one = self._limits["RPM"]
        return None if math.isinf(one.size) else max(1, int(one.size))

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
        slots = [answered.add(0, now) for answered in self._answered.values()]
        return QuotaReservation(now, demand, holds, slots)

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
        if used is not None:
            for answered, slot in zip(self._answered.values(), reservation.slots, strict=True):
                answered.correct(slot, 1, now)
        for one, hold in zip(self._limits.values(), reservation.holds, strict=False):
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
        for (name, one), hold in zip(self._limits.items(), reservation.holds, strict=False):
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
        self, named: NamedLimit | None, wait_s: float, now: float, *, demand: Demand | None = None
    ) -> list[str]:
        """Take note of a 429: nothing passes for `wait_s`, and then as much as was refused.

        A limit of any kind is learned from it; one that was told is only ever lowered. A text that names a
        limit on requests far below what was just answered teaches nothing.

        Args:
            named: the limit that its text names, if it does.
            wait_s: how long the provider asks to wait (seconds, >= 0).
            now: when it came.
            demand: of the refused request, as far as it is known.

        Returns:
            What was learned, in words for the user.
        """
        self._nothing_before = max(self._nothing_before, now + wait_s)
        if named is None or (kind := KINDS.get(named.name)) is None:
            return []
        if named.limit is not None and not self._is_plausible(named.name, named.limit, now):
            return []
        one, words, left = self._limits.get(named.name), "", None
        amount = max(kind.amount(demand) if demand else 0, named.requested or 0)
        # A limit below what was asked for would fail that request for good, which this refusal does not do.
        if named.limit is not None and named.limit >= max(1, amount):
            new = one is None
            one = one or self._limits.setdefault(named.name, self._limit(kind, None, now))
            words = one.learn(named.limit, now)
            if named.used is not None:
                left = named.limit - named.used
                words += f"; {named.used:,} of them are used" if words else ""
                if new:
                    one.used_before(named.used, self._began_at, now)
        if one is not None:
            one.deplete(wait_s, amount, left, now)
        return [words] if words else []

    def day_used(self, requests: int, tokens: int, now: float) -> None:
        """Count what was used of the day's limits elsewhere: before this run, or by others beside it.

        Args:
            requests: how many.
            tokens: input and output together.
            now: the present.
        """
        for name, used in (("RPD", requests), ("TPD", tokens)):
            if one := self._limits.get(name):
                one.used_elsewhere(used, now)

    def set_share(self, share: float, now: float) -> None:
        """Keep to `share` (above 0, at most 1) of each minute limit: others on this account have the rest."""
        self._share = share
        for one in self._limits.values():
            if one.kind.window_s == MINUTE_S:
                one.set_share(share, now)

    def _is_plausible(self, name: str, limit: int, now: float) -> bool:
        """Tell whether a limit may hold, after what was answered; tokens each provider counts its own way."""
        # A full bucket lets through twice the limit in one window: what it held, and what flowed in.
        return name not in self._answered or self._answered[name].total(now) <= 2 * limit

    def _limit(self, kind: Kind, told: int | None, now: float) -> Limit:
        by_minute = kind.window_s == MINUTE_S
        one = Limit(kind, told, now, evenly=self._window == "any" and by_minute and kind.name != "RPM")
        if by_minute and self._share != 1.0:
            one.set_share(self._share, now)
        return one


def _answered_within(window_s: float) -> SlotRing:
    """Return a count of answered requests, by when they started, that holds no more than one window."""
    slot_s = window_s / _ANSWERED_SLOTS
    return SlotRing(math.inf, window_s=window_s - slot_s, slot_s=slot_s)
