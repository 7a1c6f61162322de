"""Only an answer passes for an answer, and what a run needs is read from it without trust."""

from typing import Any

import orjson
import pytest

from batcher.errors import BadReply, CallError, ModelUnavailable, RateLimited
from batcher.providers.replies import parse_models, parse_reply
from batcher.types import Endpoint, ModelInfo, RateLimits, Reply, Usage

CHAT: Endpoint = "/v1/chat/completions"
EMBEDDINGS: Endpoint = "/v1/embeddings"
RESPONSES: Endpoint = "/v1/responses"
USAGE = {"prompt_tokens": 10, "completion_tokens": 20}


def parse(endpoint: Endpoint, answer: object, headers: dict[str, str] | None = None) -> Reply:
    body = answer if isinstance(answer, bytes) else orjson.dumps(answer)
    return parse_reply(endpoint, 200, headers or {}, body)


def chat(message: object, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"} | more]}


def test_an_answer_keeps_its_bytes_and_tells_what_a_run_needs() -> None:
    body = (
        b'{ "model":"m1",\n "choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":10,"completion_tokens":20,"prompt_tokens_details":{"cached_tokens":4},'
        b'"completion_tokens_details":{"reasoning_tokens":5}}}'
    )
    headers = {
        "x-request-id": "req_1",
        "x-ratelimit-limit-tokens": "6000",
        "content-type": "application/json",
    }
    reply = parse(CHAT, body, headers)
    assert reply == Reply(
        status=200,
        body=body,
        request_id="req_1",
        model="m1",
        finish_reason="stop",
        text="hi",
        usage=Usage(input_tokens=10, output_tokens=20, cached_tokens=4, reasoning_tokens=5),
        limits=RateLimits(tokens_per_minute=6000),
    )


@pytest.mark.parametrize(
    ("message", "finish_reason", "text"),
    [
        ({"content": "hi"}, "stop", "hi"),
        ({"content": ""}, "length", ""),
        ({"content": None, "tool_calls": [{"id": "1"}]}, "tool_calls", ""),
        ({"content": None, "function_call": {"name": "f"}}, "function_call", ""),
        ({"content": None, "refusal": "no"}, "stop", ""),
        ({"content": None, "reasoning": "hm"}, "length", ""),
        ({}, "content_filter", ""),
        ({"content": "hi"}, "a_reason_of_tomorrow", "hi"),
        ({"content": "hi"}, None, "hi"),
    ],
)
def test_what_counts_as_a_chat_answer(message: dict[str, Any], finish_reason: str | None, text: str) -> None:
    reply = parse(CHAT, chat(message, finish_reason=finish_reason))
    assert (reply.finish_reason, reply.text) == (finish_reason or "", text)


@pytest.mark.parametrize(
    ("endpoint", "answer"),
    [
        (CHAT, b""),
        (CHAT, b"<html>Sign in</html>"),
        (CHAT, b'{"choices":[{"mess'),
        (CHAT, b'{"choices":[{"message":{"content":"\xff"}}]}'),
        (CHAT, b'{"choices":[{"message":{"content":NaN}}]}'),
        (CHAT, None),
        (CHAT, []),
        (CHAT, "hi"),
        (CHAT, 7),
        (CHAT, {}),
        (CHAT, {"error": None}),
        (CHAT, {"choices": None}),
        (CHAT, {"choices": []}),
        (CHAT, {"choices": {"0": {}}}),
        (CHAT, {"choices": [None]}),
        (CHAT, {"choices": [{}]}),
        (CHAT, chat(None)),
        (CHAT, chat("hi")),
        (CHAT, chat({})),
        (CHAT, chat({"content": None})),
        (CHAT, chat({"content": None, "tool_calls": []})),
        (CHAT, chat({"content": [{"text": "hi"}]}, finish_reason="length")),
        (CHAT, {"choices": [chat({"content": "hi"})["choices"][0], {"index": 1}]}),
        (EMBEDDINGS, {"data": []}),
        (EMBEDDINGS, {"data": [{"embedding": [1.0]}, {"embedding": []}]}),
        (EMBEDDINGS, {"data": [{"embedding": 1.0}]}),
        (EMBEDDINGS, {"data": [[1.0]]}),
        (EMBEDDINGS, chat({"content": "hi"})),
        (RESPONSES, {"output": None}),
        (RESPONSES, chat({"content": "hi"})),
    ],
)
def test_what_is_no_answer(endpoint: Endpoint, answer: object) -> None:
    with pytest.raises(BadReply) as caught:
        parse(endpoint, answer, {"x-request-id": "req_1"})
    assert (caught.value.code, caught.value.status, caught.value.request_id) == ("bad_reply", 200, "req_1")
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": "model_not_found", "message": "gone"}, ModelUnavailable),
        ({"code": "rate_limit_exceeded", "message": "try again in 2s"}, RateLimited),
    ],
)
def test_an_error_object_at_status_200_is_that_error(error: object, kind: type[CallError]) -> None:
    with pytest.raises(kind):
        parse(CHAT, {"error": error, "choices": None})


