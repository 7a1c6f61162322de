"""Request bodies: a model exchanged and nothing else, and an estimate that is never too small by a sign."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.text.bodies import with_member

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
    assert orjson.loads(with_member(orjson.dumps(body), "model", model)) == {**body, "model": model}


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
    assert with_member(body, "model", "b") == changed


def test_a_member_that_stands_there_may_be_left_alone() -> None:
    assert with_member(b'{"model": "a"}', "model", "b", replace=False) == b'{"model": "a"}'
    assert with_member(b'{"x": 1}', "service_tier", "flex", replace=False) == b'{"x":1,"service_tier":"flex"}'
