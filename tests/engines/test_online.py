"""A whole run on the virtual clock: real queue, lanes and files, the simulator in memory."""

import asyncio
import math
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.clock import monotonic
from batcher.config import Settings
from batcher.engines.online import OnlineRun, RunLimits
from batcher.engines.stop import Stop, StopReason
from batcher.errors import OutputError
from batcher.events import JobFinished
from batcher.history import read_journal
from batcher.jobs.index import index_jobs
from batcher.jobs.lines import LineDefaults
from batcher.jobs.source import open_sources
from batcher.journal import Journal
from batcher.observe.stats import Stats
from batcher.providers.simulator.fault_plan import FaultPlan, Outage
from batcher.providers.simulator.faults import MIXED
from batcher.providers.simulator.memory import MemoryProvider
from batcher.providers.simulator.model import Simulation
from batcher.providers.simulator.settings import SimulatorSettings
from batcher.results import ResultWriter, open_output, stream_to
from batcher.scheduling.queue import JobQueue
from batcher.scheduling.routing import Account
from batcher.types import Job, Result, output_paths
from batcher.wiring import build_run

FOREVER = math.inf
TEN_SECONDS = SimulatorSettings(latency_s=10, latency_shape="fixed")


async def no_wait() -> None:
    """Take every result at once."""


class Rig:
    """One run over files in `directory`; the prompt of each job is its id, as the simulator counts by prompt.

    Nothing here uses a thread, so that the virtual clock moves only when the run waits.
    """

    def __init__(
        self,
        directory: Path,
        jobs: int | list[dict[str, Any]],
        simulator: SimulatorSettings = TEN_SECONDS,
        *,
        concurrency: int = 4,
        limit: int | None = None,
        deadline_at: float | None = None,
        room: Callable[[], Awaitable[None]] = no_wait,
        on_committed: Callable[[Sequence[Result]], None] | None = None,
        stream: int | None = None,
        providers: Sequence[type[MemoryProvider]] = (MemoryProvider,),
        **options: Any,
    ) -> None:
        listed = [{"id": name} for name in ids(jobs)] if isinstance(jobs, int) else jobs
        self.file = directory / "jobs.jsonl"
        self.file.write_bytes(b"".join(orjson.dumps({"prompt": job["id"], **job}) + b"\n" for job in listed))
        self.paths = output_paths(directory / "out.jsonl")
        self.stop, self.stats = Stop(), Stats()
        self.simulation = Simulation(simulator, now=monotonic())
        self.index = index_jobs(
            open_sources([str(self.file)], spool_dir=directory),
            LineDefaults(model="m"),
            on_bad=self._unexpected,
            on_warning=self._unexpected,
        )
        self._journal = Journal(self.paths.journal)
        self.queue = JobQueue(self.index, limit=limit)
        self.writer = ResultWriter(
            *(open_output(self.paths) if stream is None else stream_to(stream)),
            on_committed=on_committed or self._finished,
            durable=False,
        )
        self.providers = [provider(self.simulation) for provider in providers]
        self.run, self.routing = build_run(
            settings=Settings(concurrency=concurrency, **options),
            accounts=[
                Account(provider=provider, owner=f"account-{number}" if number else "")
                for number, provider in enumerate(self.providers)
            ],
            queue=self.queue,
            writer=self.writer,
            journal=self._journal,
            emit=self.stats,
            stop=self.stop,
            concurrency=concurrency,
            deadline_at=deadline_at,
            room=room,
        )

    async def __call__(self) -> None:
        """Run to the end."""
        try:
            await self.run.run(
                self.stop, lambda: None if self.stats.reached_provider else self.stats.last_error
            )
        finally:
            self._journal.close()
            self.index.close()
        assert self.simulation.in_flight == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something at a moment of the run."""
        asyncio.get_running_loop().call_at(seconds, action)

    @property
    def in_order(self) -> list[str]:
        """The ids in the result file, in its order."""
        return [orjson.loads(line)["custom_id"] for line in self.paths.results.read_bytes().splitlines()]

    @property
    def answered(self) -> list[str]:
        """The ids in the result file, sorted."""
        return sorted(self.in_order)

    @property
    def failed(self) -> Mapping[str, str]:
        """The ids in the error file with the codes of their errors."""
        lines = map(orjson.loads, self.paths.errors.read_bytes().splitlines())
        return {line["custom_id"]: line["error"]["code"] for line in lines}

    def journal(self, event: str) -> list[dict[str, object]]:
        """The journal's records of one event."""
        return [record for record in read_journal(self.paths.journal) if record["event"] == event]

    def _finished(self, results: Sequence[Result]) -> None:
        for result in results:
            self.stats(JobFinished(result=result))

    @staticmethod
    def _unexpected(where: str, reason: str) -> None:
        raise AssertionError(f"{where}: {reason}")


