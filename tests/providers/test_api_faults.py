"""The table of an API's faults, A1 to A18: each reply is the error that it means, or an answer."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from batcher.errors import (
    BadGeneration,
    BadReply,
    CallError,
    CapacityExceeded,
    HostBlocked,
    InvalidRequest,
    KeyRefused,
    ModelUnavailable,
    RateLimited,
    ServerError,
    TooLarge,
)
from batcher.limits.limit import NamedLimit
from batcher.providers.failures import classify
from batcher.providers.limit_headers import limit_named
from batcher.providers.replies import parse_reply
from batcher.types import RateLimits, Reply, Usage

PRIVATE = "in organization `org_01kabcdefgh2345`, see https://console.groq.com/settings/billing?x=1"
HTML = f"<!DOCTYPE html><html><head><title>Attention! {PRIVATE}</title></head></html>".encode()
SSE = {"content-type": "text/event-stream"}
DATE = {"date": "Tue, 18 Aug 2026 10:00:00 GMT"}
MOST_S = 1.0


def error_body(message: str = "no", code: object = None, kind: object = None) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "code": code}})


def answer(status: int, headers: Mapping[str, str], body: bytes) -> Reply | CallError:
    """Say what a reply means, as `Calls` does; whatever is not one of our errors escapes."""
    if not 200 <= status < 300:
        return classify(status, headers, body, dialect="groq")
    try:
        return parse_reply("/v1/chat/completions", status, headers, body, dialect="groq")
    except CallError as error:
        return error


def in_time(status: int, headers: Mapping[str, str], body: bytes) -> Reply | CallError:
    began = time.perf_counter()
    got = answer(status, headers, body)
    assert time.perf_counter() - began < MOST_S
    return got


BODIES = {
    "none": b"",
    "groq": error_body(f"It is no good {PRIVATE}", "some_code", "invalid_request_error"),
    "openai": error_body(f"It is no good {PRIVATE}", None, "server_error"),
    "html": HTML,
    "cut": error_body(f"It is no good {PRIVATE}")[:-9],
    "5 MB": PRIVATE.encode() + b" x" * 2_500_000,
}
JSON_BODIES = ("groq", "openai")
OF_STATUS: dict[int, type[CallError]] = {
    401: KeyRefused,
    402: KeyRefused,
    408: ServerError,
    409: ServerError,
    413: TooLarge,
    424: BadGeneration,
    425: ServerError,
    429: RateLimited,
    498: CapacityExceeded,
}


def meant(status: int, body: str) -> type[CallError]:
    """Return the class that RELIABILITY 1.4 gives a status, without looking at codes."""
    if status == 403:
        return ModelUnavailable if body in JSON_BODIES else HostBlocked
    return OF_STATUS.get(status, InvalidRequest if status < 500 else ServerError)


@pytest.mark.parametrize("body", BODIES)
def test_a1_every_status_with_every_body(body: str) -> None:
    for status in range(400, 600):
        error = classify(status, {}, BODIES[body], dialect="groq")
        assert type(error) is meant(status, body), status
        assert error.status == status
        assert len(error.body) <= 2048
        told = str(error) + error.body.decode()
        assert "org_01k" not in told
        assert "console.groq.com" not in told
        if body in JSON_BODIES:
            assert orjson.loads(error.body)["error"]["message"].startswith("It is no good in")


def chat(content: object = "hi", **more: Any) -> bytes:
    choice = {"message": {"content": content}, "finish_reason": more.pop("finish_reason", "stop")}
    return orjson.dumps({"model": "m", "choices": [choice]} | more)


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"delta": delta, "finish_reason": finish_reason}]}) + b"\n\n"


HI, END = chunk({"content": "hi"}), chunk({}, "stop")
DEEP = b"[" * 600 + b"]" * 600
LIMITED = "Limit 100000, Used 97050, Requested 3619. Please try again in 9m38.016s."


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One reply, its class, and what is known of it besides."""

    name: str
    kind: type[Reply | CallError]
    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    known: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def refused(name: str, headers: dict[str, str], wait_s: float | None, message: str = "slow down") -> Row:
    known: dict[str, object] = {"retry_after_s": wait_s}
    body = error_body(message, "rate_limit_exceeded")
    return Row(name=name, kind=RateLimited, status=429, headers=headers, body=body, known=known)


def seen(name: str, headers: dict[str, str], limits: RateLimits | None) -> Row:
    return Row(name=name, kind=Reply, body=chat(), headers=headers, known={"limits": limits})


def bad(name: str, body: bytes, **more: Any) -> Row:
    return Row(name=name, kind=BadReply, body=body, **more)


def used(name: str, usage: object, read: Usage | None) -> Row:
    return Row(name=name, kind=Reply, body=chat(usage=usage), known={"usage": read})


def streamed(name: str, kind: type[Reply | CallError], body: bytes, **known: object) -> Row:
    return Row(name=name, kind=kind, body=body, headers=SSE, known=known)


