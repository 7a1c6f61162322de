"""Canned answers at the least cost, so that a benchmark measures its client."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import orjson

from batcher.providers.simulator.admin import Connections, admin_reply
from batcher.providers.simulator.answers import Draft, answer
from batcher.providers.simulator.calls import Call, read_call
from batcher.providers.simulator.delivery import head, steps
from batcher.providers.simulator.http import BadHttp, RequestReader
from batcher.providers.simulator.model import Simulation
from batcher.providers.simulator.settings import SimulatorSettings
from batcher.types import Endpoint

_LENGTH = b"content-length:"
_QUESTIONS: Mapping[Endpoint, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "anything"}]},
    "/v1/embeddings": {"input": "anything"},
    "/v1/responses": {"input": "anything"},
}


def canned_answers(settings: SimulatorSettings) -> dict[bytes, bytes]:
    """Return a whole HTTP response for each request line that leads to an endpoint."""
    canned = {}
    draft = Draft(id="0" * 26, created=1_780_000_000, output_tokens=20, latency_s=settings.latency_s)
    for path, question in _QUESTIONS.items():
        body = orjson.dumps({"model": "openai/gpt-oss-20b"} | question)
        asked = read_call(Call(method="POST", path=path, headers={}, body=body), SimulatorSettings())
        answered, _ = answer(asked, draft, stream=False)
        headers = (("content-type", "application/json"), ("x-request-id", "req_simulated"))
        response = head(200, headers, len(answered)) + answered
        for prefix in ("", "/openai"):
            canned[f"POST {prefix}{path} HTTP/1.1".encode()] = response
    return canned


class FastConnection(asyncio.Protocol):
    """One client: finds where each request ends, and looks no further.

    All else than a POST with a length to an endpoint (admin calls, model lists) is read and answered in full,
    without latency.
    """

    def __init__(
        self, simulation: Simulation, connections: Connections, canned: Mapping[bytes, bytes]
    ) -> None:
        self._simulation = simulation
        self._connections = connections
        self._canned = canned
        self._latency_s = simulation.settings.latency_s
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection."""
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._connections.opened(self._transport.abort, self._loop.time())

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it as gone."""
        self._connections.open.discard(self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole, keep the rest."""
        data = self._rest + data if self._rest else data
        at = 0
        while at < len(data) and (head_end := data.find(b"\r\n\r\n", at)) >= 0:
            canned = self._canned.get(data[at : data.find(b"\r", at)])
            length = _content_length(data, at, head_end) if canned else -1
            if canned is None or length < 0:
                self._answer_in_full(data[at:])
                at = len(data)
                break
            if (end := head_end + 4 + length) > len(data):
                break
            self._simulation.requests += 1
            if self._latency_s:
                self._loop.call_later(self._latency_s, self._transport.write, canned)
            else:
                self._transport.write(canned)
            at = end
        self._rest = data[at:]

    def _answer_in_full(self, data: bytes) -> None:
        reader = RequestReader()
        reader.feed(data)
        try:
            call = reader.next()
        except BadHttp:
            call = None
        if call is None or reader.buffered:
            self._transport.abort()
            return
        now = self._loop.time()
        reply = admin_reply(call, self._simulation, self._connections, now)
        if reply is None:
            plan = self._simulation.begin(call, now)
            self._simulation.finish(plan, now)
            reply = b"".join(part for _, part in steps(plan))
        self._transport.write(reply)


def _content_length(data: bytes, start: int, head_end: int) -> int:
    """Return the length of a request's body, -1 if its head does not say."""
    at = data.find(_LENGTH, start, head_end)
    if at < 0:
        at = start + data[start:head_end].lower().find(_LENGTH)
    digits = data[at + len(_LENGTH) : data.find(b"\r", at, head_end + 1)].strip()
    return int(digits) if at >= start and digits.isdigit() else -1
