"""Calls over plain http on the loop: what is sent, and that no call gets what is left of another one."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator

import pytest
from raw_server import Connection, answering, http, raw_server

from batcher.errors import AttemptTimeout, ConnectFailed, ConnectionLost, InvalidRequest
from batcher.providers.plain_http import PlainHttp
from batcher.providers.wire import PoolSettings

pytestmark = pytest.mark.real_loop

OK = http(b"mine")


@pytest.fixture
async def client() -> AsyncIterator[PlainHttp]:
    client = PlainHttp(PoolSettings(connect_timeout_s=0.5, idle_timeout_s=0.2, max_body_bytes=100_000))
    yield client
    client.close()
    await asyncio.sleep(0.01)


async def post(client: PlainHttp, url: str, body: bytes = b"{}", timeout_s: float = 5.0) -> bytes | None:
    return (await client.call("POST", url, [("x-a", "b")], body, timeout_s))[2]


async def test_what_is_sent(client: PlainHttp) -> None:
    requests: list[bytes] = []

    async def talk(connection: Connection) -> None:
        while request := await connection.request():
            requests.append(request)
            await connection.send(OK)

    async with raw_server(talk) as server:
        await post(client, f"{server.url}/v1/a b?x=1 2#there")
        headers = [("Host", "elsewhere"), ("Content-Length", "9"), ("User-Agent", "u"), ("accept", "a/b")]
        await client.call("GET", server.url, headers, b"", 5.0)
        assert server.connections == 1
    host = f"127.0.0.1:{server.port}".encode()
    assert requests == [
        b"POST /v1/a%20b?x=1%202 HTTP/1.1\r\nhost: " + host + b"\r\nuser-agent: batcher\r\naccept: */*\r\n"
        b"x-a: b\r\ncontent-length: 2\r\n\r\n{}",
        b"GET / HTTP/1.1\r\nhost: elsewhere\r\nuser-agent: u\r\naccept: a/b\r\n\r\n",
    ]


@pytest.mark.parametrize(
    "header",
    [
        ("x-a", "secret\r\nx-c: d"),
        ("x-a\r\nx-b", "secret"),
        ("x-a", "secret\0"),
        ("", "secret"),
        ("x a", "secret"),
        ("x-a", "secret: я"),
    ],
)
async def test_a_header_that_would_break_out_of_its_line_is_not_sent(
    header: tuple[str, str], client: PlainHttp
) -> None:
    async with raw_server(answering(OK)) as server:
        with pytest.raises(InvalidRequest, match="header") as caught:
            await client.call("POST", server.url, [header], b"", 5.0)
        assert server.connections == 0
    assert not caught.value.sent
    assert "secret" not in str(caught.value)


async def test_an_address_that_is_none(client: PlainHttp) -> None:
    with pytest.raises(InvalidRequest):
        await post(client, "http://:0:0/")


@pytest.mark.parametrize("cut", [0, 1, 12, 30, 45], ids=str)
async def test_a_second_answer_that_comes_in_two_pieces_belongs_to_nobody(
    cut: int, client: PlainHttp
) -> None:
    other = http(b"another's")

    async def talk(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK + other[:cut])
        await connection.request()
        await connection.send(other[cut:] if connection.number == 1 else OK)
        await connection.gone()

    async with raw_server(talk) as server:
        assert await post(client, server.url) == b"mine"
        if cut:
            assert await post(client, server.url) == b"mine"
            assert server.connections == 2


@pytest.mark.parametrize("after", [1, 2, 3])
async def test_what_came_unasked_while_the_loop_was_busy_is_no_answer(after: int, client: PlainHttp) -> None:
    def serve(listening: socket.socket, stop: threading.Event) -> None:
        while not stop.is_set():
            connection, _ = listening.accept()
            with connection, contextlib.suppress(ConnectionError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for number in range(1, 10):
                    if not connection.recv(65536):
                        break
                    connection.sendall(OK)
                    if number == after:
                        time.sleep(0.005)  # until the loop is busy
                        connection.sendall(http(b"another's"))

    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        server = threading.Thread(target=serve, args=(listening, stop))
        server.start()
        try:
            for _ in range(5):
                assert await post(client, f"http://127.0.0.1:{port}") == b"mine"
                time.sleep(0.03)  # noqa: ASYNC251 - what keeps the loop busy
        finally:
            stop.set()
            client.close()
            socket.create_connection(("127.0.0.1", port)).close()
            await asyncio.to_thread(server.join)


async def test_what_follows_a_body_does_not_change_how_it_is_read(client: PlainHttp) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nmine\r\n0\r\n"
    async with raw_server(answering(head + b"content-encoding: gzip\r\nretry-after: 9\r\n\r\n")) as server:
        _, headers, body = await client.call("POST", server.url, [], b"", 5.0)
    assert (headers, body) == ({"transfer-encoding": "chunked"}, b"mine")


@pytest.mark.parametrize("size", [1, 5, 100])
async def test_a_body_may_come_in_small_chunks(size: int, client: PlainHttp) -> None:
    body = b"x" * 99_900
    chunks = (b"%x\r\n%b\r\n" % (size, body[:size])) * (len(body) // size) + b"0\r\n\r\n"
    async with raw_server(
        answering(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks)
    ) as server:
        assert await post(client, server.url) == body


async def test_the_headers_of_an_answer_are_its_own(client: PlainHttp) -> None:
    both = http(b"mine", "x-first: 1") + http(b"another's", "x-second: 2")
    async with raw_server(answering(both)) as server:
        _, headers, body = await client.call("POST", server.url, [], b"", 5.0)
    assert (headers, body) == ({"content-length": "4", "x-first": "1"}, b"mine")


async def test_an_answer_before_all_of_the_request_was_read_is_the_last_one(client: PlainHttp) -> None:
    async def reads_the_head(connection: Connection) -> None:
        await connection.head()
        await connection.send(http(b"too much", status="413 Too Large"))
        await asyncio.sleep(5)

    async with raw_server(reads_the_head) as server:
        status, _, body = await client.call("POST", server.url, [], b"x" * 20_000_000, 5.0)
        assert (status, body) == (413, b"too much")
        await asyncio.sleep(0.01)
        assert repr(client) == "<PlainHttp open=0 idle=0>"


async def test_connections_that_nobody_uses_are_closed(client: PlainHttp) -> None:
    gone: list[int] = []

    async def talk(connection: Connection) -> None:
        while await connection.request():
            await asyncio.sleep(0.02)
            await connection.send(OK)
        gone.append(connection.number)

    async with raw_server(talk) as server:
        await asyncio.gather(*[post(client, server.url) for _ in range(3)])
        assert repr(client) == "<PlainHttp open=3 idle=3>"
        for _ in range(8):
            assert await post(client, server.url) == b"mine"
            await asyncio.sleep(0.03)
        assert len(gone) == 2
        assert repr(client) == "<PlainHttp open=1 idle=1>"
        await asyncio.sleep(0.3)
        assert sorted(gone) == [1, 2, 3]
        assert repr(client) == "<PlainHttp open=0 idle=0>"


async def test_each_call_has_a_time_of_its_own(client: PlainHttp) -> None:
    async def slow(connection: Connection) -> None:
        while request := await connection.request():
            await asyncio.sleep(float(request.rpartition(b"\r\n")[2]))
            await connection.send(OK)

    async def timed(answer_s: float, timeout_s: float) -> tuple[bool, float]:
        began = time.perf_counter()
        try:
            await post(client, server.url, b"%g" % answer_s, timeout_s)
        except AttemptTimeout:
            return False, time.perf_counter() - began
        return True, time.perf_counter() - began

    async with raw_server(slow) as server:
        plans = [(0.5, 0.9), (2.0, 0.3), (0.2, 5.0), (2.0, 0.1), (2.0, 0.6), (0.1, 0.3)]
        ends = await asyncio.gather(*[timed(*plan) for plan in plans])
    assert [answered for answered, _ in ends] == [True, False, True, False, False, True]
    for (_, took_s), plan in zip(ends, plans, strict=True):
        assert min(plan) - 0.01 < took_s < min(plan) + 0.3


async def test_a_cancelled_call_ends_on_the_wire(client: PlainHttp) -> None:
    hung_up = asyncio.Event()

    async def silent(connection: Connection) -> None:
        await connection.request()
        await connection.gone()
        hung_up.set()

    async with raw_server(silent) as server:
        call = asyncio.create_task(post(client, server.url))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(hung_up.wait(), 1.0)
    assert repr(client) == "<PlainHttp open=0 idle=0>"


async def test_closing_ends_the_calls_that_are_out_and_lets_none_begin(client: PlainHttp) -> None:
    async def half(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await connection.gone()

    async with raw_server(half) as server:
        call = asyncio.create_task(post(client, server.url))
        await asyncio.sleep(0.05)
        connecting = asyncio.create_task(post(client, server.url, timeout_s=0.5))
        await asyncio.sleep(0)
        client.close()
        faults = []
        for each in (call, connecting, asyncio.create_task(post(client, server.url, timeout_s=0.5))):
            with pytest.raises(ConnectionLost, match="the client was closed") as caught:
                await each
            faults.append((caught.value.sent, caught.value.unread))
    assert faults == [(True, False), (False, False), (False, False)]
    assert repr(client) == "<PlainHttp open=0 idle=0>"


async def test_a_server_that_hears_no_more_ends_a_request_that_is_still_being_sent(client: PlainHttp) -> None:
    async def turns_away(connection: Connection) -> None:
        await connection.head()
        connection.say_no_more()
        await asyncio.sleep(5)

    async with raw_server(turns_away) as server:
        began = time.perf_counter()
        with pytest.raises(ConnectionLost):
            await post(client, server.url, b"x" * 20_000_000, timeout_s=3.0)
        assert time.perf_counter() - began < 1.5


@pytest.mark.parametrize("host", ["a..b", ".example", "x" * 64 + ".example"])
async def test_a_name_that_no_host_can_have(host: str, client: PlainHttp) -> None:
    with pytest.raises(ConnectFailed) as caught:
        await post(client, f"http://{host}/")
    assert (caught.value.code, caught.value.sent) == ("dns_failed", False)


async def test_a_slow_resolver_is_asked_once_and_keeps_no_other_host_waiting(
    client: PlainHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups: list[str] = []

    async def slow(host: str, port: int, **settings: object) -> list[tuple[object, ...]]:
        lookups.append(host)
        await asyncio.sleep(0.8)
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", slow)
    async with raw_server(answering(OK)) as server:
        calls = [asyncio.create_task(post(client, "http://slow.example/")) for _ in range(20)]
        await asyncio.sleep(0.01)
        assert await post(client, server.url) == b"mine"
        ends = await asyncio.gather(*calls, return_exceptions=True)
    assert {getattr(end, "code", end) for end in ends} == {"connect_timeout"}
    assert lookups == ["slow.example"]
    await asyncio.sleep(0.4)
