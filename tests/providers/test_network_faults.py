"""The table of the network's faults, N1 to N31, against the one verb that every transport has."""

import asyncio
import contextlib
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from network_rows import (
    DEADLINE_S,
    MINE,
    OK,
    ROWS,
    Row,
    falls_silent_when_asked_again,
    resets,
    said,
    says_nothing,
)
from pool_calls import certificate
from raw_server import Connection, Talk, answering, http, raw_server

from batcher.errors import AttemptTimeout, CallError, ConnectFailed, ConnectionLost, InvalidRequest
from batcher.providers.calls import Calls
from batcher.providers.transport import Pool
from batcher.providers.wire import PoolSettings
from batcher.types import Endpoint, Reply, Request

pytestmark = pytest.mark.real_loop

CHAT: Endpoint = "/v1/chat/completions"
CONNECT_S = 0.4
LATE_S = 0.3  # on a busy machine
MOST_MEMORY_KB = 50_000

Open = Callable[..., AbstractAsyncContextManager[Pool]]


@pytest.fixture(params=[True, False], ids=["on the loop", "pyreqwest"])
def transport(request: pytest.FixtureRequest) -> Open:
    """Return what opens a transport; another one only needs a line here."""

    @asynccontextmanager
    async def opened(**settings: Any) -> AsyncIterator[Pool]:
        pool = Pool(PoolSettings(connect_timeout_s=CONNECT_S, plain_on_loop=request.param, **settings))
        yield pool
        await pool.aclose()

    return opened


async def ask(pool: Pool, url: str, *, timeout_s: float = 5.0) -> Reply:
    """Make a call as providers do, so that a body that is no answer is a fault, too."""
    urls: dict[Endpoint, str] = {CHAT: f"{url}/v1/x"}
    calls = Calls(pool, urls=urls, headers=[("x-a", "b")], key=None, dialect="openai")
    return await calls.send(Request(endpoint=CHAT, model="m", body=b'{"a":1}'), timeout_s=timeout_s)


async def fails(pool: Pool, url: str, kind: type[CallError], *, timeout_s: float = 5.0) -> CallError:
    with pytest.raises(kind) as caught:
        await ask(pool, url, timeout_s=timeout_s)
    assert type(caught.value) is kind
    return caught.value


def at_first(talk: Talk) -> Talk:
    """Let the first connection do as `talk` says, and answer on all later ones."""
    good = answering(http(said("next")), then="keep")

    async def both(connection: Connection) -> None:
        await (talk if connection.number == 1 else good)(connection)

    return both


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Assert that the peak of this process's memory does not go up by much."""
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kb()
    yield
    assert peak_kb() - before < MOST_MEMORY_KB


def peak_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str]:
    """Return what a server over TLS needs, and the file that makes a client trust it."""
    context, pem = certificate("good")
    file = tmp_path_factory.mktemp("tls") / "ca.pem"
    file.write_bytes(pem)
    return context, str(file)


@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_a_fault_after_sending(
    row: Row, over_tls: bool, transport: Open, authority: tuple[ssl.SSLContext, str]
) -> None:
    timeout_s = DEADLINE_S if row.kind is AttemptTimeout else 5.0
    tls, ca_file = authority if over_tls else (None, None)
    async with raw_server(at_first(row.talk), tls=tls) as server, transport(ca_file=ca_file) as pool:
        began = time.perf_counter()
        with little_memory():
            if row.kind is None:
                assert (await ask(pool, server.url)).text == "mine"
            else:
                error = await fails(pool, server.url, row.kind, timeout_s=timeout_s)
                assert (error.code, error.sent, error.status) == (row.code, True, row.status)
                assert len(error.body) <= 2048
        took_s = time.perf_counter() - began
        if row.kind is AttemptTimeout:
            assert 0.9 * DEADLINE_S < took_s < 1.1 * DEADLINE_S + LATE_S
        else:
            assert took_s < 2.0
        assert server.connections == 1, "a fault is not tried again down here"
        await asyncio.sleep(0.03)
        # Whatever is left of the first connection belongs to nobody.
        assert (await ask(pool, server.url)).text == "next"
        assert server.connections == 2


async def test_n1_nobody_listens(transport: Open) -> None:
    with socket.socket() as taken:  # a port that is bound, but refuses connections
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with transport() as pool:
            error = await fails(pool, url, ConnectFailed)
    assert (error.code, error.sent, error.status) == ("connect_failed", False, 0)
    assert f"({url})" in str(error)


