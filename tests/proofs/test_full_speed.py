"""Alone on its key, a run uses nearly all that is allowed, whatever way the provider counts."""

from typing import Any

import pytest
from rig import LIMITERS, Rig, finished, within

from batcher.providers.simulator.settings import LimiterKind, SimulatorSettings

RPM = 1_200
TPM = 120_000


def _share_of_rpm(rig: Rig, steady_from_s: float) -> float:
    """Return the share of the allowed requests that was used in the minute after that moment."""
    answered = (call.arrived_at for call in rig.calls if call.status == 200)
    return within(answered, steady_from_s, steady_from_s + 60) / RPM


@pytest.mark.parametrize("limiter", LIMITERS)
@pytest.mark.parametrize(
    ("latency_s", "steady_from_s"),
    [
        pytest.param(0.5, 10, id="0.5 s"),
        pytest.param(0.05, 10, id="0.05 s", marks=pytest.mark.long),
        pytest.param(2.0, 30, id="2 s", marks=pytest.mark.long),
    ],
)
def test_requests_a_minute_are_used_to_98_percent_and_hardly_one_is_refused(
    limiter: LimiterKind, latency_s: float, steady_from_s: float
) -> None:
    simulator = SimulatorSettings(latency_s=latency_s, rpm=RPM, limiter=limiter)
    rig = finished(lambda: Rig(2 * RPM, simulator, rpm=RPM, deadline_s=steady_from_s + 65))
    share = _share_of_rpm(rig, steady_from_s)
    assert rig.failed == {}
    assert 1000 * rig.refused <= len(rig.calls), rig.figures()
    assert share >= 0.98, rig.figures(share=share)


def _spent(minutes: float, limiter: LimiterKind, *, told: bool, maximum: int | None) -> Rig:
    """Run jobs of about 135 tokens for so long."""
    simulator = SimulatorSettings(latency_s=1.0, tpm=TPM, limiter=limiter, output_tokens=(20, 200))
    options: dict[str, Any] = {"tpm": TPM} if told else {}
    params = {"max_completion_tokens": maximum} if maximum else None
    return finished(lambda: Rig(int(minutes * TPM / 135), simulator, params=params, **options))


def _assert_spent_in_time(rig: Rig) -> None:
    """The ideal is the time in which the provider's limit gives what it has charged."""
    ideal_s = sum(call.tokens for call in rig.calls) / (TPM / 60)
    figures = rig.figures(ideal_s=ideal_s, ratio=rig.ended_at / ideal_s)
    assert (len(rig.answered), rig.failed) == (rig.jobs, {}), figures
    assert 100 * rig.refused <= rig.jobs, figures
    assert rig.ended_at == pytest.approx(ideal_s, rel=0.05), figures


@pytest.mark.parametrize(
    ("limiter", "told", "maximum"),
    [
        pytest.param("token-bucket", True, 200, id="token-bucket, told"),
        pytest.param("fixed-window", False, 200, id="fixed-window, learned"),
        pytest.param("sliding-window", True, None, id="sliding-window, told, no maximum"),
    ],
)
def test_tokens_a_minute_are_spent_within_5_percent_of_the_ideal_time(
    limiter: LimiterKind, told: bool, maximum: int | None
) -> None:
    _assert_spent_in_time(_spent(4, limiter, told=told, maximum=maximum))


@pytest.mark.long
@pytest.mark.parametrize("limiter", LIMITERS)
@pytest.mark.parametrize("told", [True, False], ids=["told", "learned"])
@pytest.mark.parametrize("maximum", [200, None], ids=["a maximum", "no maximum"])
def test_tokens_a_minute_are_spent_in_time_over_ten_minutes(
    limiter: LimiterKind, told: bool, maximum: int | None
) -> None:
    _assert_spent_in_time(_spent(10, limiter, told=told, maximum=maximum))


@pytest.mark.parametrize("told", [True, False], ids=["told", "learned"])
def test_output_tokens_a_minute_are_spent_in_time(told: bool) -> None:
    """No header tells this limit: the first refusal does."""
    limit = 60_000
    simulator = SimulatorSettings(latency_s=1.0, otpm=limit, output_tokens=(20, 200))
    options: dict[str, Any] = {"otpm": limit} if told else {}
    rig = finished(lambda: Rig(2_000, simulator, params={"max_completion_tokens": 200}, **options))
    ideal_s = rig.simulation.completion_tokens / (limit / 60)
    figures = rig.figures(ideal_s=ideal_s, ratio=rig.ended_at / ideal_s)
    assert (len(rig.answered), rig.failed) == (rig.jobs, {}), figures
    # The calls that are out when the limit is met are refused together, and then hardly one is.
    refused_at = [call.arrived_at for call in rig.calls if call.status == 429]
    later = [at for at in refused_at if at > refused_at[0] + 3]
    assert 100 * len(later) <= rig.jobs, (later, figures)
    # Until it is learned, the full bucket goes out at once, and then nothing until that minute is over.
    least, most = (0.95, 1.05) if told else (0.7, 1.1)
    assert least * ideal_s <= rig.ended_at <= most * ideal_s, figures
