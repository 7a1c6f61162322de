"""Estimates of tokens start careful and come to match what the provider counts."""

import random

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.text.tokens import TokenEstimator
from batcher.types import Usage


def body(**members: object) -> bytes:
    return orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 3_000}], **members})


def taught(outputs: list[int], *, mirrors_admission: bool = False) -> TokenEstimator:
    estimator = TokenEstimator(mirrors_admission=mirrors_admission)
    for output_tokens in outputs:
        estimator.learn(3_200, Usage(input_tokens=1_000, output_tokens=output_tokens))
    return estimator


@pytest.mark.parametrize(
    ("members", "fresh", "learned", "mirrored"),
    [
        pytest.param({}, 1_024, 95, 95, id="no maximum"),
        pytest.param({"n": 3}, 3_072, 95, 95, id="no maximum, several choices"),
        pytest.param({"max_completion_tokens": 500}, 500, 95, 500, id="a maximum"),
        pytest.param({"max_completion_tokens": 20}, 20, 20, 20, id="a maximum below the usual answer"),
        pytest.param({"max_tokens": 400, "n": 2}, 800, 95, 800, id="the old name, for each choice"),
        pytest.param({"max_output_tokens": 300}, 300, 95, 300, id="the name of the responses endpoint"),
        pytest.param({"max_completion_tokens": "many"}, 1_024, 95, 95, id="nonsense is no maximum"),
    ],
)
def test_output_is_reserved_as_learned_or_as_asked(
    members: dict[str, object], fresh: int, learned: int, mirrored: int
) -> None:
    request = body(**members)
    answers = list(range(1, 101))
    assert TokenEstimator().estimate(request, answers=True)[1] == fresh
    assert taught(answers[:29]).estimate(request, answers=True)[1] == fresh
    assert taught(answers).estimate(request, answers=True)[1] == learned
    assert taught(answers, mirrors_admission=True).estimate(request, answers=True)[1] == mirrored
    assert taught(answers).estimate(request, answers=False)[1] == 0


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=10,
)


def fresh_estimate(request: bytes, *, answers: bool) -> int:
    """Estimate input and output together before anything was learned."""
    return sum(TokenEstimator().estimate(request, answers=answers))


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
    assert fresh_estimate(body, answers=True) == tokens


def test_an_embedding_writes_nothing() -> None:
    assert fresh_estimate(b'{"input":"' + b"x" * 3_200 + b'"}', answers=False) == 1105


@given(body=st.dictionaries(st.sampled_from(["max_tokens", "max_completion_tokens", "n", "x"]), json_values))
def test_no_estimate_is_below_the_prompt(body: dict[str, object]) -> None:
    written = orjson.dumps(body)
    assert fresh_estimate(written, answers=True) > fresh_estimate(written, answers=False)


@pytest.mark.parametrize("bytes_per_token", [1.7, 2.5, 3.2, 4.4, 6.0])
def test_the_estimate_converges_on_the_provider_s_count(bytes_per_token: float) -> None:
    estimator, chance, request = TokenEstimator(), random.Random(1), body()
    for _ in range(200):
        size = chance.randint(200, 20_000)
        tokens = round(size / bytes_per_token * chance.uniform(0.9, 1.1))
        estimator.learn(size, Usage(input_tokens=tokens, output_tokens=1))
    assert estimator.estimate(request, answers=False)[0] == pytest.approx(
        len(request) / bytes_per_token, rel=0.05
    )


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**9), st.integers(0, 10**6)), max_size=400))
@settings(max_examples=60, deadline=None)
def test_no_answer_leads_the_estimate_astray(answers: list[tuple[int, int, int]]) -> None:
    estimator, request = TokenEstimator(), body()
    for size, input_tokens, output_tokens in answers:
        estimator.learn(size, Usage(input_tokens=input_tokens, output_tokens=output_tokens))
    prompt, output = estimator.estimate(request, answers=True)
    plain = len(request) / 3.2
    assert 0.5 * plain <= prompt <= 2 * plain + 1
    if len(answers) >= 30:
        recent = sorted(used for *_, used in answers[-300:])
        assert sum(used <= output for used in recent) >= 0.95 * len(recent)
        assert output in recent
