"""Percentiles, medians, ratios and verdicts: pure functions of numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.bench.figures import Figures, idle, medians, per_job_us, percentiles, problems, ratio
from batcher.bench.targets import TARGETS, judge


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles([float(n) for n in range(1, 101)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert percentiles([3.0]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0}
    assert percentiles([]) is None


@given(st.lists(st.floats(0, 1e6, allow_nan=False).map(lambda value: round(value, 6)), min_size=1))
def test_as_many_values_as_it_says_lie_at_or_below_a_percentile(values: list[float]) -> None:
    found = percentiles(values)
    assert found is not None
    for p in (50, 95, 99):
        value = found[f"p{p}"]
        assert sum(one <= value for one in values) >= math.ceil(p * len(values) / 100)
        assert sum(one < value for one in values) < math.ceil(p * len(values) / 100)


def test_medians_leave_out_what_a_round_does_not_know() -> None:
    rounds = [Figures(jobs_per_s=1.0, peak_mb=10.0), Figures(jobs_per_s=9.0), Figures(jobs_per_s=2.0)]
    assert medians(rounds) == Figures(jobs_per_s=2.0, peak_mb=10.0)


def figures(per_s: float, cpu: float) -> Figures:
    return Figures(jobs_per_s=per_s, whole_jobs_per_s=per_s / 2, cpu_us_per_job=cpu)


def test_a_ratio_compares_round_with_round() -> None:
    # The machine was busy in the second round, for both alike.
    runner = [figures(100, 50), figures(10, 50), figures(120, 50)]
    yardstick = [figures(200, 25), figures(20, 25), figures(200, 20)]
    found = ratio(runner, yardstick, [])
    assert (found.throughput, found.whole_throughput, found.cpu) == (0.5, 0.5, 0.5)
    assert found.valid


def test_a_ratio_to_nothing_is_unknown_and_one_with_a_reason_invalid() -> None:
    found = ratio([figures(1, 1)], [Figures(jobs_per_s=0.0)], ["it is raining"])
    assert (found.throughput, found.cpu) == (None, None)
    assert (found.valid, found.reasons) == (False, ("it is raining",))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, []),
        ({"server_cpu_share": 0.85}, []),
        ({"server_cpu_share": None}, []),
        ({"server_cpu_share": 0.86}, ["the server used 86% of its core: it may be what was measured"]),
        ({"exit_code": 75}, ["it ended with exit code 75"]),
        ({"answered": 1998, "missing": 2}, ["2 of 2,000 jobs have no result"]),
        ({"repeated": 1}, ["1 result lines too many"]),
        ({"answered": 1990}, ["10 jobs failed"]),
    ],
)
def test_what_speaks_against_a_measurement(changed: dict[str, float], words: list[str]) -> None:
    good = {
        "jobs": 2000,
        "exit_code": 0,
        "answered": 2000,
        "missing": 0,
        "repeated": 0,
        "server_cpu_share": 0.5,
    }
    assert problems(**{**good, **changed}) == words  # type: ignore[arg-type]


@pytest.mark.parametrize(("share", "counts"), [(None, True), (0.97, True), (0.8, True), (0.79, False)])
def test_a_bare_loop_without_its_core_is_no_yardstick(share: float | None, counts: bool) -> None:
    assert (idle("aiohttp", share) == []) == counts


def test_a_job_costs_what_it_adds_to_the_first() -> None:
    assert per_job_us(1.5, 0.5, 1001) == 1000.0
    assert per_job_us(1.5, 0.5, 1) is None


def test_targets_are_bounds_on_their_own_side() -> None:
    assert judge("throughput_to_aiohttp", "64", 1.0).met is True
    assert judge("throughput_to_aiohttp", "64", 0.99).met is False
    assert judge("peak_mb", "256", 150.0).met is True
    assert judge("peak_mb", "256", 151.0).met is False
    assert judge("peak_mb", "256", 1.0, valid=False).met is None


def test_every_target_says_what_it_bounds() -> None:
    assert all(target.says and target.bound > 0 for target in TARGETS.values())
