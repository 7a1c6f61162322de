"""From the bytes of a 2xx reply to a checked `Reply`: a body that is no answer is a fault, not an answer."""

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from batcher.providers.failures import classify_error_object, no_answer
from batcher.providers.limit_headers import Dialect, rate_limits
from batcher.providers.streams import gather
from batcher.types import Endpoint, ModelInfo, Reply, Usage

_SPARE_LAYERS = 100
"""A result line and its readers add a few layers around a body; so many must still be parsed."""

_LAYERS_READ = 1024
"""So many layers orjson reads at most; each takes two bytes."""

_MOST_TOKENS = 1_000_000_000
"""No call takes as many: a count above it is a fault of the provider's bookkeeping."""


def parse_reply(
    endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes, *, dialect: Dialect = "openai"
) -> Reply:
    """Check the body of a 2xx reply and take out what a run needs; the body itself stays as it is.

    Args:
        endpoint: what was asked, which decides what an answer looks like.
        status: the HTTP status, 200 to 299.
        headers: the reply's headers, names in lower case.
        body: the reply's body, decoded. An event stream is gathered into one body first.
        dialect: how the limit headers are to be read.

    Raises:
        CallError: `BadReply` where the body is no answer, or what its error object says.
    """
    if headers.get("content-type", "").startswith("text/event-stream"):
        body = gather(status, headers, body, dialect=dialect)
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise no_answer(status, headers, body, "it is not JSON") from None
    if type(answer) is not dict:
        raise no_answer(status, headers, body, "it is JSON, but not an object")
    if _too_deep(body):
        raise no_answer(status, headers, body, "it is nested too deep to be read back from a result line")
    if error := answer.get("error"):
        raise classify_error_object(error, status, headers, body, dialect=dialect)
    try:
        finish_reason, text = _READERS[endpoint](answer)
    except ValueError as fault:
        raise no_answer(status, headers, body, str(fault)) from None
    return Reply(
        status=status,
        body=body,
        request_id=headers.get("x-request-id", "")[:256] or _groq_id(answer),
        model=_text(answer.get("model")),
        finish_reason=finish_reason,
        text=text,
        usage=_usage(answer.get("usage")),
        limits=rate_limits(headers, dialect),
    )


def _too_deep(body: bytes) -> bool:
    """Tell whether the body would be beyond a parser's depth once it stands inside a result line."""
    most = _LAYERS_READ - _SPARE_LAYERS
    if len(body) < 2 * most or body.count(b"{") + body.count(b"[") < most:
        return False
    try:
        orjson.loads(b"[" * _SPARE_LAYERS + body + b"]" * _SPARE_LAYERS)
    except orjson.JSONDecodeError:
        return True
    return False


def parse_models(status: int, headers: Mapping[str, str], body: bytes) -> list[ModelInfo]:
    """Read a model list in the common shape, sorted by id; limits that it does not name are 0.

    Raises:
        BadReply: the body is no such list.
    """
    try:
        data = orjson.loads(body)["data"]
        models = [_model(item) for item in data if type(item["id"]) is str]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise no_answer(status, headers, body, "it is no list of models") from None
    return sorted(models, key=lambda model: model.id)


def _model(item: dict[str, Any]) -> ModelInfo:
    return ModelInfo(
        id=item["id"],
        owner=_text(item.get("owned_by")),
        # Groq's name, then vLLM's, then OpenRouter's.
        context_tokens=next(
            filter(None, map(_count, map(item.get, ("context_window", "max_model_len", "context_length")))), 0
        ),
        max_output_tokens=_count(item.get("max_completion_tokens")) or 0,
        active=item.get("active") is not False,
    )


def _read_chat(answer: dict[str, Any]) -> tuple[str, str]:
    """Return finish reason and text of the first choice; every choice must hold an answer."""
    choices = answer.get("choices")
    if type(choices) is not list or not choices:
        raise ValueError("it has no choices")
    for choice in choices:
        message = choice.get("message") if type(choice) is dict else None
        if type(message) is not dict:
            raise ValueError("a choice has no message")
        if type(message.get("content")) is not str and not _speaks_otherwise(choice, message):
            raise ValueError("a choice has neither content nor tool calls nor a refusal")
    first = choices[0]
    return _text(first.get("finish_reason")), _text(first["message"].get("content"))


def _speaks_otherwise(choice: dict[str, Any], message: dict[str, Any]) -> bool:
    """Tell whether a message without content is an answer all the same."""
    if message.get("tool_calls") or message.get("refusal") or message.get("function_call"):
        return True
    # A model that spent its last token on reasoning, or was filtered, has nothing to say; asking again
    # costs the same and ends the same.
    return message.get("content") is None and choice.get("finish_reason") in ("length", "content_filter")


def _read_embeddings(answer: dict[str, Any]) -> tuple[str, str]:
    data = answer.get("data")
    if type(data) is not list or not data:
        raise ValueError("it has no embeddings")
    for item in data:
        embedding = item.get("embedding") if type(item) is dict else None
        if type(embedding) not in (list, str) or not embedding:
            raise ValueError("an item of its data has no embedding")
    return "", ""


def _read_responses(answer: dict[str, Any]) -> tuple[str, str]:
    output = answer.get("output")
    if type(output) is not list:
        raise ValueError("it has no output")
    texts = [
        part["text"]
        for item in output
        if type(item) is dict and type(item.get("content")) is list
        for part in item["content"]
        if type(part) is dict and part.get("type") == "output_text" and type(part.get("text")) is str
    ]
    details = answer.get("incomplete_details")
    reason = details.get("reason") if type(details) is dict else None
    return _text(reason or answer.get("status")), "".join(texts)


_READERS: dict[Endpoint, Callable[[dict[str, Any]], tuple[str, str]]] = {
    "/v1/chat/completions": _read_chat,
    "/v1/embeddings": _read_embeddings,
    "/v1/responses": _read_responses,
}


def _usage(usage: object) -> Usage | None:
    """Read token counts in either naming; None where they are missing or cannot be true."""
    if type(usage) is not dict:
        return None
    if "prompt_tokens" in usage:
        names = ("prompt_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details")
    else:
        names = ("input_tokens", "output_tokens", "input_tokens_details", "output_tokens_details")
    # Embeddings have no output, and so no count of it.
    input_tokens, output_tokens = _count(usage.get(names[0])), _count(usage.get(names[1], 0))
    if input_tokens is None or output_tokens is None:
        return None
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_tokens=_part(usage.get(names[2]), "cached_tokens", input_tokens),
        reasoning_tokens=_part(usage.get(names[3]), "reasoning_tokens", output_tokens),
    )


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def _part(details: object, name: str, whole: int) -> int:
    """Read a count that is part of another; 0 where it is missing or larger than the whole."""
    value = details.get(name) if type(details) is dict else None
    return value if type(value) is int and 0 <= value <= whole else 0


def _groq_id(answer: dict[str, Any]) -> str:
    x_groq = answer.get("x_groq")
    return _text(x_groq.get("id"))[:256] if type(x_groq) is dict else ""


def _text(value: object) -> str:
    return value if type(value) is str else ""