def ids(count: int) -> list[str]:
    return [f"j{number:03}" for number in range(count)]


async def test_every_job_is_answered_at_full_concurrency(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 10)
    await rig()
    assert rig.answered == ids(10)
    assert (rig.stop.reason, rig.failed, rig.stats.calls) == (None, {}, 10)
    assert rig.simulation.in_flight_peak == 4
    assert monotonic() == pytest.approx(30, abs=0.1)


async def test_no_job_is_a_run_too(tmp_path: Path) -> None:
    rig = Rig(tmp_path, [])
    await rig()
    assert (rig.stop.reason, rig.answered, monotonic()) == (None, [], 0)


async def test_models_share_the_concurrency_and_end_together(tmp_path: Path) -> None:
    jobs = [{"id": name, "model": f"m{number % 3}"} for number, name in enumerate(ids(12))]
    rig = Rig(tmp_path, jobs)
    await rig()
    assert rig.answered == (ids(12))
    assert rig.simulation.in_flight_peak == 4
    assert set(rig.stats.models) == {"m0", "m1", "m2"}


async def test_urgent_jobs_of_any_model_go_first(tmp_path: Path) -> None:
    jobs = [{"id": name, "model": f"m{number % 2}"} for number, name in enumerate(ids(8))]
    urgent = [{"id": f"urgent{number}", "model": f"m{number % 2}", "priority": 9} for number in range(4)]
    rig = Rig(tmp_path, jobs + urgent)
    await rig()
    assert {job["id"] for job in urgent} <= set(rig.in_order[: 4 + len(urgent)])


async def test_a_limit_starts_so_many_jobs_and_no_more(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 10, limit=3)
    await rig()
    assert (rig.answered, rig.stop.reason, rig.simulation.requests) == (ids(3), None, 3)


async def test_draining_finishes_what_is_in_flight_and_starts_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 10)
    rig.at(5, lambda: rig.stop.drain(StopReason.INTERRUPTED, "SIGTERM received"))
    await rig()
    assert (rig.answered, rig.failed) == (ids(4), {})
    assert rig.simulation.requests == 4
    assert monotonic() == pytest.approx(10, abs=0.1)


@pytest.mark.parametrize(
    ("abort_at", "ends_at"), [(None, 25), (8, 8)], ids=["grace is over", "abort while draining"]
)
async def test_calls_in_flight_are_given_up(tmp_path: Path, abort_at: float | None, ends_at: float) -> None:
    rig = Rig(tmp_path, 10, SimulatorSettings(latency_s=100, latency_shape="fixed"), grace=20)
    rig.at(5, lambda: rig.stop.drain(StopReason.INTERRUPTED, "SIGTERM received"))
    if abort_at is not None:
        rig.at(abort_at, lambda: rig.stop.abort(StopReason.FORCED_TERM, "a second signal"))
    await rig()
    assert (rig.answered, rig.failed) == ([], {})
    assert monotonic() == pytest.approx(ends_at, abs=0.1)
    assert [record["code"] for record in rig.journal("unknown")] == ["cancelled"] * 4
    assert len(rig.journal("sent")) == 4


async def test_an_abort_ends_the_run_at_once_and_keeps_what_came_in(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 10)
    rig.at(15, lambda: rig.stop.abort(StopReason.FORCED_INT, "now"))
    await rig()
    assert rig.answered == ids(4)
    assert monotonic() == pytest.approx(15)


async def test_jobs_that_wait_for_another_try_do_not_hold_up_the_end(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 3, SimulatorSettings(faults=FaultPlan(rates={"status:503": 1}, max_in_a_row=1000)))
    rig.at(30, lambda: rig.stop.drain(StopReason.INTERRUPTED, "SIGTERM received"))
    await rig()
    assert (rig.answered, rig.failed) == ([], {})
    assert monotonic() == pytest.approx(30, abs=0.1)


