"""A client that shows what a server really put on the wire."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import orjson


@dataclass(frozen=True, slots=True)
class Seen:
    """The raw bytes of a reply, and what became of the connection: "open", "closed" or "reset"."""

    raw: bytes
    end: str

    @property
    def head(self) -> str:
        return self.raw.partition(b"\r\n\r\n")[0].decode("latin-1")

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def status(self) -> int:
        return int(self.head.split(" ")[1])

    @property
    def headers(self) -> dict[str, str]:
        pairs = (line.partition(": ") for line in self.head.split("\r\n")[1:])
        return {name.lower(): value for name, _, value in pairs}


def chat_request(
    text: str = "Hello", *, path: str = "/v1/chat/completions", headers: str = "", **fields: object
) -> bytes:
    """Write a chat completion request as HTTP/1.1."""
    body = orjson.dumps(
        {"model": "openai/gpt-oss-20b", "messages": [{"role": "user", "content": text}]} | fields
    )
    return post(path, body, headers=headers)


def post(path: str, body: bytes = b"", *, headers: str = "") -> bytes:
    """Write a POST; `headers` are whole lines."""
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body


def get(path: str) -> bytes:
    """Write a GET."""
    return f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection, and drop it at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        # The transport closes its socket in the loop's next round.
        await asyncio.sleep(0)


async def exchange(port: int, request: bytes, *, quiet_s: float = 0.1, cap: int = 1 << 20) -> Seen:
    """Send `request` on a new connection; read until it ends, `cap` bytes came, or none for `quiet_s`."""
    raw = bytearray()
    async with connected(port) as (reader, writer):
        writer.write(request)
        while len(raw) < cap:
            try:
                data = await _read(reader, quiet_s)
            except ConnectionResetError:
                return Seen(bytes(raw), "reset")
            if data is None:
                break
            if not data:
                return Seen(bytes(raw), "closed")
            raw += data
    return Seen(bytes(raw), "open")


async def _read(reader: asyncio.StreamReader, quiet_s: float) -> bytes | None:
    # If this process was held up, its timer is due before what the server just sent is seen: look twice.
    for wait_s in (quiet_s, 0.02):
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(reader.read(65536), wait_s)
    return None
