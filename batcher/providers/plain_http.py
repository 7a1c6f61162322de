"""HTTP/1.1 over plain TCP on the loop's own thread, which costs a third of a client that has a thread."""

import asyncio
import contextlib
import math
import re
import socket
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

from aiohappyeyeballs import AddrInfoType, start_connection
from pyreqwest.http import Url

from batcher.providers.connection import Connection
from batcher.providers.faults import (
    cannot_connect,
    client_closed,
    no_request,
    no_such_host,
    not_connected,
    time_is_up,
)
from batcher.providers.wire import Headers, PoolSettings, Received

_SECOND_ADDRESS_AFTER_S = 0.25
_LOOKS = 16
"""At the connections that nobody uses, in the time that they may be idle."""

_KEEPALIVE_S = 15
_UNACKNOWLEDGED_S = 30
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t\x20-\x7e\x80-\xff]*")


class Place(NamedTuple):
    """Where a request goes: one server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"http://{self.host}:{self.port}"


class PlainHttp:
    """Connections to servers over plain http, kept while they are in use.

    Each call has a connection of its own, so there are as many as calls in flight, and no queue.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self._connect_timeout_s = settings.connect_timeout_s
        self._idle_timeout_s = settings.idle_timeout_s
        self._max_body_bytes = settings.max_body_bytes
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: set[Connection] = set()
        self._lookups: dict[Place, asyncio.Task[Sequence[AddrInfoType]]] = {}
        self._idle: dict[Place, list[Connection]] = {}
        self._look_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._head = lru_cache(maxsize=64)(_head)  # here, so that keys in headers go when the pool does

    def __repr__(self) -> str:
        return f"<PlainHttp open={len(self._open)} idle={sum(map(len, self._idle.values()))}>"

    async def call(self, method: str, url: str, headers: Headers, body: bytes, timeout_s: float) -> Received:
        """Send a request and read its whole answer.

        Raises:
            CallError: no whole answer came.
        """
        # Finding the running loop takes a system call until Python 3.12.
        loop = self._loop = self._loop or asyncio.get_running_loop()
        place, head = self._head(method, url, tuple(headers))
        if timeout_s <= 0:
            raise time_is_up(sent=False)
        due_at = loop.time() + timeout_s
        connection = self._take(place) or await self._connect(place, loop, due_at)
        if self._is_closed:
            connection.close()
            raise client_closed(sent=False)
        request = head if method == "GET" else b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
        answer = connection.call(request, due_at)
        if due_at < self._look_at:
            self._look_again_at(due_at)
        try:
            return await answer
        except asyncio.CancelledError:
            connection.close()
            raise
        finally:
            if connection.is_free:
                self._keep(connection, place)

    def close(self) -> None:
        """End the calls that are out, close all connections, and let no call begin any more."""
        self._is_closed = True
        for connection in tuple(self._open):
            connection.fail(client_closed(sent=True))
        if self._timer is not None:
            self._timer.cancel()

    def _take(self, place: Place) -> Connection | None:
        idle = self._idle.get(place)
        while idle:
            connection = idle.pop()  # the one used last: the others may rest until they are closed
            if connection.is_free and connection.is_still_there():
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection, place: Place) -> None:
        assert self._loop is not None
        # Rounded up, so that many connections that come to rest one after the other end at few looks.
        step_s = self._idle_timeout_s / _LOOKS
        connection.due_at = math.ceil((self._loop.time() + self._idle_timeout_s) / step_s) * step_s
        if connection.due_at < self._look_at:
            self._look_again_at(connection.due_at)
        self._idle.setdefault(place, []).append(connection)

    async def _connect(self, place: Place, loop: asyncio.AbstractEventLoop, due_at: float) -> Connection:
        opened: socket.socket | None = None
        connection: Connection | None = None
        try:
            async with asyncio.timeout_at(min(due_at, loop.time() + self._connect_timeout_s)):
                opened = await start_connection(
                    await self._addresses(place, loop),
                    happy_eyeballs_delay=_SECOND_ADDRESS_AFTER_S,
                    interleave=1,
                    loop=loop,
                )
                _notice_dead_peers(opened)
                new = partial(Connection, loop, self._max_body_bytes, self._open.discard)
                _, connection = await loop.create_connection(new, sock=opened)
        except UnicodeError:
            raise no_such_host("no host has such a name", str(place)) from None
        except OSError as error:
            raise cannot_connect(error, str(place)) from None
        finally:
            if connection is None and opened is not None:
                opened.close()
        if not connection.is_free:
            raise not_connected("connect_failed", str(place), "the server closed it at once")
        self._open.add(connection)
        return connection

    async def _addresses(self, place: Place, loop: asyncio.AbstractEventLoop) -> Sequence[AddrInfoType]:
        """Look a host up, once at a time: a lookup that hangs holds one of few threads until it ends."""
        host, port = place.host.strip("[]"), place.port
        with contextlib.suppress(socket.gaierror):
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        if place not in self._lookups:
            lookup = loop.create_task(_look_up(host, port, loop))
            lookup.add_done_callback(partial(self._looked_up, place))
            self._lookups[place] = lookup
        return await asyncio.shield(self._lookups[place])

    def _looked_up(self, place: Place, lookup: asyncio.Task[Sequence[AddrInfoType]]) -> None:
        del self._lookups[place]
        if not lookup.cancelled():
            lookup.exception()  # those that waited for it may be gone

    def _look_again_at(self, when: float) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._look_at = when
        self._timer = self._loop.call_at(when, self._close_what_is_due)

    def _close_what_is_due(self) -> None:
        """Let one timer end the calls whose time is up and the connections that nobody uses."""
        assert self._loop is not None
        now = self._loop.time()
        due = [connection for connection in self._open if connection.due_at <= now]
        for connection in due:
            self._open.discard(connection)
            connection.fail(time_is_up(sent=True))
        for place, idle in self._idle.items():
            self._idle[place] = [connection for connection in idle if connection.is_free]
        self._look_at = math.inf
        if self._open:
            self._look_again_at(min(connection.due_at for connection in self._open))


