"""The one pool of connections, behind one small verb: bytes in; status, headers, bytes or a fault out."""

import asyncio
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from batcher.errors import BadReply
from batcher.providers.failures import no_answer
from batcher.providers.plain_http import PlainHttp
from batcher.providers.pyreqwest_client import PyreqwestClient
from batcher.providers.wire import Headers, PoolSettings

ACCEPT_ENCODING = "gzip, identity"
"""What `Pool` can decode under a cap, and so what its callers may ask for."""

_LETTING_GO_S = 0.02
_GZIP = 16 + zlib.MAX_WBITS


class HttpReply(NamedTuple):
    """What came back: header names are in lower case, the body is decoded."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Pool:
    """Connections for all providers of a run, without redirects, cookies or the environment's proxies.

    Raises:
        ConfigError: the proxy or the CA file cannot be used.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self._client = PyreqwestClient(settings)
        self._plain = PlainHttp(settings) if settings.plain_on_loop and settings.proxy is None else None

    def __repr__(self) -> str:
        return f"Pool(max_connections={self._settings.max_connections})"

    async def post(self, url: str, headers: Headers, body: bytes, *, timeout_s: float) -> HttpReply:
        """Send `body` and read the whole reply, whatever its status.

        Args:
            url: absolute.
            headers: all that is to be sent beside `host` and `content-length`.
            body: sent as it is.
            timeout_s: from the call to the last byte (seconds); it ends the request on the wire too, which
                cancelling the task does not for https.

        Raises:
            CallError: no whole reply came; `sent` tells whether the request may have got through.
        """
        status, got, data = await self._client_for(url).call("POST", url, headers, body, timeout_s)
        return HttpReply(status, got, self._body(status, got, data))

    async def get(self, url: str, headers: Headers, *, timeout_s: float) -> HttpReply:
        """Fetch `url`; the rest is as for `post`."""
        status, got, data = await self._client_for(url).call("GET", url, headers, b"", timeout_s)
        return HttpReply(status, got, self._body(status, got, data))

    async def aclose(self) -> None:
        """Close all connections."""
        if self._plain is not None:
            self._plain.close()
        await self._client.aclose()
        # The client's own thread may still be letting go of Python objects, and the process aborts if the
        # interpreter ends meanwhile.
        await asyncio.sleep(_LETTING_GO_S)

    def _client_for(self, url: str) -> PlainHttp | PyreqwestClient:
        return self._plain if self._plain is not None and url.startswith("http://") else self._client

    def _body(self, status: int, headers: Mapping[str, str], body: bytes | None) -> bytes:
        try:
            if body is None:
                raise self._too_large(status)
            encoding = headers.get("content-encoding", "identity")
            return body if encoding == "identity" else self._decoded(body, encoding, status)
        except BadReply:
            if status < 300:
                raise
            # The status of a failure says enough without its body.
            return b""

    def _decoded(self, body: bytes, encoding: str, status: int) -> bytes:
        if encoding.lower() not in ("gzip", "x-gzip"):
            # Nothing of the headers is repeated from here on: the key has not been blotted out of them yet.
            raise no_answer(status, {}, b"", "it is encoded, unasked for")
        inflater = zlib.decompressobj(_GZIP)
        try:
            decoded = inflater.decompress(body, self._settings.max_body_bytes + 1)
        except zlib.error:
            raise no_answer(status, {}, b"", "its gzip data are damaged") from None
        if len(decoded) > self._settings.max_body_bytes:
            raise self._too_large(status)
        if not inflater.eof:
            raise no_answer(status, {}, b"", "its gzip data are cut short")
        return decoded

    def _too_large(self, status: int) -> BadReply:
        reason = f"it is larger than {self._settings.max_body_bytes} bytes"
        return no_answer(status, {}, b"", reason, code="body_too_large")
