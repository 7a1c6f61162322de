"""An event stream, gathered into the one body that the same call would have got without streaming."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from batcher.providers.failures import classify_error_object, no_answer
from batcher.providers.limit_headers import Dialect

_BETWEEN_EVENTS = re.compile(rb"\n{2,}")
_GROWING = ("content", "reasoning", "reasoning_content", "refusal")
_LAST_EVENTS = ("response.completed", "response.incomplete", "response.failed")


def gather(status: int, headers: Mapping[str, str], body: bytes, *, dialect: Dialect) -> bytes:
    """Gather a whole `text/event-stream` body into one JSON body.

    Raises:
        CallError: what an error event says, or `BadReply` where the stream broke off or is no such stream.
    """
    answer: dict[str, Any] = {}
    choices: dict[int, _Choice] = {}
    for data in _events(body):
        try:
            chunk = _object(orjson.loads(data))
        except orjson.JSONDecodeError:
            raise no_answer(status, headers, body, "its stream broke off inside an event") from None
        if error := chunk if chunk.get("type") == "error" else chunk.get("error"):
            raise classify_error_object(error, status, headers, body, dialect=dialect)
        if chunk.get("type") in _LAST_EVENTS:
            answer = _object(chunk.get("response"))
            break
        answer = answer or chunk
        if usage := chunk.get("usage") or _object(chunk.get("x_groq")).get("usage"):
            answer["usage"] = usage
        for part in _list(chunk.get("choices")):
            index = _object(part).get("index", 0)
            choices.setdefault(index if type(index) is int else 0, _Choice()).add(_object(part))
    else:
        if not choices or not all(choice.finish_reason for choice in choices.values()):
            raise no_answer(status, headers, body, "its stream ended without a finish reason")
        answer["object"] = "chat.completion"
        answer["choices"] = [choices[index].whole(index) for index in sorted(choices)]
    try:
        return orjson.dumps(answer)
    except orjson.JSONEncodeError:
        raise no_answer(status, headers, body, "its stream is nested too deep") from None


class _Choice:
    """One choice, put together from its deltas."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._texts: dict[str, list[str]] = {"content": []}
        self._calls: dict[int, _ToolCall] = {}

    def add(self, part: dict[str, Any]) -> None:
        """Take in one chunk's share of this choice."""
        if type(reason := part.get("finish_reason")) is str:
            self.finish_reason = reason
        delta = _object(part.get("delta"))
        for name in _GROWING:
            if type(text := delta.get(name)) is str:
                self._texts.setdefault(name, []).append(text)
        for call in map(_object, _list(delta.get("tool_calls"))):
            index = call.get("index")
            position = index if type(index) is int else len(self._calls)
            self._calls.setdefault(position, _ToolCall()).add(call)

    def whole(self, index: int) -> dict[str, Any]:
        """Return the choice as an answer without streaming would show it."""
        message: dict[str, Any] = {name: "".join(texts) for name, texts in self._texts.items()}
        if self._calls:
            message["tool_calls"] = [self._calls[position].whole() for position in sorted(self._calls)]
            message["content"] = message["content"] or None
        return {
            "index": index,
            "message": {"role": "assistant", **message},
            "finish_reason": self.finish_reason,
        }


class _ToolCall:
    """One tool call, put together from its deltas."""

    def __init__(self) -> None:
        self._id: object = ""
        self._name: object = ""
        self._arguments: list[str] = []  # joined at the end: a text that grows by bits costs its square

    def add(self, call: dict[str, Any]) -> None:
        """Take in one chunk's share of this call."""
        function = _object(call.get("function"))
        self._id = call.get("id") or self._id
        self._name = function.get("name") or self._name
        if type(arguments := function.get("arguments")) is str:
            self._arguments.append(arguments)

    def whole(self) -> dict[str, Any]:
        """Return the call as an answer without streaming would show it."""
        function = {"name": self._name, "arguments": "".join(self._arguments)}
        return {"id": self._id, "type": "function", "function": function}


def _events(body: bytes) -> Iterator[bytes]:
    """Yield the data of each event up to `[DONE]`; comments, which keep a connection alive, are left out."""
    for event in _BETWEEN_EVENTS.split(body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")):
        lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
        data = b"\n".join(lines)
        if data == b"[DONE]":
            return
        if data:
            yield data


def _object(value: object) -> dict[str, Any]:
    return value if type(value) is dict else {}


def _list(value: object) -> list[Any]:
    return value if type(value) is list else []
