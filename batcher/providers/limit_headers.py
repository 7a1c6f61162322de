"""What a provider says about its limits, in headers and in a 429's text: pure parsers, nonsense is None."""

import math
import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Literal

from batcher.limits.limit import NamedLimit
from batcher.types import RateLimits

Dialect = Literal["groq", "openai"]
"""Whose header meanings hold: `x-ratelimit-*-requests` counts a day on Groq and a minute elsewhere."""

LONGEST_WAIT_S = 86_400.0
"""A provider that asks for more than a day is not believed."""

_LONGEST_MINUTE_S = 90.0
_REQUESTS_WINDOW_S: dict[Dialect, float] = {"groq": 86_400.0, "openai": 60.0}
_LIMIT_HEADERS = frozenset(
    f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining") for of in ("requests", "tokens")
)
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = r"\d{1,12}(?:\.\d{1,12})?(?:ns|us|µs|ms|s|m|h)"
_DURATION = re.compile(rf"(?:{_DURATION_PART}){{1,8}}", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", re.ASCII)
_NUMBER = re.compile(r"\d{1,12}(?:\.\d{1,12})?", re.ASCII)
_LIMIT_NAME = re.compile(r"\((RPM|RPD|TPM|TPD|ITPM|OTPM|ASH|ASD)\)")
# Older texts of OpenAI have the words alone: `on tokens per min. Limit: 10000 / min.`
_LIMIT_WORDS = re.compile(r"\bon (requests|(?:input |output )?tokens) per (min|minute|day)\b", re.IGNORECASE)
_INITIALS = {"requests": "RP", "tokens": "TP", "input tokens": "ITP", "output tokens": "OTP"}
# LiteLLM counts both, and refuses at the first that is reached.
_LITELLM = re.compile(r"\bcurrent (rpm|tpm): (\d{1,12}), \1 limit: (\d{1,12})\b", re.ASCII)
_AMOUNT = r" (\d{1,3}(?:,\d{3}){1,4}|\d{1,12})(?!\w|[.,]\d)"
_STATED = re.compile(rf"\b(Limit|Used|Requested):?{_AMOUNT}", re.ASCII)
_TRY_AGAIN = re.compile(rf"try again in ((?:{_DURATION_PART}){{1,8}})", re.ASCII | re.IGNORECASE)


@lru_cache(maxsize=64)  # one reply after the other says the same
def duration_s(text: str) -> float | None:
    """Read a Go duration such as `2m59.56s` or `172ms`, in seconds; None unless the whole text is one."""
    if not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read how long the provider asks to wait (seconds, > 0, at most a day), or None.

    `retry-after-ms` comes first. An HTTP date counts from the reply's own `date`, not from this clock.
    """
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(milliseconds) and (wait_s := _believable(float(milliseconds) / 1000)):
        return wait_s
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    if _NUMBER.fullmatch(text):
        return _believable(float(text))
    return _believable(duration_s(text)) or _believable(_seconds_between(headers.get("date", ""), text))


def wait_named_s(message: str) -> float | None:
    """Read the `try again in 9m38.016s` of a 429's text (seconds, > 0, at most a day), or None."""
    found = _TRY_AGAIN.search(message)
    return _believable(duration_s(found[1])) if found else None


def limit_named(message: str) -> NamedLimit | None:
    """Tell which limit a 429's text names, with its numbers as far as they make sense, or None.

    Understood are the texts of Groq and OpenAI (`... on tokens per day (TPD): Limit 100000, Used 97050,
    Requested 3619.`) and LiteLLM's `... current rpm: 1, rpm limit: 1, current tpm: ...`.
    """
    if found := _LIMIT_NAME.search(message):
        name = found[1]
    elif found := _LIMIT_WORDS.search(message):
        name = _INITIALS[found[1].lower()] + found[2][0].upper()
    else:
        return _limit_of_litellm(message)
    stated: dict[str, int] = {}
    for what, amount in _STATED.findall(message, found.end()):
        stated.setdefault(what, int(amount.replace(",", "")))
    limit, used, requested = (stated.get(what) for what in ("Limit", "Used", "Requested"))
    return NamedLimit(name, limit or None, used, requested)


def _limit_of_litellm(message: str) -> NamedLimit | None:
    for name, current, limit in _LITELLM.findall(message):
        if int(current) >= int(limit) > 0:
            return NamedLimit(name.upper(), int(limit), int(current))
    return None


def rate_limits(headers: Mapping[str, str], dialect: Dialect) -> RateLimits | None:
    """Read the `x-ratelimit-*` headers; a field that makes no sense is None, the whole if all are."""
    if headers.keys().isdisjoint(_LIMIT_HEADERS):
        return None
    requests = _count(headers.get("x-ratelimit-limit-requests"))
    requests_left = _count(headers.get("x-ratelimit-remaining-requests"))
    tokens = _count(headers.get("x-ratelimit-limit-tokens"))
    tokens_left = _count(headers.get("x-ratelimit-remaining-tokens"))
    if requests is None and requests_left is None and tokens is None and tokens_left is None:
        return None
    return RateLimits(
        requests=requests or None,
        requests_window_s=_requests_window_s(headers, dialect),
        requests_left=_at_most(requests_left, requests),
        tokens_per_minute=tokens or None,
        tokens_left=_at_most(tokens_left, tokens),
    )


def _requests_window_s(headers: Mapping[str, str], dialect: Dialect) -> float:
    """Tell whether requests are counted by the minute or by the day: only a day takes minutes to reset."""
    if dialect == "groq":
        return _REQUESTS_WINDOW_S[dialect]
    text = headers.get("x-ratelimit-reset-requests", "").strip()
    reset_s = float(text) if _NUMBER.fullmatch(text) else duration_s(text)
    # A number may also be a moment, in seconds since 1970, which tells nothing of a window.
    if reset_s is not None and _LONGEST_MINUTE_S < reset_s <= LONGEST_WAIT_S:
        return _REQUESTS_WINDOW_S["groq"]
    return _REQUESTS_WINDOW_S[dialect]


def _believable(seconds: float | None) -> float | None:
    if seconds is None or not 0 < seconds <= LONGEST_WAIT_S:
        return None
    # Up to the next millisecond: who wakes early meets the same limit again.
    return math.ceil(round(seconds * 1000, 6)) / 1000


def _seconds_between(start: str, end: str) -> float | None:
    try:
        first, last = parsedate_to_datetime(start), parsedate_to_datetime(end)
    except (ValueError, OverflowError):  # the latter for numbers of many digits
        return None
    # A date in `-0000` comes back without a zone; both are UTC by the rules of HTTP.
    return (last.replace(tzinfo=UTC) - first.replace(tzinfo=UTC)).total_seconds()


def _count(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= 12 else None


def _at_most(left: int | None, limit: int | None) -> int | None:
    return left if left is not None and (limit is None or left <= limit) else None
