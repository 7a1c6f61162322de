"""Runs the queue's jobs against a live provider until all are done or something ends the run."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from batcher.clock import monotonic
from batcher.engines.stop import Stop, StopReason
from batcher.errors import BatcherError
from batcher.results import ResultWriter
from batcher.scheduling.batches import BatchPolicy
from batcher.scheduling.queue import JobQueue
from batcher.scheduling.routing import Routing
from batcher.scheduling.scheduler import Scheduler
from batcher.types import Job, Result

LOOK_AGAIN_S = 5.0
LAST_CHANCE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """What bounds a run as a whole.

    Attributes:
        concurrency: calls in flight.
        grace_s: how long calls in flight may go on after a stop.
        deadline_at: loop time of the run's end, None without one.
        unreachable_after_s: a run none of whose calls reached the provider ends after this long.
        batch: how jobs that share a prefix are put together.
    """

    concurrency: int
    grace_s: float = 60.0
    deadline_at: float | None = None
    unreachable_after_s: float = 60.0
    batch: BatchPolicy = field(default_factory=BatchPolicy)


class OnlineRun:
    """One run: starts jobs, hands their results to the writer, and ends in order.

    Args:
        queue: what is to be done.
        routing: the lanes that jobs go through.
        execute: brings one job to its result, None if it stays pending.
        writer: where results go.
        limits: what bounds the run.
        room: waits while who takes the results has fallen behind.
    """

    def __init__(
        self,
        queue: JobQueue,
        routing: Routing,
        execute: Callable[[Job], Awaitable[Result | None]],
        writer: ResultWriter,
        limits: RunLimits,
        *,
        room: Callable[[], Awaitable[None]],
    ) -> None:
        self._queue = queue
        self._routing = routing
        self._execute = execute
        self._writer = writer
        self._limits = limits
        self._room = room
        self._idle = asyncio.Event()
        self._left_pending = False
        self._is_free = False  # a task whose job has just ended takes the next one that is started
        self._taken: Job | None = None

    async def run(self, stop: Stop, unreached: Callable[[], str | None]) -> None:
        """Run until every job has a result, is parked, or `stop` ends it; then everything is on disk.

        Args:
            stop: how the run is told to end early, and where it leaves why it did.
            unreached: why no call has reached the provider yet ("": none has ended), None once one has.

        Raises:
            OutputError: results could not be written.
        """
        timers = self._set_timers(stop, unreached)
        if stop.draining.is_set():
            self._routing.park(stop.message)  # before the first job, so that nothing is sent
        jobs = asyncio.create_task(self._run_jobs(stop))
        committing = asyncio.create_task(self._writer.commit_forever())
        ending = asyncio.create_task(self._end(jobs, stop))
        for task in (committing, ending):
            task.add_done_callback(lambda ended: self._task_ended(ended, stop))
        try:
            await asyncio.wait({jobs, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            jobs.cancel()
            committing.cancel()
            [ended, _] = await asyncio.gather(jobs, committing, return_exceptions=True)
            try:
                await self._writer.aclose()
            finally:
                for timer in timers:
                    timer.cancel()
                ending.cancel()
                await asyncio.gather(ending, return_exceptions=True)
        if isinstance(ended, Exception):
            raise ended
        if not_taken := self._writer.uncommitted:
            stop.message += f"; the reader of stdout did not take {not_taken} of the results"

    async def _end(self, jobs: asyncio.Task[None], stop: Stop) -> None:
        """Once told to stop, start nothing more, and cut short what outlasts the grace."""
        await stop.draining.wait()
        self._routing.park(stop.message)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.aborting.wait(), self._limits.grace_s)
        jobs.cancel()
        await asyncio.sleep(LAST_CHANCE_S)
        self._writer.give_up()

    async def _run_jobs(self, stop: Stop) -> None:
        async with asyncio.TaskGroup() as group:

            def start(job: Job) -> None:
                if self._is_free:
                    self._is_free, self._taken = False, job
                else:
                    group.create_task(self._work(job, scheduler, stop))

            scheduler = Scheduler(
                self._queue,
                self._routing,
                start,
                concurrency=self._limits.concurrency,
                batch=self._limits.batch,
            )
            with contextlib.closing(scheduler):
                try:
                    scheduler.fill()
                except BatcherError as error:
                    stop.fail(error)
                if not scheduler.idle:
                    await self._idle.wait()
        parked = [lane.parked for lane in self._routing.lanes() if lane.parked is not None]
        if parked and stop.reason is None and (self._left_pending or self._queue.dropped):
            soonest = min(parked, key=lambda lane: math.inf if lane.resume_at is None else lane.resume_at)
            left_s = None if soonest.resume_at is None else max(0.0, soonest.resume_at - monotonic())
            stop.drain(StopReason.INTERRUPTED, str(soonest), resume_in_s=left_s)

    async def _work(self, job: Job, scheduler: Scheduler, stop: Stop) -> None:
        """Run a job, then the one that is started in its place, and so on: a task is shared by many jobs."""
        try:
            following: Job | None = job
            while following is not None:
                job = following
                await self._run_job(job)
                following = self._finished(job, scheduler)
        except BatcherError as error:
            stop.fail(error)
        if scheduler.idle:
            self._idle.set()

    async def _run_job(self, job: Job) -> None:
        result = await self._execute(job)
        if result is None:
            self._left_pending = True
        else:
            self._writer.append(result)
            if not self._writer.has_room:
                await self._writer.room()
            await self._room()
        if result is None or not result.attempts:
            await asyncio.sleep(0)  # it may have waited for nothing, and others have to get their turn

    def _finished(self, job: Job, scheduler: Scheduler) -> Job | None:
        """Tell that a job has ended; return the job, if any, that its task goes on with."""
        self._is_free, self._taken = True, None
        try:
            scheduler.finished(job)
        finally:
            self._is_free = False
        return self._taken

    def _task_ended(self, task: asyncio.Task[None], stop: Stop) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, BatcherError):
            stop.fail(error)
        elif error is not None:
            stop.abort(StopReason.BUG, f"this is a bug: {type(error).__name__}: {error}")

    def _set_timers(self, stop: Stop, unreached: Callable[[], str | None]) -> list[asyncio.TimerHandle]:
        loop = asyncio.get_running_loop()
        limits = self._limits

        def give_up_if_unreachable() -> None:
            reason = unreached()
            if reason:
                seen = f"no call reached the provider for {limits.unreachable_after_s:g} s"
                stop.drain(StopReason.UNREACHABLE, f"{seen}: {reason}")
            elif reason is not None:  # the first calls are still out, which may be slow answers
                timers.append(loop.call_later(LOOK_AGAIN_S, give_up_if_unreachable))

        def end_at_deadline() -> None:
            stop.drain(StopReason.INTERRUPTED, "the run's deadline has passed")

        timers = [loop.call_at(monotonic() + limits.unreachable_after_s, give_up_if_unreachable)]
        if limits.deadline_at is not None:
            if limits.deadline_at <= monotonic():
                end_at_deadline()
            else:
                timers.append(loop.call_at(limits.deadline_at, end_at_deadline))
        return timers
