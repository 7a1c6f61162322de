"""What holds for every provider: where a call goes, what comes back, and where the key never shows."""

import gzip
import traceback
from collections.abc import AsyncIterator, Callable

import orjson
import pytest
from network_rows import flooding
from raw_server import Connection, Talk, answering, http, raw_server

from batcher.errors import (
    BadReply,
    CallError,
    ConnectFailed,
    ConnectionLost,
    InvalidRequest,
    KeyRefused,
    RateLimited,
    ServerError,
)
from batcher.providers.base import Provider
from batcher.providers.groq import Groq
from batcher.providers.keys import Secret
from batcher.providers.openai_compatible import OpenAICompatible
from batcher.providers.transport import Pool
from batcher.providers.wire import PoolSettings
from batcher.types import ENDPOINTS, Endpoint, Request

pytestmark = pytest.mark.real_loop

KEY = "gsk_Sentinel0123456789abcdef"
ANSWER = orjson.dumps(
    {
        "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}],
        "data": [{"embedding": [1]}],
        "output": [],
    }
)
ASK = Request(endpoint="/v1/chat/completions", model="m", body=b'{ "model": "m" }')

Make = Callable[[str], Provider]


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    pool = Pool(PoolSettings(connect_timeout_s=0.5))
    yield pool
    await pool.aclose()


@pytest.fixture(params=["groq", "openai"])
def make(request: pytest.FixtureRequest, pool: Pool) -> Make:
    def groq(url: str) -> Provider:
        return Groq(pool, Secret(KEY), url)

    def openai(url: str) -> Provider:
        return OpenAICompatible(pool, f"{url}/openai/v1", Secret(KEY))

    return groq if request.param == "groq" else openai


def recording(requests: list[bytes], reply: bytes) -> Talk:
    async def talk(connection: Connection) -> None:
        while request := await connection.request():
            requests.append(request)
            await connection.send(reply)

    return talk


async def failing(call: Callable[[], object], kind: type[CallError]) -> CallError:
    with pytest.raises(kind) as caught:
        await call()  # type: ignore[misc]  # a coroutine function, whatever it returns
    error = caught.value
    told = "".join(traceback.format_exception(error)) + repr(vars(error))
    assert type(error) is kind
    assert KEY not in told
    return error


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_a_call_goes_to_its_endpoint_with_the_key_and_the_body_as_it_is(
    make: Make, endpoint: Endpoint
) -> None:
    requests: list[bytes] = []
    async with raw_server(recording(requests, http(ANSWER))) as server:
        reply = await make(server.url).send(Request(endpoint=endpoint, model="m", body=ASK.body), timeout_s=5)
    assert reply.body == ANSWER
    head, _, body = requests[0].partition(b"\r\n\r\n")
    assert head.startswith(f"POST /openai{endpoint} HTTP/1.1\r\n".encode())
    assert f"\r\nauthorization: Bearer {KEY}\r\n".encode() in head
    assert b"\r\naccept-encoding: gzip, identity\r\n" in head
    assert body == ASK.body


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("401 X", KeyRefused),
        ("429 X", RateLimited),
        ("500 X", ServerError),
        ("400 X", InvalidRequest),
        ("101 X", BadReply),
    ],
)
async def test_a_status_is_its_error_and_nothing_below_tries_again(
    make: Make, status: str, kind: type[CallError]
) -> None:
    requests: list[bytes] = []
    reply = http(b'{"error":{"message":"no"}}', "x-request-id: req_1", "retry-after: 2", status=status)
    async with raw_server(recording(requests, reply)) as server:
        provider = make(server.url)
        error = await failing(lambda: provider.send(ASK, timeout_s=5), kind)
        await provider.aclose()
    assert len(requests) == 1
    if kind is not BadReply:
        assert (error.request_id, error.retry_after_s) == ("req_1", 2.0)


