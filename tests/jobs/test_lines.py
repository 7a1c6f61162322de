"""Every row of the table of bad input, and the promises about good lines."""

import hashlib
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import BadLine
from batcher.jobs.lines import LineDefaults, assigned_id, parse_line
from batcher.types import Job

MODEL = "openai/gpt-oss-20b"
DEFAULTS = LineDefaults(model=MODEL)
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
DEEP = b'{"a":' * 300 + b"1" + b"}" * 300


def parse(line: bytes, defaults: LineDefaults = DEFAULTS) -> Job:
    return parse_line(line, "jobs.jsonl:7", defaults)


def short(**fields: object) -> bytes:
    return orjson.dumps({"prompt": "hi", **fields})


def batch(url: object = CHAT, **fields: object) -> bytes:
    body = {"model": MODEL, "messages": MESSAGES}
    return orjson.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body, **fields})


def embedding(**body: object) -> bytes:
    return batch("/v1/embeddings", body={"model": "m", **body})


MALFORMED = {
    "I1 stray byte": (b'{"prompt":"\xc3\xa4\xff"}', "not UTF-8: byte 0xff at byte 13"),
    "I1 overlong": (b'{"prompt":"\xc0\xaf"}', "not UTF-8: byte 0xc0 at byte 11"),
    "I1 raw surrogate": (b'{"prompt":"\xed\xa0\x80"}', "not UTF-8: byte 0xed at byte 11"),
    "I1 cut character": (b'{"prompt":"\xc3', "not UTF-8: byte 0xc3 at byte 11"),
    "I2 late BOM": (b'\xef\xbb\xbf{"prompt":"x"}', "byte order mark"),
    "I5 comment": (b"# jobs", "comments are not allowed"),
    "I6 NULs": (bytes(4096), "NUL bytes (4096) from byte 0 on"),
    "I6 NUL in a string": (b'{"prompt":"a\0b"}', "NUL bytes (1) from byte 12 on"),
    "I9 deep lists": (b'{"prompt":' + b"[" * 100_000, "nested too deeply"),
    "I9 deep objects": (b'{"a":' * 100_000, "nested too deeply"),
    "I13 NaN": (b'{"prompt":NaN}', "NaN at byte 10 is no JSON"),
    "I13 Infinity": (b'{"params":{"top_p":-Infinity}}', "Infinity at byte 20 is no JSON"),
    "I13 -1e999": (b'{"params":{"seed":-1e999}}', "a number is too large"),
    "I13 1e999": (b'{"params":{"seed":1e999}}', "a number is too large"),
    "I13 5000 digits": (b'{"params":{"seed":' + b"9" * 5000 + b"}}", "a number is too large"),
    "I14 half a pair": (b'{"prompt":"\\ud800"}', "half a surrogate pair"),
    "I14 wrong half": (b'{"prompt":"\\udc00\\ud800"}', "surrogate"),
    "I14 half at the end": (b'{"prompt":"\\ud83d"}', "half a surrogate pair"),
    "I14 in a name": (b'{"\\ud800":"x"}', "half a surrogate pair"),
    "I6 NUL in front": (b'\0{"prompt":"x"}', "NUL bytes (1) from byte 0 on"),
    "I6 NULs behind": (b'{"prompt":"x"}' + bytes(512), "NUL bytes (512) from byte 14 on"),
    "I3 UTF-16 in mid-file": ('{"a":1}'.encode("utf-16-le"), "NUL bytes (7) from byte 1 on"),
    "I7 NEL between": ('{"prompt":\u0085"x"}'.encode(), "not valid JSON at byte 10"),
    "I16 two objects": (b'{"prompt":"x"} {"prompt":"y"}', "a second object begins at byte 15"),
    "I16 array file": (b"[", "put one object on each line"),
    "I16 array on a line": (b'[{"prompt":"x"}]', "put one object on each line"),
    "I16 end of an array": (b"]", "put one object on each line"),
    "I16 array cut": (b'[{"prompt":"x"},', "put one object on each line"),
    "I16 comma between": (b'{"prompt":"x"},', "without commas"),
    "I16 comma inside": (b'{"prompt":"x",}', "take it out (byte 13)"),
    "pretty-printed": (b"{", "pretty-printed"),
    "cut off": (b'{"prompt":"x"', "ends in the middle"),
    "cut in a string": (b'{"prompt":"x', "ends in the middle"),
    "Python dict": (b"{'prompt': 'x'}", "json.dumps"),
    "Python constant": (b'{"params":{"stop":None}}', "None at byte 18"),
    "CSV": (b"id,prompt", "does not start with {"),
    "rest": (b'{"prompt":"x"} y', "something follows the object at byte 15"),
    "raw tab": (b'{"prompt":"a\tb"}', "not valid JSON at byte 12"),
    "scalar": (b"17", "the line is 17: expected a JSON object"),
    "blank": (b" ", "the line does not start with {"),
    "empty": (b"", "the line does not start with {"),
    "null": (b"null", "the line is null: expected a JSON object"),
}

