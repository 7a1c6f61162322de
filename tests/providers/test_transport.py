"""The pool takes what HTTP allows, under caps and deadlines, and leaves nothing behind."""

import asyncio
import os
from pathlib import Path

import pytest
from pool_calls import CAP, call, certificate, fault
from raw_server import Connection, answering, http, raw_server

from batcher.errors import BadReply, ConfigError, ConnectFailed, ConnectionLost
from batcher.providers.transport import Pool
from batcher.providers.wire import PoolSettings, announced_above

pytestmark = pytest.mark.real_loop

OK = http(b"{}")
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (OK, b"{}"),
        (CHUNKED + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", b"{}"),
        (b'HTTP/1.0 200 OK\r\n\r\n{"half', b'{"half'),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b""),
    ],
    ids=["plain", "chunked", "http10", "204", "101"],
)
async def test_what_is_taken(reply: bytes, body: bytes) -> None:
    async with raw_server(answering(reply)) as server:
        got = await call(server.url)
    assert got.body == body


async def test_header_names_are_in_lower_case_and_the_first_of_two_counts() -> None:
    async with raw_server(answering(http(b"", "Retry-After: 1", "retry-after: 2", "X-A: caf\xe9"))) as server:
        got = await call(server.url)
    assert got.headers == {"content-length": "0", "retry-after": "1"}


async def test_a_failure_keeps_its_status_even_if_its_body_is_unusable() -> None:
    async with raw_server(answering(http(b"x" * (CAP + 1), status="401 Unauthorized"))) as server:
        assert await call(server.url) == (401, {"content-length": str(CAP + 1)}, b"")


async def test_a_body_announced_above_the_cap_is_not_waited_for() -> None:
    start = http(b"x" * (CAP + 1))[:80_000]  # more than the 64 KB that come before the headers are seen
    async with raw_server(answering(start, then="hang")) as server:
        assert (await fault(server.url, BadReply)).code == "body_too_large"


@pytest.mark.parametrize(
    ("length", "above"),
    [
        *(("", False), ("x", False), ("-9", False), ("0", False), ("100", False), ("101", True)),
        *(("0" * 5_000 + "2", False), ("9" * 5_000, True)),
    ],
)
def test_a_length_of_any_form_is_compared_with_the_cap(length: str, above: bool) -> None:
    assert announced_above(100, {"content-length": length}) is above


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


async def test_a_system_that_refuses_another_priority_refuses_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(by: int) -> int:
        raise PermissionError(1, f"nice by {by} is not permitted")

    monkeypatch.setattr(os, "nice", refused)
    async with raw_server(answering(http(b"{}"))) as server:
        pool = Pool(PoolSettings())
        reply = await pool.post(server.url, [], b"{}", timeout_s=5)
        await pool.aclose()
    assert reply.status == 200
