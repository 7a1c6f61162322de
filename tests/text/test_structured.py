"""Answers are held against their schema, and a schema that cannot be used is found before it is needed."""

import socket

import pytest

from batcher.text.structured import mismatch, schema_fault

PERSON = b'{"type":"object","required":["name"],"properties":{"name":{"type":"string"},"age":{"minimum":0}}}'
TREE = (
    b'{"type":"object","properties":{"value":{"type":"integer"},'
    b'"children":{"type":"array","items":{"$ref":"#"}}},"required":["value"]}'
)


@pytest.mark.parametrize(
    ("text", "schema", "wrong"),
    [
        pytest.param('{"name": "Ada"}', PERSON, "", id="fits"),
        pytest.param(
            '{"age": 3}', PERSON, "at the top: 'name' is a required property", id="something is missing"
        ),
        pytest.param('{"name": 3}', PERSON, "at name: 3 is not of type 'string'", id="the wrong type"),
        pytest.param('{"value": 1, "children": [{"value": 2}]}', TREE, "", id="a recursive schema"),
        pytest.param(
            '{"value": 1, "children": [{"value": "x"}]}', TREE, "at children/0/value: 'x'", id="deep inside"
        ),
        pytest.param("Sure! {}", PERSON, "the answer is not JSON", id="talk"),
        pytest.param('{"name": "Ada"', PERSON, "the answer is not JSON", id="cut off"),
        pytest.param('{"name": NaN}', PERSON, "the answer is not JSON", id="NaN is no JSON"),
        pytest.param("[" * 5000 + "]" * 5000, PERSON, "the answer is not JSON", id="bottomless"),
        pytest.param('"\ud800"', PERSON, "the answer is not JSON", id="half a character"),
        pytest.param(f'{{"age": -1, "name": "{"x" * 9000}"}}', PERSON, "at age: -1 is less", id="long"),
    ],
)
def test_how_an_answer_misses_its_schema(text: str, schema: bytes, wrong: str) -> None:
    missed = mismatch(text, schema)
    assert wrong in missed
    assert bool(missed) == bool(wrong)
    assert len(missed) < 300


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        pytest.param(PERSON, "", id="good"),
        pytest.param(TREE, "", id="recursive"),
        pytest.param(
            b'{"$schema":"http://json-schema.org/draft-07/schema#","type":"object"}', "", id="draft 7"
        ),
        pytest.param(b'{"$schema":"https://example.com/mine","type":"object"}', "", id="an unknown draft"),
        pytest.param(
            b'{"$defs":{"a":{"$id":"https://x.example/a","type":"null"}},"$ref":"https://x.example/a"}',
            "",
            id="a reference to a part with a name",
        ),
        pytest.param(b'{"type":"objekt"}', "'objekt' is not valid", id="no such type"),
        pytest.param(b'{"pattern":"["}', "is not a 'regex'", id="a pattern that is none"),
        pytest.param(
            b'{"properties":{"a":{"$ref":"#/$defs/b"}}}', "refers to '/$defs/b'", id="points nowhere"
        ),
        pytest.param(b'{"$ref":"#"}', "refers to itself without end", id="nothing but itself"),
        pytest.param(b'{"$schema":[]}', "$schema is not a string", id="an odd $schema"),
        pytest.param(b"[]", "not a JSON object", id="a list"),
        pytest.param(b'{"minimum":1e999}', "it is not JSON", id="an infinite number"),
    ],
)
def test_a_schema_that_cannot_be_used_is_found(schema: bytes, fault: str) -> None:
    found = schema_fault(schema)
    assert fault in found
    assert bool(found) == bool(fault)


@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef"])
def test_a_schema_fetches_nothing(keyword: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        schema = b'{"items":{"%s":"http://127.0.0.1:%d/x.json"}}' % (
            keyword.encode(),
            server.getsockname()[1],
        )
        assert "which is not part of it" in schema_fault(schema)
        with pytest.raises(Exception, match="Unresolvable"):
            mismatch("[1]", schema)
        with pytest.raises(TimeoutError):
            server.accept()


def test_an_answer_too_deep_for_its_schema_does_not_fit() -> None:
    schema = b'{"$ref":"#/$defs/a","$defs":{"a":{"type":"array","items":{"$ref":"#/$defs/a"}}}}'
    assert mismatch("[[]]", schema) == ""
    assert "too deep" in mismatch("[" * 1000 + "]" * 1000, schema)


@pytest.mark.parametrize(
    "schema",
    [b'{"$id":5}', b'{"$id":"http://[","$ref":"a"}', b'{"pattern":"a{99999999999}"}'],
)
def test_a_schema_that_the_library_stumbles_over_is_a_fault(schema: bytes) -> None:
    assert schema_fault(schema)
