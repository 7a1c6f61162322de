"""The scheduler starts what there is room for: the most urgent first, never more than can be of use."""

import asyncio
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lane_kit import make_lane, settled
from test_queue import Listed, files, models, queue_of
from test_routing import Unused
from virtual_clock import VirtualClockLoop

from batcher.jobs.lines import LineDefaults
from batcher.scheduling.routing import Account, Route, Routing
from batcher.scheduling.scheduler import SLEEPERS, Scheduler
from batcher.types import Job


@contextmanager
def scheduling(
    listed: Listed,
    *,
    concurrency: int,
    slack: int = 0,
    limit: int | None = None,
    fallback: Mapping[int, str] | None = None,
) -> Iterator[tuple[Scheduler, Routing, list[Job]]]:
    """Make a scheduler over a file of jobs, its routes, and the list of the jobs it starts."""
    started: list[Job] = []
    routing = make_routing()
    with queue_of(listed, limit, fallback=fallback) as queue:
        yield (
            Scheduler(queue, routing, started.append, concurrency=1, slack=concurrency + slack - 1),
            routing,
            started,
        )


def make_routing() -> Routing:
    return Routing([Account(provider=Unused())], lambda model, account: make_lane(route=model))


def route_to(routing: Routing, model: str) -> Route:
    [route] = routing.routes(model)
    return route


def ids(jobs: list[Job]) -> list[int]:
    return [int(job.id) for job in jobs]


async def test_a_lane_has_room_for_its_concurrency_and_slack() -> None:
    with scheduling([("a", 0)] * 10, concurrency=2, slack=3) as (scheduler, _, started):
        assert scheduler.idle
        scheduler.fill()
        assert ids(started) == [0, 1, 2, 3, 4]
        scheduler.fill()
        assert len(started) == 5
        assert repr(scheduler) == "<Scheduler alive=5 <JobQueue 5 left>>"
        scheduler.finished(started[2])
        assert ids(started) == [0, 1, 2, 3, 4, 5]
        assert not scheduler.idle


async def test_each_model_has_room_of_its_own_and_the_most_urgent_comes_first() -> None:
    with scheduling([("slow", 0)] * 5 + [("quick", 7)] * 5, concurrency=2) as (scheduler, _, started):
        scheduler.fill()
        assert ids(started) == [5, 6, 0, 1]
        scheduler.finished(started[0])
        assert ids(started)[4:] == [7]


async def test_urgent_jobs_at_the_end_of_the_file_come_first() -> None:
    with scheduling([("a", 0)] * 300 + [("a", 9)] * 30, concurrency=4, slack=4) as (scheduler, _, started):
        scheduler.fill()
        for number in range(330):
            scheduler.finished(started[number])
        assert ids(started) == [*range(300, 330), *range(300)]
        assert scheduler.idle


@given(
    listed=files,
    concurrency=st.integers(1, 4),
    slack=st.integers(0, 3),
    limit=st.none() | st.integers(0, 30),
    order=st.randoms(use_true_random=False),
)
def test_every_job_is_started_once_and_never_too_many_are_alive(
    listed: Listed, concurrency: int, slack: int, limit: int | None, order: random.Random
) -> None:
    async def run() -> None:
        with scheduling(listed, concurrency=concurrency, slack=slack, limit=limit) as (scheduler, _, started):
            scheduler.fill()
            alive, seen = list(started), len(started)
            while alive:
                for model in {job.model for job in alive}:
                    assert sum(job.model == model for job in alive) <= concurrency + slack
                scheduler.finished(alive.pop(order.randrange(len(alive))))
                alive += started[seen:]
                seen = len(started)
            assert scheduler.idle
            assert (
                len(set(ids(started)))
                == len(started)
                == min(len(listed), len(listed) if limit is None else limit)
            )

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(run())


