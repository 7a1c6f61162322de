"""Every fault the simulator can make, as a table: a name, and how the reply differs from a good one."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from batcher.errors import UsageError
from batcher.providers.simulator.bodies import (
    Reshape,
    error_body,
    gzip_bad,
    gzip_bomb,
    gzip_cut,
    half,
    instead,
    unchanged,
    web_page,
    with_choice,
    with_fields,
    with_usage,
    without_usage,
)


class Wire(Enum):
    """How the bytes of a reply are put on the socket, and how the connection ends."""

    WHOLE = "whole, then kept open"
    STREAM = "in chunks, then kept open"
    RESET = "nothing, then a reset"
    REFUSED = "no connection"
    CLOSE = "nothing, then closed"
    CUT_HEADERS = "half of the headers, then closed"
    CUT_BODY = "content-length, half of the body, then closed"
    CUT_CHUNKS = "some chunks, then closed"
    BAD_CHUNKS = "an illegal chunk size"
    EOF_BODY = "no length, half of the body, then closed"
    LONG_BODY = "more than content-length"
    TRICKLE = "in ten pieces, 50 ms apart"
    SLOW_LORIS = "byte by byte, 300 ms apart"
    HANG = "nothing, kept open"
    GARBAGE = "the body alone, not HTTP"
    EXTRA = "the reply, and one more that nobody asked for"
    EARLY_HINTS = "103 first"
    CLOSE_AFTER = "whole, then closed unannounced"
    ENDLESS = "chunks without end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to go wrong.

    Attributes:
        says: what happens, in a phrase.
        reshape: makes the body out of the good answer's body.
        delay_s: seconds beyond the usual latency.
        charged: whether the request had been let in, so that it counts toward the limits.
        cured: whether another try helps; such faults make up the preset `mixed`.
    """

    says: str
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    reshape: Reshape = unchanged
    content_type: str = "application/json"
    wire: Wire = Wire.WHOLE
    delay_s: float = 0.0
    charged: bool = True
    cured: bool = False

    @property
    def keeps_body(self) -> bool:
        """Whether the body is that of a good answer."""
        return self.reshape is unchanged


def _wire(says: str, wire: Wire, *, cured: bool = False, **fields: Any) -> Fault:
    return Fault(says=says, wire=wire, cured=cured, **fields)


def _answer(says: str, reshape: Reshape, *, cured: bool = False) -> Fault:
    return Fault(says=says, reshape=reshape, cured=cured)


def _packed(says: str, reshape: Reshape, encoding: str = "gzip") -> Fault:
    return Fault(says=says, reshape=reshape, headers=(("content-encoding", encoding),))


def _refusal(
    status: int, message: str, kind: str, code: str | None = None, *, cured: bool = False, **headers: str
) -> Fault:
    return Fault(
        says=f"{status} {code or kind}",
        status=status,
        headers=tuple((name.replace("_", "-"), value) for name, value in headers.items()),
        reshape=instead(error_body(message, kind=kind, code=code)),
        charged=False,
        cured=cured,
    )


def _bad_generation(code: str, message: str, *, cured: bool = False) -> Fault:
    body = error_body(message, kind="invalid_request_error", code=code, failed_generation='{"simulated": tru')
    return Fault(says=f"400 {code}", status=400, reshape=instead(body), cured=cured)


def _page(status: int, title: str, *, cured: bool = False) -> Fault:
    return Fault(
        says=f"{status} with a web page",
        status=status,
        reshape=instead(web_page(title)),
        content_type="text/html; charset=UTF-8",
        headers=(("server", "cloudflare"), ("cf-ray", "0123456789abcdef-SIM")),
        charged=status == 200,
        cured=cured,
    )


_IN_A_DAY = (
    "Rate limit reached for model `simulated` in organization `org_simulated` service tier `on_demand` on "
    "tokens per day (TPD): Limit 100000, Used 97050, Requested 33019. Please try again in 7h13m0.576s."
)
_IN_A_MOMENT = (
    "Rate limit reached for model `simulated` in organization `org_simulated` service tier `on_demand` on "
    "tokens per minute (TPM): Limit 12000, Used 2542, Requested 9855. Please try again in 1.985s."
)