async def test_the_deadline_drains_the_run(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 12, deadline_at=15)
    await rig()
    assert rig.answered == ids(8)
    assert (rig.stop.reason, rig.stop.message) == (75, "the run's deadline has passed")
    assert monotonic() == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("how", ["a deadline in the past", "told to drain", "told to abort"])
async def test_nothing_is_sent_when_the_run_is_over_before_it_begins(tmp_path: Path, how: str) -> None:
    rig = Rig(tmp_path, 10, deadline_at=-5 if how == "a deadline in the past" else None)
    if how == "told to drain":
        rig.stop.drain(StopReason.INTERRUPTED, "SIGTERM received")
    if how == "told to abort":
        rig.stop.abort(StopReason.FORCED_TERM, "a second signal")
    await rig()
    assert (rig.simulation.requests, rig.answered, rig.failed) == (0, [], {})
    assert rig.stop.reason is not None


async def test_a_limit_that_lasts_for_hours_parks_its_lane_alone(tmp_path: Path) -> None:
    jobs = [{"id": "a1", "model": "a"}, {"id": "a2", "model": "a"}, *({"id": name} for name in ids(8))]
    rig = Rig(tmp_path, jobs, SimulatorSettings(faults=FaultPlan(by_id={"a1": ("429-day",)})))
    await rig()
    assert set(ids(8)) <= set(rig.answered) <= {"a2", *ids(8)}
    assert rig.failed == {}
    assert (rig.stop.reason, rig.stop.resume_in_s) == (75, 25981)
    assert "a: the provider asks to wait 7 h 13 min" in rig.stop.message
    assert monotonic() < 60


async def test_a_model_that_is_gone_keeps_its_jobs_pending(tmp_path: Path) -> None:
    gone = FaultPlan(rates={"model_not_found": 1}, max_in_a_row=1000)
    rig = Rig(tmp_path, 4, SimulatorSettings(faults=gone))
    await rig()
    assert (rig.answered, rig.failed) == ([], {})
    assert (rig.stop.reason, rig.stop.resume_in_s) == (75, None)
    assert rig.stop.message.startswith("m: closed for this run")


async def test_a_fallback_answers_where_the_model_is_gone(tmp_path: Path) -> None:
    jobs = [{"id": name, "fallback": ["other"]} for name in ids(4)]
    gone = FaultPlan(by_id=dict.fromkeys(ids(4), ("model_not_found",)))
    rig = Rig(tmp_path, jobs, SimulatorSettings(faults=gone))
    await rig()
    assert rig.answered == ids(4)
    assert set(rig.stats.models) == {"other"}


@pytest.mark.parametrize("fault", ["429-day", "model_not_found"])
async def test_fallbacks_go_on_for_a_long_time_after_the_model_has_closed(tmp_path: Path, fault: str) -> None:
    jobs = [{"id": name, "fallback": ["other"]} for name in ids(300)]
    rig = Rig(tmp_path, jobs, SimulatorSettings(faults=FaultPlan(by_id={"j000": (fault,)})))
    await rig()
    assert (rig.answered, rig.failed) == (ids(300), {})
    assert rig.stats.models["other"].succeeded > 290


async def test_jobs_without_a_fallback_stay_pending_among_others_that_have_one(tmp_path: Path) -> None:
    names = ids(300)
    jobs = [{"id": name, **({"fallback": ["other"]} if name.endswith("9") else {})} for name in names]
    rig = Rig(tmp_path, jobs, SimulatorSettings(faults=FaultPlan(by_id={"j000": ("model_not_found",)})))
    await rig()
    assert {name for name in names if name.endswith("9")} <= set(rig.answered)
    assert len(rig.answered) < 40
    assert (rig.failed, rig.stop.reason) == ({}, 75)


async def test_a_run_that_reaches_nobody_for_a_minute_ends(tmp_path: Path) -> None:
    down = FaultPlan(outages=(Outage(kind="refused", start_s=0, end_s=FOREVER),))
    rig = Rig(tmp_path, 100, SimulatorSettings(faults=down))
    await rig()
    assert rig.stop.reason is StopReason.UNREACHABLE
    assert rig.stop.message == "no call reached the provider for 60 s: the connection was refused"
    assert (rig.answered, rig.failed, rig.journal("unknown")) == ([], {}, [])
    assert monotonic() == pytest.approx(60, abs=0.1)
    assert rig.simulation.requests < 100