async def test_n2_an_unknown_host(transport: Open) -> None:
    async with transport() as pool:
        error = await fails(pool, "http://nobody.invalid", ConnectFailed)
    assert (error.code, error.sent) == ("dns_failed", False)
    assert "nobody.invalid" in str(error)


async def test_n3_a_host_that_swallows_everything(transport: Open) -> None:
    with contextlib.ExitStack() as opened:
        full = opened.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # past its backlog, the kernel lets further connections wait for an answer
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        async with transport() as pool:
            began = time.perf_counter()
            error = await fails(pool, f"http://127.0.0.1:{full.getsockname()[1]}", ConnectFailed)
            took_s = time.perf_counter() - began
    assert (error.code, error.sent) == ("connect_timeout", False)
    assert 0.9 * CONNECT_S < took_s < 1.1 * CONNECT_S + LATE_S


@pytest.mark.parametrize("case", ["unknown", "wrong-host", "expired"])
async def test_n4_a_certificate_that_is_not_accepted(case: str, transport: Open, tmp_path: Path) -> None:
    context, pem = certificate(case)
    (tmp_path / "ca.pem").write_bytes(pem)
    async with raw_server(answering(OK), tls=context) as server:
        async with transport(ca_file=str(tmp_path / "ca.pem")) as pool:
            error = await fails(pool, server.url, ConnectFailed)
        assert server.connections == 0
    assert (error.code, error.sent) == ("tls", False)
    assert "ca_file" in str(error)


async def test_n4_a_server_that_knows_old_protocols_only(transport: Open) -> None:
    async def refuses_the_version(connection: Connection) -> None:
        await connection.send(b"\x15\x03\x01\x00\x02\x02\x46")  # fatal: protocol_version
        await connection.gone()

    async with raw_server(refuses_the_version) as server, transport() as pool:
        error = await fails(pool, server.url.replace("http", "https"), ConnectFailed)
    assert (error.code, error.sent) == ("tls", False)


async def test_n4_a_good_certificate_is_taken(transport: Open, tmp_path: Path) -> None:
    context, pem = certificate("good")
    (tmp_path / "ca.pem").write_bytes(pem)
    settings = {"ca_file": str(tmp_path / "ca.pem")}
    async with raw_server(answering(OK), tls=context) as server, transport(**settings) as pool:
        assert (await ask(pool, server.url)).text == "mine"


@pytest.mark.parametrize(
    ("talk", "code"), [(says_nothing, "connect_timeout"), (resets, "connect_failed")], ids=["stall", "reset"]
)
async def test_n5_a_broken_handshake(talk: Talk, code: str, transport: Open) -> None:
    async with raw_server(talk) as server, transport() as pool:
        error = await fails(pool, server.url.replace("http", "https"), ConnectFailed)
    assert (error.code, error.sent) == (code, False)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_n20_n21_a_redirect_is_not_followed(status: int, transport: Open) -> None:
    async with raw_server(answering(OK)) as other:
        reply = http(b"", f"location: {other.url}/v1/x", status=f"{status} Over There")
        async with raw_server(answering(reply)) as server, transport() as pool:
            error = await fails(pool, server.url, InvalidRequest)
        assert other.connections == 0
    assert (error.code, error.status) == ("redirected", status)


async def test_n23_the_environments_proxies_are_not_obeyed(
    transport: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with raw_server(answering(http(said("by proxy")))) as proxy, raw_server(answering(OK)) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, proxy.url)
        async with transport() as pool:
            assert (await ask(pool, server.url)).text == "mine"
        assert proxy.connections == 0


