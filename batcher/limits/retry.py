"""Which failures are tried again, how often, and after how long: a policy as a value, run by tenacity."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from batcher.errors import (
    AttemptTimeout,
    BadGeneration,
    CallError,
    CapacityExceeded,
    ConnectFailed,
    ConnectionLost,
    KeyDoubted,
    LocalFault,
    RateLimited,
    Requeue,
    Retryable,
    ServerError,
)

ClassName: TypeAlias = Literal["network", "timeout", "server", "capacity", "generation", "rate_limit"]

ALIKE = 3
"""So many times the same words in a row from a server that answers others: it will never answer this job."""

DOUBTS = 10
"""So many refusals of keys in a row that serve others end a job."""

PASSING = {502, 503, 504, *range(520, 531)}
"""Statuses whose words are always the same, from something in front of the server or one that is busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryClass:
    """How often failures of one class may happen to a job, and how long it waits after the k-th (from 0).

    Attributes:
        attempts: so many of them end the job, 1 or more; None: they never do.
        first_wait_s: of the wait after the first.
        longest_wait_s: of every wait that the provider did not ask for.
        wait: `jitter` draws from U(0, min(`longest_wait_s`, `first_wait_s` * 2^k)) ("full jitter"),
            `doubling` waits as long as that allows, `fixed` always waits `first_wait_s`.
    """

    attempts: int | None = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 30.0
    wait: Literal["jitter", "doubling", "fixed"] = "jitter"

    def wait_s(self, number: int, random: float) -> float:
        """Return the wait after the `number`-th failure (from 0); `random` is uniform in [0, 1)."""
        if self.wait == "fixed":
            return min(self.longest_wait_s, self.first_wait_s)
        # Past 2^64 the longest wait rules anyway; a long outage must not overflow a float.
        ceiling = min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(number, 64))
        return ceiling * random if self.wait == "jitter" else ceiling


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a job is tried. What the provider asks to wait is never shortened.

    A class ends a job only if others get answers meanwhile; `generation` and `rate_limit` do in any case.

    Attributes:
        network: the connection broke, or none came about; the latter never ends a job.
        timeout: the attempt's deadline passed.
        server: 5xx and the like, a body that is no answer, a firewall in front of the provider.
        capacity: the flex tier is full (498).
        generation: the answer misses what was asked for.
        rate_limit: refusals (429). By default the lane waits for all its jobs, and none is ended by them.
        calls: counted calls that may fail before the job does even if nobody got an answer since its first.
        longest_asked_wait_s: upper bound of the waits that the provider asks for, except with a 429.
    """

    network: RetryClass = RetryClass(first_wait_s=0.5)
    timeout: RetryClass = RetryClass()
    server: RetryClass = RetryClass()
    capacity: RetryClass = RetryClass()
    generation: RetryClass = RetryClass(attempts=3)
    rate_limit: RetryClass = RetryClass(attempts=None, first_wait_s=0.0, longest_wait_s=0.0)
    calls: int = 20
    longest_asked_wait_s: float = 300.0

    @property
    def most_attempts(self) -> float:
        """The attempts of the most patient class; a job whose failures differ gets no more than that."""
        classes = (self.network, self.timeout, self.server, self.capacity, self.generation)
        return max(math.inf if one.attempts is None else one.attempts for one in classes)

    def of(self, name: ClassName) -> RetryClass:
        """Return the class of that name."""
        found: RetryClass = getattr(self, name)
        return found


_CLASS_OF: tuple[tuple[type[CallError], ClassName], ...] = (
    (RateLimited, "rate_limit"),
    (CapacityExceeded, "capacity"),
    (AttemptTimeout, "timeout"),
    (BadGeneration, "generation"),
    (ConnectionLost, "network"),
    (ConnectFailed, "network"),
    (LocalFault, "network"),
)


def class_of(error: CallError) -> ClassName:
    """Return the name of the class that `error` belongs to."""
    return next((name for kind, name in _CLASS_OF if isinstance(error, kind)), "server")


class Tally:
    """Counts the failed calls of one job and says when enough is enough.

    While a provider is down for everybody, `others_succeed` stays false and the job is not to blame; nor is
    it for a call that only found out for all whether the provider is back. Each class of failures has its own
    count. So that failures that keep changing end, too, all counted calls together get as many attempts as
    the most patient class while others succeed, and `calls` in any case.
    """

    def __init__(self, policy: RetryPolicy, others_succeed: Callable[[], bool]) -> None:
        self._policy = policy
        self._others_succeed = others_succeed
        self.attempts = 0
        self.failures: dict[ClassName, int] = {}  # those that count in their class
        self.requeues_in_a_row = 0
        self.doubts_in_a_row = 0
        self._words: tuple[int, str] | None = None  # of the last counted failure, if a server said them
        self._alike = 0

    def __repr__(self) -> str:
        return f"<Tally attempts={self.attempts} {self.failures}>"

    def count(self, error: CallError) -> None:
        """Count one failed call."""
        name = class_of(error)
        limited = name == "rate_limit"
        if not isinstance(error, KeyDoubted):
            self.doubts_in_a_row = 0
        elif error.sent:  # one that was only told to wait has learned nothing of its own
            self.doubts_in_a_row += 1
        if error.counted or (limited and not error.probe):
            self.failures[name] = self.failures.get(name, 0) + 1
        words = words_of(error)
        if words is not None or error.counted:
            alike = words is not None and words == self._words and self._others_succeed()
            self._alike = self._alike + 1 if alike else 1
            self._words = words
        if error.counted:
            self.attempts += 1
            self.requeues_in_a_row = 0
        elif not limited:
            self.requeues_in_a_row += 1

    def exhausted(self, error: CallError) -> bool:
        """Return whether `error`, counted last, ends the job."""
        name = class_of(error)
        if isinstance(error, KeyDoubted):
            # Keys that serve others and never this job: something in front of the API forbids its model.
            return self.doubts_in_a_row >= DOUBTS and self._others_succeed()
        if self._alike >= ALIKE and self._others_succeed():
            return True  # also where each try only found out whether the provider is back
        if not error.counted and name != "rate_limit":
            return False
        attempts = self._policy.of(name).attempts
        over = attempts is not None and self.failures.get(name, 0) >= attempts
        if name == "rate_limit":
            return over and not error.probe
        if (over and name == "generation") or self.attempts >= self._policy.calls:
            return True
        hopeless = over or self.attempts >= self._policy.most_attempts
        return hopeless and self._others_succeed()

    def wait_s(self, error: CallError, random: float) -> float:
        """Return the pause before the next call; `random` is uniform in [0, 1)."""
        if error.resend:
            return 0.0
        name = class_of(error)
        if name == "rate_limit":
            # The lane waits as long as the provider asks, for all its jobs at once.
            return self._policy.rate_limit.wait_s(max(0, self.failures.get(name, 0) - 1), random)
        asked_s = min(error.retry_after_s or 0.0, self._policy.longest_asked_wait_s)
        number = self.failures.get(name, 0) if error.counted else self.requeues_in_a_row
        if isinstance(error, KeyDoubted):
            if self.doubts_in_a_row <= 1 or not error.sent:
                return asked_s  # another key may serve at once
            number = self.doubts_in_a_row - 1
        own_s = self._policy.of(name).wait_s(max(0, number - 1), random)
        return max(own_s, asked_s, error.shortest_wait_s)


def words_of(error: CallError) -> tuple[int, str] | None:
    """Return status and words of a server that failed of itself, None for any other failure."""
    own = isinstance(error, ServerError) and error.status >= 500 and error.status not in PASSING
    return (error.status, str(error)) if own else None


def retrying(
    tally: Tally, *, sleep: Callable[[float], Awaitable[None]], random: Callable[[], float]
) -> AsyncRetrying:
    """Return a tenacity controller that repeats a call while `tally` allows it.

    The failure that ends the repetition is raised as it is. `sleep` waits between the calls.
    """

    def error_of(state: RetryCallState) -> CallError:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert isinstance(error, CallError)
        return error

    def count(state: RetryCallState) -> None:
        tally.count(error_of(state))

    def stop(state: RetryCallState) -> bool:
        return tally.exhausted(error_of(state))

    def wait(state: RetryCallState) -> float:
        return tally.wait_s(error_of(state), random())

    return AsyncRetrying(
        retry=retry_if_exception_type((Retryable, Requeue)),
        after=count,  # before `wait` and `stop`, which look at the count
        wait=wait,
        stop=stop,
        sleep=sleep,
        reraise=True,
    )
