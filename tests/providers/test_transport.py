"""The pool takes what HTTP allows, under caps and deadlines, and leaves nothing behind."""

import asyncio
import gzip
import resource
import time
from pathlib import Path

import pytest
from pool_calls import CAP, call, certificate, fault
from raw_server import Connection, Talk, answering, http, raw_server

from batcher.errors import AttemptTimeout, BadReply, ConfigError, ConnectFailed, ConnectionLost
from batcher.providers.transport import Pool, PoolSettings

pytestmark = pytest.mark.real_loop

OK = http(b"{}")
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


async def trickles(connection: Connection) -> None:
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    for _ in range(1000):
        await connection.send(b"x")
        await asyncio.sleep(0.02)


def flood(head: bytes, written: list[int]) -> Talk:
    async def talk(connection: Connection) -> None:
        await connection.request()
        await connection.send(head)
        for count in range(2000):
            written.append(count)
            await connection.send(b"\0" * 65_536)

    return talk


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (OK, b"{}"),
        (OK + b"more than was announced", b"{}"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + OK, b"{}"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"{}"),
        (http(b"{}", "x-a: " + "a" * 200_000), b"{}"),
        (http(b"{}", "x-a: caf\xe9"), b"{}"),
        (CHUNKED + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", b"{}"),
        (b'HTTP/1.0 200 OK\r\n\r\n{"half', b'{"half'),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b""),
        (http(gzip.compress(b"{}"), "content-encoding: GZIP"), b"{}"),
    ],
    ids=["plain", "longer", "103", "100", "200kB-head", "latin-1", "chunked", "http10", "204", "101", "gzip"],
)
async def test_what_is_taken(reply: bytes, body: bytes) -> None:
    async with raw_server(answering(reply)) as server:
        got = await call(server.url)
    assert got.body == body


async def test_header_names_are_in_lower_case_and_the_first_of_two_counts() -> None:
    async with raw_server(answering(http(b"", "Retry-After: 1", "retry-after: 2", "X-A: caf\xe9"))) as server:
        got = await call(server.url)
    assert got.headers == {"content-length": "0", "retry-after": "1"}


@pytest.mark.parametrize(
    ("talk", "timeout_s"),
    [(answering(b"", then="hang"), 0.3), (trickles, 0.3), (answering(OK), 0.0), (answering(OK), -1.0)],
    ids=["never-answers", "trickles", "no-time", "negative"],
)
async def test_the_attempts_own_deadline_ends_it(talk: Talk, timeout_s: float) -> None:
    async with raw_server(talk) as server:
        began = time.perf_counter()
        error = await fault(server.url, AttemptTimeout, timeout_s=timeout_s)
        assert time.perf_counter() - began < max(timeout_s, 0.0) + 0.3
    assert (error.code, error.sent) == ("timeout", timeout_s > 0)


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\ncontent-length: 5000000000\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"],
    ids=["announced", "unannounced"],
)
async def test_a_huge_body_is_cut_at_the_cap_and_its_connection_closed(head: bytes) -> None:
    written: list[int] = []
    async with raw_server(flood(head, written)) as server:
        error = await fault(server.url, BadReply)
    assert error.code == "body_too_large"
    assert len(written) < 1000


@pytest.mark.parametrize(
    ("body", "encoding", "code"),
    [
        (gzip.compress(b"\0" * 100_000_000, 9), "gzip", "body_too_large"),
        (gzip.compress(b"x" * 1008)[:-9], "gzip", "bad_reply"),
        (b"no gzip", "gzip", "bad_reply"),
        (b"\x0b\x01\x80{}\x03", "br", "bad_reply"),
        (b"{}", "gzip, gzip", "bad_reply"),
    ],
    ids=["bomb", "cut", "damaged", "brotli", "twice"],
)
async def test_encodings_are_undone_under_the_cap(body: bytes, encoding: str, code: str) -> None:
    async with raw_server(answering(http(body, f"content-encoding: {encoding}"))) as server:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        error = await fault(server.url, BadReply)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    assert (error.code, error.status) == (code, 200)


async def test_a_failure_keeps_its_status_even_if_its_body_is_unusable() -> None:
    async with raw_server(answering(http(b"x" * (CAP + 1), status="401 Unauthorized"))) as server:
        assert await call(server.url) == (401, {"content-length": str(CAP + 1)}, b"")


