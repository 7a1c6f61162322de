"""The provider's side of rate limits: who is let in, and what the refused are told.

It is the judge of the client's own limiter and shares nothing with it.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from batcher.providers.simulator.settings import LimiterKind, SimulatorSettings

MINUTE_S = 60.0
DAY_S = 86_400.0

_ROUNDING = 1e-3
"""By how much an amount may exceed what is left: the noise of rounded waits, never a whole token."""


@dataclass(slots=True)
class Charge:
    """What one admission took from one limit."""

    taken_at: float
    amount: float


class Limiter(Protocol):
    """One limit of one kind; amounts are requests or tokens."""

    def wait_s(self, amount: float, now: float) -> float:
        """Return the seconds until `amount` would fit, 0 if it fits now."""

    def take(self, amount: float, now: float) -> Charge:
        """Let `amount` in."""

    def give_back(self, charge: Charge, amount: float, now: float) -> None:
        """Take back `amount` of an earlier charge."""

    def used(self, now: float) -> float:
        """Return how much of the limit is in use."""

    def reset_s(self, now: float) -> float:
        """Return the seconds until nothing of the limit is in use."""


class _TokenBucket:
    """Groq's kind: holds at most `limit`, refills without pause, and starts full."""

    def __init__(self, limit: float, window_s: float) -> None:
        self._limit = limit
        self._rate = limit / window_s
        self._level = limit
        self._at = -math.inf

    def wait_s(self, amount: float, now: float) -> float:
        self._refill(now)
        missing = amount - self._level
        return missing / self._rate if missing > _ROUNDING else 0.0

    def take(self, amount: float, now: float) -> Charge:
        self._refill(now)
        self._level -= amount
        return Charge(now, amount)

    def give_back(self, charge: Charge, amount: float, now: float) -> None:
        self._refill(now)
        self._level = min(self._limit, self._level + amount)

    def used(self, now: float) -> float:
        self._refill(now)
        return self._limit - self._level

    def reset_s(self, now: float) -> float:
        return self.used(now) / self._rate

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._level = min(self._limit, self._level + (now - self._at) * self._rate)
            self._at = now


