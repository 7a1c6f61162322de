"""An event stream ends up as the body that the same call would have got without one."""

from typing import Any

import orjson
import pytest

from batcher.errors import BadGeneration, BadReply, ServerError
from batcher.providers.replies import parse_reply
from batcher.types import Endpoint, Reply, Usage

HEADERS = {"content-type": "text/event-stream; charset=utf-8"}


def parse(body: bytes, endpoint: Endpoint = "/v1/chat/completions") -> Reply:
    return parse_reply(endpoint, 200, HEADERS, body)


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": more.pop("index", 0), "delta": delta, "finish_reason": finish_reason}
    return b"data: " + orjson.dumps({"id": "c1", "model": "m", "choices": [choice]} | more) + b"\n\n"


USAGE = {"prompt_tokens": 3, "completion_tokens": 2}
HELLO = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Hel"}) + chunk({"content": "lo"})
DONE = b"data: [DONE]\n\n"


def test_text_is_joined_and_the_last_usage_counts() -> None:
    reply = parse(HELLO + chunk({}, "stop", x_groq={"id": "req_1", "usage": USAGE}) + DONE)
    assert (reply.text, reply.finish_reason, reply.model) == ("Hello", "stop", "m")
    assert reply.usage == Usage(input_tokens=3, output_tokens=2)
    assert orjson.loads(reply.body) == {
        "id": "c1",
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
        ],
        "usage": USAGE,
    }


def test_usage_may_come_in_a_chunk_of_its_own_without_choices() -> None:
    last = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    assert parse(HELLO + chunk({}, "stop") + last + DONE).usage == Usage(input_tokens=3, output_tokens=2)


def test_tool_calls_and_several_choices_are_put_together() -> None:
    def call(index: int, **function: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, "function": function}]}

    first = {"tool_calls": [{"index": 0, "id": "t0", "function": {"name": "f", "arguments": ""}}]}
    body = (
        chunk(first)
        + chunk({"reasoning": "hm", "content": "b"}, index=1)
        + chunk(call(1, name="g", arguments="{}"))
        + chunk(call(0, arguments='{"a"'))
        + chunk(call(0, arguments=":1}"), "tool_calls")
        + chunk({}, "stop", index=1)
    )
    choices = orjson.loads(parse(body).body)["choices"]
    assert choices[0]["message"]["content"] is None
    assert [(each["id"], each["function"]) for each in choices[0]["message"]["tool_calls"]] == [
        ("t0", {"name": "f", "arguments": '{"a":1}'}),
        ("", {"name": "g", "arguments": "{}"}),
    ]
    assert choices[1]["message"] == {"role": "assistant", "content": "b", "reasoning": "hm"}


@pytest.mark.parametrize(
    "body",
    [
        HELLO + chunk({}, "stop"),
        HELLO.replace(b"\n", b"\r\n") + chunk({}, "stop").replace(b"\n", b"\r\n"),
        HELLO.replace(b"\n", b"\r") + chunk({}, "stop").replace(b"\n", b"\r"),
        b": keep-alive\n\n" + HELLO + b": keep-alive\n\nid: 7\nretry: 9\n\n" + chunk({}, "stop").rstrip(),
        HELLO.replace(b'","model"', b'",\ndata: "model"') + chunk({}, "stop"),
        HELLO + chunk({}, "stop") + DONE + b"data: rubbish after the end",
        HELLO + b'data: {"choices":[7,{"delta":7}],"x_groq":7}\n\n' + chunk({}, "stop"),
    ],
    ids=["no-done", "crlf", "cr", "comments", "several-data-lines", "after-done", "odd-chunks"],
)
def test_streams_that_are_whole(body: bytes) -> None:
    assert parse(body).text == "Hello"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b": keep-alive\n\n" * 9,
        DONE,
        HELLO,
        HELLO + DONE,
        HELLO + chunk({}, "stop")[:-9],
        HELLO + b"data: \xff\n\n",
        HELLO + chunk({"content": "b"}, index=1) + chunk({}, "stop"),
    ],
    ids=["empty", "comments", "done", "cut", "no-reason", "cut-in-json", "not-utf8", "one-of-two"],
)
def test_streams_that_broke_off(body: bytes) -> None:
    with pytest.raises(BadReply):
        parse(body)


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (b'data: {"error":{"message":"x","code":"tool_use_failed"}}\n\n', BadGeneration),
        (b'event: error\ndata: {"error":{"message":"x"}}\n\n', ServerError),
        (b'data: {"type":"error","message":"x"}\n\n', ServerError),
    ],
)
def test_an_error_in_the_stream_is_that_error(event: bytes, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        parse(HELLO + event)


def test_a_stream_of_the_responses_endpoint_ends_with_the_whole_response() -> None:
    whole = {"output": [{"content": [{"type": "output_text", "text": "hi"}]}], "status": "completed"}
    body = b'data: {"type":"response.created"}\n\ndata: ' + orjson.dumps(
        {"type": "response.completed", "response": whole}
    )
    assert parse(body, "/v1/responses").text == "hi"
    with pytest.raises(ServerError):
        parse(
            b'data: {"type":"response.failed","response":{"error":{"message":"x"},"output":[]}}',
            "/v1/responses",
        )
