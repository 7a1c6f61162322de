"""A provider that answers as it is told, a journal that remembers, and runs made of them."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from batcher.clock import monotonic
from batcher.events import AttemptFinished, Event
from batcher.execution.attempt import Attempts, CallLog, Story
from batcher.execution.complete import Completer
from batcher.execution.departures import Departures
from batcher.execution.execute import Executor
from batcher.execution.purse import Purse
from batcher.journal import Sent
from batcher.limits.breaker import BreakerPolicy
from batcher.limits.retry import RetryPolicy
from batcher.pricing import FREE, Price, Pricing
from batcher.scheduling.allowance import LaneLimits
from batcher.scheduling.lane import Lane
from batcher.scheduling.routing import Account, Routing
from batcher.scheduling.slots import RunSlots
from batcher.types import Job, ModelInfo, Reply, Request, Usage

Answer: TypeAlias = Reply | BaseException | None
"""What a call brings: a reply, what it raises, or (None) nothing until it is cancelled."""

USAGE = Usage(input_tokens=10, output_tokens=5)
PRICES = {
    "m": Price(input_usd=1.0, output_usd=2.0),
    "dear": Price(input_usd=1000.0, output_usd=2000.0),
}


def reply(text: str = "yes", usage: Usage | None = USAGE) -> Reply:
    return Reply(status=200, body=b'{"text": "%s"}' % text.encode(), text=text, usage=usage, request_id="r-1")


def job(
    *,
    model: str = "m",
    fallback: tuple[str, ...] = (),
    schema: bytes | None = None,
    deadline_s: float | None = None,
    kind: str = "chat",
    body: bytes = b"",
) -> Job:
    return Job(
        id="j",
        endpoint="/v1/chat/completions",
        model=model,
        body=body or b'{"model":"%s","messages":[]}' % model.encode(),
        request_sha256="0" * 64,
        where="jobs.jsonl:1",
        fallback=fallback,
        schema=schema,
        deadline_s=deadline_s,
        kind="reasoning" if kind == "reasoning" else "chat",
    )


@dataclass
class ScriptedProvider:
    """Answers a model's calls in the order of its script, the last answer for ever, each in `latency_s`."""

    scripts: dict[str, Sequence[Answer]]
    log: list[tuple[str, ...]]
    latency_s: float = 1.0
    calls: list[tuple[float, Request, float]] = field(default_factory=list)  # (when, request, timeout_s)

    name = "scripted"

    async def send(self, request: Request, *, timeout_s: float) -> Reply:
        made = sum(earlier.model == request.model for _, earlier, _ in self.calls)
        self.calls.append((monotonic(), request, timeout_s))
        self.log.append(("send", request.model))
        await asyncio.sleep(self.latency_s)
        script = self.scripts[request.model]
        answer = script[min(made, len(script) - 1)]
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, BaseException):
            raise answer
        assert answer is not None
        return answer

    async def models(self) -> list[ModelInfo]:
        return [ModelInfo(id=model) for model in self.scripts]

    async def aclose(self) -> None:
        self.log.append(("closed",))


class RememberingJournal:
    """Keeps what was written into the log that the provider shares."""

    def __init__(self, log: list[tuple[str, ...]]) -> None:
        self._log = log

    def sent(self, calls: Sequence[Sent]) -> None:
        self._log += [("sent", call.job_id, str(call.attempt), call.model) for call in calls]

    def unknown(self, job_id: str, attempt: int, code: str) -> None:
        self._log.append(("unknown", job_id, str(attempt), code))


class Run:
    """All that executes a job, over a scripted provider."""

    def __init__(
        self,
        scripts: dict[str, Sequence[Answer]],
        *,
        latency_s: float = 1.0,
        timeout_s: float = 300.0,
        retry: RetryPolicy | None = None,
        limits: Callable[[str], LaneLimits] = lambda model: LaneLimits(),
        journal: CallLog | None = None,
        purse: Purse | None = None,
    ) -> None:
        self.log: list[tuple[str, ...]] = []
        self.events: list[Event] = []
        self.refused: list[str] = []
        self.slots = RunSlots(8)
        self.provider = ScriptedProvider(scripts, self.log, latency_s)
        self.routing = Routing(
            [Account(provider=self.provider)],
            lambda model, account: Lane(
                model,
                limits(model),
                slots=self.slots,
                breaker=BreakerPolicy(),
                emit=self.events.append,
            ),
            on_all_refused=self.refused.append,
        )
        journal = journal or RememberingJournal(self.log)
        departures = Departures(journal.sent)
        self.attempts = Attempts(journal, departures, self.events.append, timeout_s=timeout_s, purse=purse)
        self.completer = Completer(self.routing, self.attempts, retry or RetryPolicy())
        self.executor = Executor(
            self.completer,
            Pricing("scripted", PRICES, default=FREE),
            self.events.append,
            provider="scripted",
        )

    async def complete(self, job: Job) -> Reply:
        """Get the answer to a job that leaves the queue now."""
        return await self.completer.complete(Story(job, began_at=monotonic(), deadline_at=math.inf))

    @property
    def attempts_told(self) -> list[AttemptFinished]:
        return [event for event in self.events if isinstance(event, AttemptFinished)]

    @property
    def models_called(self) -> list[str]:
        return [request.model for _, request, _ in self.provider.calls]
