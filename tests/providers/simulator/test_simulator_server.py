"""The server over real sockets: HTTP/1.1, admin, connections."""

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack

import orjson
import pytest
import uvloop
from socket_client import chat_request, connected, exchange, get, post

from batcher.errors import UsageError
from batcher.providers.simulator.fault_plan import FaultPlan
from batcher.providers.simulator.server import RunningServer, serve, start_embedded
from batcher.providers.simulator.settings import SimulatorSettings

pytestmark = pytest.mark.real_loop


async def _until(holds: Callable[[], bool]) -> None:
    for _ in range(200):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


@pytest.mark.parametrize("prefix", ["/v1", "/openai/v1"])
async def test_answers_under_both_prefixes(prefix: str) -> None:
    async with start_embedded(SimulatorSettings()) as server:
        seen = await exchange(server.port, chat_request(path=f"{prefix}/chat/completions"))
        assert (seen.status, seen.end) == (200, "open")
        assert (await exchange(server.port, get(f"{prefix}/models"))).status == 200
        assert (await exchange(server.port, get(f"{prefix}/models/openai/gpt-oss-20b"))).status == 200
        embedding = orjson.dumps({"model": "simulated/embedding", "input": "text"})
        assert (await exchange(server.port, post(f"{prefix}/embeddings", embedding))).status == 200


async def test_pipelined_requests_are_answered_in_order_on_one_connection() -> None:
    settings = SimulatorSettings(latency_s=0.002, latency_shape="exponential")
    async with start_embedded(settings) as server:
        seen = await exchange(server.port, b"".join(chat_request(f"row {n};") for n in range(20)))
        answers = [part.partition(b";")[0] for part in seen.raw.split(b"Answer to: ")[1:]]
        assert answers == [b"row %d" % n for n in range(20)]
        assert server.connections.accepted == 1


async def test_a_thousand_requests_at_once_do_not_overflow_the_stack() -> None:
    async with start_embedded(SimulatorSettings()) as server:
        seen = await exchange(server.port, get("/healthz") * 3000)
        assert seen.raw.count(b"HTTP/1.1 200 OK") == 3000


async def test_a_request_in_many_pieces_is_one_request() -> None:
    async with start_embedded(SimulatorSettings()) as server:
        async with connected(server.port) as (reader, writer):
            request = chat_request()
            for at in range(0, len(request), 7):
                writer.write(request[at : at + 7])
                await writer.drain()
                await asyncio.sleep(0)
            assert (await reader.readuntil(b"\r\n")) == b"HTTP/1.1 200 OK\r\n"
        assert server.simulation.requests == 1


async def test_a_chunked_body_and_expect_continue_are_understood() -> None:
    body = chat_request().partition(b"\r\n\r\n")[2]
    chunks = b"".join(b"%x;note=1\r\n%b\r\n" % (len(part), part) for part in (body[:10], body[10:]))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nExpect: 100-continue\r\n\r\n"
    async with start_embedded(SimulatorSettings()) as server, connected(server.port) as (reader, writer):
        writer.write(head)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(chunks + b"0\r\ntrailer: x\r\n\r\n" + get("/healthz"))
        assert (await reader.readuntil(b"\r\n")) == b"HTTP/1.1 200 OK\r\n"
        assert b"Answer to: Hello" in await reader.readuntil(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: -5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nfffffff\r\n", 413),
        (b"GET / HTTP/1.1\r\nx: " + b"x" * 70_000, 431),
    ],
    ids=["words", "version", "colon", "negative", "huge", "chunk", "huge chunk", "huge head"],
)
async def test_what_is_no_request_is_refused_and_closed(request_bytes: bytes, status: int) -> None:
    async with start_embedded(SimulatorSettings()) as server:
        seen = await exchange(server.port, request_bytes)
        assert (seen.status, seen.end) == (status, "closed")
        assert server.simulation.requests == 0


@pytest.mark.parametrize("line", ["connection: close\r\n", "Connection: Close\r\n"])
async def test_a_client_that_wants_to_close_is_closed(line: str) -> None:
    async with start_embedded(SimulatorSettings()) as server:
        assert (await exchange(server.port, chat_request(headers=line))).end == "closed"


async def test_a_client_that_leaves_frees_its_place() -> None:
    async with start_embedded(
        SimulatorSettings(faults=FaultPlan(rates={"hang": 1}, max_in_a_row=9))
    ) as server:
        async with AsyncExitStack() as clients:
            for _ in range(5):
                _, writer = await clients.enter_async_context(connected(server.port))
                writer.write(chat_request())
            await _until(lambda: server.simulation.in_flight == 5)
        await _until(lambda: server.simulation.in_flight == 0)
        assert server.simulation.in_flight_peak == 5
        assert repr(server).endswith(" 0 connections>")


