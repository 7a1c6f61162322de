"""Starts jobs while their lanes have room: synchronous, and never more tasks than can be of use."""

import asyncio
import contextlib
import heapq
from collections import Counter
from collections.abc import Callable

from batcher.clock import monotonic
from batcher.errors import BatcherError
from batcher.scheduling.batches import Batches, BatchPolicy, Run
from batcher.scheduling.queue import JobQueue
from batcher.scheduling.routing import Routing
from batcher.types import Job

SLEEPERS = 64
"""Jobs that may sleep between attempts besides two for each that may be awake."""

_DEFAULT_POLICY = BatchPolicy()


class Scheduler:
    """Takes the next batch for each model with room and calls `start` for every job of it.

    A model's room is what its lanes can have in flight, some to choose from where limits bind, and `slack`
    jobs more; those that sleep between attempts do not count until they are twice that many and `SLEEPERS`,
    so that unlucky jobs do not keep the rest from running.

    Jobs all of whose routes are parked leave the queue and stay pending, unread if no job of their model has
    a fallback. Until routing as a whole is parked, one job of each model with queued jobs is alive, so what
    is held back waits for a job that is.

    Args:
        queue: what is to be started.
        routing: says which routes are open, and how many jobs sleep.
        start: begins one job; `finished` is to be called when it has ended.
        concurrency: calls in flight (> 0).
        slack: jobs kept ready beyond that, for each model (>= 0).
        batch: how jobs that share a prefix are put together.
    """

    def __init__(
        self,
        queue: JobQueue,
        routing: Routing,
        start: Callable[[Job], None],
        *,
        concurrency: int,
        slack: int = 0,
        batch: BatchPolicy = _DEFAULT_POLICY,
    ) -> None:
        self._queue = queue
        self._routing = routing
        self._start = start
        self._concurrency = concurrency
        self._slack = slack
        self._wait_s = batch.wait_s
        self._batches = {model: Batches(queue, model, batch) for model in queue.models}
        self._alive: Counter[str] = Counter()
        self._groups: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        routing.on_asleep = self._fill_model

    def __repr__(self) -> str:
        return f"<Scheduler alive={self._alive.total()} {self._queue!r}>"

    @property
    def idle(self) -> bool:
        """Whether no job is alive."""
        return not self._alive

    def fill(self) -> None:
        """Start what there is room for, batch by batch: always the most urgent of any model."""
        now = monotonic()
        urgency: list[tuple[int, int, str]] = []
        for order, (model, batches) in enumerate(self._batches.items()):
            if run := batches.refill(now):
                urgency.append((run.urgency, order, model))
        heapq.heapify(urgency)
        while urgency:
            _, order, model = heapq.heappop(urgency)
            if self._start_batch(model) and (run := self._batches[model].refill(now)):
                heapq.heappush(urgency, (run.urgency, order, model))

    def finished(self, job: Job) -> None:
        """Take note that a job is no longer alive, and start the next ones of its model."""
        self._alive[job.model] -= 1
        if not self._alive[job.model]:
            del self._alive[job.model]
        if self._groups and (group := self._groups.pop(job.id, 0)):
            if timer := self._timers.pop(job.id, None):
                timer.cancel()
            self._batches[job.model].warmed(group, monotonic())
        self._fill_model(job.model)

    def close(self) -> None:
        """Cancel the timers: what is still held back is not started any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _fill_model(self, model: str) -> None:
        while self._start_batch(model):
            pass

    def _start_batch(self, model: str) -> bool:
        """Start the ready jobs of a model while it has room; tell whether others may follow at once."""
        if self._routing.parked:
            return False
        alive, sleeping = self._alive[model], self._routing.asleep[model]
        # Who waits for a lane stays with it, so no more than the lanes can take are sent to wait.
        most = min(self._concurrency, self._routing.room(model) or self._concurrency)
        most += self._routing.ready(model) + self._slack
        room = most - (alive - sleeping) if sleeping < SLEEPERS + 2 * most else 0
        room = min(room, len(self._queue))
        batches = self._batches[model]
        run = batches.next_run or batches.refill(monotonic()) if room > 0 else None
        if run is None:
            return False
        closed: Job | None = None
        while run is not None and room > 0:
            # Taken away only once it is read, so that a line that cannot be read is met again.
            job = self._queue.read(run.rows[-1])
            batches.advance()
            room -= 1
            if self._routing.has_open(job):
                self._queue.count_started()
                self._begin(job, run)
            else:
                self._queue.count_dropped(1)
                if not self._queue.has_fallback(model):
                    batches.drop()
                    return False
                if run.leads:
                    batches.release(run.group)
                closed = job
            run = batches.next_run
        if closed is None:
            return room > 0
        # Started in vain: its end brings the next batch, so that the search for startable jobs goes on
        # without keeping everything else waiting.
        self._begin(closed)
        return False

    def _begin(self, job: Job, run: Run | None = None) -> None:
        self._alive[job.model] += 1
        if run is not None and run.group:
            self._groups[job.id] = run.group
            if run.leads:
                self._timers[job.id] = asyncio.get_running_loop().call_later(
                    self._wait_s, self._wait_is_over, job.model, run.group
                )
        self._start(job)

    def _wait_is_over(self, model: str, group: int) -> None:
        """Let the others of a group follow although its first job has not ended."""
        self._batches[model].warmed(group, monotonic())
        # A line that cannot be read is met again when the group's first job ends: there it stops the run.
        with contextlib.suppress(BatcherError):
            self._fill_model(model)
