"""Refusals that do not end soon: the run ends in time, says when to come back, and blames no job."""

from collections import Counter
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from rig import Rig, Rival, finished

from batcher.providers.simulator.fault_plan import FaultPlan, Outage
from batcher.providers.simulator.settings import SimulatorSettings

CONCURRENCY = 64
REFUSED_FROM_S = 10.0
DEADLINE_S = 60.0
PROMPT_TOKENS = 29
"""Of a body with a prompt of nine letters, as the simulator counts."""


@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
def test_a_day_limit_parks_its_model_alone_and_says_when_to_come_back(told: bool) -> None:
    limit, used, asked = 100_000, 97_050, 3_619
    options: dict[str, Any] = {"tpd": limit} if told else {}
    params = {"max_completion_tokens": asked - PROMPT_TOKENS}

    def make() -> Rig:
        spent = [{"id": f"spent-{number:03}", "model": "spent", "params": params} for number in range(100)]
        others = [{"id": f"other-{number}", "model": f"other-{number % 2}"} for number in range(400)]
        simulator = SimulatorSettings(latency_s=1.0, tpd=limit)
        rig = Rig([*spent, *others], simulator, deadline_s=300, **options)
        rival = Rival(
            rig.simulation, per_minute=1, body={"model": "spent", "max_completion_tokens": 1}, seed=0
        )
        assert rival.spend("x" * (4 * used - 100))
        return rig

    rig = finished(make)
    answered = Counter(name.split("-")[0] for name in rig.answered)
    assert (answered, rig.failed) == ({"other": 400}, {}), rig.figures()
    assert rig.stop.reason == 75, rig.figures()
    assert rig.stop.resume_in_s == pytest.approx(576 - rig.ended_at, abs=5), rig.figures()
    assert "spent" in rig.stop.message
    assert "(TPD)" in rig.stop.message
    assert rig.ended_at < 300, rig.figures()


@cache
def _refused_forever(kind: str, deadline_s: float) -> Rig:
    """Run into refusals without end."""
    outage = Outage(kind=kind, start_s=REFUSED_FROM_S, end_s=10 * deadline_s)
    simulator = SimulatorSettings(latency_s=1.0, latency_shape="fixed", faults=FaultPlan(outages=(outage,)))
    return finished(lambda: Rig(2_000, simulator, concurrency=CONCURRENCY, deadline_s=deadline_s))


@pytest.mark.parametrize("kind", ["429", "429-text", "429-bare"])
def test_the_deadline_ends_a_run_that_is_refused_for_ever(kind: str) -> None:
    rig = _refused_forever(kind, DEADLINE_S)
    assert rig.failed == {}, rig.figures()
    assert 0 < len(rig.answered) < rig.jobs, rig.figures()
    assert rig.stop.reason == 75, rig.figures()
    assert rig.ended_at <= DEADLINE_S + 2.0, rig.figures()


def _pauses(rig: Rig) -> list[list[float]]:
    """Return when calls were sent into the refusals, those together that were sent within a second."""
    groups: list[list[float]] = []
    for call in rig.calls:
        if call.arrived_at >= REFUSED_FROM_S:
            if not groups or call.sent_at - groups[-1][-1] > 1.0:
                groups.append([])
            groups[-1].append(call.sent_at)
    return groups


def test_refusals_without_a_word_are_met_with_growing_pauses() -> None:
    rig = _refused_forever("429-bare", 900.0)
    begins = [group[0] for group in _pauses(rig)]
    pauses = [later - earlier for earlier, later in pairwise(begins[1:])]
    figures = rig.figures(begins=begins)
    assert len(pauses) >= 10, figures
    for number, pause in enumerate(pauses):
        wait_s = min(60.0, 5.0 * 2 ** (number + 1))
        assert wait_s <= pause <= 1.1 * wait_s + 3.0, (number, pause, figures)


@pytest.mark.parametrize("kind", ["429", "429-text", "429-bare"])
def test_after_a_pause_that_helped_nobody_a_single_call_asks_for_all(kind: str) -> None:
    rig = _refused_forever(kind, DEADLINE_S)
    into = [call.sent_at for call in rig.calls if call.arrived_at >= REFUSED_FROM_S]
    longest_s = {"429": 0.2, "429-text": 1.985, "429-bare": 5.0}[kind]
    most = CONCURRENCY + 2 * (DEADLINE_S - REFUSED_FROM_S) / longest_s
    assert len(into) <= most, rig.figures(into=len(into), most=most)
