"""Highest priority first over the whole file, for each model and under one limit."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.jobs.index import index_jobs
from batcher.jobs.lines import LineDefaults
from batcher.jobs.opened import OpenedFile
from batcher.jobs.source import Sources
from batcher.scheduling.queue import JobQueue
from batcher.types import Job

Listed = list[tuple[str, int]]  # model and priority of each line


@contextmanager
def queue_of(listed: Listed, limit: int | None = None) -> Iterator[JobQueue]:
    """Make the queue of a file in memory whose lines are named after their numbers."""
    lines: list[dict[str, Any]] = [
        {"id": str(number), "prompt": "hi", "model": model, "priority": priority}
        for number, (model, priority) in enumerate(listed)
    ]
    content = b"".join(orjson.dumps(line) + b"\n" for line in lines)
    fd = os.memfd_create("jobs")
    os.write(fd, content)
    sources = Sources([OpenedFile(name="jobs", fd=fd, start=0, size=len(content))])
    index = index_jobs(sources, LineDefaults(), on_bad=unexpected, on_warning=unexpected)
    yield JobQueue(index, limit=limit)
    index.close()


def unexpected(where: str, reason: str) -> None:
    raise AssertionError(f"{where}: {reason}")


def drain(queue: JobQueue, model: str, most: int) -> list[list[Job]]:
    """Take batches of one model until there are no more."""
    batches = []
    while batch := queue.take(model, most):
        batches.append([queue.read(row) for row in batch])
    return batches


models = st.sampled_from(["a", "b", "c"])
files = st.lists(st.tuples(models, st.integers(-3, 3)), max_size=40)


@given(listed=files, most=st.integers(1, 7))
def test_each_model_goes_by_priority_and_then_by_line(listed: Listed, most: int) -> None:
    with queue_of(listed) as queue:
        assert len(queue) == len(listed)
        for model in queue.models:
            batches = drain(queue, model, most)
            mine = [(-priority, number) for number, (name, priority) in enumerate(listed) if name == model]
            order = [number for _, number in sorted(mine)]
            assert [int(job.id) for batch in batches for job in batch] == order
            assert all(len(batch) <= most for batch in batches)
            assert all(len({job.priority for job in batch}) == 1 for batch in batches)
        assert len(queue) == 0


@given(listed=files, limit=st.integers(0, 50))
def test_the_limit_holds_over_all_models(listed: Listed, limit: int) -> None:
    with queue_of(listed, limit) as queue:
        taken = [job for model in queue.models for batch in drain(queue, model, 5) for job in batch]
        assert len(taken) == min(limit, len(listed))
        assert len(queue) == 0


@pytest.mark.parametrize(
    ("listed", "order"),
    [
        ([], []),
        ([("a", 0), ("b", 0)], ["a", "b"]),
        ([("a", 0), ("b", 5)], ["b", "a"]),
        ([("a", -5), ("b", -9), ("c", -7), ("b", 1)], ["b", "a", "c"]),
    ],
    ids=["empty", "as in the file", "urgent first", "the best job of each counts"],
)
def test_the_model_with_the_most_urgent_job_comes_first(listed: Listed, order: list[str]) -> None:
    with queue_of(listed) as queue:
        assert queue.models == order


def test_a_model_without_jobs_left_is_not_in_the_way() -> None:
    with queue_of([("a", 3), ("b", -1)]) as queue:
        assert queue.take("a", 10)
        assert queue.take("a", 10) == []
        assert repr(queue) == "<JobQueue 1 left>"
        assert [job.id for batch in drain(queue, "b", 1) for job in batch] == ["1"]
