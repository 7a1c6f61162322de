"""Starts jobs while their lanes have room: synchronous, and never more tasks than can be of use."""

from collections import Counter
from collections.abc import Callable

from batcher.scheduling.queue import JobQueue
from batcher.scheduling.routing import Routing
from batcher.types import Job


class Scheduler:
    """Takes the next batch for each lane with room and calls `start` for every job of it.

    A lane's room is `concurrency + slack` jobs; those that sleep between attempts do not count until they
    are twice that many, so that a few unlucky jobs never keep the rest from running.
    """

    def __init__(
        self,
        queue: JobQueue,
        routing: Routing,
        start: Callable[[Job], None],
        *,
        concurrency: int,
        slack: int,
    ) -> None:
        self._queue = queue
        self._routing = routing
        self._start = start
        self._room = concurrency + slack
        self._alive: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Scheduler alive={self._alive.total()} {self._queue!r}>"

    @property
    def idle(self) -> bool:
        """Whether no job is alive."""
        return not self._alive

    def fill(self) -> None:
        """Start what there is room for, the model with the most urgent job first."""
        for model in self._queue.models:
            self._fill_lane(model)

    def finished(self, job: Job) -> None:
        """Take note that a job is no longer alive, and start the next one of its model."""
        self._alive[job.model] -= 1
        if not self._alive[job.model]:
            del self._alive[job.model]
        self._fill_lane(job.model)

    def _fill_lane(self, model: str) -> None:
        lane = self._routing.route(model).lane
        while lane.parked is None:
            sleeping = lane.backing_off
            room = self._room - (self._alive[model] - sleeping) if sleeping < 2 * self._room else 0
            batch = self._queue.take(model, room) if room > 0 else []
            if not batch:
                return
            for row in batch:
                job = self._queue.read(row)
                self._alive[model] += 1
                self._start(job)
