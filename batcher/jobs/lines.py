"""One line of a job file, checked and turned into a `Job`."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import orjson

from batcher.errors import BadLine
from batcher.jobs.malformed import ARRAY_FILE, TOO_DEEP, explain
from batcher.jobs.rules import (
    BATCH_RULES,
    INPUT,
    MESSAGES,
    MODEL,
    SHORT_RULES,
    Rule,
    check_known_fields,
    check_params,
    seen,
    wrong,
)
from batcher.jobs.weights import choose_model
from batcher.text.structured import schema_fault
from batcher.types import Endpoint, Job

CHAT: Final[Endpoint] = "/v1/chat/completions"

_CONTENT: dict[Endpoint, tuple[str, Rule]] = {
    CHAT: ("messages", MESSAGES),
    "/v1/embeddings": ("input", INPUT),
    "/v1/responses": ("input", INPUT),
}
_BATCH_NEEDS = frozenset({"method", "url", "body"})
_BATCH_MARKS = _BATCH_NEEDS | {"custom_id"}
_DIGITS = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else ord(" ") for byte in range(256))
# An integer outside 64 bits has at least 19 digits, and of so many every sixth byte shows three: to look for
# the three first, and then for the 19, costs a twentieth of an exact check.
_NINETEEN_DIGITS = b"0" * 19
_THREE_DIGITS = b"0" * 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LineDefaults:
    """What stands in for a line's silence; it is part of the request and so of its identity.

    Attributes:
        model: for lines that name none.
        weights: models for lines that name none, each with its share (> 0) of them; not with `model`.
        default_max_completion_tokens: for chat lines that name no maximum (> 0).
        fallback: for lines that name no fallback models; not part of the request.
    """

    model: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    default_max_completion_tokens: int | None = None
    fallback: tuple[str, ...] = ()


class CheckedLine(msgspec.Struct):
    """A good line, before a `Job` is worth building.

    Attributes:
        id: "" if the line names none.
        body: the request, defaults filled in.
        fields: the line itself.
    """

    id: str
    endpoint: Endpoint
    model: str
    priority: int
    request_sha256: str
    body: dict[str, Any]
    fields: dict[str, Any]


class _WrittenParts(msgspec.Struct):
    """The parts of a line that are handed on exactly as they were written."""

    body: msgspec.Raw = msgspec.Raw()
    metadata: msgspec.Raw = msgspec.Raw()
    schema: msgspec.Raw = msgspec.Raw()


_written_parts = msgspec.json.Decoder(_WrittenParts)
_NOTHING_WRITTEN = _WrittenParts()
_AS_WRITTEN = frozenset(_WrittenParts.__struct_fields__)


def parse_line(line: bytes, where: str, defaults: LineDefaults) -> Job:
    """Turn a line of either form into a job; its id is "" if the line names none.

    Where an object has a key twice, the last one counts.

    Raises:
        BadLine: with what was seen and what was expected.
    """
    checked = check_line(line, defaults)
    return build_job(checked, line, job_id=checked.id, where=where, defaults=defaults)


def assigned_id(request_sha256: str, ordinal: int = 1) -> str:
    """Name a job after its request; `ordinal` (>= 1) tells equal requests apart."""
    return request_sha256[:16] if ordinal == 1 else f"{request_sha256[:16]}-{ordinal}"


def check_line(line: bytes, defaults: LineDefaults) -> CheckedLine:
    """Check everything that can be wrong with a line, and compute the identity of its request.

    Raises:
        BadLine: with what was seen and what was expected.
    """
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadLine(explain(line, error)) from None
    if not isinstance(fields, dict):
        raise BadLine(_not_an_object(fields))
    # `find`, as `in` first tries whether the needle is a number.
    if (
        line[::6].translate(_DIGITS).find(_THREE_DIGITS) >= 0
        and line.translate(_DIGITS).find(_NINETEEN_DIGITS) >= 0
    ):
        _refuse_huge_integers(line)
    if _BATCH_MARKS.isdisjoint(fields):
        _check_short(fields)
        request = fields
    else:
        _check_batch(fields)
        request = fields["body"]
    if "schema" in fields and (fault := schema_fault(orjson.dumps(fields["schema"]))):
        raise BadLine(f'"schema" is not a JSON schema that can be used: {fault}')
    _check_model(request, defaults)
    return _understand(fields, defaults)


def reread_line(line: bytes, defaults: LineDefaults) -> CheckedLine:
    """Return what `check_line` returned for the very same line and defaults, without a second check."""
    return _understand(orjson.loads(line), defaults)


def build_job(checked: CheckedLine, line: bytes, *, job_id: str, where: str, defaults: LineDefaults) -> Job:
    """Build the job of a checked line; a body that the line gave is handed on as it was written."""
    fields = checked.fields
    written = _NOTHING_WRITTEN
    if not _AS_WRITTEN.isdisjoint(fields):
        written = _written_parts.decode(line)
    body = bytes(written.body)
    if not body:
        body = orjson.dumps(checked.body)
    elif checked.body is not fields["body"]:
        filled = {key: value for key, value in checked.body.items() if key not in fields["body"]}
        body = orjson.dumps(filled)[:-1] + b"," + body[1:]
    return Job(
        id=job_id,
        endpoint=checked.endpoint,
        model=checked.model,
        body=body,
        request_sha256=checked.request_sha256,
        where=where,
        priority=checked.priority,
        fallback=tuple(fields["fallback"]) if "fallback" in fields else defaults.fallback,
        metadata=bytes(written.metadata) or None,
        deadline_s=float(fields["deadline_s"]) if "deadline_s" in fields else None,
        schema=bytes(written.schema) or None,
        kind=fields.get("kind", "chat"),
    )


def _check_batch(fields: dict[str, Any]) -> None:
    check_known_fields(fields, BATCH_RULES, form="Batch line")
    if missing := _BATCH_NEEDS.difference(fields):
        name = min(missing)
        raise BadLine(f'"{name}" is missing from a Batch line: expected {BATCH_RULES[name].expected}')
    endpoint: Endpoint = fields["url"]
    body = fields["body"]
    content, rule = _CONTENT[endpoint]
    if content not in body:
        raise BadLine(f'"body" has no "{content}": {endpoint} needs {rule.expected}')
    if not rule.holds(body[content]):
        raise wrong(f"body.{content}", body[content], rule)


def _check_short(fields: dict[str, Any]) -> None:
    check_known_fields(fields, SHORT_RULES, form="short line")
    if ("prompt" in fields) == ("messages" in fields):
        amount = 'both "prompt" and "messages"' if "prompt" in fields else 'neither "prompt" nor "messages"'
        raise BadLine(f"the line has {amount}: expected exactly one of them")
    if "params" in fields:
        check_params(fields["params"])


def _check_model(request: dict[str, Any], defaults: LineDefaults) -> None:
    if "model" in request:
        if not MODEL.holds(request["model"]):
            raise wrong("model", request["model"], MODEL)
    elif defaults.model is None and not defaults.weights:
        raise BadLine('no "model" is named: add one to the line, or name one for all with --model')


def _understand(fields: dict[str, Any], defaults: LineDefaults) -> CheckedLine:
    """Say what a good line asks for.

    Raises:
        BadLine: the request is nested too deep, which only writing it out shows.
    """
    if _BATCH_MARKS.isdisjoint(fields):
        name = fields.get("id", "")
        endpoint, body = CHAT, _short_body(fields)
    else:
        name = fields.get("custom_id", "")
        endpoint, body = fields["url"], fields["body"]
    job_id = name if name.__class__ is str else str(name)
    body = _fill(job_id, endpoint, body, defaults)
    try:
        canonical = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        raise BadLine(TOO_DEEP) from None
    return CheckedLine(
        job_id,
        endpoint,
        body["model"],
        fields.get("priority", 0),
        hashlib.sha256(endpoint.encode() + canonical).hexdigest(),
        body,
        fields,
    )


def _short_body(fields: dict[str, Any]) -> dict[str, Any]:
    messages = fields["messages"] if "messages" in fields else [{"role": "user", "content": fields["prompt"]}]
    if "system" in fields:
        messages = [{"role": "system", "content": fields["system"]}, *messages]
    body = {"messages": messages}
    if "model" in fields:
        body = {"model": fields["model"], "messages": messages}
    if "params" in fields:
        body |= fields["params"]
    if "schema" in fields and "response_format" not in body:
        answer = {"name": "answer", "schema": fields["schema"]}
        body["response_format"] = {"type": "json_schema", "json_schema": answer}
    return body


def _fill(job_id: str, endpoint: Endpoint, body: dict[str, Any], defaults: LineDefaults) -> dict[str, Any]:
    """Fill the defaults in at the front; the same object comes back if there was nothing to fill in."""
    filled: dict[str, Any] = {}
    if "model" not in body:
        model = defaults.model
        if model is None:
            model = choose_model(defaults.weights, job_id, endpoint, body)
        filled["model"] = model
    if (
        defaults.default_max_completion_tokens is not None
        and endpoint == CHAT
        and "max_completion_tokens" not in body
        and "max_tokens" not in body
    ):
        filled["max_completion_tokens"] = defaults.default_max_completion_tokens
    return {**filled, **body} if filled else body


def _not_an_object(value: object) -> str:
    if isinstance(value, list):
        return ARRAY_FILE
    return f"the line is {seen(value)}: expected a JSON object"


def _refuse_huge_integers(line: bytes) -> None:
    """Refuse integers outside 64 bits, which would silently become inexact."""

    def check(digits: str) -> None:
        if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
            shown = digits if len(digits) <= 40 else f"{digits[:37]}..."
            raise BadLine(f"the integer {shown} does not fit into 64 bits: write it as a string")

    try:
        json.loads(line, parse_int=check)
    except RecursionError:
        raise BadLine(TOO_DEEP) from None