async def test_admin_tells_what_happened() -> None:
    async with start_embedded(SimulatorSettings(faults=FaultPlan(by_id={"a": ("status:503",)}))) as server:
        for text in ("a", "a", "b"):
            await exchange(server.port, chat_request(text))
        stats = orjson.loads((await exchange(server.port, get("/admin/stats"))).body)
        assert stats["requests"] == 3
        assert stats["by_id"] == {"a": 2, "b": 1}
        assert stats["by_status"] == {"200": 2, "503": 1}
        assert stats["by_fault"] == {"status:503": 1}
        assert stats["connections"]["accepted"] == 4
        assert stats["cpu_s"] > 0
        log = orjson.loads((await exchange(server.port, get("/admin/log"))).body)
        assert [set(entry) for entry in log["admissions"]] == [{"at_s", "tokens"}] * 2
        assert (await exchange(server.port, post("/admin/reset"))).status == 200
        stats = orjson.loads((await exchange(server.port, get("/admin/stats"))).body)
        assert (stats["requests"], stats["by_id"]) == (0, {})
        assert (await exchange(server.port, get("/admin/nonesuch"))).status == 404


async def test_a_taken_port_is_a_usage_error() -> None:
    async with start_embedded(SimulatorSettings()) as server:
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{server.port}"):
            await serve(SimulatorSettings(), port=server.port)


async def test_closing_drops_connections_and_stops_listening() -> None:
    server = await serve(SimulatorSettings())
    async with connected(server.port) as (reader, _):
        await _until(lambda: server.connections.accepted == 1)
        await server.close()
        assert await reader.read() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)


FAST = SimulatorSettings(fast=True)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/chat/completions", "chat.completion"),
        ("/openai/v1/chat/completions", "chat.completion"),
        ("/v1/embeddings", "list"),
        ("/v1/responses", "response"),
    ],
)
@pytest.mark.parametrize("name", ["content-length", "Content-Length"])
async def test_fast_answers_are_canned_and_of_the_right_shape(path: str, kind: str, name: str) -> None:
    async with start_embedded(FAST) as server:
        request = post(path, b"not even JSON").replace(b"content-length", name.encode())
        seen = await exchange(server.port, request * 3)
        assert seen.raw.count(b"HTTP/1.1 200 OK") == 3
        assert orjson.loads(seen.body.partition(b"HTTP/1.1")[0])["object"] == kind
        assert (server.simulation.requests, server.simulation.by_id) == (3, {})


async def test_fast_takes_requests_in_pieces_and_everything_else_too() -> None:
    async with start_embedded(FAST) as server:
        async with connected(server.port) as (reader, writer):
            request = chat_request() * 2
            for at in range(0, len(request), 11):
                writer.write(request[at : at + 11])
                await asyncio.sleep(0)
            await reader.readuntil(b"[simulated]")
            await reader.readuntil(b"[simulated]")
        assert (await exchange(server.port, get("/v1/models"))).status == 200
        assert (await exchange(server.port, get("/v1/nonesuch"))).status == 404
        assert (await exchange(server.port, b"nonsense\r\n\r\n")).raw == b""
        stats = orjson.loads((await exchange(server.port, get("/admin/stats"))).body)
        assert stats["connections"]["open"] == 1


async def test_fast_keeps_its_latency() -> None:
    async with start_embedded(SimulatorSettings(fast=True, latency_s=0.05)) as server:
        started = asyncio.get_running_loop().time()
        async with connected(server.port) as (reader, writer):
            writer.write(chat_request())
            await reader.readuntil(b"[simulated]")
            assert asyncio.get_running_loop().time() - started >= 0.05


@pytest.mark.skipif(os.name == "nt", reason="uvloop is not for Windows")
@pytest.mark.parametrize("kind", ["reset", "close-in-body", "hang", "huge-body"])
def test_faults_are_the_same_on_uvloop(kind: str) -> None:
    async def meet(server: RunningServer) -> tuple[str, int]:
        seen = await exchange(server.port, chat_request())
        return seen.end, min(len(seen.raw), 1 << 20)

    async def main() -> tuple[str, int]:
        async with start_embedded(SimulatorSettings(faults=FaultPlan(rates={kind: 1}))) as server:
            return await meet(server)

    with asyncio.Runner() as plain, asyncio.Runner(loop_factory=uvloop.new_event_loop) as fast:
        assert plain.run(main()) == fast.run(main())
