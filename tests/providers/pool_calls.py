"""Single calls through a pool of their own, and certificates for the servers they go to."""

import datetime
import ssl
from typing import Any

import pytest
import trustme

from batcher.errors import CallError
from batcher.providers.transport import HttpReply, Pool
from batcher.providers.wire import PoolSettings

CAP = 100_000


async def call(url: str, *, timeout_s: float = 5.0, **settings: Any) -> HttpReply:
    pool = Pool(PoolSettings(connect_timeout_s=0.5, max_body_bytes=CAP, **settings))
    try:
        return await pool.post(f"{url}/v1/x", [("x-a", "b")], b'{"a":1}', timeout_s=timeout_s)
    finally:
        await pool.aclose()


async def fault(url: str, kind: type[CallError], **settings: Any) -> CallError:
    with pytest.raises(kind) as caught:
        await call(url, **settings)
    assert type(caught.value) is kind
    return caught.value


def certificate(case: str) -> tuple[ssl.SSLContext, bytes]:
    authority = trustme.CA()
    host = "elsewhere.example" if case == "wrong-host" else "127.0.0.1"
    expiry = datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC) if case == "expired" else None
    begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host, not_before=begin, not_after=expiry).configure_cert(context)
    unrelated = trustme.CA().cert_pem.bytes()
    return context, unrelated + (b"" if case == "unknown" else authority.cert_pem.bytes())
