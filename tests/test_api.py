"""Runs from Python: as a summary, through a callback, as an iteration; and how each of them ends early."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from batcher import JobRun, Reply, Result, arun_jobs, run_jobs
from batcher.errors import (
    BadInput,
    BatcherError,
    ConfigError,
    InputMissing,
    KeyMissing,
    LockHeld,
    UsageError,
)
from batcher.providers.simulator.server import RunningServer, start_embedded
from batcher.providers.simulator.settings import SimulatorSettings

pytestmark = pytest.mark.real_loop

SLOW = SimulatorSettings(latency_s=0.02, latency_shape="fixed")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the tester's own environment counts."""
    for name in ("GROQ_API_KEY", "GROQ_API_KEY_FILE", "OPENAI_API_KEY", "OPENAI_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)


def jobs(count: int) -> list[dict[str, Any]]:
    """Jobs whose prompts are their ids, as the simulator counts by prompt."""
    return [{"id": f"j{number}", "model": "m", "prompt": f"j{number}"} for number in range(count)]


def ids(count: int) -> set[str]:
    return {f"j{number}" for number in range(count)}


def stored(output: Path) -> list[str]:
    """The ids in a result file."""
    return [orjson.loads(line)["custom_id"] for line in output.read_bytes().splitlines()]


@asynccontextmanager
async def slow_server() -> AsyncIterator[tuple[RunningServer, str]]:
    """A simulator that takes its time, and its address; nothing may be left over at the end."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(start_embedded(SLOW))
        yield server, f"{server.url}/v1"
        assert server.simulation.in_flight == 0 or await _settles(server)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def _settles(server: RunningServer) -> bool:
    """Wait for answers to calls that were given up."""
    for _ in range(100):
        await asyncio.sleep(0.01)
        if server.simulation.in_flight == 0:
            return True
    return False


async def take_all(run: JobRun, *, iterated: bool) -> list[str]:
    """Bring a run to its end in one way or the other; return the ids that an iteration gave."""
    if iterated:
        return [result.job.id async for result in run]
    await run
    return []


def test_a_script_gets_the_summary_and_the_file_is_resumed(tmp_path: Path) -> None:
    file, output = tmp_path / "jobs.jsonl", tmp_path / "out" / "x.jsonl"
    file.write_bytes(b"".join(orjson.dumps(job) + b"\n" for job in jobs(5)))
    summary = run_jobs(file, output=output, simulate=True)
    assert (summary["exit_code"], summary["jobs"]["succeeded"]) == (0, 5)
    assert set(stored(output)) == ids(5)
    assert orjson.loads((tmp_path / "out" / "x.summary.json").read_bytes()) == summary
    again = run_jobs(str(file), output=str(output), simulate=True)
    assert (again["jobs"]["queued"], again["jobs"]["done_before"]) == (0, 5)


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_jobs_may_be_dicts(kind: str, tmp_path: Path) -> None:
    taken: list[Result] = []
    given = jobs(5) if kind == "list" else (job for job in jobs(5))
    summary = run_jobs(given, simulate=True, on_result=taken.append)
    assert summary["jobs"]["succeeded"] == 5
    assert {result.job.id for result in taken} == ids(5)
    assert all(
        isinstance(result.answer, Reply) and result.answer.text.endswith(result.job.id) for result in taken
    )


def test_a_run_without_output_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run_jobs(jobs(3), simulate=True)["exit_code"] == 0
    assert list(tmp_path.iterdir()) == []


def test_the_callback_comes_once_the_result_is_in_the_file(tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    missing: list[str] = []

    def look(result: Result) -> None:
        if result.job.id not in stored(output):
            missing.append(result.job.id)

    run_jobs(jobs(20), output=output, simulate=True, on_result=look)
    assert missing == []


def test_bad_jobs_are_logged_and_the_others_run(caplog: pytest.LogCaptureFixture) -> None:
    summary = run_jobs([*jobs(2), {"id": "bad"}], simulate=True)
    assert (summary["exit_code"], summary["jobs"]["bad_lines"]) == (3, 1)
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "jobs.jsonl:3: " in record.getMessage()


async def test_run_jobs_inside_a_loop_says_what_to_call() -> None:
    with pytest.raises(RuntimeError, match=r"use `await arun_jobs\(...\)`"):
        run_jobs(jobs(1), simulate=True)


def broken_rows() -> Iterator[dict[str, Any]]:
    yield from jobs(2)
    raise LookupError("no more rows")


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no such file": ("nope.jsonl", {}, InputMissing, "nope.jsonl: No such file"),
    "no job is good": ([{"id": "a"}], {}, BadInput, "1 bad lines and no good one"),
    "one is bad, strict": ([*jobs(1), {}], {"strict": True}, BadInput, "--strict"),
    "not JSON": ([{"id": "a"}, {"id": b"x"}], {}, BadInput, "job 2 cannot be written as JSON"),
    "rows that fail": (broken_rows(), {}, LookupError, "no more rows"),
    "a typo": (jobs(1), {"modle": "m"}, ConfigError, "unknown key 'modle'; did you mean 'model'?"),
    "a setting": (jobs(1), {"timeout": "soon"}, ConfigError, "'soon' is not a duration"),
    "output": (jobs(1), {"output": "x.json"}, UsageError, "a result file's name ends in .jsonl"),
    "on_changed": (jobs(1), {"on_changed": "reurn"}, UsageError, "expected error or rerun or keep"),
    "limit": (jobs(1), {"limit": 0}, UsageError, "limit 0: expected 1 or more"),
    "no key": (jobs(1), {"simulate": False}, KeyMissing, "set GROQ_API_KEY"),
}


@pytest.mark.parametrize(("given", "options", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_run_raises(
    given: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        run_jobs(given, **{"simulate": True} | options)
    assert message in str(caught.value)


async def test_a_setting_that_makes_no_sense_is_refused_before_anything_begins() -> None:
    with pytest.raises(BatcherError):
        arun_jobs(jobs(1), rpm=0)


def test_an_id_that_comes_back_with_another_request(tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    changed = [{**jobs(1)[0], "prompt": "something else"}]
    run_jobs(jobs(2), output=output, simulate=True)
    with pytest.raises(BadInput, match="1 ids have a result of another request"):
        run_jobs(changed, output=output, simulate=True)
    assert run_jobs(changed, output=output, simulate=True, on_changed="keep")["jobs"]["queued"] == 0
    assert run_jobs(changed, output=output, simulate=True, on_changed="rerun")["jobs"]["succeeded"] == 1
    assert sorted(stored(output)) == ["j0", "j1"]
    assert run_jobs(jobs(2)[1:], output=output, simulate=True, fresh=True)["jobs"]["succeeded"] == 1
    assert stored(output) == ["j1"]


def test_a_limit_and_the_rest(tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    first = run_jobs(jobs(5), output=output, simulate=True, limit=2)
    assert (first["exit_code"], first["jobs"]["succeeded"], first["jobs"]["pending"]) == (0, 2, 3)
    assert run_jobs(jobs(5), output=output, simulate=True)["jobs"]["done_before"] == 2


async def test_an_iteration_yields_every_result_and_then_there_is_a_summary() -> None:
    async with slow_server() as (_, url), arun_jobs(jobs(50), base_url=url) as run:
        taken = [result.job.id async for result in run]
        assert set(taken) == ids(50)
        assert len(taken) == 50
        assert run.summary["jobs"]["succeeded"] == 50


@pytest.mark.parametrize("how", ["context", "aclose", "generator"])
async def test_an_iteration_that_breaks_off_leaves_the_output_to_be_resumed(tmp_path: Path, how: str) -> None:
    output = tmp_path / "x.jsonl"
    async with slow_server() as (server, url):
        run = arun_jobs(jobs(200), base_url=url, output=output, concurrency=4)
        if how == "context":
            async with run:
                async for _ in run:
                    break
        elif how == "aclose":
            async for _ in run:
                break
            await run.aclose()
        else:
            results = aiter(run)
            await anext(results)
            await results.aclose()  # type: ignore[attr-defined] # an async generator, whatever its type says
        kept = stored(output)
        assert 1 <= len(kept) < 200
        assert (run.summary["exit_code"], run.summary["stopped_because"]) == (75, "the caller closed the run")
        assert orjson.loads((tmp_path / "x.summary.json").read_bytes()) == run.summary
        summary = await arun_jobs(jobs(200), base_url=url, output=output)
        assert (summary["exit_code"], summary["jobs"]["done_before"]) == (0, len(kept))
        assert sorted(stored(output)) == sorted(ids(200))
        assert sum(server.simulation.by_id.values()) <= 200 + 4


async def test_a_run_that_was_never_begun_does_nothing() -> None:
    async with arun_jobs(jobs(1), simulate=True) as run:
        pass
    assert run.summary == {}
    await run.aclose()


@pytest.mark.parametrize("iterated", [False, True], ids=["awaited", "iterated"])
async def test_a_run_is_awaited_or_iterated_over_once(iterated: bool) -> None:
    run = arun_jobs(jobs(1), simulate=True)
    assert (await run)["exit_code"] == 0
    with pytest.raises(RuntimeError, match="once"):
        await take_all(run, iterated=iterated)


@pytest.mark.parametrize("iterated", [False, True], ids=["awaited", "iterated"])
async def test_a_callback_that_raises_stops_the_run_and_the_caller_gets_its_error(
    tmp_path: Path, iterated: bool
) -> None:
    output = tmp_path / "x.jsonl"
    told: list[str] = []

    def refuse(result: Result) -> None:
        told.append(result.job.id)
        if len(told) == 3:
            raise LookupError("no such row")

    async with slow_server() as (_, url):
        run = arun_jobs(jobs(300), base_url=url, output=output, concurrency=4, on_result=refuse)
        with pytest.raises(LookupError, match="no such row"):
            await take_all(run, iterated=iterated)
        assert len(told) == 3
        assert 3 <= len(stored(output)) < 300
        assert run.summary["stopped_because"] == "on_result raised LookupError"
        rest = await arun_jobs(jobs(300), base_url=url, output=output)
        assert rest["exit_code"] == 0
    assert sorted(stored(output)) == sorted(ids(300))


async def test_a_slow_consumer_holds_the_run_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batcher.api.RESULTS_AHEAD", 10)
    async with slow_server() as (server, url):
        run = arun_jobs(jobs(150), base_url=url, concurrency=4)
        taken = []
        async for result in run:
            taken.append(result.job.id)
            if len(taken) == 1:
                await asyncio.sleep(0.6)  # enough for 100 calls
                ahead = server.simulation.requests
        assert ahead <= 10 + 2 * (4 + 32)
        assert sorted(taken) == sorted(ids(150))
        assert run.summary["exit_code"] == 0


@pytest.mark.parametrize("iterated", [False, True], ids=["awaited", "iterated"])
async def test_cancelling_the_caller_ends_the_run(tmp_path: Path, iterated: bool) -> None:
    output = tmp_path / "x.jsonl"

    async with slow_server() as (_, url):
        run = arun_jobs(jobs(300), base_url=url, output=output, concurrency=4)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(take_all(run, iterated=iterated), 0.3)
        kept = stored(output)
        assert 1 <= len(kept) < 300
        assert (await arun_jobs(jobs(300), base_url=url, output=output))["jobs"]["done_before"] == len(kept)


async def test_cancelling_while_jobs_still_come_in_ends_the_run() -> None:
    endless = ({"prompt": str(number), "model": "m"} for number in itertools.count())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(arun_jobs(endless, simulate=True), 0.2)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_two_runs_do_not_share_an_output(tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    async with slow_server() as (_, url):
        run = arun_jobs(jobs(100), base_url=url, output=output, concurrency=4)
        results = aiter(run)
        await anext(results)
        with pytest.raises(LockHeld):
            await arun_jobs(jobs(100), base_url=url, output=output)
        assert len([result async for result in results]) == 99
        assert run.summary["exit_code"] == 0
