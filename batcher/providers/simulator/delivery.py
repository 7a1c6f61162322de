"""Turns a plan into bytes with pauses between them: all the ways to speak HTTP, and not quite to."""

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from http import HTTPStatus

from batcher.providers.simulator.faults import Wire
from batcher.providers.simulator.model import Plan

_PIECES = 10
_PIECE_S = 0.05
_LORIS_S = 0.3
_CLOSE_AFTER_S = 0.05
_ENDLESS_CHUNK = b"%x\r\n%b\r\n" % (256 * 1024, b" " * (256 * 1024))
_EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </simulated>; rel=preload\r\n\r\n"
_REASONS = {status.value: status.phrase for status in HTTPStatus} | {498: "Capacity Exceeded"}


class Ending(Enum):
    """What becomes of the connection after the last byte."""

    KEEP = "kept for the next request"
    CLOSE = "closed"
    RESET = "reset"
    HOLD = "kept open until the client goes"


def head(
    status: int, headers: tuple[tuple[str, str], ...], length: int | None, version: str = "1.1"
) -> bytes:
    """Write status line and headers; no length where something else tells the end of the body."""
    lines = [f"HTTP/{version} {status} {_REASONS.get(status, 'Simulated')}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if length is not None and status not in (204, 304):
        lines.append(f"content-length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _head(plan: Plan) -> bytes:
    return head(plan.status, plan.headers, len(plan.body))


def _chunked_head(plan: Plan) -> bytes:
    return head(plan.status, (*plan.headers, ("transfer-encoding", "chunked")), None)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _whole(plan: Plan) -> bytes:
    return _head(plan) + plan.body


def _half(plan: Plan) -> bytes:
    return plan.body[: len(plan.body) // 2]


_AT_ONCE: Mapping[Wire, tuple[Callable[[Plan], bytes], Ending]] = {
    Wire.WHOLE: (_whole, Ending.KEEP),
    Wire.HANG: (lambda _: b"", Ending.HOLD),
    Wire.RESET: (lambda _: b"", Ending.RESET),
    Wire.REFUSED: (lambda _: b"", Ending.RESET),
    Wire.CLOSE: (lambda _: b"", Ending.CLOSE),
    Wire.CUT_HEADERS: (lambda plan: _head(plan)[: len(_head(plan)) // 2], Ending.CLOSE),
    Wire.CUT_BODY: (lambda plan: _head(plan) + _half(plan), Ending.CLOSE),
    Wire.CUT_CHUNKS: (lambda plan: _chunked_head(plan) + _chunk(_half(plan)), Ending.CLOSE),
    Wire.BAD_CHUNKS: (lambda plan: _chunked_head(plan) + b"not a size\r\n" + plan.body, Ending.CLOSE),
    Wire.EOF_BODY: (lambda plan: head(plan.status, plan.headers, None, "1.0") + _half(plan), Ending.CLOSE),
    Wire.LONG_BODY: (lambda plan: _whole(plan) + b"surplus bytes", Ending.KEEP),
    Wire.EXTRA: (lambda plan: _whole(plan) * 2, Ending.KEEP),
    Wire.GARBAGE: (lambda plan: plan.body, Ending.CLOSE),
    Wire.EARLY_HINTS: (lambda plan: _EARLY_HINTS + _whole(plan), Ending.KEEP),
}
"""Replies that go out in one piece."""


def ending(plan: Plan) -> Ending:
    """Return what becomes of the connection after this reply."""
    if plan.wire in _AT_ONCE:
        return _AT_ONCE[plan.wire][1]
    return Ending.CLOSE if plan.wire in (Wire.CLOSE_AFTER, Wire.ENDLESS) else Ending.KEEP


def steps(plan: Plan) -> Iterator[tuple[float, bytes]]:
    """Yield what to send: seconds to wait first, then bytes (which may be none)."""
    if plan.wire in _AT_ONCE:
        yield plan.latency_s, _AT_ONCE[plan.wire][0](plan)
        return
    match plan.wire:
        case Wire.STREAM:
            yield plan.latency_s, _chunked_head(plan)
            for event in plan.body.split(b"\n\n")[:-1]:
                yield 0.0, _chunk(event + b"\n\n")
            yield 0.0, b"0\r\n\r\n"
        case Wire.CLOSE_AFTER:
            yield plan.latency_s, _whole(plan)
            yield _CLOSE_AFTER_S, b""
        case Wire.TRICKLE:
            yield from _in_pieces(plan, -(-len(plan.body) // _PIECES) or 1, _PIECE_S)
        case Wire.SLOW_LORIS:
            yield from _in_pieces(plan, 1, _LORIS_S)
        case Wire.ENDLESS:
            yield plan.latency_s, _chunked_head(plan)
            while True:
                yield 0.0, _ENDLESS_CHUNK


def _in_pieces(plan: Plan, size: int, pause_s: float) -> Iterator[tuple[float, bytes]]:
    yield plan.latency_s, _head(plan)
    for at in range(0, len(plan.body), size):
        yield pause_s, plan.body[at : at + size]


def duration_s(plan: Plan) -> float:
    """Return the seconds from the request to the last byte a client reads; infinite if it waits in vain."""
    match plan.wire:
        case Wire.HANG:
            return float("inf")
        case Wire.SLOW_LORIS:
            return plan.latency_s + _LORIS_S * len(plan.body)
        case Wire.TRICKLE:
            return plan.latency_s + _PIECE_S * _PIECES
        case _:
            return plan.latency_s
