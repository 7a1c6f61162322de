"""One run from the lock on its output to its summary, over real HTTP."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from batcher.batch import run_batch
from batcher.config import Settings
from batcher.engines.stop import Stop, StopReason
from batcher.errors import BadInput, BatcherError, InputMissing, InterruptedRun, LockHeld
from batcher.events import Notice
from batcher.history import read_journal
from batcher.lock import OutputLock
from batcher.observe.stats import Stats
from batcher.providers.simulator.fault_plan import FaultPlan
from batcher.providers.simulator.server import start_embedded
from batcher.providers.simulator.settings import SimulatorSettings
from batcher.scheduling.routing import Routing
from batcher.spec import RunSpec
from batcher.types import Result, output_paths

pytestmark = pytest.mark.real_loop


@dataclass
class Watching:
    """Writes down what a run tells, and may act when results are safe."""

    on_committed: Callable[[], None] = lambda: None
    bad: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    queued: int = -1
    read: tuple[int, int] = (0, 0)
    reads: list[str] = field(default_factory=list)

    def bad_line(self, where: str, reason: str) -> None:
        self.bad.append(f"{where}: {reason}")

    def warning(self, where: str, reason: str) -> None:
        self.warnings.append(f"{where}: {reason}")

    def reading(self, what: str, done_bytes: int, total_bytes: int) -> None:
        self.read = done_bytes, total_bytes
        self.reads.append(what)
        assert done_bytes <= total_bytes

    def running(self, stats: Stats, routing: Routing, queued: int) -> None:
        assert not self.finished
        self.queued = queued

    def committed(self, results: Sequence[Result]) -> None:
        self.finished.extend(result.job.id for result in results)
        self.on_committed()

    def notice(self, notice: Notice) -> None:
        """Nothing is done about it."""

    async def room(self) -> None:
        """Take every result at once."""


class Batch:
    """Runs files in one directory on the simulator."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.paths = output_paths(directory / "out" / "x.jsonl")

    def write(self, *jobs: dict[str, Any]) -> None:
        lines = [orjson.dumps({"model": "m", "prompt": job.get("id", "hi"), **job}) for job in jobs]
        (self.directory / "jobs.jsonl").write_bytes(b"\n".join(lines))

    async def __call__(
        self,
        *,
        simulator: SimulatorSettings | None = None,
        stop: Stop | None = None,
        watcher: Watching | None = None,
        settings: dict[str, Any] | None = None,
        **spec: Any,
    ) -> dict[str, Any]:
        async with AsyncExitStack() as stack:
            local = settings or {}
            if simulator is not None:
                server = await stack.enter_async_context(start_embedded(simulator))
                local = {**local, "base_url": f"{server.url}/v1"}
            whole: dict[str, Any] = {
                "inputs": (str(self.directory / "jobs.jsonl"),),
                "out": self.paths.results,
                "simulate": simulator is None,
            }
            return await run_batch(
                RunSpec(**whole | spec),
                Settings(**local),
                {},
                stop or Stop(),
                watcher or Watching(),
            )

    def ids(self) -> list[str]:
        """The ids in the result file."""
        return [orjson.loads(line)["custom_id"] for line in self.paths.results.read_bytes().splitlines()]


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    made = Batch(tmp_path)
    made.write(*({"id": f"j{number}"} for number in range(5)))
    return made


async def test_the_summary_agrees_with_the_files(batch: Batch) -> None:
    watcher = Watching()
    plan = FaultPlan(by_id={"j0": ("status:500",), "j1": ("413",)})
    summary = await batch(watcher=watcher, simulator=SimulatorSettings(faults=plan), run_id="0123abcd")
    assert orjson.loads(batch.paths.summary.read_bytes()) == summary
    assert (summary["run_id"], summary["provider"]) == ("0123abcd", "openai-compatible")
    assert (summary["inputs"], summary["output"]) == (
        [str(batch.directory / "jobs.jsonl")],
        str(batch.paths.results),
    )
    assert summary["jobs"] == {
        "queued": 5,
        "done_before": 0,
        "failed_before": 0,
        "bad_lines": 0,
        "duplicates": 0,
        "succeeded": 4,
        "failed": 1,
        "pending": 0,
    }
    assert (summary["exit_code"], summary["stopped_because"], summary["resume_at"]) == (3, "", None)
    assert summary["failures"] == {"too_large": 1}
    assert summary["calls"]["total"] == 6
    assert sorted(batch.ids()) == ["j0", "j2", "j3", "j4"]
    assert sorted(watcher.finished) == ["j0", "j1", "j2", "j3", "j4"]
    assert watcher.queued == 5
    assert watcher.read[0] == watcher.read[1] > 0