REFUSED = {
    "I9 deep metadata": (b'{"prompt":"x","metadata":' + DEEP + b"}", "nested at most"),
    "I9 deep params": (b'{"prompt":"x","params":' + DEEP + b"}", "nested too deeply"),
    "I9 deep body": (
        b'{"method":"POST","url":"/v1/responses","body":{"input":"x","a":' + DEEP + b"}}",
        "deeply",
    ),
    "I9 deep unknown": (b'{"prompt":"x","b":' + DEEP + b"}", 'unknown field "b"'),
    "I9 deep long number": (b'{"prompt":"' + b"1" * 20 + b'","b":' + b"[" * 1020 + b"]" * 1020 + b"}", ""),
    "I12 null id": (short(id=None), '"id" is null: expected a string of 1 to 256'),
    "I12 bool id": (short(id=True), '"id" is true'),
    "I12 float id": (short(id=1.0), '"id" is 1.0'),
    "I12 list id": (short(id=["a"]), '"id" is a list'),
    "I12 empty id": (short(id=""), '"id" is ""'),
    "I12 long id": (short(id="x" * 257), '"id" is "xxx'),
    "I12 control id": (short(id="a\x1b[2J"), '"id" is "a\\u001b[2J"'),
    "I12 bidi id": (short(id="\u202eabc"), '"id" is "\\u202eabc"'),
    "I12 newline id": (batch(custom_id="a\nb"), '"custom_id" is "a\\nb"'),
    "I13 2^64": (b'{"prompt":"x","params":{"seed":18446744073709551616}}', "does not fit into 64 bits"),
    "I13 2^63": (b'{"prompt":"x","params":{"seed":9223372036854775808}}', "does not fit into 64 bits"),
    "I13 -2^63-1": (b'{"prompt":"x","params":{"seed":-9223372036854775809}}', "does not fit into 64 bits"),
    "I13 100 digits": (b'{"prompt":"x","metadata":{"n":' + b"1" * 100 + b"}}", "does not fit into 64 bits"),
    "I15 unknown field": (short(promt="x"), 'unknown field "promt" in a short line: did you mean "prompt"?'),
    "I15 hopeless field": (short(zzz=1), 'unknown field "zzz" in a short line: expected id, model'),
    "I15 param at top": (short(temperature=1), 'put it into "params"'),
    "I15 batch field": (batch(id="b"), 'unknown field "id" in a Batch line'),
    "I15 mixed forms": (batch(prompt="x"), 'unknown field "prompt" in a Batch line'),
    "I15 messages": (b'{"messages":"hi"}', '"messages" is "hi": expected a non-empty list'),
    "I15 no messages": (b'{"messages":[]}', '"messages" is an empty list'),
    "I15 message": (b'{"messages":["hi"]}', '"messages" is a list'),
    "I15 role": (b'{"messages":[{"content":"hi"}]}', '"role"'),
    "I15 prompt": (short(prompt=1), '"prompt" is 1: expected a non-empty string'),
    "I15 both": (short(messages=MESSAGES), 'both "prompt" and "messages"'),
    "I15 neither": (b"{}", 'neither "prompt" nor "messages"'),
    "I15 system": (short(system=None), '"system" is null: expected a string'),
    "I15 model": (short(model=""), '"model" is "": expected a non-empty string'),
    "S13 model": (
        short(model="m\x1b[2J"),
        '"model" is "m\\u001b[2J": expected a non-empty string of up to 256',
    ),
    "S14 model": (batch(body={"model": "m\nn", "messages": MESSAGES}), '"model" is "m\\nn"'),
    "S13 fallback": (short(fallback=["m\u202e"]), "expected a list of model names"),
    "long model": (short(model="m" * 257), '"model" is "mmm'),
    "I15 params": (short(params=[]), '"params" is an empty list: expected an object'),
    "I15 temperature": (
        short(params={"temperature": "hot"}),
        '"params.temperature" is "hot": expected a number',
    ),
    "I15 bool temperature": (short(params={"temperature": True}), "expected a number"),
    "I15 max tokens": (short(params={"max_tokens": 0}), "expected an integer of at least 1"),
    "I15 max completion": (short(params={"max_completion_tokens": 1.5}), "at least 1"),
    "I15 n": (short(params={"n": True}), "at least 1"),
    "I15 seed": (short(params={"seed": "1"}), "expected an integer"),
    "I15 stop": (short(params={"stop": [1]}), "expected a string or a list of strings"),
    "I15 params.model": (short(params={"model": "m"}), 'stands beside "params"'),
    "I15 params.messages": (short(params={"messages": []}), 'stands beside "params"'),
    "I15 kind": (short(kind="poem"), 'expected "chat" or "reasoning"'),
    "I15 kind list": (short(kind=[]), 'expected "chat" or "reasoning"'),
    "I15 schema": (short(schema=True), '"schema" is true: expected an object'),
    "I15 metadata": (short(metadata="x"), '"metadata" is "x": expected an object'),
    "I15 priority": (short(priority=32768), "expected an integer from -32768 to 32767"),
    "I15 low priority": (short(priority=-32769), "from -32768 to 32767"),
    "I15 bool priority": (batch(priority=True), "from -32768 to 32767"),
    "I15 deadline": (short(deadline_s=0), "expected a number of seconds above 0"),
    "I15 bool deadline": (short(deadline_s=True), "seconds above 0"),
    "I15 fallback": (short(fallback="m"), "expected a list of model names"),
    "I15 empty fallback": (short(fallback=[""]), "expected a list of model names"),
    "batch without method": (b'{"url":"/v1/embeddings","body":{"input":"x"}}', '"method" is missing'),
    "batch without url": (b'{"method":"POST","body":{"input":"x"}}', '"url" is missing'),
    "batch without body": (b'{"method":"POST","url":"/v1/embeddings"}', '"body" is missing'),
    "batch method": (batch(method="GET"), '"method" is "GET": expected the string "POST"'),
    "batch body": (batch(body="x"), '"body" is "x"'),
    "batch no messages": (batch(body={"model": "m"}), '"body" has no "messages"'),
    "batch bad messages": (batch(body={"model": "m", "messages": {}}), '"body.messages" is an object'),
    "batch null model": (batch(body={"model": None, "messages": MESSAGES}), '"model" is null'),
    "embedding without input": (embedding(messages=MESSAGES), '"body" has no "input"'),
    "embedding of nothing": (embedding(input=""), '"body.input" is ""'),
    "S6 other host": (
        batch("https://example.org/v1/chat/completions"),
        "the host comes from the command line",
    ),
    "S6 other path": (batch("/v1/files"), '"url" is "/v1/files": expected one of'),
    "S6 relative path": (batch("/v1/../chat/completions"), "expected one of"),
    "S6 no v1": (batch("/chat/completions"), "expected one of"),
    "S6 url list": (batch([CHAT]), '"url" is a list'),
}


