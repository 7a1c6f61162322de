"""One HTTP/1.1 connection over plain TCP: one call at a time, and nothing of a call left for the next one."""

import asyncio
import math
import select
from collections.abc import Callable
from functools import lru_cache
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from batcher.errors import CallError
from batcher.providers.failures import scrub
from batcher.providers.faults import connection_lost, not_http
from batcher.providers.wire import Received, announced_above

MAX_HEAD_BYTES = 400 * 1024
MAX_HEADERS = 1000

_USUAL_NAME_BYTES = 64
_INTERIM = frozenset(range(100, 200)) - {101}


class Connection(asyncio.Protocol):
    """Sends requests one after the other and hands each its answer.

    Whatever is not well-formed, comes unasked or comes too late ends the connection.

    Args:
        loop: that it lives on.
        max_body_bytes: largest body; a larger one is not read to its end.
        on_lost: called once, when the connection is gone.

    Attributes:
        due_at: loop time at which it is to be closed: the call's time is up, or it has been idle too long.
    """

    __slots__ = (
        "_answer",
        "_body",
        "_fed_bytes",
        "_headers",
        "_in_body",
        "_is_open",
        "_loop",
        "_max_body_bytes",
        "_on_lost",
        "_parser",
        "_transport",
        "_waiting",
        "due_at",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, max_body_bytes: int, on_lost: Callable[["Connection"], None]
    ) -> None:
        self._loop = loop
        self._max_body_bytes = max_body_bytes
        self._on_lost = on_lost
        self._parser = HttpResponseParser(self)
        self._fed_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Received] | None = None
        self._waiting = select.poll()
        self._is_open = True
        self.due_at = math.inf
        self._begin_answer()

    @property
    def is_free(self) -> bool:
        """Whether another call may be made on it."""
        return self._is_open and self._answer is None

    def is_still_there(self) -> bool:
        """Tell whether nothing has come since the last answer: neither its end, nor an answer to nobody.

        The loop hears of both too late while it is busy.
        """
        return not self._waiting.poll(0)

    def call(self, request: bytes, due_at: float) -> asyncio.Future[Received]:
        """Send a request; the future gets the whole answer, or a `CallError` that says why none came."""
        assert self._transport is not None
        self._fed_bytes = 0
        self.due_at = due_at
        self._answer = answer = self._loop.create_future()
        self._transport.write(request)
        return answer

    def fail(self, error: CallError) -> None:
        """End the call that is under way, if any, and the connection with it."""
        answer, self._answer = self._answer, None
        self.close()
        if answer is not None and not answer.done():
            answer.set_exception(error)

    def close(self) -> None:
        """Close at once, unsent bytes included."""
        self._is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (called by the loop)."""
        self._transport = cast(asyncio.Transport, transport)
        self._waiting.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the call: well only where the end of the connection is how its answer ends (by the loop)."""
        if exc is None and self._in_body and self._ends_with_connection():
            self._finish(bytes(self._body))
        reason = "the server closed it" if exc is None else scrub(str(exc))
        self.fail(connection_lost(reason, unread=not self._fed_bytes))
        self._on_lost(self)

    def eof_received(self) -> None:
        """Close at once (by the loop, which would first wait until the whole request is sent)."""
        self.close()

    def data_received(self, data: bytes) -> None:
        """Read on (called by the loop)."""
        if self._answer is None:
            self.close()  # unasked for: it must not be taken for the answer of the next call
            return
        self._fed_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self.fail(not_http("it changes to another protocol"))
        except HttpParserError as error:
            reason = str(error)
            self.fail(connection_lost(reason, unread=False) if self._in_body else not_http(reason))
        else:
            # What frames a body, such as headers and trailers, is held in memory too.
            if self._answer is not None and self._fed_bytes > MAX_HEAD_BYTES + 6 * len(self._body):
                self.fail(not_http("there is no end of its headers"))

    def on_message_begin(self) -> None:
        """Refuse an answer that nobody has asked for (called by the parser)."""
        if self._answer is None:
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header (called by the parser): the first of several, unless it is not ASCII.

        What follows the body must not change how it is read.
        """
        if self._in_body:
            return
        headers = self._headers
        try:
            lower = _lower_name(name) if len(name) <= _USUAL_NAME_BYTES else name.decode("ascii").lower()
            headers.setdefault(lower, value.decode("ascii"))
        except UnicodeDecodeError:
            return
        if len(headers) > MAX_HEADERS:
            self.fail(not_http(f"it has more than {MAX_HEADERS} headers"))

    def on_headers_complete(self) -> None:
        """Leave a body unread that is announced above the cap (called by the parser)."""
        self._in_body = True
        if announced_above(self._max_body_bytes, self._headers):
            self._finish(None)

    def on_body(self, piece: bytes) -> None:
        """Keep a piece of the body (called by the parser)."""
        self._body += piece
        if len(self._body) > self._max_body_bytes:
            self._finish(None)

    def on_message_complete(self) -> None:
        """Hand over the answer (called by the parser); interim ones, such as 103, are left out."""
        if self._parser.get_status_code() in _INTERIM:
            self._begin_answer()
        else:
            self._finish(bytes(self._body))

    def _begin_answer(self) -> None:
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._in_body = False

    def _finish(self, body: bytes | None) -> None:
        answer, self._answer = self._answer, None
        if answer is None or answer.done():
            self.close()
            return
        assert self._transport is not None
        # A server that answers before it has read the request may not mean to read the rest of it.
        if body is None or not self._parser.should_keep_alive() or self._transport.get_write_buffer_size():
            self.close()
        answer.set_result((self._parser.get_status_code(), self._headers, body))
        self._begin_answer()

    def _ends_with_connection(self) -> bool:
        return "content-length" not in self._headers and "transfer-encoding" not in self._headers


@lru_cache(maxsize=64)
def _lower_name(name: bytes) -> str:
    return name.decode("ascii").lower()
