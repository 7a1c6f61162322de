"""Concurrency finds what a server can take, cuts once per episode and stays within its bounds."""

import heapq
import random
from collections import deque
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.limits.aimd import AdaptiveConcurrency, Grant
from batcher.types import Outcome

outcomes = st.sampled_from(list(Outcome))


class Server:
    """Works on `workers` calls at once; further ones wait in line, or are refused beyond `line`."""

    def __init__(self, workers: int, *, line: float, spread: float, seed: int) -> None:
        self.workers = workers
        self.line = line
        self._random = random.Random(seed)
        self._spread = spread

    def latency_s(self) -> float:
        return self._random.uniform(1 - self._spread, 1 + self._spread)


def run(concurrency: AdaptiveConcurrency, server: Server, seconds: float, load: int = 10_000) -> list[int]:
    """Keep the limit used up to `load` for `seconds` of virtual time; return the limit at each answer."""
    now, in_flight, working = 0.0, 0, 0
    ends: list[tuple[float, int, Grant, Outcome]] = []
    line: deque[Grant] = deque()
    limits, number = [], 0
    while now < seconds:
        while in_flight < min(load, concurrency.limit):
            grant = concurrency.granted(now)
            in_flight, number = in_flight + 1, number + 1
            if working < server.workers:
                working += 1
                heapq.heappush(ends, (now + server.latency_s(), number, grant, Outcome.SUCCESS))
            elif len(line) < server.line:
                line.append(grant)
            else:
                heapq.heappush(ends, (now + 0.02, number, grant, Outcome.OVERLOADED))
        now, _, grant, outcome = heapq.heappop(ends)
        if outcome is Outcome.SUCCESS:
            working -= 1
            if line:
                working, number = working + 1, number + 1
                heapq.heappush(ends, (now + server.latency_s(), number, line.popleft(), Outcome.SUCCESS))
        concurrency.settled(grant, outcome, in_flight, now)
        in_flight -= 1
        limits.append(concurrency.limit)
    return limits


@pytest.mark.parametrize(("ceiling", "start"), [(1, 1), (3, 3), (256, 4), (1_000, 50), (4_000, 238)])
def test_who_allows_more_begins_with_more(ceiling: int, start: int) -> None:
    assert AdaptiveConcurrency(ceiling).limit == start


