"""The jobs of a measurement, and the check of what became of them."""

from pathlib import Path

import orjson
import pytest

from batcher.bench.work import read_results, write_jobs
from batcher.errors import UsageError
from batcher.jobs.lines import LineDefaults, check_line


def test_jobs_have_the_length_asked_for_and_are_good_lines(tmp_path: Path) -> None:
    write_jobs(tmp_path / "jobs.jsonl", 12, 600)
    lines = (tmp_path / "jobs.jsonl").read_bytes().splitlines(keepends=True)
    assert [len(line) for line in lines] == [600] * 12
    assert [orjson.loads(line)["custom_id"] for line in lines] == [f"job-{n:07d}" for n in range(12)]
    for line in lines:
        check_line(line, LineDefaults())


def test_a_job_cannot_be_shorter_than_its_frame(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a job of 20 bytes: the shortest line of a job has 2"):
        write_jobs(tmp_path / "jobs.jsonl", 1, 20)


def result(number: int, **more: object) -> bytes:
    return orjson.dumps({"custom_id": f"job-{number:07d}", "error": None, **more}) + b"\n"


def test_every_job_is_looked_for_once(tmp_path: Path) -> None:
    out, errors, none = (tmp_path / name for name in ("out.jsonl", "out.errors.jsonl", "none.jsonl"))
    about = {"latency_s": 0.25, "queued_s": 0.5}
    foreign = orjson.dumps({"custom_id": "other", "error": None}) + b"\n"
    out.write_bytes(result(0, batcher=about) + result(2) + result(2) + result(9) + foreign)
    errors.write_bytes(result(3, error={"code": "x"}))
    found = read_results([out, errors, none], 5)
    assert (found.answered, found.missing, found.repeated, found.failed) == (2, 2, 3, 1)
    assert found.lost == 5
    assert (list(found.latency_s), list(found.queued_s)) == ([0.25], [0.5])