@pytest.mark.parametrize("kind", ["refused", "status:503"])
@pytest.mark.parametrize("hours", [0.015, 6], ids=["54 s", "6 h"])
async def test_an_outage_in_mid_run_fails_no_job(tmp_path: Path, kind: str, hours: float) -> None:
    outage = Outage(kind=kind, start_s=3, end_s=3 + hours * 3600)
    calm = SimulatorSettings(latency_s=1, latency_shape="fixed", faults=FaultPlan(outages=(outage,)))
    rig = Rig(tmp_path, 40, calm)
    await rig()
    assert (rig.answered, rig.failed, rig.stop.reason) == ((ids(40)), {}, None)
    assert rig.simulation.requests < 40 + 60 * hours + 100


async def test_refused_keys_end_the_run_and_blame_no_job(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 100, SimulatorSettings(keys=frozenset({"another"})))
    await rig()
    assert rig.stop.reason is StopReason.KEYS_REFUSED
    assert rig.stop.message.startswith("simulator refused the key")
    assert (rig.answered, rig.failed) == ([], {})
    assert rig.simulation.requests <= 2 * 4


@pytest.mark.parametrize("how", ["deleted", "replaced", "cut"])
async def test_a_result_file_that_others_change_ends_the_run(tmp_path: Path, how: str) -> None:
    rig = Rig(tmp_path, 100)

    def interfere() -> None:
        if how == "cut":
            rig.paths.results.write_bytes(b"")
        else:
            rig.paths.results.rename(tmp_path / "kept")
        if how == "replaced":
            rig.paths.results.touch()

    rig.at(15, interfere)
    with pytest.raises(OutputError, match="during the run"):
        await rig()
    assert rig.stop.reason is StopReason.OUTPUT
    assert monotonic() < 21


async def test_a_job_file_that_changes_under_the_run_ends_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 200, concurrency=2)
    text = rig.file.read_bytes()
    rig.file.write_bytes(text.replace(b'"prompt":"j150"', b'"prompt":"J150"'))
    await rig()
    assert rig.stop.reason is StopReason.OUTPUT
    assert "jobs.jsonl:151: the line changed during the run" in rig.stop.message
    assert len(rig.answered) >= 100
    assert rig.answered == ids(len(rig.answered))


async def test_a_job_file_that_shrinks_under_the_run_ends_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 200, concurrency=2)
    rig.file.write_bytes(rig.file.read_bytes()[:2000])
    await rig()
    assert rig.stop.reason in (StopReason.OUTPUT, StopReason.INPUT)
    assert rig.failed == {}


async def test_who_does_not_take_results_holds_the_run_back(tmp_path: Path) -> None:
    taken = asyncio.Event()

    async def room() -> None:
        await taken.wait()

    rig = Rig(tmp_path, 200, room=room)
    seen: list[int] = []
    rig.at(10_000, lambda: seen.append(rig.simulation.requests))
    rig.at(10_000, taken.set)
    await rig()
    assert seen == [4]
    assert len(rig.answered) == 200


async def test_a_slow_consumer_does_not_keep_the_run_from_ending(tmp_path: Path) -> None:
    async def room() -> None:
        await asyncio.Event().wait()

    rig = Rig(tmp_path, 200, room=room, grace=5)
    rig.at(100, lambda: rig.stop.drain(StopReason.INTERRUPTED, "SIGTERM received"))
    await rig()
    assert rig.answered == ids(4)
    assert monotonic() == pytest.approx(105)


async def _broken_run(rig: Rig, error: Exception) -> None:
    """Run the rig's queue with an executor that raises at the third job."""

    async def execute(job: Job) -> Result | None:
        await asyncio.sleep(1)
        if job.id == "j002":
            raise error
        return None

    limits = RunLimits(concurrency=1)
    run = OnlineRun(rig.queue, rig.routing, execute, rig.writer, limits, room=no_wait)
    try:
        await run.run(rig.stop, lambda: "")
    finally:
        rig.index.close()