async def test_the_journal_frames_the_run(batch: Batch) -> None:
    await batch(run_id="0123abcd")
    events = list(read_journal(batch.paths.journal))
    assert (events[0]["event"], events[0]["run_id"], events[0]["queued"]) == ("run_started", "0123abcd", 5)
    assert (events[-1]["event"], events[-1]["exit_code"]) == ("run_ended", 0)
    assert sum(event["event"] == "sent" for event in events) == 5
    sizes = [event["results_bytes"] for event in events if event["event"] == "committed"]
    assert sizes[-1] == batch.paths.results.stat().st_size


async def test_a_failed_job_of_an_earlier_run_counts_until_it_is_tried_again(batch: Batch) -> None:
    broken = SimulatorSettings(faults=FaultPlan(by_id={"j1": ("413",)}))
    assert (await batch(simulator=broken))["exit_code"] == 3
    again = await batch(simulator=SimulatorSettings())
    assert (again["exit_code"], again["jobs"]["queued"], again["jobs"]["failed_before"]) == (3, 0, 1)
    retried = await batch(simulator=SimulatorSettings(), retry_failed=True)
    assert (retried["exit_code"], retried["jobs"]["succeeded"]) == (0, 1)
    assert sorted(batch.ids()) == ["j0", "j1", "j2", "j3", "j4"]
    assert batch.paths.errors.read_bytes() == b""
    assert orjson.loads(batch.paths.superseded.read_bytes())["custom_id"] == "j1"


async def test_bad_lines_are_told_and_counted(batch: Batch) -> None:
    batch.write({"id": "a"}, {"id": "a"}, {"id": "a", "prompt": "another"}, {"id": "b", "nope": 1})
    watcher = Watching()
    summary = await batch(watcher=watcher)
    assert [line.partition("jobs.jsonl:")[2][0] for line in watcher.bad] == ["3", "4"]
    assert [line.partition("jobs.jsonl:")[2][0] for line in watcher.warnings] == ["2"]
    assert (summary["exit_code"], summary["jobs"]["bad_lines"], summary["jobs"]["duplicates"]) == (3, 2, 1)
    assert batch.ids() == ["a"]


@pytest.mark.parametrize(
    ("spec", "error"),
    [({"strict": True}, BadInput), ({"inputs": ("/dev/null",)}, InputMissing)],
    ids=["strict", "no job file"],
)
async def test_a_run_that_cannot_begin_lets_go_of_its_output(
    batch: Batch, spec: dict[str, Any], error: type[BatcherError]
) -> None:
    batch.write({"id": "a"}, {"nope": 1})
    with pytest.raises(error):
        await batch(**spec)
    assert batch.ids() == []
    with OutputLock(batch.paths, run_id="next"):
        pass
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_output_in_use_is_left_alone(batch: Batch) -> None:
    with OutputLock(batch.paths, run_id="first"), pytest.raises(LockHeld, match="first"):
        await batch()
    assert not batch.paths.summary.exists()


async def test_a_deadline_in_the_past_sends_nothing(batch: Batch) -> None:
    with pytest.raises(InterruptedRun, match="the run's deadline has passed; nothing was sent yet"):
        await batch(settings={"deadline": "2020-01-01"})
    assert batch.ids() == []
    assert (await batch())["jobs"]["succeeded"] == 5


async def test_a_stop_while_the_jobs_are_read_sends_nothing(batch: Batch) -> None:
    stop = Stop()
    stop.drain(StopReason.INTERRUPTED, "SIGTERM received")
    with pytest.raises(InterruptedRun, match="SIGTERM received; nothing was sent yet"):
        await batch(stop=stop)
    assert batch.ids() == []


async def test_earlier_results_are_read_before_the_jobs_and_that_is_told(batch: Batch) -> None:
    for expected in (["the jobs"], ["earlier results", "the jobs"]):
        watcher = Watching()
        await batch(watcher=watcher)
        assert list(dict.fromkeys(watcher.reads)) == expected


async def test_a_stop_while_earlier_results_are_read_changes_nothing(batch: Batch) -> None:
    await batch()
    batch.paths.results.write_bytes(batch.paths.results.read_bytes() + b"torn")
    before = {path: path.read_bytes() for path in batch.paths.results.parent.iterdir() if path.is_file()}
    stop = Stop()
    stop.drain(StopReason.INTERRUPTED, "SIGTERM received")
    with pytest.raises(InterruptedRun, match="SIGTERM received; nothing was sent yet"):
        await batch(stop=stop)
    left = {path: path.read_bytes() for path in batch.paths.results.parent.iterdir() if path.is_file()}
    assert {path: left[path] for path in before if path.suffix != ".lock"} == {
        path: content for path, content in before.items() if path.suffix != ".lock"
    }


