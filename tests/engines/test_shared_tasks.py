"""A task runs one job after the other, and still lets everybody else have their turn."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from test_online import Rig, ids, no_wait

from batcher.engines.online import OnlineRun, RunLimits
from batcher.engines.stop import StopReason
from batcher.types import Failure, Job, Result


def failed(job: Job) -> Result:
    return Result(
        job=job,
        answer=Failure(code="too_large", message="never sent"),
        model=job.model,
        provider="none",
        attempts=0,
        latency_s=0.0,
        queued_s=0.0,
        finished_at="2026-01-02T03:04:05Z",
    )


async def run(rig: Rig, execute: Callable[[Job], Awaitable[Result | None]]) -> None:
    limits = RunLimits(concurrency=4)
    try:
        await OnlineRun(rig.queue, rig.routing, execute, rig.writer, limits, room=no_wait).run(
            rig.stop, lambda: ""
        )
    finally:
        rig.index.close()


async def test_jobs_share_a_few_tasks(tmp_path: Path) -> None:
    tasks = set[str]()

    async def execute(job: Job) -> Result | None:
        if (task := asyncio.current_task()) is not None:
            tasks.add(task.get_name())
        await asyncio.sleep(1)
        return failed(job)

    rig = Rig(tmp_path, 200)
    await run(rig, execute)
    assert sorted(rig.failed) == ids(200)
    assert len(tasks) < 50
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("outcome", ["failed", "pending"])
async def test_jobs_that_make_no_call_leave_time_for_a_stop(tmp_path: Path, outcome: str) -> None:
    ended = list[str]()

    async def execute(job: Job) -> Result | None:
        ended.append(job.id)
        if len(ended) == 20:
            asyncio.get_running_loop().call_soon(rig.stop.abort, StopReason.INTERRUPTED, "now")
        return failed(job) if outcome == "failed" else None

    rig = Rig(tmp_path, 500)
    await run(rig, execute)
    assert 20 <= len(ended) < 250
    assert rig.stop.message == "now"