class _FixedWindow:
    """Counts in windows that begin at multiples of their length."""

    def __init__(self, limit: float, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._start = 0.0
        self._used = 0.0

    def wait_s(self, amount: float, now: float) -> float:
        fits = self.used(now) + amount <= self._limit + _ROUNDING
        return 0.0 if fits else self._start + self._window_s - now

    def take(self, amount: float, now: float) -> Charge:
        self._used = self.used(now) + amount
        return Charge(now, amount)

    def give_back(self, charge: Charge, amount: float, now: float) -> None:
        used = self.used(now)
        if charge.taken_at >= self._start:
            self._used = used - amount

    def used(self, now: float) -> float:
        start = now // self._window_s * self._window_s
        if start != self._start:
            self._start, self._used = start, 0.0
        return self._used

    def reset_s(self, now: float) -> float:
        return self._start + self._window_s - now if self.used(now) else 0.0


class _SlidingWindow:
    """Counts what was let in during the last `window_s` seconds, exactly."""

    def __init__(self, limit: float, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._used = 0.0
        self._charges: deque[Charge] = deque()

    def wait_s(self, amount: float, now: float) -> float:
        excess = self.used(now) + amount - self._limit
        if excess <= _ROUNDING:
            return 0.0
        for charge in self._charges:
            excess -= charge.amount
            if excess <= _ROUNDING:
                return charge.taken_at + self._window_s - now
        return self._window_s

    def take(self, amount: float, now: float) -> Charge:
        self._used = self.used(now) + amount
        charge = Charge(now, amount)
        self._charges.append(charge)
        return charge

    def give_back(self, charge: Charge, amount: float, now: float) -> None:
        if now - charge.taken_at < self._window_s:
            charge.amount -= amount
            self._used -= amount

    def used(self, now: float) -> float:
        while self._charges and now - self._charges[0].taken_at >= self._window_s:
            self._used -= self._charges.popleft().amount
        return self._used

    def reset_s(self, now: float) -> float:
        return self._charges[-1].taken_at + self._window_s - now if self.used(now) else 0.0


_KINDS: dict[LimiterKind, type[_TokenBucket] | type[_FixedWindow] | type[_SlidingWindow]] = {
    "token-bucket": _TokenBucket,
    "fixed-window": _FixedWindow,
    "sliding-window": _SlidingWindow,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request is not let in; `wait_s` is None where waiting cannot help."""

    status: int
    message: str
    kind: str
    wait_s: float | None


@dataclass(frozen=True, slots=True)
class Admission:
    """What a request took from the limits, to be settled once."""

    charges: "list[tuple[_Limit, Charge]]"


@dataclass(frozen=True, slots=True)
class _Limit:
    name: str
    kind: str
    limit: int
    limiter: Limiter

    def amount(self, tokens: int, output_tokens: int) -> int:
        """Return how much of this limit a request takes, `output_tokens` being part of its `tokens`."""
        match self.kind:
            case "requests":
                return 1
            case "input tokens":
                return tokens - output_tokens
            case "output tokens":
                return output_tokens
            case _:
                return tokens


class Gate:
    """The limits of one key and model, taken together or not at all."""

    def __init__(self, settings: SimulatorSettings, model: str) -> None:
        build = _KINDS[settings.limiter]
        rows = (
            ("requests per minute (RPM)", "requests", settings.rpm, MINUTE_S),
            ("requests per day (RPD)", "requests", settings.rpd, DAY_S),
            ("tokens per minute (TPM)", "tokens", settings.tpm, MINUTE_S),
            ("input tokens per minute (ITPM)", "input tokens", settings.itpm, MINUTE_S),
            ("output tokens per minute (OTPM)", "output tokens", settings.otpm, MINUTE_S),
            ("tokens per day (TPD)", "tokens", settings.tpd, DAY_S),
        )
        self._model = model
        self._limits = [
            _Limit(name, kind, limit, build(limit, window_s))
            for name, kind, limit, window_s in rows
            if limit is not None
        ]
        self._headers = [
            (header, limit)
            for header, name in (("requests", "(RPD)"), ("tokens", "(TPM)"))
            for limit in self._limits
            if limit.name.endswith(f" {name}")
        ]

    def admit(self, tokens: int, now: float, *, output_tokens: int = 0) -> Admission | Refusal:
        """Let one request in, or say why not; the refused are charged nothing.

        Args:
            tokens: what it may use in all.
            now: when it comes (seconds).
            output_tokens: the part of `tokens` that its answer may use.
        """
        longest_s, blocking = 0.0, None
        for each in self._limits:
            amount = each.amount(tokens, output_tokens)
            if amount > each.limit:
                return Refusal(status=413, message=self._too_large(each, amount), kind="tokens", wait_s=None)
            if (wait_s := each.limiter.wait_s(amount, now)) > longest_s:
                longest_s, blocking = wait_s, each
        if blocking is not None:
            message = self._try_again(blocking, blocking.amount(tokens, output_tokens), longest_s, now)
            kind = "requests" if blocking.kind == "requests" else "tokens"
            return Refusal(status=429, message=message, kind=kind, wait_s=longest_s)
        return Admission(
            [(each, each.limiter.take(each.amount(tokens, output_tokens), now)) for each in self._limits]
        )

    def settle(
        self, admission: Admission, used_tokens: int, now: float, *, used_output_tokens: int = 0
    ) -> None:
        """Give back the tokens that were reserved and not used."""
        for each, charge in admission.charges:
            unused = charge.amount - each.amount(used_tokens, used_output_tokens)
            if unused > 0:
                each.limiter.give_back(charge, unused, now)

    def headers(self, now: float) -> list[tuple[str, str]]:
        """Return the limit headers as Groq sends them: requests are per day, tokens per minute."""
        found = []
        for header, each in self._headers:
            left = max(0, math.floor(each.limit - each.limiter.used(now) + _ROUNDING))
            found += [
                (f"x-ratelimit-limit-{header}", str(each.limit)),
                (f"x-ratelimit-remaining-{header}", str(left)),
                (f"x-ratelimit-reset-{header}", go_duration(each.limiter.reset_s(now))),
            ]
        return found

    def _where(self, each: _Limit) -> str:
        account = "organization `org_simulated` service tier `on_demand`"
        return f"for model `{self._model}` in {account} on {each.name}: Limit {each.limit}"

    def _too_large(self, each: _Limit, requested: int) -> str:
        return (
            f"Request too large {self._where(each)}, Requested {requested}, "
            "please reduce your message size and try again. Simulated limit."
        )

    def _try_again(self, each: _Limit, requested: int, wait_s: float, now: float) -> str:
        used = round(each.limiter.used(now))
        return (
            f"Rate limit reached {self._where(each)}, Used {used}, Requested {requested}. "
            f"Please try again in {go_duration(wait_s)}. Simulated limit."
        )


def go_duration(seconds: float) -> str:
    """Write a duration as Go does (`2m59.56s`, `172ms`, `1h0m0s`), rounded up to microseconds."""
    micros = max(0, math.ceil(seconds * 1e6 - 1e-2))
    if micros == 0:
        return "0s"
    if micros < 1_000_000:
        return f"{_decimal(micros, 1_000)}ms"
    minutes, rest = divmod(micros, 60_000_000)
    hours, minutes = divmod(minutes, 60)
    parts = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{parts}{_decimal(rest, 1_000_000)}s"


def _decimal(value: int, unit: int) -> str:
    whole, fraction = divmod(value, unit)
    digits = f"{fraction:0{len(str(unit)) - 1}d}".rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)