FAULTS: Mapping[str, Fault] = {
    # The connection breaks, stalls, or carries something that is not quite HTTP.
    "reset": _wire("reset before the answer", Wire.RESET, cured=True),
    "refused": _wire("connection refused (over a socket: reset)", Wire.REFUSED, charged=False),
    "close": _wire("closed before the headers", Wire.CLOSE, cured=True),
    "close-in-headers": _wire("closed amid the headers", Wire.CUT_HEADERS, cured=True),
    "close-in-body": _wire("closed before content-length is reached", Wire.CUT_BODY, cured=True),
    "close-after": _wire("a good answer, then closed unannounced", Wire.CLOSE_AFTER),
    "chunks-cut": _wire("closed between two chunks", Wire.CUT_CHUNKS, cured=True),
    "chunks-bad": _wire("an illegal chunk size", Wire.BAD_CHUNKS, cured=True),
    "eof-body": _wire("no length, and half a body before the end", Wire.EOF_BODY, cured=True),
    "long-body": _wire("a body longer than content-length", Wire.LONG_BODY),
    "huge-body": _wire("a body that does not end", Wire.ENDLESS),
    "trickle": _wire("the answer in ten pieces over half a second", Wire.TRICKLE, cured=True),
    "slow-loris": _wire("the answer byte by byte, 0.3 s apart", Wire.SLOW_LORIS),
    "slow": _wire("the answer 5 s late (`slow:SECONDS` for another delay)", Wire.WHOLE, delay_s=5.0),
    "hang": _wire("never an answer", Wire.HANG),
    "garbage": _wire(
        "bytes that are no HTTP", Wire.GARBAGE, reshape=instead(b"\x16\x03\x01\0\xff not HTTP\r\n\r\n")
    ),
    "http09": _wire("a body without status or headers", Wire.GARBAGE),
    "extra-response": _wire("a second response that nobody asked for", Wire.EXTRA),
    "early-hints": _wire("103 before the good answer", Wire.EARLY_HINTS),
    "huge-headers": _wire("a header of 200 KB", Wire.WHOLE, headers=(("x-simulated", "x" * 200_000),)),
    "many-headers": _wire(
        "10,000 headers", Wire.WHOLE, headers=tuple((f"x-simulated-{n}", "x") for n in range(10_000))
    ),
    "nul-header": _wire("a header with a NUL", Wire.WHOLE, headers=(("x-simulated", "a\0b"),)),
    # Status 200, and yet no answer.
    "html200": _page(200, "Sign in to the network", cured=True),
    "empty200": _answer("200 without a body", instead(b""), cured=True),
    "json-null": _answer("200 with null", instead(b"null")),
    "json-list": _answer("200 with a list", instead(b"[]")),
    "json-string": _answer("200 with a string", instead(b'"simulated"')),
    "json-number": _answer("200 with a number", instead(b"42")),
    "json-object": _answer("200 with {}", instead(b"{}"), cured=True),
    "choices-empty": _answer("200 with no choices", with_fields(choices=[], data=[], output=[])),
    "choices-null": _answer("200 with choices null", with_fields(choices=None, data=None, output=None)),
    "message-null": _answer("200 with message null", with_choice(message=None)),
    "content-null": _answer(
        "200 with content null", with_choice(message={"role": "assistant", "content": None})
    ),
    "error-200": _answer(
        "200 with an error object", instead(error_body("Simulated failure", kind="internal_server_error"))
    ),
    "truncated-json": _answer("200 with half the JSON", half, cured=True),
    "bad-utf8": _answer(
        "200 with invalid UTF-8", lambda body: body.replace(b"[simulated]", b"[\xff\xfe]", 1) + b"\xff"
    ),
    "gzip-truncated": _packed("gzip cut short, content-length right", gzip_cut),
    "gzip-bad": _packed("gzip with bytes overwritten", gzip_bad),
    "gzip-bomb": _packed("gzip that unpacks to 256 MB", lambda _: gzip_bomb()),
    "encoding-unknown": _packed("an encoding that nobody knows", unchanged, "simulated"),
    "204": Fault(says="204, no content", status=204, reshape=instead(b"")),
    # Good answers with odd values.
    "usage-missing": _answer("an answer without usage", without_usage),
    "usage-strings": _answer("usage in strings", with_usage("12")),
    "usage-negative": _answer("negative usage", with_usage(-7)),
    "usage-huge": _answer("usage of 10^18", with_usage(10**18)),
    "content-filter": _answer("finish_reason content_filter", with_choice(finish_reason="content_filter")),
    "wrong-model": _answer("an answer by another model", with_fields(model="simulated/other-model")),
    # What an API says when it will not answer.
    "json_validate_failed": _bad_generation(
        "json_validate_failed", "Failed to generate JSON. Adjust your prompt.", cured=True
    ),
    "tool_use_failed": _bad_generation("tool_use_failed", "Failed to call a function. Adjust your prompt."),
    "model_decommissioned": _refusal(
        400, "The model has been decommissioned.", "invalid_request_error", "model_decommissioned"
    ),
    "model_not_found": _refusal(
        404, "The model does not exist or you do not have access to it.", "invalid_request_error",
        "model_not_found",
    ),
    "401": _refusal(401, "Invalid API Key", "invalid_request_error", "invalid_api_key"),
    "403": _refusal(
        403, "The model is blocked for this project.", "permissions_error", "model_permission_blocked_project"
    ),
    "413": _refusal(
        413, _IN_A_MOMENT.replace("Rate limit reached", "Request too large"), "tokens", "rate_limit_exceeded"
    ),
    "429": _refusal(
        429, "Too many requests.", "requests", "rate_limit_exceeded", cured=True, retry_after="0.2"
    ),
    "429-bare": _refusal(429, "Too many requests.", "requests", "rate_limit_exceeded"),
    "429-text": _refusal(429, _IN_A_MOMENT, "tokens", "rate_limit_exceeded"),
    "429-day": _refusal(429, _IN_A_DAY, "tokens", "rate_limit_exceeded", retry_after="25981"),
    "498": _refusal(
        498, "The flex tier has no capacity left.", "capacity_error", "capacity_exceeded", cured=True
    ),
}  # fmt: skip

