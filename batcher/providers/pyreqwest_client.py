"""HTTP through pyreqwest, whose pool and TLS run on a thread of their own."""

import contextlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import BuilderError, PyreqwestError
from pyreqwest.http import HeaderMap
from pyreqwest.proxy import ProxyBuilder

from batcher.errors import ConfigError
from batcher.providers.failures import scrub
from batcher.providers.faults import no_request
from batcher.providers.pyreqwest_faults import fault_of
from batcher.providers.wire import Headers, PoolSettings, Received, announced_above

_NICER_BY = 6


class PyreqwestClient:
    """Everything that is not plain http, and all that goes through a proxy.

    Raises:
        ConfigError: the proxy or the CA file cannot be used.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._client = _built_below(settings)

    async def call(self, method: str, url: str, headers: Headers, body: bytes, timeout_s: float) -> Received:
        """Send a request and read its whole answer.

        Raises:
            CallError: no whole answer came.
        """
        try:
            builder = self._client.get(url) if method == "GET" else self._client.post(url).body_bytes(body)
            request = builder.headers(headers).timeout(_duration(timeout_s)).build_streamed()
        except ValueError as error:
            raise no_request(scrub(str(error))) from None
        cap = self._max_body_bytes
        try:
            async with request as response:
                status, plain = response.status, _plain(response.headers)
                if announced_above(cap, plain):
                    return status, plain, None  # a body that is left unread closes its connection
                data = await response.body_reader.read(cap + 1)
        except PyreqwestError as error:
            raise fault_of(error) from None
        read = b"" if data is None else data.to_bytes()
        return status, plain, read if len(read) <= cap else None

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.close()


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
