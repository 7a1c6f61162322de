"""Durations and deadlines as people write them."""

import re
from datetime import UTC, datetime

from batcher.errors import ConfigError

_DURATION = re.compile(r"(\d{1,9}(?:\.\d+)?)\s*(s|m|h|d)?")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration_s(text: str, name: str) -> float:
    """Return the seconds of a duration such as `90`, `15m`, `2h` or `1.5h`.

    Raises:
        ConfigError: it is none.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{name}: {text!r} is not a duration; write seconds or 90s, 15m, 2h, 1d")
    return float(match.group(1)) * _UNIT_S[match.group(2) or "s"]


def deadline_in_s(text: str, now: datetime) -> float:
    """Return the seconds from `now` to a deadline given as a duration or as an ISO time.

    An ISO time without an offset is local time. The result is negative for a time that has passed.

    Raises:
        ConfigError: it is neither.
    """
    if _DURATION.fullmatch(text.strip()):
        return duration_s(text, "deadline")
    try:
        moment = datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"deadline: {text!r} is neither a duration (90, 15m, 2h) nor an ISO time (2026-12-24T18:00)"
        ) from None
    return (moment - now).total_seconds()


def in_words(seconds: float) -> str:
    """Return a duration in the two largest units, e.g. `2 h 5 min`."""
    if 0 < seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
