"""Think blocks are told from answers, and text without one is answer from end to end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.text.reasoning import split_reasoning


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        pytest.param("<think>hm</think>42", "hm", "42", id="a block and an answer"),
        pytest.param("\n <think>\nhm\nso\n</think>\n\n42 ", "hm\nso", "42 ", id="lines and space around"),
        pytest.param("<thinking>hm</thinking>42", "hm", "42", id="the other name"),
        pytest.param("<think></think>42", "", "42", id="no thoughts"),
        pytest.param("<think>hm</think>", "hm", "", id="no answer"),
        pytest.param("<think>hm", "", "<think>hm", id="a block that was cut off"),
        pytest.param("42", "", "42", id="no block"),
        pytest.param("", "", "", id="nothing"),
        pytest.param("a <think>hm</think>", "", "a <think>hm</think>", id="not at the start"),
        pytest.param("<think>a</think>b<think>c</think>", "a", "b<think>c</think>", id="only the first"),
    ],
)
def test_thoughts_are_told_from_the_answer(text: str, reasoning: str, answer: str) -> None:
    assert split_reasoning(text) == (reasoning, answer)


@given(st.text(), st.text(st.characters(exclude_characters="<")))
def test_an_answer_behind_a_block_stays_as_it_is(answer: str, thoughts: str) -> None:
    assert split_reasoning(f"<think>{thoughts}</think>{answer}") == (thoughts.strip(), answer.lstrip())


def test_many_unclosed_blocks_take_no_time() -> None:
    assert split_reasoning("<think>" * 200_000)[0] == ""
