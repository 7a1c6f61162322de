"""The whole of one job: it ends in a result or stays pending, whatever happens to its calls."""

import asyncio
import logging
import math
import time
from datetime import UTC, datetime
from functools import lru_cache

from batcher.clock import loop_clock
from batcher.errors import BatcherError, CallError, LaneParked
from batcher.events import Emit, JobStarted
from batcher.execution.attempt import Story
from batcher.execution.complete import Completer, deadline_exceeded
from batcher.pricing import Pricing
from batcher.types import Failure, Job, Reply, Result

log = logging.getLogger(__name__)


class Executor:
    """Runs jobs to their results."""

    def __init__(
        self,
        completer: Completer,
        pricing: Pricing,
        emit: Emit,
        *,
        provider: str,
    ) -> None:
        self._completer = completer
        self._pricing = pricing
        self._emit = emit
        self._provider = provider
        self._now = loop_clock()
        self._run_began_at = self._now()

    async def execute(self, job: Job) -> Result | None:
        """Return the job's result, or None if it stays pending in this run.

        Raises:
            OutputError: the journal cannot be written, so that no call can be made any more.
        """
        deadline_at = math.inf if job.deadline_s is None else self._run_began_at + job.deadline_s
        story = Story(job, began_at=self._now(), deadline_at=deadline_at)
        self._emit(JobStarted(job_id=job.id, model=job.model))
        answer: Reply | Failure
        try:
            if deadline_at == math.inf:
                answer = await self._completer.complete(story)
            else:
                answer = await self._answer_in_time(story)
        except LaneParked:
            return None
        except CallError as error:
            answer = _failure(error)
        except BatcherError:
            raise  # no fault of this job: the run ends
        except Exception as error:
            log.exception("a bug: %s failed with an unexpected error", job.where)
            answer = Failure(code="internal_error", message=f"{type(error).__name__}: {error}")
        return self._result(story, answer)

    async def _answer_in_time(self, story: Story) -> Reply:
        try:
            async with asyncio.timeout_at(story.deadline_at) as timeout:
                return await self._completer.complete(story)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise deadline_exceeded(story.job) from None

    def _result(self, story: Story, answer: Reply | Failure) -> Result:
        return Result(
            job=story.job,
            answer=answer,
            model=story.model,
            provider=self._provider,
            attempts=story.attempts,
            latency_s=story.latency_s,
            queued_s=self._now() - story.began_at - story.in_calls_s,
            finished_at=_iso_time(time.time_ns() // 1_000_000),
            cost_usd=self._cost_usd(story),
        )

    def _cost_usd(self, story: Story) -> float | None:
        """Return what all replies cost together, None if there was none or the cost of one is unknown."""
        total_usd = None
        for model, usage in story.charged:
            cost_usd = self._pricing.cost_usd(model, usage)
            if cost_usd is None:
                return None
            total_usd = cost_usd if total_usd is None else total_usd + cost_usd
        return total_usd


@lru_cache(maxsize=1)  # several jobs end in the same millisecond
def _iso_time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _failure(error: CallError) -> Failure:
    return Failure(
        code=error.code,
        message=str(error),
        status=error.status,
        body=error.body,
        request_id=error.request_id,
    )
