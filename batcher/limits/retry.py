"""Which failures are tried again, how often, and after how long: a policy as a value, run by tenacity."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from batcher.errors import BadGeneration, CallError, RateLimited, Requeue, Retryable


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a job is tried.

    The wait before the n-th retry is drawn from U(0, min(`longest_wait_s`, `first_wait_s` * 2^(n-1)))
    ("full jitter"), and never shorter than the provider asked for, up to `longest_asked_wait_s`.

    Attributes:
        attempts: calls that may fail before the job does, as long as others get answers.
        generations: answers that may miss what was asked before the job fails.
        calls: calls that may fail before the job does even if nobody got an answer since its first.
        first_wait_s: upper bound of the first wait.
        longest_wait_s: upper bound of every wait that the provider did not ask for.
        longest_asked_wait_s: upper bound of the waits that it did ask for, except with a 429.
    """

    attempts: int = 5
    generations: int = 3
    calls: int = 20
    first_wait_s: float = 1.0
    longest_wait_s: float = 30.0
    longest_asked_wait_s: float = 300.0


class Tally:
    """Counts the failed calls of one job and says when enough is enough.

    While a provider is down for everybody, `others_succeed` stays false and the job is not to blame.
    """

    def __init__(self, policy: RetryPolicy, others_succeed: Callable[[], bool]) -> None:
        self._policy = policy
        self._others_succeed = others_succeed
        self.attempts = 0
        self.generations = 0
        self.requeues_in_a_row = 0

    def __repr__(self) -> str:
        return f"<Tally attempts={self.attempts} generations={self.generations}>"

    def count(self, error: CallError) -> None:
        """Count one failed call."""
        if isinstance(error, BadGeneration):
            self.generations += 1
        if error.counts_attempt:
            self.attempts += 1
            self.requeues_in_a_row = 0
        elif not isinstance(error, RateLimited):
            self.requeues_in_a_row += 1

    def exhausted(self) -> bool:
        """Return whether the job has failed for good."""
        policy = self._policy
        return (
            self.generations >= policy.generations
            or self.attempts >= policy.calls
            or (self.attempts >= policy.attempts and self._others_succeed())
        )

    def wait_s(self, error: CallError, random: float) -> float:
        """Return the pause before the next call; `random` is uniform in [0, 1)."""
        if isinstance(error, RateLimited):
            return 0.0  # the lane waits, for all its jobs at once
        number = self.attempts if error.counts_attempt else self.requeues_in_a_row
        ceiling = min(self._policy.longest_wait_s, self._policy.first_wait_s * 2.0 ** max(0, number - 1))
        asked_s = min(error.retry_after_s or 0.0, self._policy.longest_asked_wait_s)
        return max(ceiling * random, asked_s)


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
        return error_of(state).counts_attempt and tally.exhausted()

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
