"""The scheduler starts what there is room for: the most urgent first, never more than can be of use."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import given
from hypothesis import strategies as st
from lane_kit import make_lane, settled
from test_queue import Listed, files, queue_of
from test_routing import Unused
from virtual_clock import VirtualClockLoop

from batcher.scheduling.routing import Routing
from batcher.scheduling.scheduler import Scheduler
from batcher.types import Job


@contextmanager
def scheduling(
    listed: Listed, *, concurrency: int, slack: int = 0, limit: int | None = None
) -> Iterator[tuple[Scheduler, Routing, list[Job]]]:
    """Make a scheduler over a file of jobs, its routes, and the list of the jobs it starts."""
    started: list[Job] = []
    routing = Routing(Unused(), lambda model: make_lane(route=model))
    with queue_of(listed, limit) as queue:
        yield (
            Scheduler(queue, routing, started.append, concurrency=concurrency, slack=slack),
            routing,
            started,
        )


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


async def test_jobs_that_sleep_between_attempts_leave_their_room_to_others() -> None:
    with scheduling([("a", 0)] * 40, concurrency=3, slack=1) as (scheduler, routing, started):
        scheduler.fill()
        lane = routing.route("a").lane
        sleeping = [asyncio.create_task(lane.backoff(60.0)) for _ in range(3)]
        await settled()
        scheduler.finished(started[3])
        assert len(started) == 8, "three sleep, four may be awake"
        sleeping += [asyncio.create_task(lane.backoff(60.0)) for _ in range(3)]
        await settled()
        scheduler.finished(started[4])
        assert len(started) == 12
        sleeping += [asyncio.create_task(lane.backoff(60.0)) for _ in range(2)]
        await settled()
        scheduler.finished(started[5])
        assert len(started) == 12, "twice the room sleep: that is enough"
        await asyncio.gather(*sleeping)


async def test_a_parked_lane_gets_no_more_jobs_while_others_go_on() -> None:
    with scheduling([("a", 0)] * 5 + [("b", 0)] * 5, concurrency=1) as (scheduler, routing, started):
        scheduler.fill()
        routing.route("a").lane.park("closed")
        for job in list(started):
            scheduler.finished(job)
        assert [job.model for job in started] == ["a", "b", "b"]