@pytest.mark.parametrize("workers", [5, 20, 33, 50, 63, 100, 180])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_a_server_that_queues_without_limit_is_filled_and_not_much_more(workers: int, spread: float) -> None:
    concurrency = AdaptiveConcurrency(256)
    limits = run(concurrency, Server(workers, line=float("inf"), spread=spread, seed=workers), 300.0)
    last = limits[-len(limits) // 3 :]
    assert 0.8 * workers <= fmean(last) <= 1.2 * workers + 1, limits[:: len(limits) // 40]


@pytest.mark.parametrize("workers", [1, 10, 60, 150])
def test_a_server_that_refuses_beyond_its_line_is_used_and_seldom_provoked(workers: int) -> None:
    concurrency = AdaptiveConcurrency(256)
    limits = run(concurrency, Server(workers, line=0, spread=0.3, seed=1), 300.0)
    last = limits[-len(limits) // 2 :]
    assert 0.6 * workers <= fmean(last) <= 1.2 * workers + 1


def test_what_the_server_can_take_is_reached_in_few_round_trips() -> None:
    concurrency = AdaptiveConcurrency(256)
    run(concurrency, Server(1000, line=0, spread=0.0, seed=1), 13.0)
    assert concurrency.limit == 256


@pytest.mark.parametrize("line", [0, float("inf")], ids=["refuses", "queues"])
@pytest.mark.parametrize("workers", [500, 3_000])
def test_a_large_server_is_filled_as_soon_as_a_small_one(workers: int, line: float) -> None:
    concurrency = AdaptiveConcurrency(8_000)
    limits = run(concurrency, Server(workers, line=line, spread=0.3, seed=1), 60.0)
    last = limits[-len(limits) // 3 :]
    assert 0.7 * workers <= fmean(last) <= 1.2 * workers + 1, limits[:: len(limits) // 40]


def test_thousands_of_calls_are_reached_in_two_round_trips_a_doubling() -> None:
    concurrency = AdaptiveConcurrency(4_000)
    run(concurrency, Server(5_000, line=0, spread=0.3, seed=1), 16.0)
    assert concurrency.limit == 4_000


class SkewedServer(Server):
    """Most answers are short and some very long, as texts are; one second on average."""

    def latency_s(self) -> float:
        return self._random.lognormvariate(-0.5, 1.0)


@pytest.mark.parametrize("seed", range(8))
def test_short_answers_that_come_first_do_not_end_the_doubling(seed: int) -> None:
    concurrency = AdaptiveConcurrency(1_000)
    run(concurrency, SkewedServer(10_000, line=0, spread=0.0, seed=seed), 60.0)
    assert concurrency.limit >= 500


def test_a_server_that_became_larger_is_found_out() -> None:
    concurrency = AdaptiveConcurrency(256)
    server = Server(30, line=float("inf"), spread=0.1, seed=2)
    run(concurrency, server, 120.0)
    server.workers = 60
    run(concurrency, server, 600.0)
    assert 48 <= concurrency.limit <= 73


@pytest.mark.parametrize(("load", "grows"), [(7, True), (6, False), (1, False)])
def test_a_limit_that_is_not_used_does_not_grow(load: int, grows: bool) -> None:
    concurrency = AdaptiveConcurrency(256, start=8)
    run(concurrency, Server(1000, line=0, spread=0.1, seed=3), 60.0, load=load)
    assert (concurrency.limit > 8) is grows


@pytest.mark.parametrize(
    ("outcomes", "limit"),
    [
        pytest.param([Outcome.OVERLOADED] * 100, 70, id="a refusal cuts, the others of its time do not"),
        pytest.param([Outcome.FAILED] * 100, 70, id="so do failures in a burst"),
        pytest.param([Outcome.FAILED] * 20 + [Outcome.SUCCESS] * 60, 100, id="a few failures do not cut"),
        pytest.param([Outcome.IGNORED] * 100, 100, id="what says nothing teaches nothing"),
    ],
)
def test_an_episode_cuts_once(outcomes: list[Outcome], limit: int) -> None:
    concurrency = AdaptiveConcurrency(256, start=100)
    grants = [concurrency.granted(0.0) for _ in outcomes]
    for left, (grant, outcome) in enumerate(zip(grants, outcomes, strict=True)):
        concurrency.settled(grant, outcome, 100 - left, 1.0)
    assert concurrency.limit == limit


def test_after_a_cut_the_next_episode_cuts_again_and_growth_is_one_a_window() -> None:
    concurrency = AdaptiveConcurrency(256, start=10)
    concurrency.settled(concurrency.granted(0.0), Outcome.OVERLOADED, 10, 1.0)
    concurrency.settled(concurrency.granted(1.0), Outcome.OVERLOADED, 7, 2.0)
    assert concurrency.limit == 4
    grants = [concurrency.granted(2.0) for _ in range(4)]
    for grant in grants:
        assert concurrency.limit == 4
        concurrency.settled(grant, Outcome.SUCCESS, 4, 3.0)
    assert concurrency.limit == 5
    assert repr(concurrency) == "<AdaptiveConcurrency 5 of 256>"


@given(
    ceiling=st.integers(1, 300),
    start=st.integers(1, 300),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 50), outcomes, st.floats(0, 5)), max_size=300),
)
@settings(max_examples=150, deadline=None)
def test_the_limit_stays_in_its_bounds_and_old_attempts_never_cut(
    ceiling: int, start: int, steps: list[tuple[bool, int, Outcome, float]]
) -> None:
    concurrency = AdaptiveConcurrency(ceiling, start=start)
    out: list[tuple[int, Grant]] = []  # (cuts seen when it started, grant)
    cuts, now = 0, 0.0
    for starts, which, outcome, pause in steps:
        now += pause
        if starts or not out:
            out.append((cuts, concurrency.granted(now)))
            continue
        started, grant = out.pop(which % len(out))
        before = concurrency.limit
        concurrency.settled(grant, outcome, len(out) + 1, now)
        assert 1 <= concurrency.limit <= ceiling
        assert concurrency.limit <= 2 * before
        if outcome is Outcome.OVERLOADED and started == cuts:
            cuts += 1
            assert concurrency.limit == max(1, int(0.7 * before))
        elif started < cuts or outcome is Outcome.IGNORED:
            assert concurrency.limit == before
        elif outcome is Outcome.FAILED and concurrency.limit < before:
            cuts += 1
