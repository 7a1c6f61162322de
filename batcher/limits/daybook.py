"""What a day has used of each model: counted by slots of time, so that any limit can be held against it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, NamedTuple, TypeAlias

import msgspec

from batcher.limits.limit import DAY_S

SLOT_S = 900

_SLOTS_A_DAY = int(DAY_S) // SLOT_S
_KEPT_SLOTS = 2 * _SLOTS_A_DAY  # a bucket that is never empty remembers more than one day

_Amount = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Spent(NamedTuple):
    """Requests and tokens used, such as within one slot of 900 s."""

    requests: _Amount
    tokens: _Amount


NOTHING_SPENT = Spent(0, 0)

Counts: TypeAlias = dict[str, dict[int, Spent]]
"""By model, then by slots since 1970."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DayUse:
    """What all runs have used of one model.

    Providers with a calendar day look at `requests` and `tokens`; those with a bucket that refills over 24 h
    (Groq) look at a level. A level cannot be kept without the limit, which may be learned or change later:
    so the use itself is kept, by slot, and the level under any limit follows from it.

    Attributes:
        requests: since midnight UTC.
        tokens: since midnight UTC.
        as_of: the moment that all of this holds for.
        slots: use of the last 48 h by slot number (900 s each since 1970), oldest first.
    """

    requests: int
    tokens: int
    as_of: datetime
    slots: Mapping[int, Spent]

    def requests_level(self, limit: int) -> float:
        """Return the requests that a bucket of `limit` a day (> 0) has not yet forgotten: `limit` at most."""
        return self._level([spent.requests for spent in self.slots.values()], limit)

    def tokens_level(self, limit: int) -> float:
        """Return the tokens that a bucket of `limit` a day (> 0) has not yet forgotten: `limit` at most."""
        return self._level([spent.tokens for spent in self.slots.values()], limit)

    def _level(self, amounts: list[int], limit: int) -> float:
        leak_per_s = limit / DAY_S
        now = self.as_of.timestamp()
        level = at = 0.0
        for number, amount in zip(self.slots, amounts, strict=True):
            # As if spent at the very end of the slot: the level errs towards more by at most a slot's leak.
            spent_at = min((number + 1.0) * SLOT_S, now)
            # A bucket holds no more: what was used beyond it went by a higher limit.
            level = min(limit, max(0.0, level - leak_per_s * (spent_at - at)) + amount)
            at = spent_at
        return max(0.0, level - leak_per_s * (now - at))


def slot_of(moment: datetime) -> int:
    """Return the number of the slot that a moment lies in."""
    return int(moment.timestamp() // SLOT_S)


def count(counts: Counts, model: str, slot: int, more: Spent) -> None:
    """Add `more` to what `counts` holds for a slot."""
    slots = counts.setdefault(model, {})
    if known := slots.get(slot):
        more = Spent(known.requests + more.requests, known.tokens + more.tokens)
    slots[slot] = more


def merged(first: Counts, second: Counts, current_slot: int) -> Counts:
    """Add two counts up, without what is too old to matter; the future counts as the present."""
    both: Counts = {}
    oldest = current_slot - _KEPT_SLOTS + 1
    for counts in (first, second):
        for model, slots in counts.items():
            for number, spent in slots.items():
                if number >= oldest:
                    count(both, model, min(number, current_slot), spent)
    return both


def added(before: Counts, after: Counts, current_slot: int) -> dict[str, Spent]:
    """Return by how much each model's counts have grown; what was lost on the way is no negative growth."""
    grown = {}
    for model, slots in after.items():
        known = before.get(model, {})
        if slots != known:
            # Both as they count now: slots that have left, or that a clock set back has moved, are no growth.
            then, now = (
                _total(merged({model: each}, {}, current_slot).get(model, {})) for each in (known, slots)
            )
            more = Spent(max(0, now.requests - then.requests), max(0, now.tokens - then.tokens))
            if any(more):
                grown[model] = more
    return grown


def day_use(slots: Mapping[int, Spent], now_utc: datetime) -> DayUse:
    """Return what the slots of one model, none of them in the future, mean at `now_utc`."""
    midnight = slot_of(now_utc) // _SLOTS_A_DAY * _SLOTS_A_DAY
    today = _total({number: spent for number, spent in slots.items() if number >= midnight})
    return DayUse(
        requests=today.requests, tokens=today.tokens, as_of=now_utc, slots=dict(sorted(slots.items()))
    )


def _total(slots: Mapping[int, Spent]) -> Spent:
    return Spent(
        sum(spent.requests for spent in slots.values()), sum(spent.tokens for spent in slots.values())
    )
