"""Every way in which HTTP can break is one of our errors, and tells whether the request had been sent."""

import subprocess
import sys
from pathlib import Path

import pytest
from pool_calls import certificate, fault
from pyreqwest.exceptions import BuilderError, ClientClosedError, ConnectError, RequestPanicError
from raw_server import Connection, Talk, answering, http, raw_server

from batcher.errors import BadReply, CallError, ConnectFailed, ConnectionLost, InvalidRequest, LocalFault
from batcher.providers.faults import fault_of

pytestmark = pytest.mark.real_loop

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


async def stalls(connection: Connection) -> None:
    await connection.gone()


async def resets(connection: Connection) -> None:
    connection.reset()


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


@pytest.mark.parametrize("case", ["unknown", "wrong-host", "expired"])
async def test_a_certificate_that_is_not_accepted(case: str, tmp_path: Path) -> None:
    context, pem = certificate(case)
    (tmp_path / "ca.pem").write_bytes(pem)
    async with raw_server(answering(http(b"{}")), tls=context) as server:
        error = await fault(server.url, ConnectFailed, ca_file=tmp_path / "ca.pem")
        assert server.connections == 0
    assert (error.code, error.sent) == ("tls", False)
    assert "ca_file" in str(error)


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
