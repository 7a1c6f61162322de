"""Each fault as a raw socket sees it."""

import gzip
import zlib
from collections.abc import Callable

import orjson
import pytest
from socket_client import Seen, chat_request, exchange

from batcher.providers.simulator.fault_plan import FaultPlan
from batcher.providers.simulator.faults import FAULTS, PATTERNS
from batcher.providers.simulator.server import start_embedded
from batcher.providers.simulator.settings import SimulatorSettings

Check = Callable[[Seen], object]

ANSWER = b"[simulated] Answer to: Hello"


def answers(seen: Seen) -> bool:
    return seen.status == 200 and ANSWER in seen.body


def length(seen: Seen) -> int:
    return int(seen.headers["content-length"])


def body(expected: bytes) -> Check:
    return lambda seen: seen.status == 200 and seen.body == expected


def choice(**fields: object) -> Check:
    return lambda seen: orjson.loads(seen.body)["choices"][0].items() >= fields.items()


def fields(**expected: object) -> Check:
    return lambda seen: orjson.loads(seen.body).items() >= expected.items()


def error(status: int, code: str | None) -> Check:
    return lambda seen: seen.status == status and orjson.loads(seen.body)["error"].get("code") == code


def usage(value: object) -> Check:
    return lambda seen: set(orjson.loads(seen.body)["usage"].values()) == {value}


def says(seen: Seen, text: str) -> bool:
    return text in orjson.loads(seen.body)["error"]["message"]


def unpacks(seen: Seen) -> bool:
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    unpacker.decompress(seen.body)
    return unpacker.eof


def breaks_gzip(seen: Seen) -> bool:
    with pytest.raises((OSError, EOFError, zlib.error)):
        gzip.decompress(seen.body)
    return seen.headers["content-encoding"] == "gzip" and length(seen) == len(seen.body)


def is_page(status: int) -> Check:
    return lambda seen: (
        seen.status == status
        and seen.headers["content-type"].startswith("text/html")
        and seen.body.startswith(b"<!DOCTYPE html>")
        and length(seen) == len(seen.body)
    )


def redirects(seen: Seen) -> bool:
    return seen.status == 307 and seen.headers["location"] == "http://127.0.0.1:9/elsewhere"


WIRE: dict[str, tuple[str, Check]] = {
    "reset": ("reset", lambda seen: seen.raw == b""),
    "refused": ("reset", lambda seen: seen.raw == b""),
    "close": ("closed", lambda seen: seen.raw == b""),
    "close-in-headers": ("closed", lambda seen: seen.status == 200 and b"\r\n\r\n" not in seen.raw),
    "close-in-body": ("closed", lambda seen: 0 < len(seen.body) < length(seen)),
    "close-after": ("closed", lambda seen: answers(seen) and "connection" not in seen.headers),
    "chunks-cut": ("closed", lambda seen: "chunked" in seen.head and not seen.body.endswith(b"0\r\n\r\n")),
    "chunks-bad": ("closed", lambda seen: "chunked" in seen.head and seen.body.startswith(b"not a size\r\n")),
    "eof-body": (
        "closed",
        lambda seen: seen.raw.startswith(b"HTTP/1.0 200") and seen.body.startswith(b'{"id"'),
    ),
    "long-body": ("open", lambda seen: len(seen.body) > length(seen)),
    "huge-body": ("open", lambda seen: "chunked" in seen.head and len(seen.body) > 900_000),
    "trickle": ("open", lambda seen: answers(seen) and len(seen.body) == length(seen)),
    "slow-loris": ("open", lambda seen: "content-length" in seen.headers and seen.body == b""),
    "slow": ("open", lambda seen: seen.raw == b""),
    "slow:0.05": ("open", answers),
    "hang": ("open", lambda seen: seen.raw == b""),
    "garbage": ("closed", lambda seen: seen.raw and not seen.raw.startswith(b"HTTP")),
    "http09": ("closed", lambda seen: seen.raw.startswith(b'{"id"')),
    "extra-response": ("open", lambda seen: seen.raw.count(b"HTTP/1.1 200 OK") == 2),
    "early-hints": ("open", lambda seen: seen.status == 103 and b"\r\n\r\nHTTP/1.1 200 OK" in seen.raw),
    "huge-headers": ("open", lambda seen: len(seen.headers["x-simulated"]) == 200_000 and answers(seen)),
    "many-headers": ("open", lambda seen: len(seen.headers) > 10_000 and answers(seen)),
    "nul-header": ("open", lambda seen: "\0" in seen.headers["x-simulated"]),
}

