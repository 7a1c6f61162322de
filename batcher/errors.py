"""Everything that can go wrong, as one tree.

::

    BatcherError                      exit code
    |- UsageError                       2
    |- InterruptedRun                  75   stopped early, safe to run again
    |  `- LockHeld                     75
    |- BadInput                        65
    |- InputMissing                    66
    |- Unreachable                     69
    |- OutputError                     74
    |- KeysRefused                     77
    |- ConfigError                     78
    |  `- KeyMissing                   78
    |- LaneParked                           a lane lets nothing more through in this run, its jobs wait
    |- LaneHeldUp                           a lane lets nothing through for a while, another may be quicker
    |- BadLine                              one line of a job file cannot be used
    `- CallError                            one attempt did not bring an answer
       |- Requeue                           tried again, no attempt counted
       |  |- RateLimited                    429
       |  |- ConnectFailed                  refused, DNS, TLS: nothing was sent
       |  `- LocalFault                     this machine: descriptors, ports, memory
       |- Retryable                         tried again, an attempt counted
       |  |- CapacityExceeded               498
       |  |- ServerError                    5xx, 408, 409, 425
       |  |- ConnectionLost                 broken after the request had been sent
       |  |- AttemptTimeout                 the attempt's total deadline passed
       |  |- BadReply                       status 200 with a body that is no answer
       |  |- HostBlocked                    403 from a firewall, not from the API
       |  `- BadGeneration                  the model's answer does not fit what was asked
       |- Permanent                         the job fails
       |  |- InvalidRequest                 400, 404, 422 and unknown 4xx
       |  |- TooLarge                       413, or more than the limit can ever let through
       |  `- DeadlineExceeded               the job's own deadline passed
       |- ModelUnavailable                  retired, unknown, forbidden: the lane closes, the job waits
       `- KeyRefused                        401: the key is dead, the job waits
"""

from typing import Any, ClassVar, TypeVar

from batcher.types import Outcome, RateLimits

NOT_LET_IN = frozenset({401, 402, 403, 404, 413, 429, 498})
"""Statuses of requests that were turned away at the door."""


class BatcherError(Exception):
    """Base of all errors that are meant for the user; `str()` is the whole message."""

    exit_code: ClassVar[int] = 70


class UsageError(BatcherError):
    """The command was called in a way it does not know."""

    exit_code = 2


class InterruptedRun(BatcherError):
    """The run stopped early; what was done is safe and the same command goes on."""

    exit_code = 75


class LockHeld(InterruptedRun):
    """Another run writes to the same output."""


class BadInput(BatcherError):
    """The job file cannot be used."""

    exit_code = 65


class InputMissing(BatcherError):
    """There is no such job file, or it cannot be read."""

    exit_code = 66


class Unreachable(BatcherError):
    """No call of this run ever reached the provider."""

    exit_code = 69


class OutputError(BatcherError):
    """The output cannot be written, or changed under us."""

    exit_code = 74


class KeysRefused(BatcherError):
    """The provider refused every key."""

    exit_code = 77


class ConfigError(BatcherError):
    """The configuration does not hold together."""

    exit_code = 78


class KeyMissing(ConfigError):
    """No API key was found."""


class LaneParked(BatcherError):
    """A lane lets nothing more through in this run; its jobs stay pending.

    Attributes:
        resume_at: loop time from which on a new run makes sense, if known.
    """

    def __init__(self, message: str, *, resume_at: float | None = None) -> None:
        super().__init__(message)
        self.resume_at = resume_at


class LaneHeldUp(BatcherError):
    """A lane lets nothing through for longer than the job cares to wait; it may have another route."""


class BadLine(BatcherError):
    """One line of a job file cannot be used; `str()` is the reason, without the place."""


_AnyCallError = TypeVar("_AnyCallError", bound="CallError")


