"""Nothing of a key gets out, whatever goes wrong: not into logs, errors, tracebacks, results or reprs."""

import base64
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from urllib.parse import quote

import orjson
import pytest
from network_rows import ROWS, said
from raw_server import answering, http, raw_server

from batcher.errors import AttemptTimeout, CallError
from batcher.providers.base import Provider
from batcher.providers.blotting import Blotter
from batcher.providers.groq import Groq
from batcher.providers.keys import Secret
from batcher.providers.openai_compatible import OpenAICompatible
from batcher.providers.transport import Pool
from batcher.providers.wire import PoolSettings
from batcher.types import Request

pytestmark = pytest.mark.real_loop

KEY = "Sentinel/+=%0123456789abcdef"  # with characters that URLs and base64 change, and no known beginning
START = KEY[:8]
FORMS = {
    "raw": KEY,
    "url": quote(KEY, safe=""),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "repr": repr(KEY),
    "start": f"{START}***cdef",
}
ASK = Request(endpoint="/v1/chat/completions", model="m", body=b'{"model":"m","messages":"a secret prompt"}')

Make = Callable[[Pool, str], Provider]


@pytest.fixture(params=["groq", "openai"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "groq":
        return lambda pool, url: Groq(pool, Secret(KEY), url)
    return lambda pool, url: OpenAICompatible(pool, url, Secret(KEY))


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    pool = Pool(PoolSettings(connect_timeout_s=0.4))
    yield pool
    await pool.aclose()


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """Let all loggers say all they know; return what has been said."""
    loggers = [logging.getLogger(name) for name in (None, *logging.root.manager.loggerDict)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(1)
    yield lambda: "".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


async def told(provider: Provider, pool: Pool, *, timeout_s: float = 5.0) -> str:
    """Call, ask for the models, and return all that either of them and the objects say."""
    parts = [repr(provider), repr(pool), str(vars(pool))]
    for call in (lambda: provider.send(ASK, timeout_s=timeout_s), provider.models):
        try:
            parts.append(repr(await call()))
        except CallError as error:
            parts += ["".join(traceback.format_exception(error)), repr(error), repr(vars(error))]
    await provider.aclose()
    return "".join(parts)


def assert_silent(text: str) -> None:
    for name, form in FORMS.items():
        assert form.strip("'") not in text, name
    assert START not in text


async def test_faults_of_the_network(make: Make, pool: Pool, logged: Callable[[], str]) -> None:
    for row in ROWS:
        if row.kind is not AttemptTimeout:
            async with raw_server(row.talk) as server:
                assert_silent(await told(make(pool, server.url), pool))
    assert_silent(logged())
    assert "a secret prompt" not in logged()


@pytest.mark.parametrize("form", FORMS)
async def test_a_server_that_sends_it_back(
    form: str, make: Make, pool: Pool, logged: Callable[[], str]
) -> None:
    echo = FORMS[form]
    bodies = (
        orjson.dumps({"error": {"message": f"Incorrect API key: {echo}", "code": "x"}}),
        orjson.dumps({"error": echo}),
        f"you sent {echo}".encode(),
        f"<html><title>Bearer {echo}</title></html>".encode(),
    )
    # The start alone is looked for in bodies only: no header of a reply is made of a part of a key.
    name = "none" if form == "start" else echo
    headers = (f"x-request-id: {name}", f"location: https://{name}.example/{name}")
    for status in ("200 OK", "302 Found", "401 Unauthorized", "429 Slow", "500 Oh"):
        for body in bodies:
            async with raw_server(answering(http(body, *headers, status=status))) as server:
                assert_silent(await told(make(pool, server.url), pool))
    assert_silent(logged())


async def test_a_model_that_says_it(make: Make, pool: Pool) -> None:
    async with raw_server(answering(http(said(f"{KEY} {FORMS['url']} {FORMS['base64']}")))) as server:
        provider = make(pool, server.url)
        reply = await provider.send(ASK, timeout_s=5)
        await provider.aclose()
    assert reply.text == "*** *** ***"
    assert_silent(repr(reply))


async def test_nobody_listens(make: Make, pool: Pool, logged: Callable[[], str]) -> None:
    assert_silent(await told(make(pool, "http://127.0.0.1:9"), pool))
    assert_silent(await told(make(pool, "http://nobody.invalid"), pool))
    assert_silent(logged())


@pytest.mark.parametrize("key", ["none", "EMPTY", "a", "null", "true"])
def test_a_key_that_is_a_word_changes_no_answer(key: str) -> None:
    body = b'{"tool_choice":"none","a":null,"b":true,"EMPTY":1}'
    assert Blotter(Secret(key)).answer(body) == body
    assert Blotter(Secret(key)).failure(body) == body
    assert Blotter(None).headers({"a": "none"}) == {"a": "none"}


@pytest.mark.parametrize(
    ("key", "shown"), [("abcdefgh", "abcd***"), ("abcdefgh12345678", "***"), ("abcdefgh12345", "abcdefgh***")]
)
def test_only_a_long_key_is_known_by_its_start(key: str, shown: str) -> None:
    start = "abcd***" if len(key) == 8 else "abcdefgh***"
    assert Blotter(Secret(key)).failure(start.encode()) == shown.encode()
    assert Blotter(Secret(key)).answer(f"<{key}>".encode()) == b"<***>"
