"""A job takes few bytes of the index, however many there are and whatever its line holds."""

import os
import tracemalloc
from collections.abc import Callable

import orjson
import pytest

from batcher.jobs.index import index_jobs
from batcher.jobs.lines import LineDefaults
from batcher.jobs.opened import OpenedFile
from batcher.jobs.source import Sources
from batcher.results.fingerprints import Fingerprints, hash_id

FEW, MANY = 2_000, 8_000
CHUNK_BYTES = 1 << 14


def unexpected(where: str, reason: str) -> None:
    raise AssertionError(f"{where}: {reason}")


def earlier_results(count: int) -> Fingerprints:
    found = Fingerprints()
    for number in range(count):
        found.add(hash_id(f"done-{number}"), 4 * number)
    return found


def index_bytes(jobs: int, line: Callable[[int], dict[str, object]], earlier: int = 0) -> tuple[int, int]:
    """Return the bytes that indexing so many jobs took, at its peak and afterwards."""
    fd = os.memfd_create("jobs")
    for number in range(jobs):
        os.write(fd, orjson.dumps({"model": "m", "prompt": "hi"} | line(number)) + b"\n")
    file = OpenedFile(name="jobs", fd=fd, start=0, size=os.lseek(fd, 0, os.SEEK_CUR))
    tracemalloc.start()
    try:
        index = index_jobs(
            Sources([file], chunk_bytes=CHUNK_BYTES),
            LineDefaults(),
            earlier=earlier_results(earlier),
            on_bad=unexpected,
            on_warning=unexpected,
        )
        left_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert index.queued == jobs
    index.close()
    return peak_bytes, left_bytes


@pytest.mark.parametrize(
    ("line", "most_bytes"),
    [
        pytest.param(lambda number: {"id": f"row-{number}"}, (80, 40), id="with ids"),
        pytest.param(lambda number: {"prompt": f"{number}"}, (80, 40), id="without ids"),
        pytest.param(lambda number: {}, (120, 80), id="all equal, without ids"),
        pytest.param(lambda number: {"id": number, "priority": number % 99}, (80, 40), id="many priorities"),
    ],
)
def test_a_job_takes_few_bytes(line: Callable[[int], dict[str, object]], most_bytes: tuple[int, int]) -> None:
    few, many = index_bytes(FEW, line), index_bytes(MANY, line)
    per_job = [(more - less) / (MANY - FEW) for more, less in zip(many, few, strict=True)]
    assert per_job[0] < most_bytes[0]
    assert per_job[1] < most_bytes[1]


def test_what_was_known_of_earlier_results_is_forgotten_after_the_pass() -> None:
    _, without = index_bytes(FEW, lambda number: {"id": f"row-{number}"})
    _, with_earlier = index_bytes(FEW, lambda number: {"id": f"row-{number}"}, earlier=MANY)
    assert with_earlier - without < 4 * MANY
