"""What headers and texts say about limits; the texts are the ones that users of the API have published."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.limits.limit import NamedLimit
from batcher.providers.limit_headers import (
    LONGEST_WAIT_S,
    Dialect,
    duration_s,
    limit_named,
    rate_limits,
    retry_after_s,
    wait_named_s,
)
from batcher.types import RateLimits

DATE = "Tue, 18 Aug 2026 10:00:00 GMT"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6s", 6.0),
        ("172ms", 0.172),
        ("2m59.56s", 179.56),
        ("9m38.016s", 578.016),
        ("1h2m3s", 3723.0),
        ("50.597142857s", 50.597142857),
        ("5µs", 5e-6),
        ("0s", 0.0),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "6", "-6s", "6 s", "NaN", "inf", "1e9s", "s", ".5s", "6s!", "٣s", "9" * 40 + "s", "1s" * 99]
)
def test_anything_else_is_no_duration(text: str) -> None:
    assert duration_s(text) is None


@given(st.text(max_size=40))
def test_no_text_breaks_the_parsers(text: str) -> None:
    for headers in ({"retry-after": text}, {"retry-after": text, "date": DATE}, {"retry-after-ms": text}):
        wait_s = retry_after_s(headers)
        assert wait_s is None or 0 < wait_s <= LONGEST_WAIT_S
    limits = rate_limits({"x-ratelimit-limit-tokens": text, "x-ratelimit-remaining-tokens": text}, "groq")
    assert limits is None or (limits.tokens_left or 0) >= 0
    assert limit_named(text) is None or "(" in text or " per " in text or "current" in text


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", None),
        ("2", 2.0),
        ("2.5", 2.5),
        (" 3 ", 3.0),
        ("-5", None),
        ("1e9", None),
        ("NaN", None),
        ("inf", None),
        ("", None),
        ("2m59s", 179.0),
        ("86400", 86_400.0),
        ("86401", None),
        ("9" * 10_240, None),
        ("2, 5", None),
        ("Tue, 18 Aug 2026 10:00:30 GMT", 30.0),
        ("Tue, 18 Aug 2026 10:00:30 -0000", 30.0),
        ("Tue, 18 Aug 2026 09:59:00 GMT", None),
        ("Tue, 99 Aug 2026 10:00:30 GMT", None),
        ("tomorrow", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": value, "date": DATE}) == seconds


def test_retry_after_in_milliseconds_comes_first() -> None:
    assert retry_after_s({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after_s({"retry-after-ms": "soon", "retry-after": "9"}) == 9.0
    assert retry_after_s({"x-should-retry": "false"}) is None


@pytest.mark.parametrize("date", [{}, {"date": "garbage"}], ids=["absent", "garbage"])
def test_a_date_without_the_servers_own_date_is_not_believed(date: dict[str, str]) -> None:
    assert retry_after_s({"retry-after": "Tue, 18 Aug 2026 10:00:30 GMT", **date}) is None


def test_a_wait_is_rounded_up() -> None:
    assert retry_after_s({"retry-after": "1.9841"}) == 1.985
    assert wait_named_s("Please try again in 50.597142857s.") == 50.598


@pytest.mark.parametrize(
    ("text", "named", "seconds"),
    [
        (
            "tokens per minute (TPM): Limit 12000, Used 2542, Requested 9855",
            NamedLimit("TPM", 12_000, 2_542, 9_855),
            "1.984999999s",
        ),
        (
            "tokens per minute (TPM): Limit 7000, Used 0, Requested 12903",
            NamedLimit("TPM", 7_000, 0, 12_903),
            "50.597142857s",
        ),
        (
            "tokens per day (TPD): Limit 100000, Used 97050, Requested 3619",
            NamedLimit("TPD", 100_000, 97_050, 3_619),
            "9m38.016s",
        ),
        (
            "tokens per day (TPD): Limit 500000, Used 500370, Requested 252",
            NamedLimit("TPD", 500_000, 500_370, 252),
            "1m47.5854s",
        ),
        (
            "requests per minute (RPM): Limit 30, Used 30, Requested 1",
            NamedLimit("RPM", 30, 30, 1),
            "2s",
        ),
        (
            "requests per day (RPD): Limit 1,000, Used 1,000, Requested 1",
            NamedLimit("RPD", 1_000, 1_000, 1),
            "1m26.4s",
        ),
        (
            "output tokens per minute (OTPM): Limit 1000, Requested 1080",
            NamedLimit("OTPM", 1_000, None, 1_080),
            "5s",
        ),
        (
            "audio seconds per hour (ASH): Limit 7200, Used 7200, Requested 60",
            NamedLimit("ASH", 7_200, 7_200, 60),
            "30s",
        ),
        (
            "tokens per min (TPM): Limit 10000, Used 9000, Requested 1100",
            NamedLimit("TPM", 10_000, 9_000, 1_100),
            "600ms",
        ),
        ("requests per min (RPM): Limit 3 / min", NamedLimit("RPM", 3), "20s"),
        ("tokens per min. Limit: 10000 / min", NamedLimit("TPM", 10_000), "6ms"),
        ("input tokens per minute", NamedLimit("ITPM"), "6s"),
    ],
)
def test_the_text_of_a_429(text: str, named: NamedLimit, seconds: str) -> None:
    text = (
        f"Rate limit reached for model `m` in organization `org_x` on {text}. Please try again in {seconds}."
    )
    wait_s, named_s = wait_named_s(text), duration_s(seconds)
    assert limit_named(text) == named
    assert wait_s is not None
    assert named_s is not None
    assert named_s <= wait_s <= named_s + 0.001


@pytest.mark.parametrize(
    "numbers",
    [
        "Limit 0, Used many, Requested -5",
        "Limit 1e9, Used 1.5, Requested 1_000",
        "Limit 1234567890123, Used 9,9, Requested ٣",
        "limit unknown",
    ],
)
def test_numbers_that_make_no_sense_are_left_out(numbers: str) -> None:
    assert limit_named(f"on tokens per day (TPD): {numbers}.") == NamedLimit("TPD")


LITELLM = (
    "LiteLLM Rate Limit Handler for rate limit type = key. Crossed TPM / RPM / Max Parallel Request Limit. "
    "current rpm: {}, rpm limit: {}, current tpm: {}, tpm limit: {}, "
    "current max_parallel_requests: 0, max_parallel_requests: 9223372036854775807"
)


@pytest.mark.parametrize(
    ("counts", "named"),
    [
        ((1, 1, 348, 2**63 - 1), NamedLimit("RPM", 1, 1)),
        ((1, 15, 12_260, 5_000), NamedLimit("TPM", 5_000, 12_260)),
        ((1, 15, 12, 5_000), None),
        ((0, 0, 12, 5_000), None),
    ],
    ids=["requests", "tokens", "calls at once", "zero"],
)
def test_litellm_names_the_limit_that_is_reached(counts: tuple[int, ...], named: NamedLimit | None) -> None:
    assert limit_named(LITELLM.format(*counts)) == named


@pytest.mark.parametrize("text", ["", "Too many requests", "Please try again in a few minutes (soon)"])
def test_a_429_that_names_nothing(text: str) -> None:
    assert limit_named(text) is None
    assert wait_named_s(text) is None


def headers(limit: str, left: str, kind: str = "tokens") -> dict[str, str]:
    return {f"x-ratelimit-limit-{kind}": limit, f"x-ratelimit-remaining-{kind}": left}


@pytest.mark.parametrize(
    ("given_headers", "limits"),
    [
        ({}, None),
        (headers("6000", "5843"), RateLimits(tokens_per_minute=6000, tokens_left=5843)),
        (headers("6000", "-1"), RateLimits(tokens_per_minute=6000)),
        (headers("6000", "6001"), RateLimits(tokens_per_minute=6000)),
        (headers("many", "17"), RateLimits(tokens_left=17)),
        (headers("many", "few"), None),
        (headers("6000", "0"), RateLimits(tokens_per_minute=6000, tokens_left=0)),
        (headers("²", "9" * 40), None),
        (headers("14400", "14399", "requests"), RateLimits(requests=14400, requests_left=14399)),
    ],
    ids=["silent", "full", "negative", "left>limit", "text", "all-text", "empty", "odd-digits", "requests"],
)
def test_limit_headers(given_headers: dict[str, str], limits: RateLimits | None) -> None:
    assert rate_limits(given_headers, "openai") == limits


@pytest.mark.parametrize(("dialect", "window_s"), [("groq", 86_400.0), ("openai", 60.0)])
def test_the_requests_header_counts_a_day_on_groq_and_a_minute_elsewhere(
    dialect: Dialect, window_s: float
) -> None:
    limits = rate_limits(headers("14400", "14399", "requests"), dialect)
    assert limits is not None
    assert limits.requests_window_s == window_s


@pytest.mark.parametrize(
    ("reset", "window_s"),
    [
        ("6ms", 60.0),
        ("59.9s", 60.0),
        ("1m30s", 60.0),
        ("14m24s", 86_400.0),
        ("864", 86_400.0),
        ("1764000000", 60.0),
        ("soon", 60.0),
        ("", 60.0),
    ],
)
def test_requests_that_take_minutes_to_reset_are_counted_by_the_day(reset: str, window_s: float) -> None:
    headers = {"x-ratelimit-limit-requests": "100", "x-ratelimit-reset-requests": reset}
    limits = rate_limits(headers, "openai")
    assert limits is not None
    assert limits.requests_window_s == window_s
