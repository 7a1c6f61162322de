"""What a good answer looks like, and what is refused."""

from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.providers.simulator.calls import Call
from batcher.providers.simulator.model import Plan, Simulation
from batcher.providers.simulator.schemas import example_answer
from batcher.providers.simulator.settings import SimulatorSettings
from batcher.types import ModelInfo

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}]


def _ask(
    path: str = CHAT,
    *,
    settings: SimulatorSettings | None = None,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    raw: bytes | None = None,
    fields: dict[str, Any] | None = None,
    **more: Any,
) -> Plan:
    body = orjson.dumps({"model": "m"} | more | (fields or {})) if raw is None else raw
    simulation = Simulation(settings or SimulatorSettings(), now=0.0)
    return simulation.begin(Call(method=method, path=path, headers=headers or {}, body=body), 0.0)


def _json(plan: Plan) -> Any:
    assert plan.status == 200
    return orjson.loads(plan.body)


def test_a_chat_completion_has_groqs_shape_and_quotes_its_question() -> None:
    plan = _ask(messages=MESSAGES)
    body = _json(plan)
    assert set(body) >= {
        "id",
        "object",
        "created",
        "model",
        "choices",
        "usage",
        "x_groq",
        "system_fingerprint",
    }
    assert body["object"] == "chat.completion"
    assert body["model"] == "m"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "[simulated] Answer to: What is 2 + 2?"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert set(usage) >= {"queue_time", "prompt_time", "completion_time", "total_time"}
    assert dict(plan.headers)["x-request-id"] == body["x_groq"]["id"]


@pytest.mark.parametrize(
    ("content", "quoted"),
    [
        ("x" * 300, "x" * 200),
        ([{"type": "text", "text": "part"}, {"type": "image_url", "image_url": {}}], "part"),
        ("", ""),
        (None, ""),
    ],
    ids=["long", "parts", "empty", "null"],
)
def test_an_answer_quotes_the_last_user_message(content: Any, quoted: str) -> None:
    messages = [{"role": "user", "content": "earlier"}, {"role": "user", "content": content}]
    answer = _json(_ask(messages=messages))["choices"][0]["message"]["content"]
    assert answer == f"[simulated] Answer to: {quoted}"


def test_n_choices_each_count_their_tokens() -> None:
    body = _json(_ask(messages=MESSAGES, n=3))
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["usage"]["completion_tokens"] % 3 == 0


@pytest.mark.parametrize("name", ["max_completion_tokens", "max_tokens"])
def test_an_answer_is_cut_at_its_maximum(name: str) -> None:
    body = _json(_ask(messages=MESSAGES, fields={name: 3}))
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 3
    assert body["choices"][0]["message"]["content"] == "[simulated] "


def test_a_stream_tells_the_same_answer_in_events() -> None:
    whole = _json(_ask(messages=MESSAGES))
    plan = _ask(messages=MESSAGES, stream=True)
    assert dict(plan.headers)["content-type"] == "text/event-stream"
    *events, done, rest = plan.body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    chunks = [orjson.loads(event.removeprefix(b"data: ")) for event in events]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "stop"]
    assert (
        chunks[-1]["usage"]["total_tokens"]
        == chunks[-1]["usage"]["prompt_tokens"] + (chunks[-1]["usage"]["completion_tokens"])
    )


@pytest.mark.parametrize(
    ("given_input", "count"),
    [("one", 1), (["one", "two"], 2), ([1, 2, 3], 1), ([[1, 2], [3]], 2)],
    ids=["text", "texts", "tokens", "lists of tokens"],
)
def test_embeddings_depend_on_their_text_alone(given_input: Any, count: int) -> None:
    first, again = (_json(_ask("/v1/embeddings", input=given_input, dimensions=5)) for _ in range(2))
    assert first == again
    assert [item["index"] for item in first["data"]] == list(range(count))
    for item in first["data"]:
        assert len(item["embedding"]) == 5
        assert sum(value**2 for value in item["embedding"]) == pytest.approx(1, abs=1e-3)
    assert len({tuple(item["embedding"]) for item in first["data"]}) == count


