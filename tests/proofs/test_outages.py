"""An outage costs a handful of calls and no job, and its end is noticed soon and without a rush."""

import itertools
from functools import cache

import pytest
from rig import ONE_WAY_S, Rig, finished

from batcher.limits.breaker import BreakerPolicy
from batcher.providers.simulator.fault_plan import FaultPlan, Outage
from batcher.providers.simulator.settings import SimulatorSettings

CONCURRENCY = 32
JOBS = 800
BEGINS_S = 12.0
LATENCY_S = 1.0
TIMEOUT_S = 30.0
RETRY_BUDGET = 50
"""Retries that a full budget lets out at once: 100, and 2 for each."""

KINDS = {"refused": "refused", "status:503": "503", "hang": "accepted and never answered"}
LENGTHS_S = {1.0: "1 s", 60.0: "1 min", 3600.0: "1 h"}

each_outage = pytest.mark.parametrize(
    ("kind", "length_s"),
    [
        pytest.param(kind, length_s, id=f"{KINDS[kind]}, {LENGTHS_S[length_s]}")
        for kind, length_s in itertools.product(KINDS, LENGTHS_S)
    ],
)


@cache
def _run_through(
    kind: str, length_s: float, *, jobs: int = JOBS, concurrency: int = CONCURRENCY, seed: int = 0
) -> Rig:
    outage = Outage(kind=kind, start_s=BEGINS_S, end_s=BEGINS_S + length_s)
    plan = FaultPlan(outages=(outage,))
    simulator = SimulatorSettings(latency_s=LATENCY_S, latency_shape="fixed", seed=seed, faults=plan)
    return finished(
        lambda: Rig(jobs, simulator, seed=seed, concurrency=concurrency, timeout=TIMEOUT_S), seed=seed
    )


def _wait_s(openings: int) -> float:
    """Return the mean time for which the circuit stays open after having opened so often in a row."""
    policy = BreakerPolicy()
    return min(policy.longest_wait_s, policy.first_wait_s * 2.0 ** (openings - 1))


def _most_probes(length_s: float) -> int:
    """Return how often the circuit can half-open in an outage: its waits are 0.8 of the mean at least."""
    probes, at = 0, 0.0
    while at <= length_s:
        probes += 1
        at += 0.8 * _wait_s(probes)
    return probes


@each_outage
def test_an_outage_fails_no_job(kind: str, length_s: float) -> None:
    rig = _run_through(kind, length_s)
    assert (len(rig.answered), rig.failed, rig.stop.reason) == (JOBS, {}, None), rig.figures()


def _assert_few_calls(rig: Rig, length_s: float, concurrency: int) -> None:
    into = sum(BEGINS_S <= call.arrived_at < BEGINS_S + length_s for call in rig.calls)
    most = concurrency + RETRY_BUDGET + _most_probes(length_s)
    assert 0 < into <= most, rig.figures(into_the_outage=into, most=most)
    assert len(rig.calls) <= 1.15 * rig.jobs + 10, rig.figures()


@each_outage
def test_an_outage_costs_few_calls(kind: str, length_s: float) -> None:
    _assert_few_calls(_run_through(kind, length_s), length_s, CONCURRENCY)


@each_outage
def test_its_end_is_noticed_within_one_probe_interval(kind: str, length_s: float) -> None:
    rig = _run_through(kind, length_s)
    healed_at = BEGINS_S + length_s
    openings = sum(state == "open" and at < healed_at for at, state in rig.circuits)
    # A call that was never answered keeps the next probe waiting until it has timed out.
    hanging_s = TIMEOUT_S if kind == "hang" else 0.0
    latest = healed_at + 1.2 * _wait_s(max(1, openings)) + hanging_s + LATENCY_S + 2 * ONE_WAY_S[1]
    first = min(call.ended_at for call in rig.calls if call.arrived_at >= healed_at and call.status == 200)
    assert first <= latest, rig.figures(first=first, latest=latest)


@pytest.mark.parametrize(
    ("kind", "length_s"),
    [
        pytest.param(
            kind,
            length_s,
            id=f"{KINDS[kind]}, {LENGTHS_S[length_s]}",
        )
        for kind, length_s in itertools.product(KINDS, LENGTHS_S)
    ],
)
def test_recovery_is_no_stampede(kind: str, length_s: float) -> None:
    """From one probe on, what is in flight at most doubles with each round trip."""
    rig = _run_through(kind, length_s)
    probed_at = max((at for at, state in rig.circuits if state == "half-open"), default=None)
    assert probed_at is not None, rig.figures()
    round_trip_s = LATENCY_S + 2 * ONE_WAY_S[0]
    in_flight, curve, excess = 0, [], []
    sent = [(call.sent_at, 1) for call in rig.calls if call.sent_at >= probed_at]
    ended = [(call.ended_at, -1) for call in rig.calls if call.sent_at >= probed_at]
    for at, step in sorted(sent + ended):
        in_flight += step
        most = 2 ** (1 + (at - probed_at) / round_trip_s)
        curve.append((round(at - probed_at, 2), in_flight))
        if in_flight > most:
            excess.append((round(at - probed_at, 2), in_flight, round(most, 1)))
    assert not excess, rig.figures(curve=curve[:60], first_excess=excess[0])


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_ten_minutes_cost_ten_thousand_jobs_few_calls(kind: str, seed: int) -> None:
    rig = _run_through(kind, 600.0, jobs=10_000, concurrency=256, seed=seed)
    assert (len(rig.answered), rig.failed) == (10_000, {}), rig.figures()
    _assert_few_calls(rig, 600.0, 256)
