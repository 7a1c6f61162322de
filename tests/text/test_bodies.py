"""Request bodies: a model exchanged and nothing else, and an estimate that is never too small by a sign."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.text.bodies import estimate_tokens, with_model

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=10,
)


@given(
    body=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values, max_size=5),
    model=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_only_the_model_is_exchanged(body: dict[str, object], model: str) -> None:
    assert orjson.loads(with_model(orjson.dumps(body), model)) == {**body, "model": model}


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        pytest.param(
            b'{ "model": "a", "seed": 12345678901234567890123, "temperature": 0.10 }',
            b'{"model":"b","seed":12345678901234567890123,"temperature":0.10}',
            id="numbers stay as they are written",
        ),
        pytest.param(b"{}", b'{"model":"b"}', id="no model named"),
        pytest.param(
            b'{"x":{"model": "a"}}', b'{"x":{"model": "a"},"model":"b"}', id="a model deeper inside"
        ),
        pytest.param(b'{"model":"a","model":"c"}', b'{"model":"b"}', id="named twice"),
        pytest.param(b'{"a":"\\u00e9"}', b'{"a":"\\u00e9","model":"b"}', id="escapes stay escapes"),
    ],
)
def test_what_stands_in_the_body_stays_as_written(body: bytes, changed: bytes) -> None:
    assert with_model(body, "b") == changed


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        pytest.param(b"{}", 1 + 1024, id="no maximum"),
        pytest.param(b'{"max_tokens":100}', 7 + 100, id="max_tokens"),
        pytest.param(b'{"max_output_tokens":100}', 9 + 100, id="max_output_tokens"),
        pytest.param(b'{"max_completion_tokens":100,"max_tokens":7}', 16 + 100, id="the newest name counts"),
        pytest.param(b'{"max_tokens":100,"n":3}', 9 + 300, id="three answers"),
        pytest.param(b'{"max_tokens":-100000,"n":-3}', 10 + 1024, id="below zero is no maximum"),
        pytest.param(b'{"max_tokens":"many"}', 8 + 1024, id="an odd type is the provider's to refuse"),
        pytest.param(b'{"max_tokens":0}', 6 + 1024, id="zero"),
    ],
)
def test_an_estimate_is_the_prompt_and_the_most_it_may_answer(body: bytes, tokens: int) -> None:
    assert estimate_tokens(body, answers=True) == tokens


def test_an_embedding_writes_nothing() -> None:
    assert estimate_tokens(b'{"input":"' + b"x" * 3_200 + b'"}', answers=False) == 1105


@given(body=st.dictionaries(st.sampled_from(["max_tokens", "max_completion_tokens", "n", "x"]), json_values))
def test_no_estimate_is_below_the_prompt(body: dict[str, object]) -> None:
    written = orjson.dumps(body)
    assert estimate_tokens(written, answers=True) > estimate_tokens(written, answers=False)
