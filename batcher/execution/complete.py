"""A request's way to a good answer: its routes in order, each with its retries."""

import random
from functools import partial

from batcher.clock import monotonic
from batcher.errors import (
    BadGeneration,
    CallError,
    DeadlineExceeded,
    InvalidRequest,
    KeyRefused,
    LaneParked,
    ModelUnavailable,
    Requeue,
    Retryable,
)
from batcher.execution.attempt import Attempts, Story
from batcher.limits.retry import RetryPolicy, Tally, retrying
from batcher.scheduling.routing import Route, Routing
from batcher.text.bodies import with_model
from batcher.text.reasoning import split_reasoning
from batcher.text.structured import mismatch, schema_fault
from batcher.types import Job, Reply, Request


class Completer:
    """Gets the answer to one job's request, trying again and elsewhere as far as that can help."""

    def __init__(self, routing: Routing, attempts: Attempts, retry: RetryPolicy) -> None:
        self._routing = routing
        self._attempts = attempts
        self._retry = retry

    async def complete(self, story: Story) -> Reply:
        """Return the answer from the first route that has one.

        Raises:
            CallError: the job has failed; the last route's error.
            LaneParked: no route answered, and one that lets nothing more through in this run may come back.
        """
        schema = story.job.schema
        if schema is not None and (fault := schema_fault(schema)):
            raise InvalidRequest(f"the schema cannot be used: {fault}", code="invalid_schema", sent=False)
        failure: CallError | None = None
        parked: LaneParked | None = None
        for route in self._routing.candidates(story.job):
            try:
                return await self._ask(story, route)
            except LaneParked as error:
                parked = error
            except ModelUnavailable as error:
                route.lane.park(f"{route.model}: closed for this run, {error}")
                parked = LaneParked(str(error))
            except (DeadlineExceeded, KeyRefused):
                raise  # no other route changes that, now or in another run
            except CallError as error:
                failure = error
                if not error.try_next_route:
                    break
        if parked is not None:
            raise parked  # a failure elsewhere is no reason to give up while this route may come back
        assert failure is not None  # a job names at least one model
        raise failure

    async def _ask(self, story: Story, route: Route) -> Reply:
        job = story.job
        body = job.body if route.model == job.model else with_model(job.body, route.model)
        request = Request(endpoint=job.endpoint, model=route.model, body=body)
        try:
            return await self._call(story, request, route)
        except (Retryable, Requeue) as error:
            return await self._call_again(story, request, route, error)

    async def _call_again(self, story: Story, request: Request, route: Route, first: CallError) -> Reply:
        """Go on after a first failure; tenacity costs too much to be entered for every call."""
        began_at = story.began_at
        tally = Tally(self._retry, others_succeed=lambda: route.lane.last_success_at >= began_at)
        pending: list[CallError] = [first]

        async def call() -> Reply:
            if pending:
                raise pending.pop()
            return await self._call(story, request, route)

        sleep = partial(self._routing.backoff, story.job, route)
        again = retrying(tally, sleep=sleep, random=random.random)
        return await again(call)

    async def _call(self, story: Story, request: Request, route: Route) -> Reply:
        if monotonic() >= story.deadline_at:
            raise deadline_exceeded(story.job)
        reply = await self._attempts.attempt(story, request, route)
        if story.job.schema is not None and (wrong := _misses_schema(story.job, reply)):
            raise BadGeneration(
                wrong,
                code="schema_mismatch",
                status=reply.status,
                body=reply.body,
                request_id=reply.request_id,
            )
        return reply


def deadline_exceeded(job: Job) -> DeadlineExceeded:
    """Return the error of a job whose own deadline has passed."""
    return DeadlineExceeded(
        f"no answer within deadline_s = {job.deadline_s:g}", code="deadline_exceeded", sent=False
    )


def _misses_schema(job: Job, reply: Reply) -> str:
    assert job.schema is not None
    if not reply.text:
        return ""  # a tool call or a refusal is an answer of another kind
    answer = split_reasoning(reply.text)[1] if job.kind == "reasoning" else reply.text
    return mismatch(answer, job.schema)
