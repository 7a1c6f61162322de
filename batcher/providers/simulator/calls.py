"""Reads what a client asks, and refuses what Groq would refuse."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from batcher.providers.simulator.bodies import error_body
from batcher.providers.simulator.settings import SimulatorSettings
from batcher.types import ENDPOINTS, Endpoint

_ID_CHARACTERS = 64
_MAX_TOKENS_FIELDS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One HTTP request; header names are lower-case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def api_path(self) -> str:
        """The path from `/v1` on, without query: Groq's own prefix is `/openai`."""
        return self.path.partition("?")[0].removeprefix("/openai")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that can be answered.

    Attributes:
        id: by which it is counted: its `x-client-request-id`, or its text if short, or a hash of its body.
        key: what the client authorised itself with, or "".
        text: the last user message, or the input of an embedding.
        prompt_tokens: about one for four bytes.
        max_tokens: the bound on the answer, None where the client set none.
        fields: the whole body.
    """

    endpoint: Endpoint
    id: str
    key: str
    model: str
    text: str
    prompt_tokens: int
    max_tokens: int | None
    fields: dict[str, Any]

    @property
    def stream(self) -> bool:
        """Whether the answer is to come as server-sent events."""
        return self.fields.get("stream") is True and self.endpoint == "/v1/chat/completions"


class Refused(Exception):
    """The API refuses the call, with this status and body."""

    def __init__(self, status: int, body: bytes, request_id: str = "") -> None:
        super().__init__(f"refused with {status}")
        self.status = status
        self.body = body
        self.request_id = request_id


def read_call(call: Call, settings: SimulatorSettings) -> Asked:
    """Understand a POST to one of the endpoints.

    Raises:
        Refused: no such endpoint, not the method, no key, no JSON, no such model, or a field is missing.
    """
    endpoint = next((each for each in ENDPOINTS if each == call.api_path), None)
    if endpoint is None:
        raise _refused(
            404, f"Unknown request URL: {call.method} {call.path}. Simulated server.", "unknown_url"
        )
    if call.method != "POST":
        raise _refused(405, f"Method {call.method} is not allowed here, use POST.", "method_not_allowed")
    key = check_key(call, settings)
    try:
        fields = orjson.loads(call.body)
    except ValueError as error:
        raise _refused(400, f"The body is not valid JSON: {error}", "invalid_json") from None
    if not isinstance(fields, dict):
        raise _refused(400, "The body must be a JSON object.", "invalid_json")
    text = _text_of(endpoint, fields)
    request_id = _request_id(call, text)
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise _refused(400, "property 'model' is missing", None, request_id)
    prompt_tokens = -(-len(call.body) // 4)
    max_tokens = _max_tokens(fields, request_id)
    _check_model(model, prompt_tokens, settings, request_id)
    return Asked(
        endpoint=endpoint,
        id=request_id,
        key=key,
        model=model,
        text=text,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        fields=fields,
    )


def check_key(call: Call, settings: SimulatorSettings) -> str:
    """Return the client's key, "" if it has none.

    Raises:
        Refused: a key is needed, and this is not one.
    """
    scheme, _, key = call.headers.get("authorization", "").partition(" ")
    key = key.strip() if scheme.lower() == "bearer" else ""
    if settings.keys and key not in settings.keys:
        raise _refused(401, "Invalid API Key", "invalid_api_key")
    return key


def _refused(status: int, message: str, code: str | None, request_id: str = "") -> Refused:
    return Refused(status, error_body(message, kind="invalid_request_error", code=code), request_id)


def _request_id(call: Call, text: str) -> str:
    if named := call.headers.get("x-client-request-id"):
        return named
    return text if 0 < len(text) <= _ID_CHARACTERS else hashlib.sha256(call.body).hexdigest()[:16]


def _text_of(endpoint: Endpoint, fields: dict[str, Any]) -> str:
    if endpoint == "/v1/chat/completions":
        messages = fields.get("messages")
        if not isinstance(messages, list) or not messages:
            raise _refused(400, "'messages' : minimum number of items is 1", None)
        return _last_user_text(messages)
    asked = fields.get("input")
    if not asked:
        raise _refused(400, "property 'input' is missing", None)
    if isinstance(asked, list) and endpoint == "/v1/responses":
        return _last_user_text(asked)
    return asked if isinstance(asked, str) else str(asked[0]) if isinstance(asked, list) else ""


def _last_user_text(messages: list[Any]) -> str:
    for message in reversed(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _refused(400, "every message must be an object with a role", None)
        if message["role"] == "user":
            return _content_text(message.get("content"))
    return ""


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(
        part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)
    )


def _max_tokens(fields: dict[str, Any], request_id: str) -> int | None:
    for name in _MAX_TOKENS_FIELDS:
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _refused(400, f"'{name}' must be an integer of 1 or more", None, request_id)
        return value
    return None


def _check_model(model: str, prompt_tokens: int, settings: SimulatorSettings, request_id: str) -> None:
    known = next((each for each in settings.models if each.id == model), None)
    if known is None:
        if settings.any_model:
            return
        message = f"The model `{model}` does not exist or you do not have access to it."
        raise _refused(404, message, "model_not_found", request_id)
    if not known.active:
        message = f"The model `{model}` has been decommissioned and is no longer supported."
        raise _refused(400, message, "model_decommissioned", request_id)
    if 0 < known.context_tokens < prompt_tokens:
        message = "Please reduce the length of the messages or completion."
        raise _refused(400, message, "context_length_exceeded", request_id)