async def test_a_deadline_ends_the_run_and_the_next_goes_on(batch: Batch) -> None:
    slow = SimulatorSettings(latency_s=0.2, latency_shape="fixed")
    first = await batch(simulator=slow, settings={"deadline": "0.3s", "concurrency": 1})
    assert (first["exit_code"], first["stopped_because"]) == (75, "the run's deadline has passed")
    assert 1 <= first["jobs"]["succeeded"] < 5
    second = await batch(simulator=SimulatorSettings())
    assert second["jobs"]["done_before"] == first["jobs"]["succeeded"]
    assert len(batch.ids()) == 5


async def test_a_signal_that_comes_with_the_last_result_changes_nothing(batch: Batch) -> None:
    stop = Stop()

    def stop_at_the_last() -> None:
        if len(watcher.finished) == 5:
            stop.drain(StopReason.INTERRUPTED, "SIGTERM received")

    watcher = Watching(on_committed=stop_at_the_last)
    summary = await batch(stop=stop, watcher=watcher)
    assert (summary["exit_code"], summary["stopped_because"]) == (0, "")


async def test_a_limit_that_lasts_for_hours_says_when_to_go_on(batch: Batch) -> None:
    limited = SimulatorSettings(faults=FaultPlan(by_id={"j0": ("429-day",)}))
    summary = await batch(simulator=limited)
    assert summary["exit_code"] == 75
    assert summary["resume_at"] > summary["finished_at"][:10]
    assert "j0" not in batch.ids()


async def test_a_limit_that_a_fallback_made_up_for_is_not_mentioned(batch: Batch) -> None:
    batch.write({"id": "j0", "fallback": ["other"]})
    limited = SimulatorSettings(faults=FaultPlan(by_id={"j0": ("429-day",)}))
    summary = await batch(simulator=limited)
    assert (summary["exit_code"], summary["stopped_because"], summary["resume_at"]) == (0, "", None)


async def test_results_stream_to_stdout(batch: Batch, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    batch.write({"id": "a"}, {"id": "b"})
    broken = SimulatorSettings(faults=FaultPlan(by_id={"b": ("413",)}))
    summary = await batch(out=None, simulator=broken)
    lines = [orjson.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert {line["custom_id"]: line["error"] is None for line in lines} == {"a": True, "b": False}
    assert (summary["exit_code"], summary["output"]) == (3, "-")
    assert [path.name for path in batch.directory.iterdir()] == ["jobs.jsonl"]


async def test_a_damaged_file_is_mended_in_plain_sight(batch: Batch) -> None:
    await batch(limit=3)
    with batch.paths.results.open("ab") as file:
        file.write(b'{"id":"torn')
    watcher = Watching()
    assert (await batch(watcher=watcher))["jobs"]["done_before"] == 3
    [warning] = watcher.warnings
    assert "11 bytes were damaged" in warning
    assert str(batch.paths.quarantine) in warning
    assert len(batch.ids()) == 5


async def test_an_input_that_is_an_output_is_refused(batch: Batch) -> None:
    await batch()
    with pytest.raises(BadInput, match="is a file of the output"):
        await batch(inputs=(str(batch.paths.errors),))


async def test_fresh_moves_everything_aside(batch: Batch) -> None:
    await batch()
    summary = await batch(fresh=True)
    assert summary["jobs"]["succeeded"] == 5
    assert sum(path.read_bytes().count(b"custom_id") for path in batch.paths.results.parent.iterdir()) == 10


@pytest.mark.parametrize("simulated_first", [True, False], ids=["simulated first", "real first"])
async def test_simulated_answers_are_never_taken_for_real_ones(batch: Batch, simulated_first: bool) -> None:
    first, second = None, SimulatorSettings()
    if not simulated_first:
        first, second = second, first
    await batch(simulator=first, limit=2)
    with pytest.raises(BadInput, match="name another output with -o, or move the old one aside"):
        await batch(simulator=second)
    assert len(batch.ids()) == 2
    assert (await batch(simulator=second, fresh=True))["jobs"]["succeeded"] == 5


async def test_a_name_that_leads_nowhere_leaves_nothing_behind(batch: Batch) -> None:
    with pytest.raises(InputMissing, match=r"nope\.jsonl: No such file"):
        await batch(inputs=("nope.jsonl",), fresh=True)
    assert not batch.paths.results.parent.exists()


async def test_a_run_with_nothing_to_do_keeps_the_summary_of_the_last(batch: Batch) -> None:
    await batch()
    before = batch.paths.summary.read_bytes()
    assert (await batch())["jobs"]["queued"] == 0
    assert batch.paths.summary.read_bytes() == before
