"""The limits as RELIABILITY 1.2 has them, and nobody let in beyond their definitions."""

import re
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.providers.simulator.limits import Admission, Gate, Refusal, go_duration
from batcher.providers.simulator.settings import LimiterKind, SimulatorSettings

MINUTE_S = 60.0


def _refused(gate: Gate, tokens: int, now: float) -> Refusal:
    refusal = gate.admit(tokens, now)
    assert isinstance(refusal, Refusal)
    return refusal


def _admitted(gate: Gate, tokens: int, now: float) -> Admission:
    admission = gate.admit(tokens, now)
    assert isinstance(admission, Admission)
    return admission


@pytest.mark.parametrize(
    ("limits", "used", "asked", "wait_s", "said"),
    [
        ({"tpm": 12000}, 2542, 9855, 1.985, "1.985s"),
        ({"tpm": 12000}, 4437, 9854, 11.455, "11.455s"),
        ({"tpm": 6000}, 5034, 1443, 4.770, "4.77s"),
        ({"tpm": 15000}, 11972, 4351, 5.292, "5.292s"),
        ({"tpm": 6000}, 3513, 3166, 6.790, "6.79s"),
        ({"tpd": 100000}, 97050, 3619, 578.016, "9m38.016s"),
        ({"tpd": 500000}, 500000, 622, 107.4816, "1m47.4816s"),
    ],
    ids=str,
)
def test_a_token_bucket_asks_to_wait_as_groq_does(
    limits: dict[str, Any], used: int, asked: int, wait_s: float, said: str
) -> None:
    gate = Gate(SimulatorSettings(**limits), "m")
    _admitted(gate, used, 0.0)

    refusal = _refused(gate, asked, 0.0)

    assert refusal.wait_s == pytest.approx(wait_s, abs=1e-6)
    assert f"Limit {next(iter(limits.values()))}, Used {used}, Requested {asked}. " in refusal.message
    assert f"Please try again in {said}." in refusal.message
    assert isinstance(gate.admit(asked, wait_s - 0.01), Refusal)
    assert isinstance(gate.admit(asked, wait_s), Admission)


@pytest.mark.parametrize(
    ("limits", "tokens", "header", "reset", "left"),
    [
        ({"rpd": 14400}, 1, "requests", "6s", "14399"),
        ({"tpm": 6000}, 157, "tokens", "1.57s", "5843"),
        ({"rpd": 500000}, 1, "requests", "172.8ms", "499999"),
        ({"tpm": 250000}, 1633, "tokens", "391.92ms", "248367"),
    ],
    ids=str,
)
def test_headers_tell_the_time_until_the_limit_is_whole_again(
    limits: dict[str, Any], tokens: int, header: str, reset: str, left: str
) -> None:
    gate = Gate(SimulatorSettings(**limits), "m")
    _admitted(gate, tokens, 0.0)

    assert dict(gate.headers(0.0)) == {
        f"x-ratelimit-limit-{header}": str(next(iter(limits.values()))),
        f"x-ratelimit-remaining-{header}": left,
        f"x-ratelimit-reset-{header}": reset,
    }


def test_rpm_and_tpd_are_in_no_header() -> None:
    assert Gate(SimulatorSettings(rpm=1, tpd=10), "m").headers(0.0) == []


@pytest.mark.parametrize(
    ("limits", "name", "kind"),
    [
        ({"rpm": 2}, "requests per minute (RPM)", "requests"),
        ({"rpd": 2}, "requests per day (RPD)", "requests"),
        ({"tpm": 20}, "tokens per minute (TPM)", "tokens"),
        ({"tpd": 20}, "tokens per day (TPD)", "tokens"),
    ],
    ids=str,
)
def test_a_refusal_names_the_limit_that_makes_wait_longest(
    limits: dict[str, Any], name: str, kind: str
) -> None:
    gate = Gate(SimulatorSettings(**({"rpm": 1000, "tpm": 100_000} | limits)), "m")
    for _ in range(2):
        _admitted(gate, 10, 0.0)
    refusal = _refused(gate, 10, 0.0)
    assert (refusal.status, refusal.kind) == (429, kind)
    assert f" on {name}: " in refusal.message


@pytest.mark.parametrize(
    ("limits", "name", "limit", "used", "asked"),
    [
        ({"itpm": 50}, "input tokens per minute (ITPM)", 50, 30, 30),
        ({"otpm": 150}, "output tokens per minute (OTPM)", 150, 100, 100),
    ],
    ids=str,
)
def test_input_and_output_tokens_are_limited_apart(
    limits: dict[str, Any], name: str, limit: int, used: int, asked: int
) -> None:
    gate = Gate(SimulatorSettings(tpm=100_000, **limits), "m")
    admission = gate.admit(130, 0.0, output_tokens=100)
    assert isinstance(admission, Admission)
    refusal = gate.admit(130, 0.0, output_tokens=100)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.kind) == (429, "tokens")
    assert f" on {name}: Limit {limit}, Used {used}, Requested {asked}. " in refusal.message

    gate.settle(admission, 40, 0.0, used_output_tokens=30)  # 10 in, 30 out
    assert isinstance(gate.admit(130, 0.0, output_tokens=100), Admission)
    assert "x-ratelimit-limit-tokens" in dict(gate.headers(0.0))


