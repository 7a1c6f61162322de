"""The map of faults is complete, says the right thing, and never lets account data out."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher import errors
from batcher.errors import (
    AttemptTimeout,
    BadGeneration,
    BadReply,
    CallError,
    CapacityExceeded,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    HostBlocked,
    InvalidRequest,
    KeyDoubted,
    KeyRefused,
    LocalFault,
    ModelUnavailable,
    RateLimited,
    ServerError,
    TooLarge,
)
from batcher.providers.failures import KEPT_BYTES, classify, classify_error_object, no_answer, scrub

HTML = b"<!DOCTYPE html>\n<html><head><title>Attention Required! | Cloudflare</title></head></html>"


def error_body(message: str = "no", code: str | int | None = None, kind: str | None = None) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "code": code}})


BODIES = {
    "none": b"",
    "groq": error_body("It is no good", "some_code", "invalid_request_error"),
    "openai": error_body("It is no good", None, "server_error"),
    "html": HTML,
    "cut": b'{"error": {"message": "It is',
    "5 MB": b"x" * 5_000_000,
}
MADE_BY_TRANSPORT = {ConnectFailed, LocalFault, ConnectionLost, AttemptTimeout}
MADE_BY_EXECUTION = {DeadlineExceeded, KeyDoubted}


def leaves(kind: type[CallError]) -> set[type[CallError]]:
    below = kind.__subclasses__()
    return set().union(*map(leaves, below)) if below else {kind}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_statuses_that_are_no_errors_have_one_too(body: bytes) -> None:
    for status in [*range(100, 200), *range(300, 400), *range(600, 1000)]:
        error = classify(status, {}, body)
        assert error.status == status
        assert len(error.body) <= KEPT_BYTES
        assert len(str(error).encode()) <= KEPT_BYTES + 20
        assert str(error).startswith(f"HTTP {status}: ")
        assert type(error) is (InvalidRequest if 300 <= status < 400 else BadReply)


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (400, error_body("x", "json_validate_failed"), BadGeneration, "bad_generation"),
        (400, error_body("x", "tool_use_failed"), BadGeneration, "bad_generation"),
        (400, error_body("x", "model_decommissioned"), ModelUnavailable, "model_decommissioned"),
        (400, error_body("x", "context_length_exceeded"), TooLarge, "context_length_exceeded"),
        (400, error_body("x", "invalid_api_key"), KeyRefused, "invalid_api_key"),
        (400, error_body("x", kind="invalid_request_error"), InvalidRequest, "invalid_request"),
        (400, error_body("x", "Not Safe!"), InvalidRequest, "invalid_request"),
        (400, error_body("x", "c" * 65), InvalidRequest, "invalid_request"),
        (400, error_body("x", "wrong_api_format"), InvalidRequest, "wrong_api_format"),
        (401, error_body("x", "invalid_api_key"), KeyRefused, "invalid_api_key"),
        (401, b"", KeyRefused, "key_refused"),
        (402, b"", KeyRefused, "payment_required"),
        (403, HTML, HostBlocked, "host_blocked"),
        (403, b"", HostBlocked, "host_blocked"),
        (403, error_body("Forbidden"), ModelUnavailable, "forbidden"),
        (404, error_body("No model `m`", "model_not_found"), ModelUnavailable, "model_not_found"),
        (404, b'{"object":"error","message":"No model `m`"}', ModelUnavailable, "model_not_found"),
        (404, error_body("No URL of the model API", "unknown_url"), InvalidRequest, "unknown_url"),
        (404, b'{"detail":"Not Found"}', InvalidRequest, "not_found"),
        (404, HTML, InvalidRequest, "not_found"),
        (413, error_body("Request too large", "rate_limit_exceeded", "tokens"), TooLarge, "too_large"),
        (413, b"", TooLarge, "too_large"),
        (422, error_body("x"), InvalidRequest, "invalid_request"),
        (424, b"", BadGeneration, "failed_dependency"),
        (429, error_body("Slow down", "rate_limit_exceeded"), RateLimited, "rate_limit_exceeded"),
        (429, error_body("Request too large for m on TPM", "rate_limit_exceeded"), TooLarge, "too_large"),
        (429, error_body("No credit", "insufficient_quota"), KeyRefused, "insufficient_quota"),
        (429, HTML, RateLimited, "rate_limited"),
        (498, error_body("full", "capacity_exceeded"), CapacityExceeded, "capacity_exceeded"),
        (499, b"", InvalidRequest, "invalid_request"),
        (503, error_body("x", "service_unavailable"), ServerError, "service_unavailable"),
        (520, HTML, ServerError, "server_error"),
    ],
)
def test_status_and_code_decide(status: int, body: bytes, kind: type[CallError], code: str) -> None:
    error = classify(status, {}, body)
    assert (type(error), error.code) == (kind, code)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "slow", "code": "rate_limit_exceeded"}, RateLimited),
        ({"message": "x", "code": "tool_use_failed"}, BadGeneration),
        ({"message": "x", "code": "model_not_found"}, ModelUnavailable),
        ({"message": "x", "type": "invalid_request_error"}, InvalidRequest),
        ({"message": "x", "type": "authentication_error"}, KeyRefused),
        ({"message": "x", "code": 429}, RateLimited),
        ({"message": "x", "code": 200}, ServerError),
        ({"message": "upstream failed"}, ServerError),
        ("upstream failed", ServerError),
        (["what"], ServerError),
    ],
)
def test_an_error_under_a_good_status_is_known_by_its_words(error: object, kind: type[CallError]) -> None:
    found = classify_error_object(error, 200, {}, b"")
    assert (type(found), found.status) == (kind, 200)


def test_every_kind_of_error_is_made_by_somebody() -> None:
    made = {type(classify(status, {}, body)) for status in range(300, 600) for body in (b"", b"{}")}
    made |= {type(classify(400, {}, error_body("x", "tool_use_failed"))), type(no_answer(200, {}, b"", "x"))}
    assert made | MADE_BY_TRANSPORT | MADE_BY_EXECUTION == leaves(errors.CallError)
    assert not made & (MADE_BY_TRANSPORT | MADE_BY_EXECUTION)


@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        ({}, "slow down", None),
        ({"retry-after": "2"}, "slow down", 2.0),
        ({}, "Please try again in 9m38.016s. Need more?", 578.016),
        ({"retry-after": "7"}, "Please try again in 7.66s.", 7.66),
        ({"retry-after": "8"}, "Please try again in 7.66s.", 8.0),
        ({"retry-after": "-1"}, "Please try again in 900h.", None),
    ],
)
def test_a_429_tells_how_long_to_wait(headers: dict[str, str], message: str, seconds: float | None) -> None:
    assert classify(429, headers, error_body(message)).retry_after_s == seconds


def test_a_failure_carries_what_its_headers_say() -> None:
    headers = {"retry-after": "3", "x-request-id": "req_1", "x-ratelimit-limit-requests": "1000"}
    error = classify(503, headers, b"", dialect="groq")
    assert (error.retry_after_s, error.request_id) == (3.0, "req_1")
    assert error.limits is not None
    assert (error.limits.requests, error.limits.requests_window_s) == (1000, 86_400.0)


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("https://user:hunter2@elsewhere.example/x?key=1", "to elsewhere.example;"),
        ("/v2/x", "to another path;"),
        ("http://[", "to another path;"),
        (None, "to another path;"),
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_names_the_host_and_is_final(status: int, location: str | None, says: str) -> None:
    error = classify(status, {"location": location} if location else {}, b"")
    assert (type(error), error.code) == (InvalidRequest, "redirected")
    assert says in str(error)
    assert "hunter2" not in str(error)


def test_account_data_and_controls_stay_out() -> None:
    message = (
        "Limit for org_01kabcdefgh2345\n\x1b[2J\u202e of org-AbCdEfGh12345678, "
        "key gsk_abcdefgh12345678; pay at https://console.groq.com/settings/billing?x=1 now"
    )
    error = classify(429, {}, error_body(message))
    assert str(error) == "HTTP 429: Limit for org_*** [2J of org_***, key ***; pay at (billing page) now"
    for private in (b"org_01k", b"org-AbC", b"gsk_", b"/settings/billing"):
        assert private not in error.body
    assert orjson.loads(error.body)["error"]["message"].startswith("Limit for org_***")


def test_a_long_error_body_is_cut_and_stays_json() -> None:
    body = orjson.dumps(
        {"error": {"message": "m", "code": "tool_use_failed", "failed_generation": "é" * 9000}}
    )
    kept = classify(400, {}, body).body
    assert len(kept) <= KEPT_BYTES
    assert orjson.loads(kept)["error"]["failed_generation"].startswith("éé")


@given(st.text(), st.integers(300, 599), st.sampled_from(["{}", '{"error":%s}', "%s", '{"detail":[%s]}']))
def test_no_body_breaks_the_map(text: str, status: int, shape: str) -> None:
    quoted = orjson.dumps(text).decode()
    error = classify(status, {}, (shape.replace("%s", quoted)).encode())
    assert str(error).isprintable()
    assert len(error.body) <= KEPT_BYTES


@given(st.text(max_size=5000))
def test_a_scrubbed_text_is_one_printable_line(text: str) -> None:
    assert scrub(text).isprintable()
    assert len(scrub(text).encode()) <= KEPT_BYTES
