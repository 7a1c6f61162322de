"""One try over HTTP, from the permit to its settlement."""

import asyncio
import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from batcher.clock import loop_clock
from batcher.errors import CallError, CapacityExceeded, LocalFault, RateLimited
from batcher.events import AttemptFinished, Emit, FallbackTaken
from batcher.execution.departures import Departures
from batcher.execution.purse import Claim, Purse
from batcher.journal import Sent
from batcher.limits.retry import words_of
from batcher.providers.limit_headers import limit_named
from batcher.scheduling.allowance import Lesson
from batcher.scheduling.permit import Permit
from batcher.scheduling.routing import Route
from batcher.types import Job, Outcome, Reply, Request, Usage


class CallLog(Protocol):
    """The journal, as far as an attempt writes it."""

    def sent(self, calls: Sequence[Sent]) -> None:
        """Write down, before the first byte goes out, that calls may be charged from now on."""

    def unknown(self, job_id: str, attempt: int, code: str) -> None:
        """Write down that a call ended without an answer and may have been charged."""


class Story:
    """What has happened to one job so far.

    Attributes:
        job: what is to be done.
        began_at: loop time at which the job left the queue.
        deadline_at: loop time at which it fails, `inf` without a deadline.
        model: the model called last.
        account: whose quota the last call was made on.
        calls: calls made.
        attempts: calls that counted as an attempt.
        latency_s: duration of the last call.
        in_calls_s: duration of all calls.
        resent: whether a call was made again for free, because its connection closed as it was used.
        words: what the server said that failed last, if it failed of itself.
        left_because: why the last route was left.
        fallbacks: models called instead of the one asked for.
        charged: model and usage of each reply, those included that were no good answer.
    """

    __slots__ = (
        "account",
        "attempts",
        "began_at",
        "calls",
        "charged",
        "deadline_at",
        "fallbacks",
        "in_calls_s",
        "job",
        "latency_s",
        "left_because",
        "model",
        "resent",
        "words",
    )

    def __init__(self, job: Job, *, began_at: float, deadline_at: float) -> None:
        self.job = job
        self.began_at = began_at
        self.deadline_at = deadline_at
        self.model = job.model
        self.account = ""
        self.calls = 0
        self.attempts = 0
        self.latency_s = 0.0
        self.in_calls_s = 0.0
        self.resent = False
        self.words: tuple[int, str] | None = None
        self.left_because = ""
        self.fallbacks: tuple[str, ...] = ()
        self.charged: list[tuple[str, Usage | None]] = []


class _Call(NamedTuple):
    """One call under way."""

    route: Route
    permit: Permit
    claim: Claim | None
    sent_at: float


