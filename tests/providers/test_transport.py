"""Every way in which HTTP can break is one of our errors, and tells whether the request had been sent."""

import asyncio
import datetime
import gzip
import resource
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
from pyreqwest.exceptions import BuilderError, ClientClosedError, ConnectError, RequestPanicError
from raw_server import Connection, Talk, answering, http, raw_server

from batcher.errors import (
    AttemptTimeout,
    BadReply,
    CallError,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    InvalidRequest,
    LocalFault,
)
from batcher.providers.transport import HttpReply, Pool, PoolSettings, fault_of

pytestmark = pytest.mark.real_loop

CAP = 100_000
OK = http(b"{}")
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


async def call(url: str, *, timeout_s: float = 5.0, **settings: Any) -> HttpReply:
    pool = Pool(PoolSettings(connect_timeout_s=0.5, max_body_bytes=CAP, **settings))
    try:
        return await pool.post(f"{url}/v1/x", {"x-a": "b"}, b'{"a":1}', timeout_s=timeout_s)
    finally:
        await pool.aclose()


async def fault(url: str, kind: type[CallError], **settings: Any) -> CallError:
    with pytest.raises(kind) as caught:
        await call(url, **settings)
    assert type(caught.value) is kind
    return caught.value


async def stalls(connection: Connection) -> None:
    await connection.gone()


async def resets(connection: Connection) -> None:
    connection.reset()


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
    ("url", "code"),
    [("http://127.0.0.1:9", "connect_failed"), ("http://nobody.invalid", "dns_failed")],
)
async def test_no_connection_costs_nothing(url: str, code: str) -> None:
    error = await fault(url, ConnectFailed)
    assert (error.code, error.sent, error.status) == (code, False, 0)
    assert f"({url})" in str(error)


@pytest.mark.parametrize(
    ("talk", "code"), [(stalls, "connect_timeout"), (resets, "connect_failed")], ids=["stall", "reset"]
)
async def test_a_broken_tls_handshake_costs_nothing(talk: Talk, code: str) -> None:
    async with raw_server(talk) as server:
        error = await fault(server.url.replace("http", "https"), ConnectFailed)
    assert (error.code, error.sent) == (code, False)


@pytest.mark.parametrize(
    "talk",
    [
        answering(b""),
        answering(b"", then="reset"),
        answering(b"HTTP/1.1 200 OK\r\ncontent-"),
        answering(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc"),
        answering(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc", then="reset"),
        answering(CHUNKED + b"10\r\nabc"),
        answering(CHUNKED + b"3\r\nabc\r\n"),
        answering(CHUNKED + b"zz\r\nabc\r\n"),
    ],
    ids=[
        "close-before-head",
        "reset-before-head",
        "close-in-head",
        "close-in-body",
        "reset-in-body",
        "cut-chunk",
        "no-last-chunk",
        "illegal-chunk",
    ],
)
async def test_a_connection_that_breaks_after_sending_may_have_cost(talk: Talk) -> None:
    async with raw_server(talk) as server:
        error = await fault(server.url, ConnectionLost)
        assert server.connections == 1
    assert (error.code, error.sent) == ("connection_lost", True)


@pytest.mark.parametrize(
    "reply",
    [
        b"\x16\x03\x01 what\r\n\r\n",
        b"<html>an old server</html>",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"HTTP/1.1 99 Odd\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        http(b"{}", "x-a: a\0b"),
        http(b"{}", "x-a: a\rb"),
        http(b"{}", "x-a: " + "a" * 600_000),
        http(b"{}", *[f"x-{number}: a" for number in range(10_000)]),
    ],
    ids=[
        "tls",
        "http09",
        "http2",
        "status",
        "negative",
        "two-lengths",
        "nul",
        "cr",
        "600kB-head",
        "10000-headers",
    ],
)
async def test_what_is_not_http_is_a_bad_reply(reply: bytes) -> None:
    async with raw_server(answering(reply)) as server:
        error = await fault(server.url, BadReply)
    assert (error.code, error.sent) == ("bad_http", True)


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


def certificate(case: str) -> tuple[ssl.SSLContext, bytes]:
    authority = trustme.CA()
    host = "elsewhere.example" if case == "wrong-host" else "127.0.0.1"
    expiry = datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC) if case == "expired" else None
    begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host, not_before=begin, not_after=expiry).configure_cert(context)
    unrelated = trustme.CA().cert_pem.bytes()
    return context, unrelated + (b"" if case == "unknown" else authority.cert_pem.bytes())


@pytest.mark.parametrize("case", ["unknown", "wrong-host", "expired"])
async def test_a_certificate_that_is_not_accepted(case: str, tmp_path: Path) -> None:
    context, pem = certificate(case)
    (tmp_path / "ca.pem").write_bytes(pem)
    async with raw_server(answering(OK), tls=context) as server:
        error = await fault(server.url, ConnectFailed, ca_file=tmp_path / "ca.pem")
        assert server.connections == 0
    assert (error.code, error.sent) == ("tls", False)
    assert "ca_file" in str(error)


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


@pytest.mark.parametrize(
    ("number", "kind"),
    [(23, LocalFault), (24, LocalFault), (99, LocalFault), (105, LocalFault), (111, ConnectFailed)],
)
def test_a_shortage_of_this_machine_is_no_fault_of_the_provider(number: int, kind: type[CallError]) -> None:
    causes = ["client error (Connect)", "tcp open error", f"No luck (os error {number})"]
    error = fault_of(ConnectError("connection error", {"causes": [{"message": cause} for cause in causes]}))
    assert (type(error), error.sent) == (kind, False)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RequestPanicError("panic", {"causes": None}), ConnectionLost),
        (ClientClosedError("Client was closed", {"causes": None}), ConnectionLost),
        (BuilderError("builder error", {"causes": []}), InvalidRequest),
    ],
)
def test_faults_that_no_server_makes(error: BuilderError | ClientClosedError, kind: type[CallError]) -> None:
    assert type(fault_of(error)) is kind


OUT_OF_DESCRIPTORS = """
import asyncio, os, resource
from batcher.errors import LocalFault
from batcher.providers.transport import Pool, PoolSettings

async def main():
    pool = Pool(PoolSettings())
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    faults = []
    for url in ("http://127.0.0.1:9", "http://nobody.invalid"):
        try:
            await pool.post(url, [], b"", timeout_s=5)
        except LocalFault as error:
            faults.append(error)
    for number in held:
        os.close(number)
    await pool.aclose()
    print([(error.code, error.sent) for error in faults])

asyncio.run(main())
"""


def test_without_file_descriptors_the_process_lives_and_blames_this_machine() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_DESCRIPTORS], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == "[('local_fault', False), ('local_fault', False)]"
