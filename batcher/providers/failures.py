"""The one map from an HTTP reply that is no answer to our errors."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import orjson

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
from batcher.providers.limit_headers import Dialect, rate_limits, retry_after_s, wait_named_s

KEPT_BYTES = 2048
"""How much of a failed reply's message, and of its body, is kept."""

_PARSED_BYTES = 1 << 20
_SAFE_CODE = re.compile(r"[a-z0-9_]{1,64}")
_TITLE = re.compile(r"<title[^>]*>([^<]{1,200})", re.IGNORECASE)
_ORGANISATION = re.compile(r"\borg[_-][0-9A-Za-z]{8,}")
_BILLING_URL = re.compile(r"https?://[^\s\"'\\]{0,200}billing[^\s\"'\\]{0,200}", re.IGNORECASE)
_API_KEY = re.compile(r"\b(?:gsk_|sk-|xai-)[0-9A-Za-z_*-]{8,}")
_MODEL = re.compile(r"\bmodel\b", re.IGNORECASE)

_Kind: TypeAlias = tuple[type[CallError], str]
"""An error class and the code that the result line shows."""

_BY_CODE: dict[str, _Kind] = {
    "json_validate_failed": (BadGeneration, "bad_generation"),
    "output_parse_failed": (BadGeneration, "bad_generation"),
    "tool_use_failed": (BadGeneration, "bad_generation"),
    "model_decommissioned": (ModelUnavailable, "model_decommissioned"),
    "model_not_found": (ModelUnavailable, "model_not_found"),
    "model_terms_required": (ModelUnavailable, "model_terms_required"),
    "invalid_api_key": (KeyRefused, "invalid_api_key"),
    # No wait and no other try brings credit back, and no job is to blame: the same as a dead key.
    "insufficient_quota": (KeyRefused, "insufficient_quota"),
    "context_length_exceeded": (TooLarge, "context_length_exceeded"),
    "capacity_exceeded": (CapacityExceeded, "capacity_exceeded"),
}
_BY_STATUS: dict[int, _Kind] = {
    401: (KeyRefused, "key_refused"),
    402: (KeyRefused, "payment_required"),
    403: (ModelUnavailable, "forbidden"),
    404: (InvalidRequest, "not_found"),
    408: (ServerError, "request_timeout"),
    409: (ServerError, "conflict"),
    # Failed dependency: a tool on the provider's side broke. Like a bad generation it deserves few tries.
    424: (BadGeneration, "failed_dependency"),
    425: (ServerError, "too_early"),
    429: (RateLimited, "rate_limited"),
    498: (CapacityExceeded, "capacity_exceeded"),
}
_BY_CLASS: dict[int, _Kind] = {
    4: (InvalidRequest, "invalid_request"),
    5: (ServerError, "server_error"),
}
_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
}


class _Said(NamedTuple):
    """What the body of a failed reply said."""

    message: str
    code: str = ""
    status: int = 500
    is_json: bool = False


def classify(
    status: int, headers: Mapping[str, str], body: bytes, *, dialect: Dialect = "openai"
) -> CallError:
    """Say what an HTTP reply that is no answer means.

    Args:
        status: the HTTP status, not 2xx.
        headers: the reply's headers, names in lower case.
        body: the reply's body, decoded.
        dialect: how the limit headers are to be read.

    Returns:
        The error to raise, with a scrubbed message and at most 2 KB of scrubbed body.
    """
    if 300 <= status < 400:
        said = _Said(_redirect(headers))
        kind: _Kind = (InvalidRequest, "redirected")
    else:
        said = _read(headers, body)
        kind = _kind(status, said)
    return _build(kind, said.message, status=status, headers=headers, body=body, dialect=dialect)


def classify_error_object(
    error: object, status: int, headers: Mapping[str, str], body: bytes, *, dialect: Dialect = "openai"
) -> CallError:
    """Say what an error object means that came under a good status, in a JSON body or in a stream."""
    said = _read_object(error)
    kind = _kind(said.status, said)
    return _build(kind, said.message, status=status, headers=headers, body=body, dialect=dialect)


def no_answer(
    status: int, headers: Mapping[str, str], body: bytes, reason: str, *, code: str = "bad_reply"
) -> BadReply:
    """Say that a 2xx reply's body cannot be an answer; `reason` completes the sentence."""
    start = scrub(body[:80].decode(errors="replace"))
    return BadReply(
        f"HTTP {status}, but the body is no answer: {reason}" + (f": {start}" if start else ""),
        code=code,
        status=status,
        body=_kept(body),
        request_id=headers.get("x-request-id", "")[:256],
    )