@pytest.mark.parametrize(
    ("maximum", "status"), [(None, "completed"), (2, "incomplete")], ids=["whole", "cut"]
)
def test_responses_have_openais_shape(maximum: int | None, status: str) -> None:
    body = _json(_ask("/v1/responses", input="Why?", max_output_tokens=maximum))
    assert (body["object"], body["status"]) == ("response", status)
    assert "[simulated] Answer to: Why?".startswith(body["output"][0]["content"][0]["text"])
    assert body["usage"]["total_tokens"] == body["usage"]["input_tokens"] + body["usage"]["output_tokens"]


def test_a_json_object_is_marked_and_quotes_the_question() -> None:
    body = _json(_ask(messages=MESSAGES, response_format={"type": "json_object"}))
    assert orjson.loads(body["choices"][0]["message"]["content"]) == {
        "simulated": True,
        "answer": "What is 2 + 2?",
    }


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (
            CHAT,
            lambda schema: {
                "messages": MESSAGES,
                "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
            },
        ),
        (
            "/v1/responses",
            lambda schema: {
                "input": "What is 2 + 2?",
                "text": {"format": {"type": "json_schema", "schema": schema}},
            },
        ),
    ],
    ids=["chat", "responses"],
)
def test_an_answer_satisfies_the_schema_asked_for(path: str, fields: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"label": {"enum": ["good", "bad"]}, "reason": {"type": "string"}},
        "required": ["label", "reason"],
        "additionalProperties": False,
    }
    body = _json(_ask(path, **fields(schema)))
    text = (
        body["choices"][0]["message"]["content"] if path == CHAT else body["output"][0]["content"][0]["text"]
    )
    assert orjson.loads(text) == {"label": "good", "reason": "simulated answer to: What is 2 + 2?"}


SCALARS = st.one_of(
    st.builds(
        lambda low, extra: {"type": "string", "minLength": low, "maxLength": low + extra},
        st.integers(0, 50),
        st.integers(0, 50),
    ),
    st.builds(
        lambda low, extra: {"type": "integer", "minimum": low, "maximum": low + extra},
        st.integers(-9, 9),
        st.integers(0, 9),
    ),
    st.builds(lambda low: {"type": "number", "exclusiveMinimum": low}, st.integers(-9, 9)),
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": ["null", "string"]},
            {"const": 7},
            {"enum": ["a", 2]},
        ]
    ),
)
SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(
            lambda items, low: {"type": "array", "items": items, "minItems": low}, inner, st.integers(0, 3)
        ),
        st.builds(
            lambda properties, closed: {
                "type": "object",
                "properties": properties,
                "required": [*properties],
                "additionalProperties": not closed,
            },
            st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
            st.booleans(),
        ),
        st.builds(lambda first, second: {"anyOf": [first, second]}, inner, inner),
        st.builds(lambda part: {"allOf": [part]}, inner),
    ),
    max_leaves=8,
)


@given(SCHEMAS)
def test_an_example_satisfies_its_schema(schema: dict[str, Any]) -> None:
    jsonschema.validate(example_answer(schema, "text"), schema)


@given(
    st.dictionaries(
        st.sampled_from(
            ["type", "properties", "required", "items", "enum", "anyOf", "allOf", "$ref", "minItems"]
        ),
        st.sampled_from(
            ["object", "array", "integer", "string", None, 1, -1, [], ["a"], {}, {"a": {}}, "#", "#/x"]
        ),
    )
)
def test_a_schema_that_makes_no_sense_upsets_nothing(schema: dict[str, Any]) -> None:
    orjson.dumps(example_answer(schema, "text"))