@pytest.mark.parametrize("body", [b"<html>sign in</html>", b"{}", b'{"choices":['])
async def test_a_page_is_no_answer(make: Make, body: bytes) -> None:
    async with raw_server(answering(http(body))) as server:
        await failing(lambda: make(server.url).send(ASK, timeout_s=5), BadReply)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_the_other_host_of_a_redirect_is_never_contacted(make: Make, status: int) -> None:
    async with raw_server(answering(http(ANSWER))) as other:
        reply = http(b"", f"location: {other.url}/openai/v1/x", status=f"{status} Over There")
        async with raw_server(answering(reply)) as server:
            provider = make(server.url)
            for call in (lambda: provider.send(ASK, timeout_s=5), provider.models):
                error = await failing(call, InvalidRequest)
                assert error.code == "redirected"
                assert "to 127.0.0.1;" in str(error)
            await provider.aclose()
        assert other.connections == 0


@pytest.mark.parametrize(
    ("status", "kinds"),
    [
        ("200 OK", (ServerError, BadReply)),
        ("401 Unauthorized", (KeyRefused, KeyRefused)),
        ("500 Oh", (ServerError, ServerError)),
    ],
)
async def test_a_server_that_repeats_the_key_does_not_get_it_into_our_files(
    make: Make, status: str, kinds: tuple[type[CallError], type[CallError]]
) -> None:
    body = orjson.dumps({"error": {"message": f"you sent Bearer {KEY}"}})
    async with raw_server(answering(http(body, status=status))) as server:
        provider = make(server.url)
        await failing(lambda: provider.send(ASK, timeout_s=5), kinds[0])
        await failing(provider.models, kinds[1])
        await provider.aclose()
    answer = ANSWER.replace(b'"hi"', f'"{KEY}"'.encode())
    async with raw_server(answering(http(answer))) as server:
        reply = await make(server.url).send(ASK, timeout_s=5)
    assert reply.text == "***"
    assert KEY not in repr(reply)
    assert KEY not in repr(make("http://127.0.0.1:9"))


async def test_the_models_of_the_account(make: Make) -> None:
    requests: list[bytes] = []
    body = b'{"data":[{"id":"m","owned_by":"them","context_window":1000}]}'
    async with raw_server(recording(requests, http(body))) as server:
        provider = make(server.url)
        (model,) = await provider.models()
        await provider.aclose()
    assert (model.id, model.owner, model.context_tokens) == ("m", "them", 1000)
    assert requests[0].startswith(b"GET /openai/v1/models HTTP/1.1\r\n")
    assert f"authorization: Bearer {KEY}\r\n".encode() in requests[0]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (http(b"{}", status="401 X"), KeyRefused),
        (http(b"", status="503 X"), ServerError),
        (http(b"<html>"), BadReply),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", ConnectionLost),
        (b"", ConnectionLost),
        (b"what?\r\n\r\n", BadReply),
    ],
    ids=["401", "503", "html", "cut", "closed", "garbage"],
)
async def test_a_model_list_fails_as_a_call_does(make: Make, reply: bytes, kind: type[CallError]) -> None:
    async with raw_server(answering(reply)) as server:
        provider = make(server.url)
        await failing(provider.models, kind)
        assert server.connections == 1
        await provider.aclose()


@pytest.mark.parametrize("status", ["200 OK", "500 Oh"])
async def test_a_model_list_without_end_is_cut_at_the_cap(make: Make, status: str) -> None:
    head = f"HTTP/1.1 {status}\r\n\r\n".encode()
    async with raw_server(flooding(head)) as server:
        provider = make(server.url)
        await failing(provider.models, BadReply if status == "200 OK" else ServerError)
        await provider.aclose()


async def test_a_model_list_may_be_zipped(make: Make) -> None:
    async with raw_server(answering(http(gzip.compress(b'{"data":[]}'), "content-encoding: gzip"))) as server:
        provider = make(server.url)
        assert await provider.models() == []
        await provider.aclose()


async def test_nothing_is_sent_where_nobody_listens(make: Make) -> None:
    provider = make("http://127.0.0.1:9")
    for call in (lambda: provider.send(ASK, timeout_s=5), provider.models):
        assert not (await failing(call, ConnectFailed)).sent
    await provider.aclose()


async def test_closing_a_provider_leaves_the_pool_to_others(make: Make) -> None:
    async with raw_server(answering(http(ANSWER))) as server:
        await make(server.url).aclose()
        assert (await make(server.url).send(ASK, timeout_s=5)).text == "hi"
