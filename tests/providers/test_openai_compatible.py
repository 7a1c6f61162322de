"""Servers of OpenAI's API: the base URL's path stands for `/v1`, and a key is not a must."""

from collections.abc import AsyncIterator

import pytest
from raw_server import Connection, http, raw_server

from batcher.providers.keys import Secret
from batcher.providers.openai_compatible import OpenAICompatible
from batcher.providers.transport import Pool
from batcher.providers.wire import PoolSettings
from batcher.types import Request

pytestmark = pytest.mark.real_loop

ASK = Request(endpoint="/v1/chat/completions", model="m", body=b"{}")
ANSWER = b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    pool = Pool(PoolSettings())
    yield pool
    await pool.aclose()


@pytest.mark.parametrize(
    ("path", "sent_to"),
    [
        ("/v1", "/v1/chat/completions"),
        ("", "/chat/completions"),
        ("/api/paas/v4", "/api/paas/v4/chat/completions"),
    ],
)
@pytest.mark.parametrize("key", [None, Secret("local-key")], ids=["open", "key"])
async def test_a_call_goes_below_the_base_url(
    pool: Pool, path: str, sent_to: str, key: Secret | None
) -> None:
    requests: list[bytes] = []

    async def talk(connection: Connection) -> None:
        requests.append(await connection.request())
        await connection.send(http(ANSWER, "x-ratelimit-limit-requests: 500"))

    async with raw_server(talk) as server:
        provider = OpenAICompatible(pool, server.url + path, key, name="mine")
        reply = await provider.send(ASK, timeout_s=5)
    assert requests[0].startswith(f"POST {sent_to} ".encode())
    assert (b"authorization: Bearer local-key" in requests[0]) == (key is not None)
    assert reply.limits is not None
    assert (reply.limits.requests, reply.limits.requests_window_s) == (500, 60.0)
    assert (provider.name, repr(provider)) == ("mine", f"OpenAICompatible('{server.url}{path}', name='mine')")