def _head(method: str, url: str, headers: Headers) -> tuple[Place, bytes]:
    """Return where a request goes, and its head: whole for a GET, else up to the length of its body.

    Raises:
        InvalidRequest: no such request can be sent.
    """
    try:
        parsed = Url(url)
    except ValueError as error:
        raise no_request(str(error)) from None
    port = parsed.port_or_known_default
    place = Place(parsed.host_str or "", 80 if port is None else port)
    query = f"?{parsed.query_string}" if parsed.query_string else ""
    given = [(name.lower(), value) for name, value in headers if name.lower() != "content-length"]
    names = {name for name, _ in given}
    added = {
        "host": place.host if parsed.port is None else f"{place.host}:{place.port}",
        "user-agent": "batcher",
        "accept": "*/*",
    }
    lines = [f"{name}: {value}" for name, value in added.items() if name not in names]
    lines += [f"{name}: {value}" for name, value in given]
    for line in lines:
        if not _HEADER.fullmatch(line):
            raise no_request(f"header {line.partition(':')[0]!r} holds what no header may")
    end = "\r\n" if method == "GET" else ""
    head = "\r\n".join([f"{method} {parsed.path}{query} HTTP/1.1", *lines, end])
    return place, head.encode("latin-1")


async def _look_up(host: str, port: int, loop: asyncio.AbstractEventLoop) -> Sequence[AddrInfoType]:
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _notice_dead_peers(opened: socket.socket) -> None:
    """Have the system find out when the other side is gone without a word."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    with contextlib.suppress(AttributeError, OSError):  # not every system has them
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_S)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _UNACKNOWLEDGED_S)
