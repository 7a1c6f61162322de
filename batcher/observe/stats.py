"""Counts of a run, kept up to date by its events, and the summary made of them."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from batcher.clock import utcnow
from batcher.events import AttemptFinished, Event, FallbackTaken, JobFinished, JobStarted, Notice
from batcher.observe.double_charges import PaidTwice
from batcher.observe.notices import Notices, Wording
from batcher.types import Outcome, Reply, Result, Usage

_BUCKET = math.log(1.02)
_SMALLEST_S = 1e-6
"""Shorter durations count as this one, with which the first bucket begins."""


class Histogram:
    """Durations in buckets 2 % wide, so that a percentile is right to 1 % in constant memory."""

    __slots__ = ("_buckets", "count", "longest_s", "sum_s")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.sum_s = 0.0
        self.longest_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        bucket = int(math.log(seconds / _SMALLEST_S) / _BUCKET) if seconds > _SMALLEST_S else 0
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self.sum_s += seconds
        if seconds > self.longest_s:  # noqa: PLR1730 - of every job, twice
            self.longest_s = seconds

    def percentile_s(self, share: float) -> float:
        """Return the duration that `share` (0 to 1) of all durations do not exceed, 0.0 without any."""
        wanted, seen = share * self.count, 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                return min(self.longest_s, _SMALLEST_S * math.exp((bucket + 0.5) * _BUCKET))
        return 0.0

    def summary(self) -> dict[str, float]:
        """Return mean, percentiles and maximum in seconds, for the summary file."""
        mean = self.sum_s / self.count if self.count else 0.0
        return {
            "mean": round(mean, 6),
            "p50": round(self.percentile_s(0.50), 6),
            "p95": round(self.percentile_s(0.95), 6),
            "p99": round(self.percentile_s(0.99), 6),
            "max": round(self.longest_s, 6),
        }


@dataclass(slots=True)
class ModelStats:
    """What one model did in this run; `cost_usd` is None as long as no cost is known."""

    succeeded: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None


@dataclass(slots=True)
class AccountStats:
    """What one account did in this run."""

    calls: int = 0
    refused_429: int = 0


@dataclass(slots=True)
class Stats:
    """A listener that counts; all figures are of this run alone."""

    started: int = 0
    succeeded: int = 0
    failed: int = 0
    calls: int = 0
    retries: int = 0
    calls_in_vain: int = 0
    refused_429: int = 0
    maybe_charged: int = 0
    reached_provider: bool = False
    last_error: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0
    cost_unknown: int = 0
    latency: Histogram = field(default_factory=Histogram)
    queued: Histogram = field(default_factory=Histogram)
    failures: Counter[str] = field(default_factory=Counter)
    call_errors: Counter[str] = field(default_factory=Counter)
    models: dict[str, ModelStats] = field(default_factory=dict)
    accounts: dict[str, AccountStats] = field(default_factory=dict)
    fallbacks: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Jobs that went on with another model, by the model that was wanted and the one taken."""
    paid_twice: PaidTwice = field(default_factory=PaidTwice)
    notices: Notices = field(default_factory=Notices)
    now: Callable[[], datetime] = utcnow
    _words: Wording = field(default_factory=Wording)

    def __call__(self, event: Event) -> None:
        """Count one event."""
        match event:
            case AttemptFinished():
                self._attempt(event)
                self.paid_twice.called(event)
            case JobFinished():
                self._finished(event.result)
                self.paid_twice.finished(event.result.job.id)
            case JobStarted():
                self.started += 1
            case _:
                self._notice(event)

    @property
    def finished(self) -> int:
        """Jobs with a result line."""
        return self.succeeded + self.failed

    def _notice(self, event: Notice) -> None:
        if isinstance(event, FallbackTaken):
            self.fallbacks[event.wanted, event.taken] += 1
        if message := self._words(event):
            self.notices.add(message, self.now())

    def _attempt(self, event: AttemptFinished) -> None:
        self.calls += 1
        self.retries += event.call > 1
        self.reached_provider = self.reached_provider or event.sent
        account = self.accounts.get(event.account)
        if account is None:
            account = self.accounts[event.account] = AccountStats()
        account.calls += 1
        if event.outcome is not Outcome.SUCCESS:
            self.calls_in_vain += 1
            self.last_error = event.message
            self.call_errors[event.code] += 1
            self.refused_429 += event.status == 429
            account.refused_429 += event.status == 429
            self.maybe_charged += event.sent and not event.status
        if event.usage is not None:
            self._count_tokens(event.usage, self._model(event.route))

    def _finished(self, result: Result) -> None:
        model = self._model(result.model)
        self.latency.add(result.latency_s)
        self.queued.add(result.queued_s)
        if result.cost_usd is not None:  # answers that missed their schema were paid for, too
            self.cost_usd += result.cost_usd
            model.cost_usd = (model.cost_usd or 0.0) + result.cost_usd
        answer = result.answer
        if isinstance(answer, Reply):
            self.succeeded += 1
            model.succeeded += 1
            self.cost_unknown += result.cost_usd is None
        else:
            self.failed += 1
            model.failed += 1
            self.failures[answer.code] += 1

    def _model(self, name: str) -> ModelStats:
        model = self.models.get(name)
        if model is None:
            model = self.models[name] = ModelStats()
        return model

    def _count_tokens(self, usage: Usage, model: ModelStats) -> None:
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        self.cached_tokens += usage.cached_tokens
        model.input_tokens += usage.input_tokens
        model.output_tokens += usage.output_tokens
