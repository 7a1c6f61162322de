"""Highest priority first over the whole file, for each model and under one limit."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from batcher.jobs.index import index_jobs
from batcher.jobs.lines import LineDefaults
from batcher.jobs.opened import OpenedFile
from batcher.jobs.source import Sources
from batcher.scheduling.queue import JobQueue
from batcher.types import Job

Listed = list[tuple[str, int]]  # model and priority of each line
DEFAULTS = LineDefaults()


@contextmanager
def queue_of(
    listed: Listed,
    limit: int | None = None,
    *,
    fallback: Mapping[int, str] | None = None,
    prefixes: Mapping[int, int] | None = None,
    defaults: LineDefaults = DEFAULTS,
) -> Iterator[JobQueue]:
    """Make the queue of a file in memory whose lines are named after their numbers.

    Lines with the same number in `prefixes` share a long prefix.
    """
    lines: list[dict[str, Any]] = [
        {"id": str(number), "prompt": "hi", "model": model, "priority": priority}
        for number, (model, priority) in enumerate(listed)
    ]
    for number, model in (fallback or {}).items():
        lines[number]["fallback"] = [model]
    for number, prefix in (prefixes or {}).items():
        lines[number]["system"] = f"You are judge {prefix}. " * 40
    content = b"".join(orjson.dumps(line) + b"\n" for line in lines)
    fd = os.memfd_create("jobs")
    os.write(fd, content)
    sources = Sources([OpenedFile(name="jobs", fd=fd, start=0, size=len(content))])
    index = index_jobs(sources, defaults, on_bad=unexpected, on_warning=unexpected)
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
            assert queue.next_priority(model) is None


@given(listed=files, limit=st.none() | st.integers(0, 50), dropped=st.integers(0, 9), chosen=models)
def test_the_limit_counts_what_is_started_and_not_what_is_taken(
    listed: Listed, limit: int | None, dropped: int, chosen: str
) -> None:
    most = len(listed) if limit is None else limit
    with queue_of(listed, limit) as queue:
        assert len(queue) == min(most, len(listed))
        taken = sum(len(queue.take(model, 9)) for model in queue.models)
        assert len(queue) == min(most, len(listed)), "what is taken may still be started"
        started = min(taken, len(queue)) // 2
        for _ in range(started):
            queue.count_started()
        queue.count_dropped(min(dropped, taken - started))
        lost = min(dropped, taken - started)
        assert len(queue) == min(most - started, len(listed) - started - lost)
        lost += sum(model == chosen for model, _ in listed) - min(9, batch_of(listed, chosen))
        queue.drop_rest(chosen)
        assert queue.next_priority(chosen) is None
        assert len(queue) == min(most - started, len(listed) - started - lost)


def batch_of(listed: Listed, model: str) -> int:
    """Return how many jobs of a model have its highest priority."""
    priorities = [priority for name, priority in listed if name == model]
    return priorities.count(max(priorities, default=0))


def test_a_model_without_jobs_left_is_not_in_the_way() -> None:
    with queue_of([("a", 3), ("b", -1)]) as queue:
        assert queue.models == ("a", "b")
        assert queue.take("a", 10)
        assert queue.take("a", 10) == []
        assert (queue.next_priority("a"), queue.next_priority("b")) == (None, -1)
        assert repr(queue) == "<JobQueue 2 left>"
        assert [job.id for batch in drain(queue, "b", 1) for job in batch] == ["1"]