async def test_an_answer_sent_too_early_goes_to_nobody() -> None:
    async with raw_server(answering(http(b'"mine"') + http(b'"not mine"'), then="keep")) as server:
        pool = Pool(PoolSettings())
        for _ in range(5):
            assert (await pool.post(server.url, [], b"", timeout_s=5)).body == b'"mine"'
        await pool.aclose()


async def test_a_connection_found_closed_is_replaced_without_a_fault() -> None:
    async with raw_server(answering(OK)) as server:
        pool = Pool(PoolSettings())
        for _ in range(30):
            assert (await pool.post(server.url, [], b"{}", timeout_s=5)).status == 200
            await asyncio.sleep(0.005)
        assert server.connections == 30
        await pool.aclose()


async def test_a_request_that_went_into_a_closing_connection_is_not_sent_twice_unasked() -> None:
    requests: list[bytes] = []

    async def talk(connection: Connection) -> None:
        requests.append(await connection.request())
        await connection.send(OK)
        requests.append(await connection.request())

    async with raw_server(talk) as server:
        pool = Pool(PoolSettings())
        await pool.post(server.url, [], b"{}", timeout_s=5)
        with pytest.raises(ConnectionLost) as caught:
            await pool.post(server.url, [], b"{}", timeout_s=5)
        await pool.aclose()
    assert caught.value.sent
    assert len(requests) == 2


async def test_an_idle_connection_is_closed_before_the_server_does_it() -> None:
    async with raw_server(answering(OK, then="keep")) as server:
        pool = Pool(PoolSettings(idle_timeout_s=0.1))
        for pause_s in (0.0, 0.0, 0.3):
            await asyncio.sleep(pause_s)
            await pool.post(server.url, [], b"{}", timeout_s=5)
        await pool.aclose()
        assert server.connections == 2


async def test_thousands_of_cancelled_calls_leave_nothing_behind() -> None:
    async def talk(connection: Connection) -> None:
        while request := await connection.request():
            if b"slow" in request:
                await asyncio.sleep(0.05)
            await connection.send(OK)

    async with raw_server(talk) as server:
        pool = Pool(PoolSettings(max_connections=64))
        for _ in range(40):
            calls = [
                asyncio.create_task(pool.post(server.url, [], b"slow", timeout_s=0.2)) for _ in range(50)
            ]
            await asyncio.sleep(0.002)
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        replies = await asyncio.gather(*[pool.post(server.url, [], b"{}", timeout_s=10) for _ in range(64)])
        assert {reply.status for reply in replies} == {200}
        await pool.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_environments_proxies_are_not_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw_server(answering(http(b"by proxy"))) as proxy, raw_server(answering(OK)) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert (await call(server.url)).body == b"{}"
        assert proxy.connections == 0


async def test_a_configured_proxy_gets_everything() -> None:
    async with raw_server(answering(http(b"by proxy"))) as proxy:
        assert (await call("http://nobody.invalid", proxy=proxy.url)).body == b"by proxy"
    async with raw_server(answering(http(b"", status="407 Proxy Authentication Required"))) as proxy:
        address = proxy.url.replace("//", "//user:hunter2@")
        error = await fault("https://nobody.invalid", ConnectFailed, proxy=address)
    assert (error.code, error.sent) == ("proxy_failed", False)
    assert "hunter2" not in str(error)


async def test_ca_file_may_hold_several_authorities(tmp_path: Path) -> None:
    context, pem = certificate("good")
    (tmp_path / "ca.pem").write_bytes(pem)
    async with raw_server(answering(OK), tls=context) as server:
        assert (await call(server.url, ca_file=str(tmp_path / "ca.pem"))).status == 200


@pytest.mark.parametrize(
    "pem", [None, b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_ca_file_that_cannot_be_used(pem: bytes | None, tmp_path: Path) -> None:
    if pem is not None:
        (tmp_path / "ca.pem").write_bytes(pem)
    with pytest.raises(ConfigError, match="ca_file"):
        Pool(PoolSettings(ca_file=tmp_path / "ca.pem"))


def test_a_proxy_that_cannot_be_used_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match="proxy cannot") as caught:
        Pool(PoolSettings(proxy="user:hunter2@nowhere:port"))
    assert "hunter2" not in str(caught.value)
