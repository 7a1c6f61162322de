"""Jobs with a common prefix are started back to back, behind the first, and none is ever left behind."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_queue import Listed, queue_of
from test_scheduler import ids, make_routing, route_to
from virtual_clock import VirtualClockLoop

from batcher.clock import monotonic
from batcher.errors import OutputError
from batcher.scheduling.batches import BatchPolicy
from batcher.scheduling.queue import JobQueue
from batcher.scheduling.routing import Routing
from batcher.scheduling.scheduler import Scheduler
from batcher.types import Job


class Scheduled:
    """A scheduler over a file of jobs, and what it starts."""

    def __init__(self, queue: JobQueue, *, room: int, batch: BatchPolicy) -> None:
        self.queue = queue
        self.routing: Routing = make_routing()
        self.started: list[Job] = []
        self.scheduler = Scheduler(
            queue, self.routing, self.started.append, concurrency=1, slack=room - 1, batch=batch
        )

    @property
    def order(self) -> list[int]:
        """The numbers of the lines in the order in which they were started."""
        return ids(self.started)

    def end(self, number: int) -> None:
        """End the job of a line."""
        self.scheduler.finished(next(job for job in self.started if job.id == str(number)))


@contextmanager
def scheduled(
    prefixes: str,
    *,
    room: int = 100,
    size: int = 256,
    wait_s: float = 2.0,
    limit: int | None = None,
    fallback: dict[int, str] | None = None,
) -> Iterator[Scheduled]:
    """Make a file of one model with a line for each character: "-" has no prefix in common with others."""
    named = {number: ord(name) for number, name in enumerate(prefixes) if name != "-"}
    with queue_of([("a", 0)] * len(prefixes), limit, prefixes=named, fallback=fallback) as queue:
        run = Scheduled(queue, room=room, batch=BatchPolicy(size=size, wait_s=wait_s))
        yield run
        run.scheduler.close()


def back_to_back(prefixes: str, order: list[int]) -> float:
    """Return the share of the jobs that were started right behind one with the same prefix."""
    pairs = [prefixes[earlier] == prefixes[later] for earlier, later in pairwise(order)]
    return sum(pairs) / len(order)


def mean_gap(prefixes: str, order: list[int]) -> float:
    """Return how many starts lie, on average, between those of two followers with the same prefix."""
    places = defaultdict(list)
    for place, number in enumerate(order):
        places[prefixes[number]].append(place)
    gaps = [later - earlier for found in places.values() for earlier, later in pairwise(found[1:])]
    return sum(gaps) / len(gaps)


async def test_three_interleaved_groups_are_started_back_to_back_behind_their_leaders() -> None:
    prefixes = "ABC" * 80
    with scheduled(prefixes, room=1000) as run:
        run.scheduler.fill()
        assert run.order == [0, 1, 2]
        for leader in (1, 0, 2):
            run.end(leader)
        followers = [*range(4, 240, 3), *range(3, 240, 3), *range(5, 240, 3)]
        assert run.order == [0, 1, 2, *followers]
        assert mean_gap(prefixes, list(range(240))) == 3.0
        assert mean_gap(prefixes, run.order) == 1.0


async def test_with_little_room_groups_still_stand_back_to_back() -> None:
    prefixes = "ABC" * 700
    with scheduled(prefixes, room=4) as run:
        run.scheduler.fill()
        for number in range(2100):
            run.scheduler.finished(run.started[number])
        assert sorted(run.order) == list(range(2100))
        assert back_to_back(prefixes, list(range(2100))) == 0.0
        assert back_to_back(prefixes, run.order) > 0.98
        assert run.scheduler.idle


async def test_a_wait_of_nothing_only_puts_groups_together() -> None:
    with scheduled("ABABAB", wait_s=0) as run:
        run.scheduler.fill()
        assert run.order == [0, 2, 4, 1, 3, 5]


async def test_the_rest_follow_after_a_while_even_if_the_first_never_ends() -> None:
    with scheduled("AA-AA", wait_s=1.5, size=2) as run:
        run.scheduler.fill()
        assert run.order == [0, 2]
        run.end(2)
        assert not run.scheduler.idle
        await asyncio.sleep(1.4)
        assert run.order == [0, 2]
        await asyncio.sleep(0.2)
        assert run.order == [0, 2, 1, 3, 4], "up to the last row of the queue"


async def test_the_others_of_a_group_that_is_warm_follow_at_once() -> None:
    with scheduled("A" * 9, room=3, size=3) as run:
        run.scheduler.fill()
        run.end(0)
        assert run.order == [0, 1, 2, 3]
        await asyncio.sleep(290)
        run.end(1)
        await asyncio.sleep(290)
        run.end(2)
        assert run.order == [0, 1, 2, 3, 4, 5], "each end keeps the prefix warm"
        await asyncio.sleep(310)
        run.end(3)
        assert run.order == [0, 1, 2, 3, 4, 5, 6]


async def test_a_prefix_that_has_gone_cold_is_warmed_by_one_job_again() -> None:
    with scheduled("AA--" + "AAA", room=2, size=4, wait_s=5.0) as run:
        run.scheduler.fill()
        assert run.order == [0, 2]
        run.end(0)
        assert run.order == [0, 2, 1]
        run.end(1)
        assert run.order == [0, 2, 1, 3]
        await asyncio.sleep(301)
        run.end(2)
        run.end(3)
        assert run.order[4:] == [4]
        run.end(4)
        assert run.order[4:] == [4, 5, 6]


async def test_a_limit_holds_for_groups_too() -> None:
    with scheduled("AAAA--", limit=3) as run:
        run.scheduler.fill()
        assert run.order == [0, 4, 5]
        await asyncio.sleep(10.0)
        for number in run.order:
            run.end(number)
        assert run.order == [0, 4, 5]
        assert repr(run.scheduler) == "<Scheduler alive=0 <JobQueue 0 left>>"


async def test_after_the_end_nothing_is_started_any_more() -> None:
    with scheduled("AAAA") as run:
        run.scheduler.fill()
        run.scheduler.close()
        await asyncio.sleep(10.0)
        assert run.order == [0]


async def test_a_leader_whose_lane_is_parked_keeps_nobody_waiting() -> None:
    with scheduled("AAA", room=1, fallback={2: "b"}) as run:
        route_to(run.routing, "a").lane.park("closed")
        run.scheduler.fill()
        assert run.order == [0], "in vain, to bring the next"
        run.end(0)
        assert run.order == [0, 1]
        run.end(1)
        assert run.order == [0, 1, 2]
        run.end(2)
        assert repr(run.scheduler) == "<Scheduler alive=0 <JobQueue 0 left>>"


async def test_when_all_routes_park_what_is_held_back_stays_pending() -> None:
    with scheduled("AAA") as run:
        run.scheduler.fill()
        run.routing.park("stopped")
        await asyncio.sleep(5.0)
        run.end(0)
        assert run.order == [0]
        assert run.scheduler.idle


async def test_a_line_that_cannot_be_read_after_a_wait_is_met_again_where_the_run_can_end() -> None:
    mishaps: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: mishaps.append(context))
    with scheduled("AAA") as run:
        run.scheduler.fill()

        def edited(row: int) -> Job:
            raise OutputError(f"jobs:{row + 1}: the line changed during the run")

        run.queue.read = edited
        await asyncio.sleep(5.0)
        assert run.order == [0]
        with pytest.raises(OutputError, match="jobs:2"):
            run.end(0)
    assert not mishaps


# What happens at one moment may happen in any order.
SAME_MOMENT_S = 1e-6

names = st.sampled_from("-AB") | st.sampled_from("-ABCDEFG")
lines = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), names), max_size=60)


@given(
    lines=lines,
    room=st.integers(1, 6) | st.just(100),
    size=st.integers(4, 20),
    wait_s=st.sampled_from([0.0, 0.5, 2.0]),
    order=st.randoms(use_true_random=False),
)
def test_whatever_ends_whenever_every_job_is_started_once_and_in_order(
    lines: list[tuple[str, int, str]], room: int, size: int, wait_s: float, order: random.Random
) -> None:
    listed: Listed = [(model, priority) for model, priority, _ in lines]
    prefixes = {number: ord(name) for number, (_, _, name) in enumerate(lines) if name != "-"}

    async def run() -> None:
        with queue_of(listed, prefixes=prefixes) as queue:
            jobs: dict[int, Job] = {}

            def start(job: Job) -> None:
                jobs[int(job.id)] = job
                model.start(int(job.id))

            scheduler = Scheduler(
                queue,
                make_routing(),
                start,
                concurrency=1,
                slack=room - 1,
                batch=BatchPolicy(size=size, wait_s=wait_s),
            )
            model = Model(lines, room=room, wait_s=wait_s)
            scheduler.fill()
            model.check_that_nothing_waits_in_vain()
            while model.alive:
                if order.random() < 0.3:
                    await asyncio.sleep(order.choice([0.1, 0.6, 2.5]))
                else:
                    number = order.choice(model.alive)
                    model.end(number)
                    scheduler.finished(jobs[number])
                model.check_that_nothing_waits_in_vain()
            assert sorted(jobs) == list(range(len(lines)))
            assert scheduler.idle

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(run())


class Model:
    """What may be started when, in the simplest words."""

    def __init__(self, lines: list[tuple[str, int, str]], *, room: int, wait_s: float) -> None:
        self._lines = lines
        self._room = room
        self._wait_s = wait_s
        self._waiting = set(range(len(lines)))
        self.alive: list[int] = []
        self._released_at: dict[tuple[str, str], float] = {}

    def start(self, number: int) -> None:
        """Check that a job may be started now."""
        model, priority, _ = self._lines[number]
        assert not self._is_held_back(number, monotonic() + SAME_MOMENT_S)
        for other in self._waiting:
            if self._lines[other][0] == model and self._lines[other][1] > priority:
                assert self._is_held_back(other, monotonic() - SAME_MOMENT_S)
        self._waiting.remove(number)  # so none is started twice
        self.alive.append(number)
        assert self._alive_of(model) <= self._room
        self._released_at.setdefault(self._group(number), monotonic() + self._wait_s)

    def end(self, number: int) -> None:
        """A job ends, which makes its prefix warm."""
        self.alive.remove(number)
        self._released_at[self._group(number)] = monotonic()

    def check_that_nothing_waits_in_vain(self) -> None:
        """Check that no job that waits could be started now."""
        for number in self._waiting:
            if self._alive_of(self._lines[number][0]) < self._room:
                assert self._is_held_back(number, monotonic() - SAME_MOMENT_S)

    def _alive_of(self, model: str) -> int:
        return sum(self._lines[number][0] == model for number in self.alive)

    def _group(self, number: int) -> tuple[str, str]:
        model, _, name = self._lines[number]
        return model, name

    def _is_held_back(self, number: int, now: float) -> bool:
        group = self._group(number)
        return group[1] != "-" and now < self._released_at.get(group, 0.0)
