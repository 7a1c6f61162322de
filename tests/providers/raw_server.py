"""A server that speaks any bytes, so that HTTP can be broken on purpose."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


class Connection:
    """One accepted connection, as the test's talk sees it."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self._reader = reader
        self._writer = writer

    async def head(self) -> bytes:
        """Read a request as far as its headers go; b"" if the client closed instead."""
        try:
            return await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""

    async def request(self) -> bytes:
        """Read one whole request; b"" if the client closed instead."""
        head = await self.head()
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        return head + await self._reader.readexactly(length)

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def gone(self) -> None:
        """Wait until the client closes."""
        while await self._reader.read(65536):
            pass

    def say_no_more(self) -> None:
        """Close this direction only."""
        self._writer.write_eof()

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Talk = Callable[[Connection], Awaitable[None]]


class RawServer:
    """Where it listens, and how many connections it accepted (after the TLS handshake, if any)."""

    def __init__(self, port: int, scheme: str) -> None:
        self.port = port
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.connections = 0


@asynccontextmanager
async def raw_server(talk: Talk, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    """Serve `talk` on a free loopback port; every connection is closed at the end."""
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        writers.append(writer)
        seen.connections += 1
        connection = Connection(seen.connections, reader, writer)
        try:
            await talk(connection)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    seen = RawServer(server.sockets[0].getsockname()[1], "https" if tls else "http")
    try:
        yield seen
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()  # one over TLS would wait for the client's goodbye
        await asyncio.gather(*[writer.wait_closed() for writer in writers], return_exceptions=True)


def answering(data: bytes, *, then: str = "close") -> Talk:
    """Answer every request on a connection with `data`, then `close`, `reset`, `hang` or `keep` it."""

    async def talk(connection: Connection) -> None:
        while await connection.request():
            await connection.send(data)
            if then == "hang":
                await connection.gone()
            if then == "reset":
                connection.reset()
            if then != "keep":
                return

    return talk


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Return a well-formed reply with its right length."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