def test_embeddings() -> None:
    reply = parse(
        EMBEDDINGS, {"data": [{"embedding": [0.5]}, {"embedding": "AAAA"}], "usage": {"prompt_tokens": 3}}
    )
    assert (reply.text, reply.usage) == ("", Usage(input_tokens=3, output_tokens=0))


@pytest.mark.parametrize(
    ("more", "finish_reason"),
    [
        ({"status": "completed"}, "completed"),
        (
            {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            "max_output_tokens",
        ),
    ],
)
def test_responses(more: dict[str, Any], finish_reason: str) -> None:
    part = {"type": "output_text", "text": "hi"}
    reply = parse(
        RESPONSES,
        {
            "error": None,
            "output": [{"type": "reasoning", "summary": []}, {"type": "message", "content": [part, part]}],
            "usage": {
                "input_tokens": 5,
                "input_tokens_details": {"cached_tokens": 2},
                "output_tokens": 7,
                "output_tokens_details": {"reasoning_tokens": 3},
            },
        }
        | more,
    )
    assert (reply.text, reply.finish_reason) == ("hihi", finish_reason)
    assert reply.usage == Usage(input_tokens=5, output_tokens=7, cached_tokens=2, reasoning_tokens=3)


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        (None, None),
        ("10", None),
        ({}, None),
        ({"prompt_tokens": "10", "completion_tokens": 20}, None),
        ({"prompt_tokens": -1, "completion_tokens": 20}, None),
        ({"prompt_tokens": 10.0, "completion_tokens": 20}, None),
        ({"prompt_tokens": True, "completion_tokens": 20}, None),
        ({"prompt_tokens": 10, "completion_tokens": None}, None),
        ({"prompt_tokens": 10, "completion_tokens": 10**18}, None),
        (USAGE | {"total_tokens": 7}, Usage(input_tokens=10, output_tokens=20)),
        (USAGE | {"prompt_tokens_details": {"cached_tokens": 11}}, Usage(input_tokens=10, output_tokens=20)),
        (USAGE | {"prompt_tokens_details": "many"}, Usage(input_tokens=10, output_tokens=20)),
    ],
)
def test_usage_is_read_without_trust(usage: object, read: Usage | None) -> None:
    assert parse(CHAT, chat({"content": "hi"}) | {"usage": usage}).usage == read


@pytest.mark.parametrize(
    ("headers", "more", "request_id"),
    [
        ({"x-request-id": "req_1"}, {"x_groq": {"id": "req_2"}}, "req_1"),
        ({}, {"x_groq": {"id": "req_2"}}, "req_2"),
        ({}, {"x_groq": {"id": 7}}, ""),
        ({}, {"x_groq": "req_2"}, ""),
        ({"x-request-id": "r" * 10_000}, {}, "r" * 256),
    ],
    ids=["header", "body", "number", "text", "long"],
)
def test_the_request_id(headers: dict[str, str], more: dict[str, Any], request_id: str) -> None:
    assert parse(CHAT, chat({"content": "hi"}) | more, headers).request_id == request_id


def test_a_model_list() -> None:
    body = orjson.dumps(
        {
            "data": [
                {"id": "b", "owned_by": "Meta", "context_window": 131072, "max_completion_tokens": 8192},
                {"id": "a", "max_model_len": 4096, "active": False},
                {"id": "c", "context_window": "wide", "context_length": 7},
                {"id": None},
            ]
        }
    )
    assert parse_models(200, {}, body) == [
        ModelInfo(id="a", context_tokens=4096, active=False),
        ModelInfo(id="b", owner="Meta", context_tokens=131072, max_output_tokens=8192),
        ModelInfo(id="c", context_tokens=7),
    ]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"data":7}', b'{"data":[7]}', b'{"data":[{}]}'])
def test_what_is_no_model_list(body: bytes) -> None:
    with pytest.raises(BadReply):
        parse_models(200, {}, body)


@pytest.mark.parametrize(("layers", "readable"), [(500, True), (923, True), (924, False), (980, False)])
def test_a_body_too_deep_for_a_result_line_is_no_answer(layers: int, readable: bool) -> None:
    deep = b"[" * layers + b"]" * layers
    body = b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"extra":' + deep + b"}"
    if readable:
        assert parse_reply("/v1/chat/completions", 200, {}, body).text == "x"
    else:
        with pytest.raises(BadReply, match="too deep"):
            parse_reply("/v1/chat/completions", 200, {}, body)