async def test_a_bug_in_the_executor_does_not_hang_the_run(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 10)
    with pytest.raises(ExceptionGroup) as caught:
        await _broken_run(rig, ZeroDivisionError("a bug"))
    assert caught.group_contains(ZeroDivisionError)
    assert monotonic() == pytest.approx(3)


async def test_an_output_that_fails_under_a_job_ends_the_run(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 10)
    await _broken_run(rig, OutputError("the journal cannot be written"))
    assert (rig.stop.reason, rig.stop.message) == (74, "the journal cannot be written")
    assert monotonic() == pytest.approx(3)


async def test_a_bug_in_the_commit_task_ends_the_run(tmp_path: Path) -> None:
    def fail_once(results: Sequence[Result]) -> None:
        if not rig.stop.aborting.is_set():
            raise ZeroDivisionError("a bug")

    rig = Rig(tmp_path, 100, on_committed=fail_once)
    await rig()
    assert rig.stop.reason is StopReason.BUG
    assert "ZeroDivisionError: a bug" in rig.stop.message
    assert rig.answered == ids(4)
    assert monotonic() < 11


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """A pipe that holds all it can, and whose reader has stalled."""
    reader, fd = os.pipe()
    os.set_blocking(fd, False)
    with suppress(BlockingIOError):
        while True:
            os.write(fd, bytes(1 << 12))
    os.set_blocking(fd, True)
    yield fd
    os.close(fd)
    os.close(reader)


@pytest.mark.real_loop
@pytest.mark.parametrize("how", ["drain and grace", "abort"])
@pytest.mark.parametrize(
    ("faults", "answered"),
    [
        pytest.param({}, 4, id="all answered"),
        pytest.param({"j003": ("hang",)}, 3, id="a call in flight"),
    ],
)
async def test_a_stalled_reader_of_the_stream_does_not_outlast_a_stop(
    tmp_path: Path, full_pipe: int, how: str, faults: dict[str, tuple[str, ...]], answered: int
) -> None:
    simulator = SimulatorSettings(latency_s=0, latency_shape="fixed", faults=FaultPlan(by_id=faults))
    rig = Rig(tmp_path, 4, simulator, stream=full_pipe, grace=0.1)
    loop = asyncio.get_running_loop()
    if how == "abort":
        loop.call_later(0.2, lambda: rig.stop.abort(StopReason.FORCED_INT, "now"))
    else:
        loop.call_later(0.2, lambda: rig.stop.drain(StopReason.INTERRUPTED, "now"))
    async with asyncio.timeout(10):
        await rig()
    assert rig.stop.reason is (StopReason.FORCED_INT if how == "abort" else StopReason.INTERRUPTED)
    assert rig.stop.message == f"now; the reader of stdout did not take {answered} of the results"
    assert rig.stats.finished == 0


@given(
    faults=st.floats(0, 0.6),
    stop_at=st.one_of(st.none(), st.floats(0, 60)),
    abort_after=st.one_of(st.none(), st.floats(0, 20)),
    models=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
async def test_whenever_it_ends_every_job_is_answered_once_or_pending(
    faults: float, stop_at: float | None, abort_after: float | None, models: int, seed: int
) -> None:
    plan = FaultPlan(rates={kind: faults / len(MIXED) for kind in MIXED})
    simulator = SimulatorSettings(latency_s=3, latency_shape="exponential", seed=seed, faults=plan)
    jobs = [{"id": name, "model": f"m{number % models}"} for number, name in enumerate(ids(40))]
    with tempfile.TemporaryDirectory() as directory:
        rig = Rig(Path(directory), jobs, simulator)
        now = monotonic()
        if stop_at is not None:
            rig.at(now + stop_at, lambda: rig.stop.drain(StopReason.INTERRUPTED, "stop"))
            if abort_after is not None:
                at = now + stop_at + abort_after
                rig.at(at, lambda: rig.stop.abort(StopReason.FORCED_INT, "abort"))
        await rig()
        answered = rig.answered
        assert len(answered) == len(set(answered)) == rig.stats.succeeded
        assert rig.failed == {}
        assert set(answered) <= set(ids(40))
        if rig.stop.reason is None:
            assert set(answered) == set(ids(40))
        assert len(rig.journal("sent")) == rig.simulation.requests