def test_a_schema_that_contains_itself_ends() -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"next": {"$ref": "#"}, "leaf": {"$ref": "#/$defs/leaf"}},
        "$defs": {"leaf": {"type": "integer"}},
        "required": ["leaf"],
    }
    value = example_answer(schema, "text")
    jsonschema.validate(value, schema)
    assert value["simulated"] is True


CLOSED = SimulatorSettings(
    any_model=False,
    models=(ModelInfo(id="m", context_tokens=1000), ModelInfo(id="old", active=False)),
    keys=frozenset({"right"}),
)
RIGHT = {"authorization": "Bearer right"}


@pytest.mark.parametrize(
    ("ask", "status", "code"),
    [
        ({"path": "/v1/completions"}, 404, "unknown_url"),
        ({"method": "GET"}, 405, "method_not_allowed"),
        ({"path": "/v1/models", "method": "POST"}, 405, "method_not_allowed"),
        ({"headers": {}}, 401, "invalid_api_key"),
        ({"headers": {"authorization": "Bearer wrong"}}, 401, "invalid_api_key"),
        ({"path": "/v1/models", "method": "GET", "headers": {}}, 401, "invalid_api_key"),
        ({"raw": b"{"}, 400, "invalid_json"),
        ({"raw": b"[]"}, 400, "invalid_json"),
        ({"messages": []}, 400, None),
        ({"messages": ["text"]}, 400, None),
        ({"path": "/v1/embeddings"}, 400, None),
        ({"path": "/v1/responses", "input": ""}, 400, None),
        ({"model": None}, 400, None),
        ({"model": "unknown"}, 404, "model_not_found"),
        ({"path": "/v1/models/unknown", "method": "GET"}, 404, "model_not_found"),
        ({"model": "old"}, 400, "model_decommissioned"),
        ({"max_completion_tokens": 0}, 400, None),
        ({"max_tokens": True}, 400, None),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "context_length_exceeded"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_groq_would_refuse_is_refused(ask: dict[str, Any], status: int, code: str | None) -> None:
    usual: dict[str, Any] = {"settings": CLOSED, "headers": RIGHT, "messages": MESSAGES}
    plan = _ask(**(usual | ask))
    error = orjson.loads(plan.body)["error"]
    assert (plan.status, error.get("code"), error["type"]) == (status, code, "invalid_request_error")
    assert error["message"]


@pytest.mark.parametrize("path", ["/v1/models", "/openai/v1/models", "/v1/models?limit=1"])
def test_models_are_listed_with_their_context(path: str) -> None:
    listed = _json(_ask(path, method="GET", settings=CLOSED, headers=RIGHT))["data"]
    assert [(model["id"], model["context_window"], model["active"]) for model in listed] == [
        ("m", 1000, True),
        ("old", 0, False),
    ]


def test_one_model_is_described() -> None:
    assert _json(_ask("/v1/models/m", method="GET", settings=CLOSED, headers=RIGHT))["id"] == "m"


@given(st.binary(max_size=200), st.sampled_from([CHAT, "/v1/embeddings", "/v1/responses"]))
def test_no_body_upsets_it(raw: bytes, path: str) -> None:
    assert _ask(path, raw=raw).status in (200, 400)


ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    10**18,
    1.5,
    "text",
    "",
    [],
    [[]],
    [None],
    {},
    {"schema": 1},
    {"schema": {}},
]
ODD += [{"type": "json_schema", "json_schema": each} for each in ODD[-4:]]
ODD += [[{"role": "user", "content": 1}], [{"role": "user"}], [{"role": 1}], {"type": "json_schema"}]
FIELDS = ("messages", "input", "max_tokens", "n", "response_format", "text", "dimensions", "stream")


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, st.sampled_from(ODD))),
    st.sampled_from([CHAT, "/v1/embeddings", "/v1/responses"]),
)
def test_no_odd_field_upsets_it(fields: dict[str, Any], path: str) -> None:
    usual: dict[str, Any] = {"messages": MESSAGES, "input": "text"}
    assert _ask(path, fields=usual | fields).status in (200, 400)
