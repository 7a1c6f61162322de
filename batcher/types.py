"""The values that travel through a run: frozen, keyword-only; Structs where a run makes millions of them."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

import msgspec

Endpoint = Literal["/v1/chat/completions", "/v1/embeddings", "/v1/responses"]
"""A known endpoint, written as a Batch line writes it; `/v1` stands for the path of the base URL."""

ENDPOINTS: tuple[Endpoint, ...] = ("/v1/chat/completions", "/v1/embeddings", "/v1/responses")

JobKind = Literal["chat", "reasoning"]


class Outcome(Enum):
    """What an attempt taught the lane that let it through."""

    SUCCESS = "success"
    OVERLOADED = "overloaded"
    FAILED = "failed"
    IGNORED = "ignored"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the job file.

    Attributes:
        id: 1 to 256 printable characters, unique in a run.
        endpoint: where the request goes.
        model: the model as asked, defaults filled in.
        body: the JSON to send, byte for byte as written where the line gave a body.
        request_sha256: 64 hex digits over endpoint and canonical body.
        where: `FILE:LINE`, for messages.
        priority: -32768 to 32767, higher first.
        fallback: models to try when this one cannot take the job.
        metadata: the user's own JSON, handed through to the result line.
        deadline_s: seconds from the start of the run after which the job fails.
        schema: the JSON schema that the answer must satisfy.
        kind: `reasoning` answers may open with a think block, which is not part of the answer.
    """

    id: str
    endpoint: Endpoint
    model: str
    body: bytes
    request_sha256: str
    where: str
    priority: int = 0
    fallback: tuple[str, ...] = ()
    metadata: bytes | None = None
    deadline_s: float | None = None
    schema: bytes | None = None
    kind: JobKind = "chat"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider is asked: one JSON body for one model at one endpoint."""

    endpoint: Endpoint
    model: str
    body: bytes


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one answer as the provider counted them (all >= 0).

    `cached_tokens` are part of `input_tokens`; `reasoning_tokens` are part of `output_tokens`.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A good answer: checked, and still the bytes that the provider sent.

    Attributes:
        status: the HTTP status, 200 to 299.
        body: the provider's body, byte for byte.
        request_id: the provider's id of this call, or "".
        model: the model that the body names, or "".
        finish_reason: of the first choice, or "".
        text: the first choice's text, or "" (tool calls, refusals, embeddings).
        usage: tokens, or None where the body does not say.
        limits: what the headers said about limits, if they said anything.
    """

    status: int
    body: bytes
    request_id: str = ""
    model: str = ""
    finish_reason: str = ""
    text: str = ""
    usage: Usage | None = None
    limits: "RateLimits | None" = None


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job failed for good, and the last reply there was.

    `status` is 0 and `body` empty if no reply ever came.
    """

    code: str
    message: str
    status: int = 0
    body: bytes = b""
    request_id: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The one line written for a job: a reply or a failure, and how it came about.

    Attributes:
        job: the job answered.
        answer: a `Reply`, or the `Failure`.
        model: the model that was called last.
        provider: the provider's name.
        attempts: calls that counted as an attempt (a 429 does not).
        latency_s: duration of the last attempt.
        queued_s: from the start of the job to the first byte sent, waits between attempts included.
        cost_usd: None where the price is unknown.
        finished_at: UTC, ISO 8601.
    """

    job: Job
    answer: Reply | Failure
    model: str
    provider: str
    attempts: int
    latency_s: float
    queued_s: float
    finished_at: str
    cost_usd: float | None = None
    cached: bool = False

    @property
    def ok(self) -> bool:
        """Whether the job has an answer."""
        return isinstance(self.answer, Reply)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model that the account can use; 0 where the provider does not say."""

    id: str
    owner: str = ""
    context_tokens: int = 0
    max_output_tokens: int = 0
    active: bool = True


class RateLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider's headers said about its limits; None where they were silent.

    Attributes:
        requests: size of the request limit.
        requests_window_s: its window (86400 on Groq, 60 on OpenAI).
        tokens_per_minute: size of the token limit.
    """

    requests: int | None = None
    requests_window_s: float = 60.0
    requests_left: int | None = None
    tokens_per_minute: int | None = None
    tokens_left: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPaths:
    """The result file and the files beside it, all named after its stem."""

    results: Path
    errors: Path
    journal: Path
    summary: Path
    superseded: Path
    quarantine: Path
    lock: Path


def output_paths(out: Path) -> OutputPaths:
    """Name the side files of the result file `out`, whose name ends in `.jsonl`."""
    return OutputPaths(
        results=out,
        errors=out.with_suffix(".errors.jsonl"),
        journal=out.with_suffix(".journal"),
        summary=out.with_suffix(".summary.json"),
        superseded=out.with_suffix(".superseded.jsonl"),
        quarantine=out.with_suffix(".quarantine"),
        lock=out.with_suffix(".lock"),
    )