REPLIES: dict[str, Check] = {
    "html200": is_page(200),
    "empty200": body(b""),
    "json-null": body(b"null"),
    "json-list": body(b"[]"),
    "json-string": body(b'"simulated"'),
    "json-number": body(b"42"),
    "json-object": body(b"{}"),
    "choices-empty": fields(choices=[]),
    "choices-null": fields(choices=None),
    "message-null": choice(message=None),
    "content-null": choice(message={"role": "assistant", "content": None}),
    "error-200": error(200, None),
    "truncated-json": lambda seen: seen.body.startswith(b'{"id"') and length(seen) == len(seen.body),
    "bad-utf8": lambda seen: b"[\xff\xfe]" in seen.body,
    "gzip-truncated": breaks_gzip,
    "gzip-bad": breaks_gzip,
    "gzip-bomb": lambda seen: len(seen.body) < 1_000_000 and unpacks(seen),
    "encoding-unknown": lambda seen: seen.headers["content-encoding"] == "simulated",
    "204": lambda seen: seen.status == 204 and "content-length" not in seen.headers and not seen.body,
    "usage-missing": lambda seen: ANSWER in seen.body and "usage" not in orjson.loads(seen.body),
    "usage-strings": usage("12"),
    "usage-negative": usage(-7),
    "usage-huge": usage(10**18),
    "content-filter": choice(finish_reason="content_filter"),
    "wrong-model": fields(model="simulated/other-model"),
    "json_validate_failed": error(400, "json_validate_failed"),
    "tool_use_failed": error(400, "tool_use_failed"),
    "model_decommissioned": error(400, "model_decommissioned"),
    "model_not_found": error(404, "model_not_found"),
    "401": error(401, "invalid_api_key"),
    "403": error(403, "model_permission_blocked_project"),
    "413": error(413, "rate_limit_exceeded"),
    "429": lambda seen: seen.status == 429 and 0 < float(seen.headers["retry-after"]) < 1,
    "429-bare": lambda seen: seen.status == 429 and not {"retry-after"} & set(seen.headers),
    "429-text": lambda seen: says(seen, "try again in 1.985s") and "retry-after" not in seen.headers,
    "429-day": lambda seen: says(seen, "(TPD)") and int(seen.headers["retry-after"]) > 3600,
    "498": error(498, "capacity_exceeded"),
    "status:599": error(599, None),
    "html:520": is_page(520),
    "html:403": is_page(403),
    "empty:503": lambda seen: seen.status == 503 and seen.body == b"",
    "truncated:500": lambda seen: seen.status == 500 and seen.body.startswith(b'{"error"'),
    "redirect:307": redirects,
}


async def _meet(kind: str) -> Seen:
    plan = FaultPlan(by_id={"Hello": (kind,)}, redirect_to="http://127.0.0.1:9/elsewhere")
    async with start_embedded(SimulatorSettings(faults=plan)) as server:
        seen = await exchange(server.port, chat_request())
        assert server.simulation.by_fault == {kind: 1}
        assert b"[simulated] Answer to: Hello" in (await exchange(server.port, chat_request())).body
        return seen


@pytest.mark.real_loop
@pytest.mark.parametrize("kind", WIRE)
async def test_a_fault_of_the_connection_shows_on_the_socket(kind: str) -> None:
    end, check = WIRE[kind]
    seen = await _meet(kind)
    assert seen.end == end
    assert check(seen)


@pytest.mark.real_loop
@pytest.mark.parametrize("kind", REPLIES)
async def test_a_fault_of_the_reply_leaves_the_connection_open(kind: str) -> None:
    seen = await _meet(kind)
    assert seen.end == "open"
    assert REPLIES[kind](seen)


def test_every_kind_of_fault_is_shown_here() -> None:
    shown = {*WIRE, *REPLIES}
    assert set(FAULTS) <= shown
    assert {pattern.partition(":")[0] for pattern in PATTERNS} == {
        kind.partition(":")[0] for kind in shown - set(FAULTS)
    }


@pytest.mark.real_loop
@pytest.mark.parametrize("kind", ["close-in-body", "truncated-json", "json-object", "status:503"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_faults_strike_streamed_answers_too(kind: str, stream: bool) -> None:
    plan = FaultPlan(by_id={"Hello": (kind,)})
    async with start_embedded(SimulatorSettings(faults=plan)) as server:
        seen = await exchange(server.port, chat_request(stream=stream))
        assert b"[DONE]" not in seen.body
        assert server.simulation.by_fault == {kind: 1}