def test_more_than_the_limit_is_too_large_and_charged_nothing() -> None:
    gate = Gate(SimulatorSettings(tpm=8000), "m")
    refusal = _refused(gate, 32979, 0.0)
    assert (refusal.status, refusal.wait_s) == (413, None)
    assert "Limit 8000, Requested 32979" in refusal.message
    _admitted(gate, 8000, 0.0)


@pytest.mark.parametrize("limiter", get_args(LimiterKind))
def test_unused_tokens_come_back(limiter: LimiterKind) -> None:
    gate = Gate(SimulatorSettings(tpm=1000, limiter=limiter), "m")
    admission = _admitted(gate, 900, 30.0)
    _refused(gate, 800, 30.0)
    gate.settle(admission, 100, 30.0)
    _admitted(gate, 900, 30.0)


def test_what_was_let_in_before_this_window_gives_nothing_back_to_it() -> None:
    gate = Gate(SimulatorSettings(tpm=1000, limiter="fixed-window"), "m")
    old = _admitted(gate, 900, 59.0)
    _admitted(gate, 1000, 60.0)
    gate.settle(old, 100, 61.0)
    assert _refused(gate, 1, 61.0).wait_s == pytest.approx(59.0)


STEPS = st.lists(st.tuples(st.floats(0, 40), st.integers(1, 100), st.floats(0, 1)), min_size=1, max_size=60)


def _let_in(
    limiter: LimiterKind, steps: list[tuple[float, int, float]], *, refunds: bool
) -> list[tuple[float, int]]:
    """Ask at growing times; wait out every second refusal exactly; return what was let in and used."""
    gate = Gate(SimulatorSettings(tpm=100, limiter=limiter), "m")
    now, used = 0.0, []
    for number, (gap_s, tokens, share) in enumerate(steps):
        now += gap_s
        answer = gate.admit(tokens, now)
        if isinstance(answer, Refusal):
            assert answer.wait_s is not None
            assert answer.wait_s > 0
            if number % 2:
                continue
            now += answer.wait_s + 1e-6
            answer = _admitted(gate, tokens, now)
        used_tokens = max(1, int(tokens * share)) if refunds else tokens
        gate.settle(answer, used_tokens, now)
        used.append((now, used_tokens))
    return used


@given(steps=STEPS)
def test_a_token_bucket_never_lets_in_more_than_its_level_and_refill(
    steps: list[tuple[float, int, float]],
) -> None:
    used = _let_in("token-bucket", steps, refunds=False)
    for start, (first_s, _) in enumerate(used):
        total = 0
        for at_s, tokens in used[start:]:
            total += tokens
            assert total <= 100 + (at_s - first_s) * 100 / MINUTE_S + 0.01


@given(steps=STEPS, refunds=st.booleans())
def test_a_fixed_window_never_lets_in_more_than_its_limit(
    steps: list[tuple[float, int, float]], refunds: bool
) -> None:
    totals: dict[float, int] = {}
    for at_s, tokens in _let_in("fixed-window", steps, refunds=refunds):
        totals[at_s // MINUTE_S] = totals.get(at_s // MINUTE_S, 0) + tokens
    assert max(totals.values(), default=0) <= 100


@given(steps=STEPS, refunds=st.booleans())
def test_a_sliding_window_never_lets_in_more_than_its_limit(
    steps: list[tuple[float, int, float]], refunds: bool
) -> None:
    used = _let_in("sliding-window", steps, refunds=refunds)
    for last_s, _ in used:
        assert sum(tokens for at_s, tokens in used if last_s - MINUTE_S < at_s <= last_s) <= 100


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0005, "0.5ms"),
        (0.172, "172ms"),
        (7.66, "7.66s"),
        (60, "1m0s"),
        (179.56, "2m59.56s"),
        (3600, "1h0m0s"),
        (25980.000001, "7h13m0.000001s"),
    ],
    ids=str,
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


@given(st.floats(0, 1e6))
def test_durations_never_promise_too_early(seconds: float) -> None:
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    parts = re.findall(r"([\d.]+)(ms|h|m|s)", go_duration(seconds))
    assert 0 <= sum(float(number) * units[unit] for number, unit in parts) - seconds + 2e-8 < 2e-6
