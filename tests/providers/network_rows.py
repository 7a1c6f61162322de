"""The network's faults as a table: what a server does on its first connection, and what it means."""

import asyncio
import gzip
import zlib
from dataclasses import dataclass

from raw_server import Connection, Talk, answering, http

from batcher.errors import AttemptTimeout, BadReply, CallError, ConnectionLost, InvalidRequest

DEADLINE_S = 0.4


def said(text: str) -> bytes:
    return b'{"model":"m","choices":[{"message":{"content":"%b"},"finish_reason":"stop"}]}' % text.encode()


MINE = said("mine")
OK = http(MINE)
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
UNENDING = b"HTTP/1.1 200 OK\r\n\r\n"
HTML = b"<!DOCTYPE html><html><title>Sign in to the hotel's network</title></html>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault; without a `kind` it is one that a call gets over, and brings the answer `mine`."""

    name: str
    talk: Talk
    kind: type[CallError] | None = None
    code: str = ""
    status: int = 0

    def __str__(self) -> str:
        return self.name


async def resets(connection: Connection) -> None:
    connection.reset()


async def says_nothing(connection: Connection) -> None:
    await connection.gone()


async def resets_after_the_request(connection: Connection) -> None:
    await connection.request()
    connection.reset()


async def trickles(connection: Connection) -> None:
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    for _ in range(1000):
        await connection.send(b" ")
        await asyncio.sleep(DEADLINE_S / 20)


async def falls_silent_when_asked_again(connection: Connection) -> None:
    await connection.request()
    await connection.send(http(said("first")))
    await connection.request()
    await connection.gone()


async def answers_twice(connection: Connection) -> None:
    while await connection.request():
        await connection.send(OK + http(said("another's")))


async def answers_again_unasked(connection: Connection) -> None:
    await connection.request()
    await connection.send(OK)
    await asyncio.sleep(0.01)
    await connection.send(http(said("another's")))
    await connection.gone()


def flooding(head: bytes, piece: bytes = b"\0" * 65_536) -> Talk:
    """Send a body that would be 5 GB, unless the client hangs up."""

    async def talk(connection: Connection) -> None:
        await connection.request()
        await connection.send(head)
        for _ in range(80_000):
            await connection.send(piece)

    return talk


def bomb() -> bytes:
    """Make 1 GB of zeros out of 1 MB of gzip data: one deflate block, said a thousand times."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    head = packer.compress(b"\0" * 10_000) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(b"\0" * 1_000_000) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * 1_000


def zipped(data: bytes, encoding: str = "gzip") -> Talk:
    return answering(http(data, f"content-encoding: {encoding}"))


def lost(name: str, talk: Talk) -> Row:
    return Row(name=name, talk=talk, kind=ConnectionLost, code="connection_lost")


def not_http(name: str, reply: bytes) -> Row:
    return Row(name=name, talk=answering(reply), kind=BadReply, code="bad_http")


def no_good(name: str, talk: Talk, code: str = "bad_reply", status: int = 200) -> Row:
    return Row(name=name, talk=talk, kind=BadReply, code=code, status=status)


def late(name: str, talk: Talk) -> Row:
    return Row(name=name, talk=talk, kind=AttemptTimeout, code="timeout")


def taken(name: str, reply: bytes) -> Row:
    return Row(name=name, talk=answering(reply))


ROWS = [
    lost("N6 closed before the head", answering(b"")),
    lost("N6 reset before the head", resets_after_the_request),
    lost("N7 closed in the head", answering(b"HTTP/1.1 200 OK\r\ncontent-")),
    lost("N7 closed in the body", answering(OK[:-3])),
    lost("N7 reset in the body", answering(OK[:-3], then="reset")),
    lost("N8 cut inside a chunk", answering(CHUNKED + b"fff\r\n" + MINE)),
    lost("N8 no last chunk", answering(CHUNKED + b"%x\r\n%b\r\n" % (len(MINE), MINE))),
    lost("N8 no chunk at all", answering(CHUNKED + b"zz\r\nabc\r\n")),
    taken("N9 longer than announced", OK + b"more"),
    no_good("N10 half a body of HTTP/1.0", answering(b"HTTP/1.0 200 OK\r\n\r\n" + MINE[:-9])),
    no_good("N11 half of the gzip data", zipped(gzip.compress(MINE)[:50])),
    no_good("N11 no checksum of the gzip data", zipped(gzip.compress(MINE)[:-4])),
    no_good("N12 damaged gzip", zipped(b"no gzip")),
    no_good("N12 brotli", zipped(b"\x0b\x01\x80{}\x03", "br")),
    no_good("N12 zstd", zipped(b"\x28\xb5\x2f\xfd", "zstd")),
    no_good("N12 gzip twice", zipped(gzip.compress(gzip.compress(MINE)), "gzip, gzip")),
    taken("N12 gzip", http(gzip.compress(MINE), "content-encoding: GZIP")),
    no_good("N13 gzip bomb", zipped(bomb()), "body_too_large"),
    no_good(
        "N14 5 GB announced",
        flooding(b"HTTP/1.1 200 OK\r\ncontent-length: 5000000000\r\n\r\n"),
        "body_too_large",
    ),
    no_good("N14 5 GB unannounced", flooding(UNENDING), "body_too_large"),
    no_good(
        "N14 5 GB in chunks", flooding(CHUNKED, b"10000\r\n" + b"\0" * 65_536 + b"\r\n"), "body_too_large"
    ),
    late("N15 a byte at a time", trickles),
    late("N16 never answers", answering(b"", then="hang")),
    taken("N17 200 KB of header", http(MINE, "x-a: " + "a" * 200_000)),
    not_http("N17 600 KB of header", http(MINE, "x-a: " + "a" * 600_000)),
    not_http("N17 10,000 headers", http(MINE, *[f"x-{number}: a" for number in range(10_000)])),
    not_http("N17 NUL", http(MINE, "x-a: a\0b")),
    not_http("N17 CR", http(MINE, "x-a: a\rb")),
    taken("N17 Latin-1", http(MINE, "x-a: caf\xe9")),
    not_http("N18 TLS", b"\x16\x03\x01 what\r\n\r\n"),
    not_http("N18 HTTP/0.9", HTML),
    not_http("N18 HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    not_http("N18 odd status", b"HTTP/1.1 99 Odd\r\n\r\n"),
    not_http("N18 negative length", b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\n{}"),
    not_http("N18 endless length", b"HTTP/1.1 200 OK\r\ncontent-length: %b\r\n\r\n{}" % (b"9" * 5_000)),
    not_http("N18 two lengths", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}"),
    taken("N19 100 first", b"HTTP/1.1 100 Continue\r\n\r\n" + OK),
    taken("N19 103 first", b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + OK),
    no_good("N19 101", answering(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), "bad_status", 101),
    Row(name="N27 two answers", talk=answers_twice),
    Row(name="N27 one more, later", talk=answers_again_unasked),
    no_good("N31 captive portal", answering(http(HTML, "content-type: text/html"))),
    Row(
        name="N31 redirect to a portal",
        talk=answering(http(HTML, "location: http://portal.invalid/", status="302 Found")),
        kind=InvalidRequest,
        code="redirected",
        status=302,
    ),
]
