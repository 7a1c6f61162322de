"""A job read back is the one that was checked, and any edit of its line is seen."""

import os
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import BadLine, OutputError
from batcher.jobs.index import JobIndex, index_jobs
from batcher.jobs.lines import LineDefaults, check_line, parse_line, reread_line
from batcher.jobs.opened import OpenedFile
from batcher.jobs.source import Sources

MODEL = LineDefaults(model="m", fallback=("other",))
SILENCE = LineDefaults(weights={"m": 1, "n": 2}, default_max_completion_tokens=9)


def index_of(path: Path, defaults: LineDefaults = MODEL) -> JobIndex:
    def unexpected(where: str, reason: str) -> None:
        raise AssertionError(f"{where}: {reason}")

    file = OpenedFile(name="f", fd=os.open(path, os.O_RDONLY), start=0, size=path.stat().st_size)
    return index_jobs(Sources([file]), defaults, on_bad=unexpected, on_warning=unexpected)


LINE = b'{"id":"a","prompt":"hi","priority":1,"metadata":{"row":1},"deadline_s":7}'
EDITS = {
    "priority": (b'"priority":1', b'"priority":2'),
    "metadata": (b'"row":1', b'"row":2'),
    "deadline": (b"7}", b"8}"),
    "layout": (b"7}\n ", b"7 }\n"),
    "order of fields": (b'"id":"a","prompt":"hi"', b'"prompt":"hi","id":"a"'),
    "line end": (b"7}\n", b"7} "),
}


@pytest.mark.parametrize(("old", "new"), EDITS.values(), ids=EDITS.keys())
def test_an_edit_that_leaves_id_and_request_alone_is_seen(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(LINE + b"\n" + b" \n")
    with_edit = path.read_bytes().replace(old, new)
    index = index_of(path)
    path.write_bytes(with_edit)
    with pytest.raises(OutputError, match=r"^f:1: the line changed during the run"):
        index.read(0)
    index.close()


def test_edits_of_other_lines_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(LINE + b"\r\n" + LINE.replace(b'"a"', b'"b"'))
    index = index_of(path)
    path.write_bytes(LINE + b"\r\n" + b"no longer a job")
    assert index.read(0) == parse_line(LINE, "f:1", MODEL)
    index.close()


BATCH: dict[str, Any] = {"method": "POST", "url": "/v1/chat/completions"}
MESSAGES = [{"role": "user", "content": "hi"}]
LINES: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "hi"},
    "everything": {
        "id": 7,
        "model": "own",
        "system": "be kind",
        "messages": MESSAGES,
        "params": {"seed": 1, "max_tokens": 3},
        "schema": {"type": "object"},
        "kind": "reasoning",
        "fallback": [],
        "deadline_s": 3,
        "priority": -4,
        "metadata": {"a": [1, 2.5, None]},
    },
    "Batch line": BATCH | {"custom_id": "x", "body": {"messages": MESSAGES, "model": "own"}, "metadata": {}},
    "Batch line without a model": BATCH | {"body": {"messages": MESSAGES}, "schema": {}},
    "embedding": BATCH | {"custom_id": 3, "url": "/v1/embeddings", "body": {"input": ["a", "b"]}},
}


@pytest.mark.parametrize("defaults", [MODEL, SILENCE], ids=["a model", "shares and a maximum"])
@pytest.mark.parametrize("fields", LINES.values(), ids=LINES.keys())
def test_a_job_read_back_is_the_one_that_was_checked(
    tmp_path: Path, fields: dict[str, Any], defaults: LineDefaults
) -> None:
    line = orjson.dumps(fields)
    assert reread_line(line, defaults) == check_line(line, defaults)
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(line)
    index = index_of(path, defaults)
    job, expected = index.read(0), parse_line(line, "f:1", defaults)
    index.close()
    assert job.id == (expected.id or expected.request_sha256[:16])
    for name in job.__struct_fields__[1:]:
        assert getattr(job, name) == getattr(expected, name)


@given(st.text(max_size=40), st.integers(2**63 + 1, 2**66), st.sampled_from(["", "-"]))
def test_a_huge_integer_is_found_wherever_it_stands(before: str, number: int, sign: str) -> None:
    line = orjson.dumps({"prompt": f"x{before}"})[:-1] + b',"metadata":{"n":%s%d}}' % (sign.encode(), number)
    with pytest.raises(BadLine, match="does not fit into 64 bits"):
        check_line(line, MODEL)
