"""Somebody else uses 40 % of the same key: refusals stay rare, and what is left is used."""

import itertools
from typing import Any

import pytest
from rig import MODEL, Rig, Rival, finished

from batcher.providers.simulator.settings import SimulatorSettings

RPM = 600
SHARE = 0.4
PARAMS = {"max_completion_tokens": 200}
TOKENS = 140
"""That one call uses on average."""


def _shared(seed: int, *, told: bool, minutes: float) -> tuple[Rig, float]:
    """Run beside a rival for about so long; return the share of the remaining capacity that was used."""
    # With even seeds tokens run out first, with odd ones requests.
    tpm = RPM * TOKENS * (8 if seed % 2 == 0 else 12) // 10
    simulator = SimulatorSettings(latency_s=1.0, seed=seed, rpm=RPM, tpm=tpm, output_tokens=(20, 200))
    options: dict[str, Any] = {"rpm": RPM, "tpm": tpm} if told else {}
    per_minute = min(RPM, tpm / TOKENS)

    def make() -> Rig:
        jobs = int(minutes * (1 - SHARE) * per_minute)
        rig = Rig(jobs, simulator, seed=seed, params=PARAMS, **options)
        rig.rival = Rival(
            rig.simulation, per_minute=SHARE * per_minute, body={"model": MODEL, **PARAMS}, seed=seed
        )
        # The bucket is empty when the run begins: what it held would hide what the rival takes.
        for number in itertools.count():
            if not rig.rival.spend(f"before {number}"):
                break
        return rig

    rig = finished(make, seed=seed)
    start, end = 30.0, rig.ended_at - 15.0
    ours = [call.tokens for call in rig.calls if call.status == 200 and start <= call.arrived_at < end]
    assert rig.rival is not None
    his = [tokens for at, tokens in rig.rival.admitted if start <= at < end]
    of_requests = len(ours) / (RPM * (end - start) / 60 - len(his))
    of_tokens = sum(ours) / (tpm * (end - start) / 60 - sum(his))
    return rig, max(of_requests, of_tokens)


def _assert_peaceful(seed: int, *, told: bool, minutes: float) -> None:
    rig, share = _shared(seed, told=told, minutes=minutes)
    figures = rig.figures(seed=seed, share=share, refused_per_job=rig.refused / rig.jobs)
    assert (len(rig.answered), rig.failed) == (rig.jobs, {}), figures
    assert share >= 0.85, figures
    assert rig.refused <= 0.2 * rig.jobs, figures
    assert max(rig.refusals.values(), default=0) <= 5, figures


@pytest.mark.parametrize(
    ("seed", "told"),
    [
        pytest.param(0, True, id="0, told"),
        pytest.param(1, True, id="1, told"),
        pytest.param(0, False, id="0, learned"),
        pytest.param(1, False, id="1, learned"),
    ],
)
def test_a_rival_costs_few_refusals_and_its_own_share_alone(seed: int, told: bool) -> None:
    _assert_peaceful(seed, told=told, minutes=3)


@pytest.mark.long
@pytest.mark.parametrize(
    ("seed", "told"),
    [
        pytest.param(
            seed,
            told,
            id=f"{seed}, {'told' if told else 'learned'}",
        )
        for seed in range(10)
        for told in (True, False)
    ],
)
def test_a_rival_costs_few_refusals_over_ten_minutes(seed: int, told: bool) -> None:
    _assert_peaceful(seed, told=told, minutes=10)