@pytest.mark.parametrize(("line", "reason"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_lines_say_what_to_mend(line: bytes, reason: str) -> None:
    with pytest.raises(BadLine) as caught:
        parse(line)
    assert reason in str(caught.value)


@pytest.mark.parametrize(("line", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_fields_are_named_with_what_was_expected(line: bytes, reason: str) -> None:
    with pytest.raises(BadLine) as caught:
        parse(line)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


# Invalid UTF-8 of every kind; the number is that of the first byte that is to blame.
NOT_UTF8 = {
    "lone continuation": (b"\x80", 0),
    "last continuation": (b"\xbf", 0),
    "two continuations": (b"a\x80\xbf", 1),
    "overlong slash in two": (b"\xc0\xaf", 0),
    "overlong NUL in two": (b"\xc0\x80", 0),
    "overlong of DEL": (b"\xc1\xbf", 0),
    "overlong in three": (b"\xe0\x80\xaf", 0),
    "overlong U+07FF": (b"\xe0\x9f\xbf", 0),
    "overlong in four": (b"\xf0\x80\x80\xaf", 0),
    "overlong U+FFFF": (b"\xf0\x8f\xbf\xbf", 0),
    "first high surrogate": (b"\xed\xa0\x80", 0),
    "last low surrogate": (b"\xed\xbf\xbf", 0),
    "CESU-8 pair": (b"\xed\xa0\xbd\xed\xb8\x80", 0),
    "above U+10FFFF": (b"\xf4\x90\x80\x80", 0),
    "five bytes": (b"\xf8\x88\x80\x80\x80", 0),
    "six bytes": (b"\xfc\x84\x80\x80\x80\x80", 0),
    "0xfe": (b"\xfe", 0),
    "0xff": (b"\xff", 0),
    "two of three": (b"\xe2\x82z", 0),
    "three of four": (b"\xf0\x9f\x98z", 0),
    "Latin-1": ("grüße".encode("latin-1"), 2),
    "Windows-1252": ("“q”".encode("cp1252"), 0),
    "behind good ones": ("日本\U0001f600".encode() + b"\xff", 10),
}


@pytest.mark.parametrize(("text", "at"), NOT_UTF8.values(), ids=NOT_UTF8.keys())
@pytest.mark.parametrize("place", [b'{"prompt":"%b"}', b'{"prompt":"x","%b":1}'], ids=["value", "name"])
def test_the_first_byte_that_is_no_utf8_is_named(text: bytes, at: int, place: bytes) -> None:
    with pytest.raises(BadLine) as caught:
        parse(place % text)
    assert f"not UTF-8: byte 0x{text[at]:02x} at byte {place.index(b'%') + at} (" in str(caught.value)


CONNECTION = (
    "base_url",
    "headers",
    "extra_headers",
    "api_key",
    "extra_query",
    "extra_body",
    "timeout",
    "proxy",
)


@pytest.mark.parametrize("field", CONNECTION)
@pytest.mark.parametrize(
    "line",
    [lambda f: short(**{f: "sk-1"}), lambda f: batch(**{f: "sk-1"}), lambda f: short(params={f: "sk-1"})],
    ids=["short", "batch", "params"],
)
def test_a_line_cannot_choose_where_it_goes(field: str, line: Any) -> None:
    with pytest.raises(BadLine, match=f'{field}" cannot stand in a line') as caught:
        parse(line(field))
    assert "sk-1" not in str(caught.value)


def test_no_model_at_all_is_a_bad_line() -> None:
    for line in (short(), batch(body={"messages": MESSAGES})):
        with pytest.raises(BadLine, match="--model"):
            parse(line, LineDefaults())


GOOD_IDS = {
    "text": ("a-1", "a-1"),
    "integer": (17, "17"),
    "negative": (-1, "-1"),
    "umlaut": ("ä", "ä"),
    "longest": ("x" * 256,) * 2,
}


@pytest.mark.parametrize(("written", "read"), GOOD_IDS.values(), ids=GOOD_IDS.keys())
def test_ids_are_text_or_integers(written: object, read: str) -> None:
    assert parse(short(id=written)).id == read
    assert parse(batch(custom_id=written)).id == read


def test_a_short_line_becomes_a_chat_request() -> None:
    job = parse(
        short(
            id="a",
            model="big",
            system="Be brief.",
            params={"temperature": 0, "stop": ["\n"], "seed": -1, "top_p": None, "custom": {"x": 1}},
            priority=-3,
            fallback=["small"],
            deadline_s=60,
            kind="reasoning",
        )
    )
    assert json.loads(job.body) == {
        "model": "big",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "temperature": 0,
        "stop": ["\n"],
        "seed": -1,
        "top_p": None,
        "custom": {"x": 1},
    }
    assert (job.endpoint, job.model, job.where) == (CHAT, "big", "jobs.jsonl:7")
    assert (job.priority, job.fallback, job.deadline_s, job.kind) == (-3, ("small",), 60.0, "reasoning")
    assert (job.metadata, job.schema) == (None, None)


def test_a_schema_becomes_the_response_format_unless_params_have_one() -> None:
    schema = b'{ "type": "object" }'
    line = b'{"prompt":"hi","schema":' + schema
    asked = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
    assert json.loads(parse(line + b"}").body)["response_format"] == asked
    own = parse(line + b',"params":{"response_format":{"type":"json_object"}}}')
    assert json.loads(own.body)["response_format"] == {"type": "json_object"}
    assert own.schema == schema


def test_what_stands_beside_a_body_is_ours_and_the_body_is_sent_as_written() -> None:
    body = b'{ "messages" : [{"role":"user","content":"\\u0041"}],\t"model":"m", "x":1.0 }'
    extras = b'"priority":5,"fallback":[],"deadline_s":0.5,"metadata":{ "a":1 },"schema":{},'
    line = (
        b'{"custom_id":"a",'
        + extras
        + b'"method":"POST","url":"/v1/chat/completions","body":  '
        + body
        + b"  }"
    )
    job = parse(line, LineDefaults(fallback=("other",)))
    assert job.body == body
    assert (job.priority, job.fallback, job.deadline_s) == (5, (), 0.5)
    assert (job.metadata, job.schema) == (b'{ "a":1 }', b"{}")


def test_defaults_are_filled_in_where_a_line_is_silent() -> None:
    defaults = LineDefaults(model="m", default_max_completion_tokens=9, fallback=("f",))
    body = b' {"messages":[{"role":"user","content":"hi"}]}'
    job = parse(b'{"method":"POST","url":"/v1/chat/completions","body":' + body + b"}", defaults)
    assert job.body == b'{"model":"m","max_completion_tokens":9,' + body.strip()[1:]
    assert (job.model, job.fallback, job.id) == ("m", ("f",), "")
    assert parse(short(), defaults).request_sha256 == job.request_sha256
    assert (
        json.loads(parse(short(params={"max_tokens": 3}), defaults).body).get("max_completion_tokens") is None
    )
    assert b"max_completion" not in parse(embedding(input=["a"]), defaults).body


def test_the_hash_is_of_endpoint_and_sorted_body() -> None:
    job = parse(batch("/v1/responses", body={"model": "m", "input": "hi"}))
    assert job.request_sha256 == hashlib.sha256(b'/v1/responses{"input":"hi","model":"m"}').hexdigest()
    assert assigned_id(job.request_sha256) == job.request_sha256[:16]
    assert assigned_id(job.request_sha256, 3) == f"{job.request_sha256[:16]}-3"


UNHASHED = {"priority": 3, "fallback": ["x"], "metadata": {"a": 1}, "deadline_s": 3}


@pytest.mark.parametrize("field", UNHASHED)
def test_what_is_not_sent_does_not_change_the_identity(field: str) -> None:
    value = {field: UNHASHED[field]}
    assert parse(short(**value)).request_sha256 == parse(short()).request_sha256
    assert parse(batch(**value)).request_sha256 == parse(batch()).request_sha256


def test_the_last_of_two_equal_keys_counts() -> None:
    job = parse(b'{"prompt":"x","id":"a","id":"b","model":"m","mod\\u0065l":"n"}')
    assert (job.id, job.model) == ("b", "n")


def test_escaped_names_of_fields_are_the_same_fields() -> None:
    line = (
        batch(metadata={"a": 1})
        .replace(b'"body"', b'"b\\u006fdy"')
        .replace(b'"metadata"', b'"m\\u0065tadata"')
    )
    assert parse(line) == parse(batch(metadata={"a": 1}))


EDGES = {"2^63-1": 2**63 - 1, "-2^63": -(2**63), "float with many digits": 1.2345678901234567e18}


@pytest.mark.parametrize("number", EDGES.values(), ids=EDGES.keys())
def test_numbers_that_fit_are_kept(number: float) -> None:
    assert json.loads(parse(short(params={"x": number})).body)["x"] == number


def test_long_digits_in_text_are_text() -> None:
    assert json.loads(parse(short(prompt="4" * 40)).body)["messages"][0]["content"] == "4" * 40


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20)
values = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
messages = st.lists(st.fixed_dictionaries({"role": st.text(), "content": values}), min_size=1, max_size=3)
bodies = st.tuples(st.dictionaries(st.text(max_size=8), values, max_size=4), messages).map(
    lambda parts: {**parts[0], "model": "m", "messages": parts[1], "stream": False}
)
layouts = st.sampled_from([{"indent": None}, {"separators": (" , ", " : ")}, {"ensure_ascii": False}])


@given(bodies, layouts, st.randoms(use_true_random=False))
def test_any_body_is_sent_as_written_and_known_by_its_content(
    body: dict[str, Any], layout: Any, random: Any
) -> None:
    keys = list(body)
    random.shuffle(keys)
    written = json.dumps({key: body[key] for key in keys}, **layout).encode()
    line = b'{"method":"POST","url":"/v1/chat/completions","body":' + written + b"}"
    job = parse(line)
    assert job.body == written
    plain = json.dumps({"method": "POST", "url": CHAT, "body": body}).encode()
    assert job.request_sha256 == parse(plain).request_sha256


@given(bodies)
def test_a_model_put_in_front_gives_the_same_request_as_one_written(body: dict[str, Any]) -> None:
    silent = {key: value for key, value in body.items() if key != "model"}
    line = json.dumps({"method": "POST", "url": CHAT, "body": silent}).encode()
    job = parse(line, LineDefaults(model="m"))
    assert json.loads(job.body) == body
    assert (
        job.request_sha256
        == parse(json.dumps({"method": "POST", "url": CHAT, "body": body}).encode()).request_sha256
    )


pieces = st.sampled_from(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"\\",
        b"\\ud800",
        b"1e",
        b"NaN",
        b"9" * 19,
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
    ]
    + [
        b'"%s"' % name.encode()
        for name in ("prompt", "messages", "id", "body", "url", "method", "params", "kind")
    ]
)
damaged = st.tuples(st.sampled_from([short(id="a"), batch()]), st.integers(0, 150), pieces).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]
)
objects = st.dictionaries(
    st.sampled_from(
        ["id", "prompt", "messages", "params", "body", "url", "method", "kind", "schema", "priority"]
    ),
    values,
)


@given(st.binary() | st.lists(pieces).map(b"".join) | damaged | objects.map(orjson.dumps))
def test_whatever_the_bytes_the_answer_is_a_job_or_a_reason(line: bytes) -> None:
    try:
        job = parse(line)
    except BadLine:
        return
    assert orjson.loads(job.body)["model"] == job.model


@pytest.mark.parametrize(
    "schema", [{"type": "objekt"}, {"$ref": "#/nope"}, {"minLength": -1}], ids=["type", "reference", "number"]
)
@pytest.mark.parametrize("form", [short, batch], ids=["short", "batch"])
def test_a_schema_that_cannot_be_used_is_a_bad_line(form: Any, schema: dict[str, Any]) -> None:
    with pytest.raises(BadLine, match='"schema" is not a JSON schema that can be used'):
        parse_line(form(schema=schema), "f:1", LineDefaults(model="m"))