@given(
    listed=files,
    fallback=st.dictionaries(st.integers(0, 39), models),
    concurrency=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
def test_whatever_parks_or_sleeps_no_job_that_could_run_is_left_behind(
    listed: Listed, fallback: dict[int, str], concurrency: int, order: random.Random
) -> None:
    fallback = {number: model for number, model in fallback.items() if number < len(listed)}

    sleeps: dict[str, asyncio.Task[None]] = {}

    async def run() -> None:
        try:
            await play()
        finally:
            # An example that is given up half-way leaves no error behind that nobody looks at.
            for sleep in sleeps.values():
                sleep.cancel()
            await asyncio.gather(*sleeps.values(), return_exceptions=True)

    async def play() -> None:
        with scheduling(listed, concurrency=concurrency, fallback=fallback) as (scheduler, routing, started):
            scheduler.fill()
            ended = 0
            while ended < len(started):
                # Jobs end in any order: the one that does is swapped to where the next is taken from.
                picked = order.randrange(ended, len(started))
                started[ended], started[picked] = started[picked], started[ended]
                job = started[ended]
                chance = order.random()
                if chance < 0.03:
                    route_to(routing, order.choice("abc")).lane.park("closed")
                elif chance < 0.7 and job.id not in sleeps:
                    elsewhere = route_to(routing, order.choice("abc"))
                    sleeps[job.id] = asyncio.create_task(routing.backoff(job, elsewhere, 60.0))
                    await settled()
                else:
                    if job.id in sleeps:
                        sleeps[job.id].cancel()
                        await asyncio.gather(sleeps[job.id], return_exceptions=True)
                    ended += 1
                    scheduler.finished(job)
            assert repr(scheduler) == "<Scheduler alive=0 <JobQueue 0 left>>"
            seen = ids(started)
            assert len(set(seen)) == len(seen)
            for number, (model, _) in enumerate(listed):
                if number not in seen:
                    routes = {model, fallback.get(number, model)}
                    assert all(route_to(routing, name).lane.parked for name in routes)

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(run())


async def test_jobs_that_sleep_between_attempts_leave_their_room_to_others() -> None:
    with scheduling([("a", 0)] * 200, concurrency=3, slack=1) as (scheduler, routing, started):
        scheduler.fill()
        assert len(started) == 4

        def fall_asleep(count: int) -> list[asyncio.Task[None]]:
            # On another route, as jobs do that have fallen back.
            return [
                asyncio.create_task(routing.backoff(started[0], route_to(routing, "b"), 60.0))
                for _ in range(count)
            ]

        sleeping = fall_asleep(4)
        await settled()
        assert len(started) == 8, "all sleep, and nobody ends: four others take their place at once"
        sleeping += fall_asleep(SLEEPERS + 4)
        await settled()
        most = len(started)
        assert most == 4 + SLEEPERS + 2 * 4 - 1
        sleeping += fall_asleep(2)
        await settled()
        scheduler.finished(started[5])
        assert len(started) == most, "that many sleep: it is enough"
        await asyncio.gather(*sleeping)


async def test_a_parked_lane_does_not_keep_others_from_going_on() -> None:
    with scheduling([("a", 0)] * 5 + [("b", 0)] * 5, concurrency=1) as (scheduler, routing, started):
        scheduler.fill()
        route_to(routing, "a").lane.park("closed")
        for number in range(6):
            scheduler.finished(started[number])
        assert ids(started) == [0, 5, 6, 7, 8, 9]
        assert repr(scheduler) == "<Scheduler alive=0 <JobQueue 0 left>>"


@pytest.mark.parametrize("by_default", [False, True], ids=["no fallback", "a fallback by default"])
async def test_jobs_of_a_parked_lane_are_read_only_if_they_may_go_elsewhere(by_default: bool) -> None:
    read: list[int] = []
    started: list[Job] = []
    routing = make_routing()
    defaults = LineDefaults(fallback=("c",) if by_default else ())
    with queue_of([("a", 0)] * 500 + [("b", 0)] * 2, fallback={501: "a"}, defaults=defaults) as queue:
        really_read = queue.read

        def counted(row: int) -> Job:
            read.append(row)
            return really_read(row)

        queue.read = counted
        scheduler = Scheduler(queue, routing, started.append, concurrency=8, slack=0)
        route_to(routing, "a").lane.park("closed")
        scheduler.fill()
        for number in range(502):
            if number < len(started):
                scheduler.finished(started[number])
        assert repr(scheduler) == "<Scheduler alive=0 <JobQueue 0 left>>"
        assert len(read) == (502 if by_default else 3)
        assert len(started) == (502 if by_default else 2)


async def test_jobs_that_are_dropped_do_not_use_up_the_limit() -> None:
    listed = [("a", 0)] * 50 + [("b", 0)] * 50
    with scheduling(listed, concurrency=2, limit=10) as (scheduler, routing, started):
        route_to(routing, "a").lane.park("closed")
        scheduler.fill()
        for number in range(10):
            scheduler.finished(started[number])
        assert ids(started) == list(range(50, 60))
        assert repr(scheduler) == "<Scheduler alive=0 <JobQueue 0 left>>"


async def test_sleepers_of_another_model_take_no_room() -> None:
    with scheduling([("a", 0)] * 20 + [("b", 0)] * 4, concurrency=1) as (scheduler, routing, started):
        scheduler.fill()
        route = route_to(routing, "b")
        sleeping = [asyncio.create_task(routing.backoff(started[0], route, 60.0)) for _ in range(8)]
        await settled()
        for _ in range(4):
            scheduler.finished(next(job for job in reversed(started) if job.model == "b"))
        assert sum(job.model == "b" for job in started) == 4
        await asyncio.gather(*sleeping)


async def test_a_parked_lane_stops_only_the_jobs_without_an_open_fallback() -> None:
    with_fallback = dict.fromkeys(range(100, 110), "b")
    with scheduling([("a", 0)] * 200, concurrency=4, fallback=with_fallback) as (scheduler, routing, started):
        route_to(routing, "a").lane.park("closed")
        scheduler.fill()
        assert len(started) == 1, "each batch is looked through in a turn of its own"
        for done in range(200):
            if done < len(started):
                scheduler.finished(started[done])
        assert scheduler.idle
        assert set(with_fallback) <= set(ids(started))
        assert sum(number < 100 for number in ids(started)) == 25, "one of each batch, to bring the next"
        assert repr(scheduler) == "<Scheduler alive=0 <JobQueue 0 left>>"


async def test_when_all_routes_park_nothing_is_read_any_more() -> None:
    with scheduling([("a", 0)] * 9, concurrency=2, fallback={4: "b"}) as (scheduler, routing, started):
        scheduler.fill()
        routing.park("stopped")
        for job in list(started):
            scheduler.finished(job)
        scheduler.fill()
        assert repr(scheduler) == "<Scheduler alive=0 <JobQueue 7 left>>"
