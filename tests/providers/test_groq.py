"""Groq's own ways: the paths and headers of its client, deaf to the environment, its requests limit a day."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from groq import AsyncGroq
from raw_server import Connection, answering, http, raw_server

from batcher.providers.groq import Groq
from batcher.providers.keys import Secret
from batcher.providers.transport import Pool
from batcher.providers.wire import PoolSettings
from batcher.types import Request

pytestmark = pytest.mark.real_loop

KEY = Secret("gsk_Sentinel0123456789abcdef")
ASK = Request(endpoint="/v1/chat/completions", model="m", body=b"{}")
ANSWER = b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'
MODELS = b'{"data":[]}'


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    pool = Pool(PoolSettings())
    yield pool
    await pool.aclose()


async def test_the_environment_moves_neither_calls_nor_headers(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[bytes] = []

    async def talk(connection: Connection) -> None:
        while request := await connection.request():
            requests.append(request)
            await connection.send(http(MODELS if request.startswith(b"GET") else ANSWER))

    async with raw_server(answering(http(ANSWER))) as other, raw_server(talk) as server:
        custom = (
            "x-evil: 1\nAuthorization: Bearer other\nauthorization: Bearer other\nHost: evil\naccept: evil"
        )
        for name, value in {
            "GROQ_BASE_URL": other.url,
            "GROQ_CUSTOM_HEADERS": custom,
            "GROQ_API_KEY": "other",
            "HTTP_PROXY": other.url,
            "ALL_PROXY": other.url,
        }.items():
            monkeypatch.setenv(name, value)
        groq = Groq(pool, KEY, server.url)
        await groq.send(ASK, timeout_s=5)
        await groq.models()
        await groq.aclose()
        assert other.connections == 0
    assert len(requests) == 2
    for request in requests:
        assert b"evil" not in request
        assert b"other" not in request
        assert request.count(b"authorization: Bearer gsk_Sentinel") == 1
        assert b"\r\nuser-agent: batcher\r\n" in request


async def test_a_jobs_call_goes_where_groqs_own_client_sends_it(pool: Pool) -> None:
    requests: list[bytes] = []

    async def talk(connection: Connection) -> None:
        while request := await connection.request():
            requests.append(request)
            await connection.send(http(ANSWER))

    async with raw_server(talk) as server:
        groq = Groq(pool, KEY, server.url)
        await groq.send(ASK, timeout_s=5)
        await groq.aclose()
        async with AsyncGroq(api_key=KEY.reveal(), base_url=server.url, max_retries=0) as client:
            await client.chat.completions.create(model="m", messages=[])
    ours, theirs = (request.split(b"\r\n") for request in requests)
    assert ours[0] == theirs[0] == b"POST /openai/v1/chat/completions HTTP/1.1"
    authorization = f"authorization: Bearer {KEY.reveal()}".encode()
    assert authorization in ours
    assert authorization in [line[:1].lower() + line[1:] for line in theirs]


@pytest.mark.parametrize("path", ["", "/openai", "/openai/v1"])
async def test_the_base_url_may_be_written_with_groqs_path(pool: Pool, path: str) -> None:
    requests: list[bytes] = []

    async def talk(connection: Connection) -> None:
        requests.append(await connection.request())
        await connection.send(http(ANSWER))

    async with raw_server(talk) as server:
        groq = Groq(pool, KEY, server.url + path)
        await groq.send(ASK, timeout_s=5)
        await groq.aclose()
    assert requests[0].startswith(b"POST /openai/v1/chat/completions ")


async def test_groqs_requests_header_counts_a_day(pool: Pool) -> None:
    async with raw_server(answering(http(ANSWER, "X-RateLimit-Limit-Requests: 14400"))) as server:
        groq = Groq(pool, KEY, server.url)
        limits = (await groq.send(ASK, timeout_s=5)).limits
        await groq.aclose()
    assert limits is not None
    assert (limits.requests, limits.requests_window_s) == (14_400, 86_400.0)


async def test_model_lists_are_not_asked_for_in_a_rush(pool: Pool) -> None:
    async with raw_server(answering(http(MODELS), then="keep")) as server:
        groq = Groq(pool, KEY, server.url)
        began = time.perf_counter()
        await asyncio.gather(*[groq.models() for _ in range(3)])
        assert 0.9 < time.perf_counter() - began < 3
        await groq.aclose()