ROWS = [
    refused("A2 absent", {}, None),
    refused("A2 number", {"retry-after": "2.5"}, 2.5),
    refused("A2 never", {"retry-after": "1e9"}, None),
    refused("A2 10 KB", {"retry-after": "9" * 10_240}, None),
    refused("A2 a day", DATE | {"retry-after": "Tue, 18 Aug 2026 10:00:30 GMT"}, 30.0),
    refused("A2 no such hour", DATE | {"retry-after": f"Tue, 18 Aug 2026 {'9' * 20}:00:00 GMT"}, None),
    refused("A2 no such zone", DATE | {"retry-after": f"Tue, 18 Aug 2026 10:00:00 +{'9' * 20}"}, None),
    refused("A3 milliseconds first", {"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
    refused("A3 x-should-retry is ignored", {"x-should-retry": "false"}, None),
    seen("A4 silent", {}, None),
    seen("A4 nonsense", {"x-ratelimit-limit-tokens": "many", "x-ratelimit-remaining-tokens": "-1"}, None),
    seen(
        "A4 more left than there is",
        {"x-ratelimit-limit-tokens": "6000", "x-ratelimit-remaining-tokens": "6001"},
        RateLimits(tokens_per_minute=6000, requests_window_s=86_400.0),
    ),
    seen(
        "A4 reset at once",
        {"x-ratelimit-limit-requests": "9", "x-ratelimit-reset-requests": "0s"},
        RateLimits(requests=9, requests_window_s=86_400.0),
    ),
    refused("A5 in the text only", {}, 578.016, f"on tokens per day (TPD): {LIMITED}"),
    bad("A8 HTML", HTML),
    bad("A8 HTML called JSON", HTML, headers={"content-type": "application/json"}),
    *[bad(f"A9 {body.decode() or 'empty'}", body) for body in (b"null", b"[]", b'"hi"', b"7", b"", b"true")],
    bad("A9 204", b"", status=204),
    Row(name="A10 an error", kind=ServerError, body=error_body("upstream failed")),
    Row(name="A10 a known error", kind=BadGeneration, body=error_body("x", "tool_use_failed")),
    Row(name="A10 an error of 600 lists", kind=ServerError, body=b'{"error":' + DEEP + b"}"),
    bad("A11 missing", b"{}"),
    *[bad(f"A11 choices {text}", b'{"choices":%b}' % text.encode()) for text in ("[]", "null", "7", "[7]")],
    bad("A11 message null", b'{"choices":[{"message":null}]}'),
    bad("A11 content null", chat(None)),
    Row(
        name="A11 a tool call",
        kind=Reply,
        body=b'{"choices":[{"message":{"content":null,"tool_calls":[{"id":"1"}]}}]}',
    ),
    bad("A12 not UTF-8", chat("caf?").replace(b"?", b"\xe9")),
    bad("A12 half a surrogate", b'{"choices":[{"message":{"content":"\\ud800"}}]}'),
    used("A13 missing", None, None),
    used("A13 texts", {"prompt_tokens": "1", "completion_tokens": "2"}, None),
    used("A13 negative", {"prompt_tokens": -1, "completion_tokens": 2}, None),
    used("A13 huge", {"prompt_tokens": 10**18, "completion_tokens": 2}, None),
    used(
        "A13 a sum of its own",
        {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 9},
        Usage(input_tokens=1, output_tokens=2),
    ),
    bad("A13 NaN", chat(usage=7).replace(b"7", b"NaN")),
    Row(name="A14", kind=Reply, body=chat(finish_reason="length"), known={"finish_reason": "length"}),
    Row(
        name="A15", kind=Reply, body=chat(finish_reason="of_tomorrow"), known={"finish_reason": "of_tomorrow"}
    ),
    Row(name="A16", kind=Reply, body=chat(model="another"), known={"model": "another"}),
    Row(name="A17 10 MB", kind=Reply, body=chat("x" * 10_000_000), known={"text": "x" * 10_000_000}),
    Row(name="A17 twice", kind=Reply, body=chat()[:-1] + b',"model":"last"}', known={"model": "last"}),
    streamed("A18 an error event", ServerError, HI + b'event: error\ndata: {"error":{"message":"x"}}\n\n'),
    streamed("A18 an HTTP error", RateLimited, b'data: {"error":{"code":429,"message":"x"}}\n\n'),
    streamed("A18 no [DONE]", Reply, HI + END, text="hi"),
    streamed("A18 no finish reason", BadReply, HI + b"data: [DONE]\n\n"),
    streamed("A18 cut inside JSON", BadReply, HI + END[:-9]),
    streamed("A18 comments", BadReply, b": keep-alive\n\n" * 50_000),
    streamed("A18 CRLF", Reply, (HI + END).replace(b"\n", b"\r\n"), text="hi"),
    streamed("A18 several lines", Reply, HI.replace(b':[{"', b':\ndata: [{"') + END, text="hi"),
    streamed("A18 600 lists", BadReply, b'data: {"x":' + DEEP + b"}\n\n" + HI + END),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_reply_is_what_the_table_says(row: Row) -> None:
    got = in_time(row.status, row.headers, row.body)
    assert type(got) is row.kind
    assert {name: getattr(got, name) for name in row.known} == row.known
    if isinstance(got, CallError):
        assert len(got.body) <= 2048


def test_a5_the_text_names_the_limit() -> None:
    error = answer(429, {}, error_body(f"on tokens per day (TPD): {LIMITED}"))
    assert limit_named(str(error)) == NamedLimit("TPD", 100_000, 97_050, 3_619)


def test_a18_a_tool_call_that_grows_by_bits_costs_no_more_than_its_size() -> None:
    def bit(arguments: str) -> bytes:
        return chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": arguments}}]})

    body = bit("x" * 3_000_000) + bit("~") * 20_000 + chunk({}, "tool_calls")
    reply = in_time(200, SSE, body)
    assert isinstance(reply, Reply)
    assert reply.body.count(b"~") == 20_000
