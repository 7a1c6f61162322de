"""The simulation by itself: seeded, counted, limited, and given the time."""

import math
from collections import Counter
from itertools import pairwise
from statistics import fmean

import orjson
import pytest

from batcher.providers.simulator.calls import Call
from batcher.providers.simulator.fault_plan import FaultPlan, parse_faults
from batcher.providers.simulator.model import Plan, Simulation
from batcher.providers.simulator.settings import LatencyShape, SimulatorSettings


def _call(
    text: str = "Hello", *, key: str = "k", headers: dict[str, str] | None = None, **fields: object
) -> Call:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]} | fields
    return Call(
        method="POST",
        path="/v1/chat/completions",
        headers={"authorization": f"Bearer {key}"} | (headers or {}),
        body=orjson.dumps(body),
    )


def _answer(simulation: Simulation, call: Call, now: float = 0.0) -> Plan:
    plan = simulation.begin(call, now)
    simulation.finish(plan, now)
    return plan


def _simulation(**settings: object) -> Simulation:
    return Simulation(SimulatorSettings(**settings), now=0.0)  # type: ignore[arg-type]  # named by each test


def _told(simulation: Simulation, names: list[str]) -> dict[tuple[str, int], tuple[str, float, bytes]]:
    """Ask twice for each name, in this order; what came, by name and time asked."""
    told = {}
    for name in names:
        for turn in range(2):
            plan = _answer(simulation, _call(name))
            told[name, turn] = (plan.fault, plan.latency_s, plan.body)
    return told


def test_equal_seeds_tell_each_request_the_same_in_whatever_order() -> None:
    names = [f"row-{number}" for number in range(100)]
    settings = {"latency_s": 1.0, "faults": FaultPlan(rates={"mixed": 0.4})}
    told = _told(_simulation(seed=7, **settings), names)
    assert _told(_simulation(seed=7, **settings), names[::-1]) == told
    assert _told(_simulation(seed=8, **settings), names) != told
    assert any(told[name, 0][1] != told[name, 1][1] for name in names)


@pytest.mark.parametrize("shape", ["fixed", "uniform", "exponential", "lognormal"])
def test_latencies_keep_their_mean(shape: LatencyShape) -> None:
    simulation = _simulation(latency_s=2.0, latency_shape=shape)
    latencies = [_answer(simulation, _call(str(number))).latency_s for number in range(3000)]
    assert fmean(latencies) == pytest.approx(2.0, rel=0.1)
    assert min(latencies) >= 0
    assert (len(set(latencies)) == 1) == (shape == "fixed")


@pytest.mark.parametrize(
    ("call", "counted"),
    [
        (_call("short"), "short"),
        (_call("named", headers={"x-client-request-id": "row-7"}), "row-7"),
        (_call("x" * 64), "x" * 64),
    ],
    ids=["text", "header", "64 characters"],
)
def test_a_call_is_counted_by_name(call: Call, counted: str) -> None:
    simulation = _simulation()
    for _ in range(3):
        _answer(simulation, call)
    assert simulation.by_id == {counted: 3}


def test_a_long_text_is_counted_by_the_hash_of_its_body() -> None:
    simulation = _simulation()
    for text in ("x" * 65, "y" * 65, "x" * 65):
        _answer(simulation, _call(text))
    assert sorted(simulation.by_id.values()) == [1, 2]
    assert all(len(name) == 16 for name in simulation.by_id)


def test_what_happened_is_counted() -> None:
    simulation = _simulation(rpm=2, faults=parse_faults(["id:reset=a", "id:status:503=a"]))
    first = simulation.begin(_call("a"), 1.0)
    second = simulation.begin(_call("a"), 1.0)
    assert simulation.in_flight == 2
    for plan in (first, second):
        simulation.finish(plan, 2.0)
    for _ in range(2):
        _answer(simulation, _call("b"), 2.0)
    stats = simulation.stats(5.0)
    assert stats["requests"] == 4
    assert (stats["in_flight"], stats["in_flight_peak"]) == (0, 2)
    assert stats["by_id"] == {"a": 2, "b": 2}
    assert stats["by_status"] == {"200": 2, "429": 1, "503": 1}
    assert stats["by_fault"] == {"reset": 1, "status:503": 1}
    assert stats["uptime_s"] == 5.0
    assert [at_s for at_s, _ in simulation.admissions] == [1.0, 2.0]


