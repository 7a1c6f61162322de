"""The one pool of connections, behind one small verb: bytes in; status, headers, bytes or a fault out."""

import asyncio
import contextlib
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import BuilderError, PyreqwestError
from pyreqwest.http import HeaderMap
from pyreqwest.proxy import ProxyBuilder
from pyreqwest.request import RequestBuilder

from batcher.errors import BadReply, ConfigError
from batcher.providers.failures import no_answer
from batcher.providers.faults import fault_of

Headers = Mapping[str, str] | Sequence[tuple[str, str]]

ACCEPT_ENCODING = "gzip, identity"
"""What `Pool` can decode under a cap, and so what its callers may ask for."""

_LETTING_GO_S = 0.02
_NICER_BY = 6
_GZIP = 16 + zlib.MAX_WBITS


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """How connections are made and kept.

    Attributes:
        max_connections: calls at a time; above the run's concurrency, so that the pool is never the queue.
        connect_timeout_s: for name, TCP and TLS together (seconds, > 0).
        idle_timeout_s: after which an unused connection is closed (seconds, > 0). Common servers close theirs
            after 5 s; being first avoids sending into a connection that is just being closed.
        max_body_bytes: largest body, on the wire and decoded.
        proxy: URL of a proxy for everything; those of the environment are never obeyed.
        ca_file: PEM file with further certificate authorities to trust.
    """

    max_connections: int = 128
    connect_timeout_s: float = 10.0
    idle_timeout_s: float = 4.0
    max_body_bytes: int = 8 * 1024 * 1024
    proxy: str | None = None
    ca_file: str | Path | None = None


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
        self._client = _built_below(settings)

    def __repr__(self) -> str:
        return f"Pool(max_connections={self._settings.max_connections})"

    async def post(self, url: str, headers: Headers, body: bytes, *, timeout_s: float) -> HttpReply:
        """Send `body` and read the whole reply, whatever its status.

        Args:
            url: absolute.
            headers: all that is to be sent beside `host` and `content-length`.
            body: sent as it is.
            timeout_s: from the call to the last byte (seconds); it ends the request on the wire too, which
                cancelling the task does not.

        Raises:
            CallError: no whole reply came; `sent` tells whether the request may have got through.
        """
        return await self._call(self._client.post(url).headers(headers).body_bytes(body), timeout_s)

    async def get(self, url: str, headers: Headers, *, timeout_s: float) -> HttpReply:
        """Fetch `url`; the rest is as for `post`."""
        return await self._call(self._client.get(url).headers(headers), timeout_s)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.close()
        # The client's own thread may still be letting go of Python objects, and the process aborts if the
        # interpreter ends meanwhile.
        await asyncio.sleep(_LETTING_GO_S)

    async def _call(self, builder: RequestBuilder, timeout_s: float) -> HttpReply:
        request = builder.timeout(_duration(timeout_s)).build_streamed()
        cap = self._settings.max_body_bytes
        try:
            async with request as response:
                status, headers = response.status, _plain(response.headers)
                length = headers.get("content-length", "")
                # A body above the cap is left unread, which closes its connection.
                fits = not length.isdigit() or int(length) <= cap
                data = await response.body_reader.read(cap + 1) if fits else None
        except PyreqwestError as error:
            raise fault_of(error) from None
        body = b"" if data is None else data.to_bytes()
        return HttpReply(status, headers, self._body(status, headers, body, fits=fits and len(body) <= cap))

    def _body(self, status: int, headers: Mapping[str, str], body: bytes, *, fits: bool) -> bytes:
        try:
            if not fits:
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


@lru_cache(maxsize=16)
def _duration(seconds: float) -> timedelta:
    return timedelta(seconds=max(seconds, 0.0))


def _plain(headers: HeaderMap) -> dict[str, str]:
    """Copy the headers; of a repeated one the first counts, one that is not ASCII is left out."""
    try:
        return dict(headers)
    except ValueError:
        plain: dict[str, str] = {}
        for name in headers:
            try:
                plain[name] = headers[name]
            except ValueError:
                continue
        return plain


def _built_below(settings: PoolSettings) -> Client:
    """Build the client so that its thread lets the loop finish before it hands over what has arrived.

    On a core that they share, the loop would else be interrupted for every single answer. A thread takes its
    priority from the one that starts it; only on Linux is that a matter of threads.
    """
    if sys.platform != "linux":
        return _build_client(settings)

    def build() -> Client:
        with contextlib.suppress(OSError):  # some sandboxes refuse it
            os.nice(_NICER_BY)
        return _build_client(settings)

    with ThreadPoolExecutor(1) as lower:
        return lower.submit(build).result()


def _build_client(settings: PoolSettings) -> Client:
    builder = (
        ClientBuilder()
        .no_proxy()
        .follow_redirects(False)
        .referer(False)
        .gzip(False)
        .brotli(False)
        .zstd(False)
        .deflate(False)
        .user_agent("batcher")
        .http1_lower_case_headers()
        .max_connections(settings.max_connections)
        .connect_timeout(timedelta(seconds=settings.connect_timeout_s))
        .pool_idle_timeout(timedelta(seconds=settings.idle_timeout_s))
        .tcp_keepalive(timedelta(seconds=15))
        .tcp_user_timeout(timedelta(seconds=30))
    )
    try:
        if settings.proxy is not None:
            builder = builder.proxy(ProxyBuilder.all(settings.proxy))
        if settings.ca_file is not None:
            builder = builder.add_root_certificate_pem(_read_pem(Path(settings.ca_file)))
        return builder.build()
    except ValueError as error:
        # The proxy's URL may hold a password, so it is not repeated.
        certificates = "ca_file" if settings.ca_file is not None else "SSL_CERT_FILE or SSL_CERT_DIR"
        what = certificates if isinstance(error, BuilderError) else "proxy"
        raise ConfigError(f"{what} cannot be used: it is damaged or not of the expected form") from None


def _read_pem(file: Path) -> bytes:
    try:
        pem = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"ca_file {file} cannot be read: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise ConfigError(f"ca_file {file} holds no certificate: expected PEM text")
    return pem
