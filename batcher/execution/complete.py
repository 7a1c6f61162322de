"""A request's way to a good answer: its routes in order, each with its retries."""

import math
import random
from collections.abc import Iterable

from batcher.clock import monotonic
from batcher.errors import (
    BadGeneration,
    CallError,
    CapacityExceeded,
    DeadlineExceeded,
    InvalidRequest,
    KeyRefused,
    LaneHeldUp,
    LaneParked,
    ModelUnavailable,
    Requeue,
    Retryable,
)
from batcher.execution.attempt import Attempts, Story
from batcher.limits.retry import RetryPolicy, Tally, retrying
from batcher.scheduling.routing import Route, Routing
from batcher.text.bodies import with_member
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
        routes: Iterable[tuple[Route, float]] = self._routing.candidates(story.job)
        while True:
            held_up: list[Route] = []
            for route, patience_s in routes:
                try:
                    return await self._ask(story, route, patience_s)
                except DeadlineExceeded:
                    raise  # no other route changes that
                except LaneHeldUp as reason:
                    story.left_because = str(reason)
                    held_up.append(route)
                except (LaneParked, ModelUnavailable, KeyRefused) as reason:
                    parked = self._closed(route, reason)
                    story.left_because = str(parked)
                except CallError as reason:
                    failure = reason
                    story.left_because = str(reason)
                    if not reason.try_next_route:
                        break
            if not held_up:
                break
            routes = await self._routing.wait_for_one(story.job, held_up)
        if parked is not None:
            raise parked  # a failure elsewhere is no reason to give up while this route may come back
        assert failure is not None  # a job names at least one model
        raise failure

    def _closed(self, route: Route, reason: LaneParked | ModelUnavailable | KeyRefused) -> LaneParked:
        """Close what `reason` says is gone for this run: the model's lane, or all lanes of its account."""
        if isinstance(reason, LaneParked):
            return reason
        if isinstance(reason, KeyRefused):
            whose = f"the keys of account {route.account.owner}" if route.account.owner else "the key"
            self._routing.refused(route.account.owner, f"{route.provider.name} refused {whose}: {reason}")
        else:
            route.lane.park(f"{route.model}: closed for this run, {reason}")
        return LaneParked(str(reason))

    async def _ask(self, story: Story, route: Route, patience_s: float) -> Reply:
        job = story.job
        body = job.body if route.model == job.model else with_member(job.body, "model", route.model)
        if route.account.tier:
            body = with_member(body, "service_tier", route.account.tier, replace=False)
        request = Request(endpoint=job.endpoint, model=route.model, body=body)
        try:
            return await self._call(story, request, route, patience_s)
        except CapacityExceeded as error:
            if route.account.overflow and self._routing.has_sibling(route):
                raise  # the account's other tier takes it
            return await self._call_again(story, request, route, patience_s, error)
        except (Retryable, Requeue) as error:
            return await self._call_again(story, request, route, patience_s, error)

    async def _call_again(
        self, story: Story, request: Request, route: Route, patience_s: float, first: CallError
    ) -> Reply:
        """Go on after a first failure; tenacity costs too much to be entered for every call."""
        began_at = story.began_at
        tally = Tally(self._retry, others_succeed=lambda: route.lane.last_success_at >= began_at)
        last: CallError | None = None

        async def call() -> Reply:
            nonlocal last
            if last is None:
                last = first
                raise first
            try:
                return await self._call(story, request, route, patience_s)
            except CallError as error:
                last = error
                raise

        async def sleep(seconds: float) -> None:
            counted = last is not None and last.counted
            await self._routing.backoff(story.job, route, seconds, counted=counted)

        again = retrying(tally, sleep=sleep, random=random.random)
        return await again(call)

    async def _call(self, story: Story, request: Request, route: Route, patience_s: float) -> Reply:
        if story.deadline_at < math.inf and monotonic() >= story.deadline_at:
            raise deadline_exceeded(story.job)
        reply = await self._attempts.attempt(story, request, route, patience_s=patience_s)
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
