"""Reads HTTP/1.1 requests off a byte stream."""

from batcher.providers.simulator.calls import Call

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024


class BadHttp(Exception):
    """What came in is no request we read; `status` says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RequestReader:
    """Takes bytes as they come and gives back whole requests, one at a time.

    `expects_continue` holds while the client waits for leave to send its body.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: tuple[str, str, dict[str, str]] | None = None
        self._chunks = bytearray()
        self.expects_continue = False

    @property
    def buffered(self) -> int:
        """Bytes that came in and were not yet given back."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take in what the socket brought."""
        self._buffer += data

    def next(self) -> Call | None:
        """Return the next request, None if more bytes are needed.

        Raises:
            BadHttp: the stream cannot be read any further.
        """
        if self._head is None:
            self._head = self._take_head()
            if self._head is None:
                return None
            self.expects_continue = self._head[2].get("expect", "").lower() == "100-continue"
        method, path, headers = self._head
        if "chunked" in headers.get("transfer-encoding", "").lower():
            body = self._take_chunks()
        else:
            body = self._take_length(headers.get("content-length", "0"))
        if body is None:
            return None
        self._head = None
        self.expects_continue = False
        return Call(method=method, path=path, headers=headers, body=body)

    def _take(self, count: int) -> bytes:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _take_head(self) -> tuple[str, str, dict[str, str]] | None:
        end = self._buffer.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        if end < 0:
            if len(self._buffer) >= MAX_HEAD_BYTES:
                raise BadHttp(431, "The headers are larger than 64 KB.")
            return None
        first, *lines = self._take(end + 4)[:-4].decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise BadHttp(400, "The request line is not HTTP/1.1.")
        headers = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise BadHttp(400, "A header has no name or no colon.")
            headers[name.lower()] = value.strip()
        if words[2] == "HTTP/1.0":
            headers.setdefault("connection", "close")
        return words[0], words[1], headers

    def _take_length(self, text: str) -> bytes | None:
        if not (text.isascii() and text.isdigit()):
            raise BadHttp(400, "content-length is not a number.")
        length = int(text)
        if length > MAX_BODY_BYTES:
            raise BadHttp(413, "The body is larger than 64 MB.")
        return self._take(length) if len(self._buffer) >= length else None

    def _take_chunks(self) -> bytes | None:
        while True:
            line_end = self._buffer.find(b"\r\n")
            if line_end < 0:
                if len(self._buffer) >= MAX_HEAD_BYTES:
                    raise BadHttp(400, "A chunk has no size.")
                return None
            try:
                size = int(self._buffer[:line_end].split(b";")[0], 16)
            except ValueError:
                raise BadHttp(400, "A chunk's size is not a number.") from None
            if size < 0 or len(self._chunks) + size > MAX_BODY_BYTES:
                raise BadHttp(413, "The body is larger than 64 MB.")
            if size == 0:
                return self._take_trailers(line_end)
            if len(self._buffer) < line_end + 2 + size + 2:
                return None
            self._chunks += self._buffer[line_end + 2 : line_end + 2 + size]
            del self._buffer[: line_end + 2 + size + 2]

    def _take_trailers(self, line_end: int) -> bytes | None:
        # The last chunk's line, any trailers, and an empty line.
        end = self._buffer.find(b"\r\n\r\n", line_end)
        if end < 0:
            return None
        del self._buffer[: end + 4]
        body = bytes(self._chunks)
        self._chunks.clear()
        return body
