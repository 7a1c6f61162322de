"""Lines that name no model share several, always in the same way."""

import math
import os
from collections import Counter
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import BadLine
from batcher.jobs.index import index_jobs
from batcher.jobs.lines import LineDefaults, parse_line
from batcher.jobs.opened import OpenedFile
from batcher.jobs.source import Sources
from batcher.types import Job

WEIGHTS = {"big": 1.0, "small": 3.0, "middle": 0.5}
DEFAULTS = LineDefaults(weights=WEIGHTS)
PINNED = ["small"] * 8 + ["big", "middle"] + ["small"] * 2


def parse(defaults: LineDefaults = DEFAULTS, **fields: Any) -> Job:
    return parse_line(orjson.dumps({"prompt": "hi", **fields}), "", defaults)


@pytest.mark.parametrize("named", [True, False], ids=["by id", "by request"])
def test_each_model_gets_its_share_of_the_lines(named: bool) -> None:
    lines = 10_000
    if named:
        counts = Counter(parse(id=number).model for number in range(lines))
    else:
        counts = Counter(parse(prompt=f"row {number}").model for number in range(lines))
    assert set(counts) == set(WEIGHTS)
    for model, weight in WEIGHTS.items():
        share = weight / sum(WEIGHTS.values())
        assert abs(counts[model] - lines * share) < 3 * math.sqrt(lines * share * (1 - share))


def test_the_same_line_always_gets_the_same_model() -> None:
    # Pinned: another choice in a later version would pay for answers that are there already.
    assert [parse(id=number).model for number in range(12)] == PINNED
    reversed_weights = LineDefaults(weights=dict(reversed(WEIGHTS.items())))
    assert [parse(reversed_weights, id=number).model for number in range(12)] == PINNED
    assert [parse(id=str(number), priority=3, metadata={}).model for number in range(12)] == PINNED
    assert [parse(DEFAULTS, id=number, params={}).model for number in range(12)] == PINNED


def test_spelling_and_the_order_of_keys_do_not_matter() -> None:
    one = b'{"custom_id":"a","method":"POST","url":"/v1/responses","body":{"input":"\\u0041","top_p":1}}'
    two = b'{"url":"/v1/responses","custom_id":"a","method":"POST","body":{"top_p": 1, "input":"A"}}'
    for number in range(20):
        job_id = b'"%d"' % number
        jobs = [parse_line(line.replace(b'"a"', job_id), "", DEFAULTS) for line in (one, two)]
        assert jobs[0].model == jobs[1].model


@given(st.integers(0, 10_000), st.sampled_from([None, 50]))
def test_the_choice_is_part_of_the_request_and_of_its_identity(number: int, most: int | None) -> None:
    chosen = parse(LineDefaults(weights=WEIGHTS, default_max_completion_tokens=most), id=number)
    asked = parse(LineDefaults(default_max_completion_tokens=most), id=number, model=chosen.model)
    assert chosen.request_sha256 == asked.request_sha256
    assert orjson.loads(chosen.body)["model"] == chosen.model
    assert chosen == parse(LineDefaults(model=chosen.model, default_max_completion_tokens=most), id=number)


def test_a_line_with_a_model_keeps_it_and_no_weights_give_none() -> None:
    assert {parse(id=number, model="own").model for number in range(50)} == {"own"}
    with pytest.raises(BadLine, match='no "model" is named'):
        parse(LineDefaults())


def test_a_request_that_is_nested_too_deep_is_refused() -> None:
    line = b'{"method":"POST","url":"/v1/responses","body":{"input":%s%s}}' % (b"[" * 300, b"]" * 300)
    with pytest.raises(BadLine, match="deep"):
        parse_line(line, "", DEFAULTS)


def test_inserted_lines_change_no_choice_and_lines_are_read_back_as_they_were_indexed() -> None:
    lines = [{"id": str(number), "prompt": "hi"} for number in range(40)]
    lines += [{"prompt": f"row {number // 2}"} for number in range(40)]
    before, after = (
        drained(lines),
        drained([{"prompt": "new"}, *lines[:20], {"prompt": "row 3"}, *lines[20:]]),
    )
    assert len(before) == 80
    assert before.items() <= after.items()


def drained(lines: list[dict[str, str]]) -> dict[str, tuple[str, str]]:
    """Return model and hash of each job of a file by its id."""
    content = b"".join(orjson.dumps(line) + b"\n" for line in lines)
    fd = os.memfd_create("jobs")
    os.write(fd, content)
    sources = Sources([OpenedFile(name="jobs", fd=fd, start=0, size=len(content))])
    index = index_jobs(sources, DEFAULTS, on_bad=unexpected, on_warning=unexpected)
    jobs = []
    for model in index.models:
        while (row := index.pop(model)) is not None:
            jobs.append(index.read(row))
    index.close()
    return {job.id: (job.model, job.request_sha256) for job in jobs}


def unexpected(where: str, reason: str) -> None:
    raise AssertionError(f"{where}: {reason}")