class CallError(BatcherError):
    """One attempt that did not bring an answer.

    Attributes:
        code: short, stable name for the result line.
        status: the HTTP status, 0 if no reply came.
        body: what the provider sent, capped by the transport.
        request_id: the provider's id of the call, or "".
        retry_after_s: how long the provider asks to wait, if it does (seconds, > 0).
        limits: what the reply's headers said about limits.
        sent: whether the request may have reached the provider, so that it may have been charged.
        probe: whether the call found out for all if the provider is back; no job is to blame for its end.
        unread: the connection closed before a byte of an answer, as an idle one may just as it is used.
        resend: the call is made again at once, and not counted: the first of its job that was `unread`.
    """

    outcome: ClassVar[Outcome] = Outcome.IGNORED
    of_host: ClassVar[bool] = False  # every model behind the same address fails so
    shortest_wait_s: ClassVar[float] = 0.0  # before the next try, whoever makes it
    retryable: ClassVar[bool] = False
    counts_attempt: ClassVar[bool] = True
    try_next_route: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int = 0,
        body: bytes = b"",
        request_id: str = "",
        retry_after_s: float | None = None,
        limits: RateLimits | None = None,
        sent: bool = True,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.body = body
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.limits = limits
        self.sent = sent
        self.probe = False
        self.unread = False
        self.resend = False

    @property
    def admitted(self) -> bool:
        """Whether the provider let the request in, so that it counts against its limits."""
        return self.sent and self.status not in NOT_LET_IN

    @property
    def counted(self) -> bool:
        """Whether this call counts as an attempt of its job."""
        return self.counts_attempt and not self.probe and not self.resend

    def as_a(self, kind: type[_AnyCallError], **changes: Any) -> _AnyCallError:
        """Return the same end of a call as an error of another `kind`, with what `changes` name replaced."""
        same = {
            "message": str(self),
            "code": self.code,
            "status": self.status,
            "body": self.body,
            "request_id": self.request_id,
            "retry_after_s": self.retry_after_s,
            "limits": self.limits,
            "sent": self.sent,
        }
        return kind(**{**same, **changes})


class Requeue(CallError):
    """Tried again without an attempt counted: the lane or this machine was in the way, not the job."""

    retryable = True
    counts_attempt = False


class RateLimited(Requeue):
    """The provider let nothing more through (429)."""

    outcome = Outcome.OVERLOADED


class ConnectFailed(Requeue):
    """No connection came about (refused, DNS, TLS, connect timeout): nothing was sent or charged."""

    outcome = Outcome.FAILED
    of_host = True


class LocalFault(Requeue):
    """This machine ran out of descriptors, ports or memory: no fault of the provider."""


class KeyDoubted(Requeue):
    """A key was refused (401), but there is another one, or it is not yet sure."""


class Retryable(CallError):
    """Tried again, and an attempt is counted."""

    outcome = Outcome.FAILED
    retryable = True


class CapacityExceeded(Retryable):
    """The flex tier is full (498)."""

    outcome = Outcome.OVERLOADED
    try_next_route = True


class ServerError(Retryable):
    """The provider failed (5xx, 408, 409, 425)."""


class ConnectionLost(Retryable):
    """The connection broke after the request had been sent: it may have been charged."""


class AttemptTimeout(Retryable):
    """The attempt's total deadline passed: it may have been charged."""


class BadReply(Retryable):
    """A body that is no answer came with a status that promised one."""


class HostBlocked(Retryable):
    """A firewall in front of the provider turned the call away (403 with a web page)."""

    of_host = True
    shortest_wait_s = 60.0


class BadGeneration(Retryable):
    """The model's answer does not fit what was asked of it; another try may be luckier."""

    outcome = Outcome.IGNORED


class Permanent(CallError):
    """Trying again cannot help: the job fails."""


class InvalidRequest(Permanent):
    """The provider does not accept the request."""


class TooLarge(Permanent):
    """The request is larger than the model or the limit can ever take."""

    try_next_route = True


class DeadlineExceeded(Permanent):
    """The job's own deadline passed before it had an answer."""


class ModelUnavailable(CallError):
    """The model is retired, unknown or not for this account: its lane closes, its jobs stay pending."""

    try_next_route = True


class KeyRefused(CallError):
    """The provider does not know the key (401): no job is to blame."""
