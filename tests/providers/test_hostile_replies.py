"""Whatever bytes a server sends, they are an answer or one of our errors, and soon."""

import contextlib
import json
import time
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import CallError
from batcher.providers.failures import classify
from batcher.providers.limit_headers import limit_named
from batcher.providers.replies import parse_models, parse_reply
from batcher.types import ENDPOINTS, Endpoint, Reply

CHAT: Endpoint = "/v1/chat/completions"
SSE = {"content-type": "text/event-stream"}
MOST_S = 1.0


def answer(
    status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint = CHAT
) -> Reply | CallError:
    """Say what a reply means, as `Calls` does; whatever is not one of our errors escapes."""
    if not 200 <= status < 300:
        return classify(status, headers, body, dialect="groq")
    try:
        return parse_reply(endpoint, status, headers, body, dialect="groq")
    except CallError as error:
        return error


HOSTILE = ["<title", "<title>", "org_", "https://billing", "gsk_-", "try again in 1s", "1m", "Limit 1,111,"]
HOSTILE += [
    "current rpm: 1",
    "on tokens per ",
    "(TPM)",
    "model ",
    "[",
    "{",
    '\\"',
    "\\ud83d\\ude00",
    " ",
    "\n\n",
]


@pytest.mark.parametrize("word", HOSTILE)
def test_no_words_make_the_parsers_slow(word: str) -> None:
    many = word * (4_000_000 // len(word))
    for text in (f'{{"error":{{"message":"{many[:900_000]}"}}}}', f'{{"error":"{many}"}}', many, "<" + many):
        for status, headers in ((429, {}), (200, {}), (200, SSE), (404, {"retry-after": many[:10_000]})):
            began = time.perf_counter()
            got = answer(status, headers, text.encode())
            assert isinstance(got, CallError)
            limit_named(str(got))
            assert time.perf_counter() - began < MOST_S


names = st.sampled_from(
    """
    error code type message detail choices delta content index finish_reason usage tool_calls function
    arguments name id x_groq prompt_tokens completion_tokens data embedding output text status model
    incomplete_details reason response refusal context_window
    """.split()  # noqa: SIM905 - thirty names read better without their quotes
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(HOSTILE),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | names, inner, max_size=4)
    ),
    max_leaves=12,
)
objects = st.dictionaries(names, values, max_size=6).map(lambda value: json.dumps(value).encode())
bodies = st.one_of(
    st.binary(max_size=300),
    objects,
    objects.map(lambda body: b"data: " + body + b"\n\n"),
    st.lists(objects, max_size=4).map(lambda many: b"".join(b"data: " + one + b"\n\n" for one in many)),
    st.tuples(objects, st.integers(0, 300)).map(lambda pair: pair[0][: pair[1]]),
)
header_names = st.sampled_from(
    """
    content-type retry-after retry-after-ms date location x-request-id x-ratelimit-limit-tokens
    x-ratelimit-remaining-tokens x-ratelimit-limit-requests
    """.split()  # noqa: SIM905 - as above
)
header_values = st.text(st.characters(min_codepoint=32, max_codepoint=126)) | st.sampled_from(
    ["text/event-stream", "text/html", "Tue, 18 Aug 2026 10:00:00 GMT", f"1 Jan 1 {'9' * 30}:0:0", "http://["]
)


@given(
    status=st.sampled_from([200, 204]) | st.integers(100, 999),
    headers=st.dictionaries(header_names, header_values, max_size=4),
    body=bodies,
    endpoint=st.sampled_from(ENDPOINTS),
)
def test_no_reply_breaks_anything(
    status: int, headers: dict[str, str], body: bytes, endpoint: Endpoint
) -> None:
    got = answer(status, headers, body, endpoint)
    if isinstance(got, CallError):
        assert str(got).isprintable()
        assert len(got.body) <= 2048
        limit_named(str(got))
    with contextlib.suppress(CallError):
        parse_models(200, headers, body)