_MIXED_STATUSES = ("status:500", "status:502", "status:503", "html:502")
MIXED: tuple[str, ...] = (*(name for name, fault in FAULTS.items() if fault.cured), *_MIXED_STATUSES)
"""The faults among which the preset `mixed` shares out its rate: another try cures each."""

PATTERNS: Mapping[str, str] = {
    "status:NNN": "any status with an error in JSON",
    "html:NNN": "any status with a web page",
    "empty:NNN": "any status without a body",
    "truncated:NNN": "any status with half an error in JSON",
    "redirect:NNN": "301, 302, 303, 307 or 308 to another host",
    "slow:SECONDS": "the answer that much later",
}
"""The kinds that take a number."""


def _by_status(shape: str, status: int, redirect_to: str) -> Fault:
    body = error_body(f"Simulated error {status}", kind="internal_server_error")
    charged = status < 300
    shared: dict[str, Any] = {"status": status, "charged": charged}
    match shape:
        case "html":
            return _page(status, "Attention Required!" if status < 500 else f"Error {status}")
        case "empty":
            return Fault(says=f"{status} without a body", reshape=instead(b""), **shared)
        case "truncated":
            return Fault(says=f"{status} with half a body", reshape=instead(half(body)), **shared)
        case "redirect":
            headers = (("location", redirect_to),)
            return Fault(says=f"{status} to {redirect_to}", headers=headers, reshape=instead(b""), **shared)
        case _:
            return Fault(says=f"{status} with an error", reshape=instead(body), **shared)


@lru_cache(maxsize=1024)
def find_fault(kind: str, redirect_to: str = "http://127.0.0.1:9/") -> Fault:
    """Return the fault of that name, such as `reset` or `status:503`.

    Raises:
        UsageError: there is no such kind.
    """
    if fault := FAULTS.get(kind):
        return fault
    shape, colon, number = kind.partition(":")
    if colon and shape == "slow":
        try:
            return _wire(f"the answer {number} s late", Wire.WHOLE, delay_s=float(number))
        except ValueError:
            raise UsageError(f"unknown fault {kind!r}: expected slow:SECONDS, such as slow:2.5") from None
    if colon and f"{shape}:NNN" in PATTERNS:
        if not (len(number) == 3 and number.isascii() and number.isdigit() and "200" <= number < "600"):
            raise UsageError(f"unknown fault {kind!r}: expected {shape}:NNN with a status from 200 to 599")
        return _by_status(shape, int(number), redirect_to)
    close = difflib.get_close_matches(kind, [*FAULTS, *PATTERNS, "mixed"], n=1)
    hint = f"did you mean {close[0]!r}?" if close else "`batcher simulator --list-faults` lists them"
    raise UsageError(f"unknown fault {kind!r}: {hint}")