def scrub(text: str) -> str:
    """Make a provider's words fit for shared files and terminals: one line of 2 KB, no account data."""
    printable = "".join(char if char.isprintable() else " " for char in _redact(text[: 2 * KEPT_BYTES]))
    line = " ".join(printable.split())
    return line.encode()[:KEPT_BYTES].decode(errors="ignore")


def _kind(status: int, said: _Said) -> _Kind:
    """Pick the error class and the code of the result line; the provider's code is kept where it is clear."""
    if known := _BY_CODE.get(said.code):
        return known
    if status == 413 or (status == 429 and said.message.startswith("Request too large")):
        # The provider calls it `rate_limit_exceeded`, which would read as if waiting helped.
        return TooLarge, "too_large"
    if status == 403 and not said.is_json:
        return HostBlocked, "host_blocked"
    if status == 404 and said.is_json and said.code != "unknown_url" and _MODEL.search(said.message):
        return ModelUnavailable, said.code or "model_not_found"
    error, code = _BY_STATUS.get(status) or _BY_CLASS.get(status // 100, (BadReply, "bad_status"))
    return error, said.code or code


def _build(
    kind: _Kind,
    message: str,
    *,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    dialect: Dialect,
) -> CallError:
    error, code = kind
    named_s = wait_named_s(message) if error is RateLimited else None
    return error(
        f"HTTP {status}: {scrub(message) or 'no message'}",
        code=code,
        status=status,
        body=_kept(body),
        request_id=headers.get("x-request-id", "")[:256],
        # The header is rounded and the text is not: the longer of the two is never too early.
        retry_after_s=max(retry_after_s(headers) or 0.0, named_s or 0.0) or None,
        limits=rate_limits(headers, dialect),
    )


def _read(headers: Mapping[str, str], body: bytes) -> _Said:
    if headers.get("content-type", "").startswith("text/html") or body[:256].lstrip()[:1] == b"<":
        title = _TITLE.search(body[: 4 * KEPT_BYTES].decode(errors="replace"))
        return _Said(f'a web page, "{title[1].strip()}"' if title else "a web page")
    try:
        parsed = orjson.loads(body) if len(body) <= _PARSED_BYTES else None
    except orjson.JSONDecodeError:
        parsed = None
    if isinstance(parsed, dict):
        return _read_object(parsed.get("error") or parsed)
    return _Said(body[: 2 * KEPT_BYTES].decode(errors="replace"))


def _read_object(error: object) -> _Said:
    if not isinstance(error, dict):
        return _Said(error if isinstance(error, str) else _as_json(error).decode(), is_json=True)
    message = error.get("message") or error.get("detail") or ""
    code, kind = error.get("code"), error.get("type")
    return _Said(
        message if isinstance(message, str) else _as_json(message).decode(),
        code=code if isinstance(code, str) and _SAFE_CODE.fullmatch(code) else "",
        status=_status_of(code, kind),
        is_json=True,
    )


def _status_of(code: object, kind: object) -> int:
    """Guess the status that an error object under status 200 should have had; 500 if it does not say."""
    if isinstance(code, int) and 400 <= code < 600:
        return code
    for name in (code, kind):
        if isinstance(name, str) and name in _STATUS_OF_TYPE:
            return _STATUS_OF_TYPE[name]
    return 500


def _redirect(headers: Mapping[str, str]) -> str:
    try:
        host = urlsplit(headers.get("location", "")).hostname
    except ValueError:
        host = None
    to = f"to {host}" if host else "to another path"
    return (
        f"the server redirects {to}; redirects are never followed, so the base URL must be the final address"
    )


def _redact(text: str) -> str:
    text = _ORGANISATION.sub("org_***", text)
    text = _BILLING_URL.sub("(billing page)", text)
    return _API_KEY.sub("***", text)


def _kept(body: bytes) -> bytes:
    """Keep a failed reply's body: scrubbed, 2 KB at most, and still JSON where it was an error object."""
    if len(body) > KEPT_BYTES:
        body = _shortened(body) or body[:KEPT_BYTES]
    text = body.decode(errors="replace")
    return _redact(text).encode()[:KEPT_BYTES]


def _shortened(body: bytes) -> bytes:
    """Cut the long strings of an error object, such as a failed generation; b"" if that is not enough."""
    try:
        error: Any = orjson.loads(body)["error"] if len(body) <= _PARSED_BYTES else None
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
        return b""
    if not isinstance(error, dict):
        return b""
    cut = {key: value[:400] if isinstance(value, str) else value for key, value in error.items()}
    short = _as_json({"error": cut})
    return short if len(short) <= KEPT_BYTES else b""


def _as_json(value: object) -> bytes:
    """Write a parsed value as JSON again; b"" where it is nested deeper than can be written."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return b""
