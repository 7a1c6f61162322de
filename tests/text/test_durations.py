"""Durations and deadlines, and what is none."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import ConfigError
from batcher.text.durations import deadline_in_s, duration_s, in_words

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5h", 5400),
        ("15m", 900),
        ("2h", 7200),
        ("1d", 86400),
        (" 5 m ", 300),
        ("0", 0),
        ("0.25", 0.25),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text, "timeout") == seconds


@pytest.mark.parametrize("text", ["", "m", "-5", "1e3", "5 minutes", "1h30m", "inf", "nan", ".5", "9" * 400])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        duration_s(text, "timeout")


@given(number=st.integers(0, 10**9 - 1), unit=st.sampled_from(["", "s", "m", "h", "d"]))
def test_every_duration_is_finite_and_grows_with_its_unit(number: int, unit: str) -> None:
    assert number <= duration_s(f"{number}{unit}", "x") <= number * 86400


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("2h", 7200),
        ("2026-11-21T12:30Z", 1800),
        ("2026-11-21T12:30:00+00:00", 1800),
        ("2026-11-21 14:00:00+01:00", 3600),
        ("2026-11-21T11:00Z", -3600),
        ("2026-11-22T00:00:00Z", 43200),
    ],
)
def test_deadlines(text: str, seconds: float) -> None:
    assert deadline_in_s(text, NOON) == seconds


def test_a_deadline_without_an_offset_is_local_time() -> None:
    local = (NOON + timedelta(hours=1)).astimezone().replace(tzinfo=None)
    assert deadline_in_s(local.isoformat(), NOON) == 3600


@pytest.mark.parametrize("text", ["", "tomorrow", "2026-13-01", "0001-01-01T00:00+14:00", "-5", "12:30"])
def test_what_is_no_deadline(text: str) -> None:
    with pytest.raises(ConfigError, match="neither a duration"):
        deadline_in_s(text, NOON)


@given(
    at=st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)),
    offset=st.integers(-14, 14),
)
def test_every_time_with_an_offset_is_a_deadline(at: datetime, offset: int) -> None:
    moment = at.replace(tzinfo=timezone(timedelta(hours=offset)))
    assert deadline_in_s(moment.isoformat(), NOON) == (moment - NOON).total_seconds()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (7500, "2 h 5 min"),
        (86399, "23 h 59 min"),
        (86400, "1 d 0 h"),
        (10 * 86400 + 3 * 3600 + 1, "10 d 3 h"),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert in_words(seconds) == text