class Attempts:
    """Makes single calls: waits for a permit, has it written down, sends, settles."""

    def __init__(
        self,
        journal: CallLog,
        departures: Departures,
        emit: Emit,
        *,
        timeout_s: float,
        purse: Purse | None = None,
    ) -> None:
        self._journal = journal
        self._departures = departures
        self._emit = emit
        self._timeout_s = timeout_s
        self._purse = purse
        self._now = loop_clock()

    async def attempt(
        self, story: Story, request: Request, route: Route, *, patience_s: float = math.inf
    ) -> Reply:
        """Make one call.

        Args:
            story: of the job.
            request: what is asked.
            route: where.
            patience_s: how long the lane may be shut before the job would rather go elsewhere.

        Raises:
            CallError: it brought no answer.
            LaneParked: the lane lets nothing more through in this run.
            LaneHeldUp: the lane is shut for longer than `patience_s`.
            OutputError: no call can be made any more.
        """
        permit, claim = await self._admit(story, request, route, patience_s)
        with permit:
            await self._leave(story, request, permit, claim)
            call = _Call(route, permit, claim, self._now())
            story.calls += 1
            self._tell_fallback(story, request.model)
            story.model = request.model
            story.account = route.account.name
            timeout_s = min(self._timeout_s, story.deadline_at - call.sent_at)
            try:
                reply = await route.provider.send(request, timeout_s=timeout_s)
            except CallError as error:
                self._failed(story, call, error)
                raise
            except BaseException as error:
                code = "cancelled" if isinstance(error, asyncio.CancelledError) else "internal_error"
                self._failed(story, call, CallError(f"the call was given up: {error or code}", code=code))
                raise
            self._answered(story, call, request, reply)
        self._tell(story, Outcome.SUCCESS, usage=reply.usage, status=reply.status)
        return reply

    async def _admit(
        self, story: Story, request: Request, route: Route, patience_s: float
    ) -> tuple[Permit, Claim | None]:
        """Wait for leave and for money, holding neither while waiting for the other."""
        lane = route.lane
        demand = lane.demand(request.body, answers=request.endpoint != "/v1/embeddings")
        while True:
            claim = await self._purse.room(request) if self._purse is not None else None
            try:
                permit = await lane.permit(
                    priority=story.job.priority, since=story.began_at, demand=demand, patience_s=patience_s
                )
            except BaseException:
                if self._purse is not None and claim is not None:
                    self._purse.give_up(claim)
                raise
            if self._purse is None or claim is None or self._purse.reserve(claim):
                return permit, claim
            permit.settle(Lesson(outcome=Outcome.IGNORED, admitted=False))

    async def _leave(self, story: Story, request: Request, permit: Permit, claim: Claim | None) -> None:
        """Wait until the call is written down; if it is not, it has neither money nor a place any more."""
        try:
            await self._departures.leave(
                Sent(story.job.id, story.job.request_sha256, story.calls + 1, request.model)
            )
        except BaseException:
            if self._purse is not None and claim is not None:
                self._purse.take_back(claim)
            permit.settle(Lesson(outcome=Outcome.IGNORED, admitted=False))
            raise

    def _answered(self, story: Story, call: "_Call", request: Request, reply: Reply) -> None:
        self._clock(story, call)
        story.attempts += 1
        story.words = None
        story.charged.append((request.model, reply.usage))
        if self._purse is not None and call.claim is not None:
            self._purse.answered(call.claim, reply.usage)
        call.permit.settle(
            Lesson(
                outcome=Outcome.SUCCESS,
                usage=reply.usage,
                sent_bytes=len(request.body),
                seen=reply.limits,
                host=Outcome.SUCCESS,
            )
        )

    def _failed(self, story: Story, call: "_Call", error: CallError) -> None:
        self._clock(story, call)
        if self._purse is not None and call.claim is not None:
            self._purse.failed(call.claim, error)
        error.probe = call.permit.probe
        error.resend = error.unread and not story.resent
        story.resent = story.resent or error.resend
        story.attempts += error.counted
        words = words_of(error)
        # A server that always says the same to one job, and answers others, is not failing.
        of_job = words is not None and words == story.words and not error.probe
        story.words = words
        call.permit.settle(_lesson(error, of_job=of_job, overflow=call.route.account.overflow))
        if error.sent and not error.status:
            self._journal.unknown(story.job.id, story.calls, error.code)
        self._tell(story, error.outcome, error=error)

    def _clock(self, story: Story, call: "_Call") -> None:
        story.latency_s = self._now() - call.sent_at
        story.in_calls_s += story.latency_s

    def _tell_fallback(self, story: Story, model: str) -> None:
        """Say that a job is now asked of another model, once for each."""
        if model != story.job.model and model not in story.fallbacks:
            story.fallbacks += (model,)
            self._emit(
                FallbackTaken(
                    job_id=story.job.id, wanted=story.job.model, taken=model, reason=story.left_because
                )
            )

    def _tell(
        self,
        story: Story,
        outcome: Outcome,
        *,
        error: CallError | None = None,
        usage: Usage | None = None,
        status: int = 0,
    ) -> None:
        self._emit(
            AttemptFinished(
                job_id=story.job.id,
                call=story.calls,
                route=story.model,
                outcome=outcome,
                code=error.code if error else "",
                message=str(error) if error else "",
                status=error.status if error else status,
                latency_s=story.latency_s,
                sent=error.sent if error else True,
                usage=usage,
                account=story.account,
                admitted=error.admitted if error else True,
            )
        )


def _lesson(error: CallError, *, of_job: bool, overflow: bool) -> Lesson:
    limited = isinstance(error, RateLimited)
    # What an overflow tier has no room for goes elsewhere, and leaves it alone for a while.
    refused = limited or (overflow and isinstance(error, CapacityExceeded))
    host = Outcome.FAILED if error.of_host else Outcome.SUCCESS if error.status else Outcome.IGNORED
    return Lesson(
        outcome=Outcome.IGNORED if of_job else error.outcome,
        admitted=error.admitted,
        seen=error.limits,
        refused=refused,
        retry_after_s=max(error.retry_after_s or 0.0, error.shortest_wait_s) or None,
        host=host,
        short_here=isinstance(error, LocalFault),
        named=limit_named(str(error)) if limited else None,
    )
