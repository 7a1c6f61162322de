"""Highest priority first over the whole file, for each model and under one limit."""

import os
from collections.abc import Iterator, Mapping
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
def queue_of(
    listed: Listed, limit: int | None = None, *, fallback: Mapping[int, str] | None = None
) -> Iterator[JobQueue]:
    """Make the queue of a file in memory whose lines are named after their numbers."""
    lines: list[dict[str, Any]] = [
        {"id": str(number), "prompt": "hi", "model": model, "priority": priority}
        for number, (model, priority) in enumerate(listed)
    ]
    for number, model in (fallback or {}).items():
        lines[number]["fallback"] = [model]
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
        for model, _ in queue.urgency():
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
        taken = [job for model, _ in queue.urgency() for batch in drain(queue, model, 5) for job in batch]
        assert len(taken) == min(limit, len(listed))
        assert len(queue) == 0


@pytest.mark.parametrize(
    ("listed", "limit", "urgency"),
    [
        ([], None, []),
        ([("a", 0), ("b", 5)], None, [("a", 0), ("b", 5)]),
        ([("a", -5), ("b", -9), ("c", -7), ("b", 1)], None, [("a", -5), ("b", 1), ("c", -7)]),
        ([("a", 0), ("b", 5)], 0, []),
    ],
    ids=["empty", "as in the file", "the best job of each counts", "the limit is reached"],
)
def test_each_model_is_as_urgent_as_its_next_job(
    listed: Listed, limit: int | None, urgency: list[tuple[str, int]]
) -> None:
    with queue_of(listed, limit) as queue:
        assert queue.urgency() == urgency
        assert [(model, queue.next_priority(model)) for model, _ in urgency] == urgency


def test_a_model_without_jobs_left_is_not_in_the_way() -> None:
    with queue_of([("a", 3), ("b", -1)]) as queue:
        assert queue.take("a", 10)
        assert queue.take("a", 10) == []
        assert queue.next_priority("a") is None
        assert queue.urgency() == [("b", -1)]
        assert repr(queue) == "<JobQueue 1 left>"
        assert [job.id for batch in drain(queue, "b", 1) for job in batch] == ["1"]