async def test_n24_a_connection_that_is_closed_while_idle_costs_no_job(transport: Open) -> None:
    served = 0

    async def closes_after_50_ms(connection: Connection) -> None:
        nonlocal served
        await connection.request()
        served += 1
        await connection.send(OK)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                while await connection.request():
                    served += 1
                    await connection.send(OK)

    async def job(pool: Pool, url: str) -> int:
        """Ask until an answer comes, as a run does, and return how many calls that took."""
        for call in range(1, 6):
            try:
                assert (await ask(pool, url)).text == "mine"
            except ConnectionLost as error:
                assert error.sent  # noqa: PT017 - that it may have cost is said, whether it did or not
            else:
                return call
        raise AssertionError("a closed connection came up five times in a row")

    async def worker(pool: Pool, url: str) -> list[int]:
        calls = []
        for _ in range(50):
            calls.append(await job(pool, url))
            await asyncio.sleep(0.05 + random.uniform(-0.002, 0.002))
        return calls

    async with raw_server(closes_after_50_ms) as server, transport() as pool:
        workers = await asyncio.gather(*[worker(pool, server.url) for _ in range(20)])
        calls = [count for worked in workers for count in worked]
        assert server.connections > 20
    assert len(calls) == 1_000
    assert served == 1_000, "what broke had been read by nobody"


@pytest.mark.parametrize(
    ("begins", "unread"),
    [
        pytest.param(b"", True, id="before a byte"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n", False, id="after the headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", False, id="in the body"),
    ],
)
async def test_n24_it_is_known_whether_any_of_an_answer_came(
    transport: Open, begins: bytes, unread: bool
) -> None:
    async def breaks_off(connection: Connection) -> None:
        await connection.request()
        if begins:
            await connection.send(begins)

    async with raw_server(breaks_off) as server, transport() as pool:
        error = await fails(pool, server.url, ConnectionLost)
        assert (error.sent, error.unread) == (True, unread)


async def test_n24_a_reset_in_a_body_without_a_length_is_no_unread_call(transport: Open) -> None:
    half = answering(b"HTTP/1.1 200 OK\r\n\r\nhalf", then="reset")
    async with raw_server(half) as server, transport() as pool:
        error = await fails(pool, server.url, ConnectionLost)
    assert (error.sent, error.unread) == (True, False)


async def test_n25_a_kept_connection_whose_other_end_is_gone(transport: Open) -> None:
    async with raw_server(at_first(falls_silent_when_asked_again)) as server, transport() as pool:
        assert (await ask(pool, server.url)).text == "first"
        began = time.perf_counter()
        error = await fails(pool, server.url, AttemptTimeout, timeout_s=DEADLINE_S)
        assert 0.9 * DEADLINE_S < time.perf_counter() - began < 1.1 * DEADLINE_S + LATE_S
        assert (error.code, error.sent) == ("timeout", True)
        assert (await ask(pool, server.url)).text == "next"
    assert PoolSettings().idle_timeout_s <= 30


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.long)])
async def test_n26_cancelled_calls_leak_nothing(count: int, transport: Open) -> None:
    open_now: set[Connection] = set()
    most_open = 0
    hurry = asyncio.Event()

    async def slow(connection: Connection) -> None:
        nonlocal most_open
        open_now.add(connection)
        most_open = max(most_open, len(open_now))
        try:
            while await connection.request():
                if not hurry.is_set():
                    await asyncio.sleep(0.05)
                await connection.send(OK)
        finally:
            open_now.discard(connection)

    async with raw_server(slow) as server, transport(max_connections=64) as pool:
        for _ in range(count // 50):
            calls = [asyncio.create_task(ask(pool, server.url, timeout_s=0.2)) for _ in range(50)]
            await asyncio.sleep(0.002)
            for call in calls:
                call.cancel()
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(end) for end in ends} <= {asyncio.CancelledError, Reply}
        hurry.set()
        replies = await asyncio.gather(*[ask(pool, server.url, timeout_s=10) for _ in range(64)])
        assert {reply.text for reply in replies} == {"mine"}
        # A cancelled call goes on until its own time is up, and its place is taken at once: so many a 0.2 s.
        assert most_open <= 500
        assert len(open_now) <= 64
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_n28_an_address_of_two_that_does_not_work(transport: Open) -> None:
    async with raw_server(answering(OK)) as server, transport() as pool:  # listens on IPv4 only
        began = time.perf_counter()
        assert (await ask(pool, f"http://localhost:{server.port}")).text == "mine"
        assert time.perf_counter() - began < 1.0


async def test_no_time_left_is_no_call(transport: Open) -> None:
    async with raw_server(answering(OK)) as server, transport() as pool:
        for timeout_s in (0.0, -1.0):
            assert not (await fails(pool, server.url, AttemptTimeout, timeout_s=timeout_s)).sent
        assert server.connections == 0


def test_the_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert MINE in OK