def test_reset_forgets_counts_and_limits_but_not_what_is_in_flight() -> None:
    simulation = _simulation(rpm=1)
    waiting = simulation.begin(_call("a"), 0.0)
    assert _answer(simulation, _call("b")).status == 429
    simulation.reset(10.0)
    assert (simulation.requests, simulation.in_flight, simulation.by_id) == (0, 1, Counter())
    assert _answer(simulation, _call("b"), 10.0).status == 200
    simulation.finish(waiting, 11.0)
    assert simulation.in_flight == 0


def test_limits_are_kept_for_each_key_and_model() -> None:
    simulation = _simulation(rpm=1)
    asked = [("a", "m"), ("a", "m"), ("b", "m"), ("a", "other")]
    statuses = [_answer(simulation, _call(key=key, model=model)).status for key, model in asked]
    assert statuses == [200, 429, 200, 200]


def test_a_429_says_in_body_and_header_how_long_to_wait() -> None:
    simulation = _simulation(rpm=30, tpm=10_000, rpd=1000)
    plans = [_answer(simulation, _call()) for _ in range(31)]
    good, refused = dict(plans[0].headers), plans[-1]
    assert good["x-ratelimit-limit-requests"] == "1000"
    assert good["x-ratelimit-limit-tokens"] == "10000"
    assert "retry-after" not in good
    assert refused.status == 429
    assert dict(refused.headers)["retry-after"] == "2"
    error = orjson.loads(refused.body)["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "requests")
    assert (
        "requests per minute (RPM): Limit 30, Used 30, Requested 1. Please try again in 2s."
        in error["message"]
    )


def test_admission_charges_the_maximum_and_the_answer_gives_the_rest_back() -> None:
    simulation = _simulation(tpm=1000)
    call = _call(max_completion_tokens=900)
    waiting = simulation.begin(call, 0.0)
    assert _answer(simulation, call).status == 429
    simulation.finish(waiting, 0.0)
    assert _answer(simulation, call).status == 200


def test_a_request_above_the_limit_is_413_without_retry_after() -> None:
    plan = _answer(_simulation(tpm=1000), _call(max_completion_tokens=1000))
    assert plan.status == 413
    assert orjson.loads(plan.body)["error"]["code"] == "rate_limit_exceeded"
    assert "retry-after" not in dict(plan.headers)


@pytest.mark.parametrize(
    ("kind", "charged"), [("reset", True), ("html200", True), ("status:500", False), ("429", False)]
)
def test_a_fault_charges_what_had_been_let_in(kind: str, charged: bool) -> None:
    simulation = _simulation(rpm=1, faults=FaultPlan(by_id={"Hello": (kind,)}))
    _answer(simulation, _call())
    assert _answer(simulation, _call()).status == (429 if charged else 200)


def test_twenty_percent_mixed_faults_strike_about_that_often_and_never_four_in_a_row() -> None:
    simulation = _simulation(faults=parse_faults(["mixed=0.2"]))
    calls = [[_answer(simulation, _call(str(number))).fault for _ in range(8)] for number in range(500)]
    struck = sum(bool(fault) for faults in calls for fault in faults)
    assert struck / 4000 == pytest.approx(0.2, abs=0.03)
    longest = max(
        len(run) for faults in calls for run in "".join("x" if each else " " for each in faults).split()
    )
    assert longest == 3


def test_an_outage_takes_the_model_list_too() -> None:
    simulation = _simulation(faults=parse_faults(["outage:status:503=10..20", "reset=1"]))
    models = Call(method="GET", path="/v1/models", headers={}, body=b"")
    assert [_answer(simulation, models, now).status for now in (0.0, 10.0, 20.0)] == [200, 503, 200]


def test_prompts_and_answers_count_their_tokens() -> None:
    simulation = _simulation(output_tokens=(5, 5))
    call = _call("x" * 400)
    usage = orjson.loads(_answer(simulation, call).body)["usage"]
    assert usage["prompt_tokens"] == math.ceil(len(call.body) / 4)
    assert usage["completion_tokens"] == 5
    assert simulation.stats(0.0)["tokens"] == {"prompt": usage["prompt_tokens"], "completion": 5}


def test_the_log_is_bounded() -> None:
    simulation = _simulation(log_size=3)
    for number in range(5):
        _answer(simulation, _call(), float(number))
    assert [at_s for at_s, _ in simulation.admissions] == [2.0, 3.0, 4.0]
    assert all(later > earlier for (earlier, _), (later, _) in pairwise(simulation.admissions))
