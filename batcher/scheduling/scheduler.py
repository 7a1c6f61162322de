"""Starts jobs while their lanes have room: synchronous, and never more tasks than can be of use."""

import heapq
from collections import Counter
from collections.abc import Callable

from batcher.scheduling.queue import JobQueue
from batcher.scheduling.routing import Routing
from batcher.types import Job


class Scheduler:
    """Takes the next batch for each model with room and calls `start` for every job of it.

    A model's room is `concurrency + slack` jobs; those that sleep between attempts do not count until they
    are twice that many, so that a few unlucky jobs never keep the rest from running.

    Jobs all of whose routes are parked leave the queue and stay pending. Until routing as a whole is parked,
    one job of each model with queued jobs is alive.
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
        """Start what there is room for, batch by batch: always the most urgent of any model."""
        urgency = [(-priority, order, model) for order, (model, priority) in enumerate(self._queue.urgency())]
        heapq.heapify(urgency)
        while urgency:
            _, order, model = heapq.heappop(urgency)
            if self._start_batch(model) and (priority := self._queue.next_priority(model)) is not None:
                heapq.heappush(urgency, (-priority, order, model))

    def finished(self, job: Job) -> None:
        """Take note that a job is no longer alive, and start the next one of its model."""
        self._alive[job.model] -= 1
        if not self._alive[job.model]:
            del self._alive[job.model]
        while self._start_batch(job.model):
            pass

    def _start_batch(self, model: str) -> bool:
        """Start the next batch of a model if it has room; tell whether another may follow at once."""
        if self._routing.parked:
            return False
        alive, sleeping = self._alive[model], self._routing.asleep[model]
        room = self._room - (alive - sleeping) if sleeping < 2 * self._room else 0
        batch = self._queue.take(model, room) if room > 0 else []
        closed: Job | None = None
        for row in batch:
            job = self._queue.read(row)
            if self._routing.has_open(job):
                self._begin(job)
            else:
                closed = job
        if closed is None:
            return bool(batch)
        # Started in vain: its end brings the next batch, so that the search for startable jobs goes on
        # without keeping everything else waiting.
        self._begin(closed)
        return False

    def _begin(self, job: Job) -> None:
        self._alive[job.model] += 1
        self._start(job)
