"""The targets of the fuzzer, under Hypothesis; see with_atheris.py for hours of it."""

import gzip
import json
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import TARGETS, foreign_file, job_file, job_lines, result_file, result_line

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
EMBED = {"input": ["a"], "messages": [1, 2]}
WHOLE = [
    *(json.dumps({"id": name, "prompt": "x"}).encode() for name in ("a", "b")),
    json.dumps({"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}).encode(),
    json.dumps({"method": "POST", "url": "/v1/embeddings", "body": EMBED}).encode(),
    b'{"prompt":"x","params":{"stop":["a"],"n":1},"metadata":{"a":[1]},"deadline_s":3,"fallback":["n"]}',
    b'{"messages":[{"role":"user","content":[1]},{"role":"user"}],"priority":-3,"kind":"chat"}',
    result_line("a").rstrip(),
    result_line("ä").rstrip(),
]
PIECES = [
    *(b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", "\u2028".encode()),
    *(b"#", b"[", b"{", b"}", b'"', b"\\", b":", b",", b"null", b"true"),
    *(b"\\ud800", b"1e999", b"NaN", b"9" * 25, b"[" * 300, b"x" * 2100, b'"crc32":1}}'),
    *(b'"model":5', b'"messages":', b'"instructions":', b'"id":', b'"schema":{"type":1}', b'"body":{}'),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Whole lines with pieces cut out, put in and put over."""
    data = b"\n".join(draw(st.lists(st.sampled_from(WHOLE), max_size=5)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        end = draw(st.integers(at, min(len(data), at + 20)))
        data = data[:at] + draw(st.sampled_from(PIECES) | st.binary(max_size=4)) + data[end:]
    return data


junk = damaged() | st.binary(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)
packed = junk.flatmap(lambda data: st.sampled_from([gzip.compress(data, mtime=0), zstandard.compress(data)]))
cut = st.tuples(packed, st.integers(0, 40)).map(lambda parts: parts[0][: len(parts[0]) - parts[1]])
INPUTS: dict[Callable[[bytes], None], st.SearchStrategy[bytes]] = {
    job_lines: junk,
    job_file: junk | packed | cut | st.tuples(packed, junk).map(b"".join),
    result_file: junk,
    foreign_file: junk,
}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
@pytest.mark.parametrize("examples", [150, pytest.param(5_000, marks=pytest.mark.long)])
def test_any_bytes(target: Callable[[bytes], None], examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(INPUTS[target])
    def hold(data: bytes) -> None:
        target(data)

    hold()
