"""One run of a job file, from the lock on its output to its summary."""

import asyncio
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import orjson

from batcher.clock import monotonic, utcnow
from batcher.config import Settings, deadline_in_s
from batcher.engines.stop import Stop, StopReason
from batcher.errors import BadInput, BatcherError, InterruptedRun
from batcher.events import Emit, Event, JobFinished
from batcher.jobs.index import JobIndex, OnChanged, index_jobs
from batcher.jobs.lines import LineDefaults
from batcher.jobs.source import open_sources
from batcher.journal import Journal
from batcher.lock import OutputLock
from batcher.observe.stats import Stats
from batcher.observe.summary import JobCounts, RunFacts, summary
from batcher.results import ResultWriter, open_output, stream_to, write_whole
from batcher.resume import done_records, repair, set_aside, supersede
from batcher.scheduling.queue import JobQueue
from batcher.scheduling.routing import Routing
from batcher.types import OutputPaths, Result, output_paths
from batcher.wiring import build_run, fitting_concurrency, open_provider

STOP_READING_S = 1.0
"""How long reading the job file may take to notice that the run is to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What is to be run, where its results go, and what becomes of earlier ones.

    Attributes:
        inputs: job files in order; `-` is standard input.
        out: the result file; None streams results to standard output.
        strict: a bad line ends the run before anything is sent.
        fresh: move earlier results aside and begin anew.
        retry_failed: run jobs again that failed for good.
        on_changed: what to do with ids that come back with another request.
        limit: start at most so many jobs.
        simulate: answer from the embedded simulator.
        run_id: names the run in its files.
    """

    inputs: tuple[str, ...]
    out: Path | None
    strict: bool = False
    fresh: bool = False
    retry_failed: bool = False
    on_changed: OnChanged = "error"
    limit: int | None = None
    simulate: bool = False
    run_id: str = field(default_factory=lambda: os.urandom(4).hex())


class Watcher(Protocol):
    """Who is told how a run goes."""

    def bad_line(self, where: str, reason: str) -> None:
        """A line cannot be used."""

    def warning(self, where: str, reason: str) -> None:
        """Something is worth knowing about a place."""

    def indexing(self, done_bytes: int, total_bytes: int) -> None:
        """The job file is being read."""

    def running(self, stats: Stats, routing: Routing, queued: int) -> None:
        """The first job is about to start."""

    def event(self, event: Event) -> None:
        """Something happened to a call, a job or a lane."""

    async def room(self) -> None:
        """Wait while too many results have not been taken yet."""


async def run_batch(
    spec: RunSpec, settings: Settings, environ: Mapping[str, str], stop: Stop, watcher: Watcher
) -> dict[str, Any]:
    """Do one run and return its summary, whose `exit_code` says how it ended.

    Args:
        spec: what to run.
        settings: how.
        environ: where keys are looked for.
        stop: how the caller ends the run early.
        watcher: is told how it goes.

    Raises:
        BatcherError: the run could not begin, or could not keep its results.
    """
    started_at = utcnow()
    deadline_at = monotonic() + deadline_in_s(settings.deadline, started_at) if settings.deadline else None
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(open_provider(settings, environ, simulate=spec.simulate))
        lock, paths = _claim(spec, stack)
        index_began_at = monotonic()
        index = await _in_background(lambda: _index(spec, settings, paths, stop, watcher), stop)
        stack.callback(index.close)
        _refuse_unusable(index, spec)
        replaced = 0
        if lock is not None and paths is not None and index.replaces:
            replaced = supersede(paths, index.is_replaced)
            lock.relock()
        run_began_at = monotonic()

        stats = Stats()
        emit = _both(stats, watcher.event)
        journal = _open_journal(paths, stack)
        sinks = stream_to(1) if paths is None else open_output(paths)
        writer = ResultWriter(
            *sinks,
            on_committed=lambda results: _tell_finished(results, emit),
            journal=journal.committed,
        )
        run, routing = build_run(
            settings=settings,
            provider=provider,
            queue=JobQueue(index, limit=spec.limit),
            writer=writer,
            journal=journal,
            emit=emit,
            stop=stop,
            concurrency=fitting_concurrency(settings.concurrency),
            deadline_at=deadline_at,
            room=watcher.room,
        )
        wanted = index.queued if spec.limit is None else min(index.queued, spec.limit)
        watcher.running(stats, routing, wanted)
        journal.run_started(
            spec.run_id,
            os.getpid(),
            " ".join(spec.inputs),
            queued=wanted,
            results_before=index.earlier_results - replaced,
        )
        try:
            await run.run(stop, lambda: "" if stats.reached_provider else stats.last_error)
        except BatcherError as error:
            stop.fail(error)
        counts = _counts(index)
        exit_code = _exit_code(stop, stats, counts, wanted)
        journal.run_ended(exit_code)
        facts = RunFacts(
            run_id=spec.run_id,
            provider=provider.name,
            inputs=list(spec.inputs),
            output="-" if spec.out is None else str(spec.out),
            started_at=started_at.isoformat(timespec="seconds"),
            finished_at=utcnow().isoformat(timespec="seconds"),
            index_s=round(run_began_at - index_began_at, 3),
            run_s=round(monotonic() - run_began_at, 3),
            exit_code=exit_code,
            stopped_because=stop.message if exit_code == stop.reason else "",
            resume_at=_resume_at(stop),
        )
        content = summary(stats, counts, facts)
        if paths is not None:
            write_whole(paths.summary, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
        return content


def _claim(spec: RunSpec, stack: AsyncExitStack) -> tuple[OutputLock | None, OutputPaths | None]:
    """Claim the output for this run and bring what earlier runs left into order; a stream needs neither."""
    if spec.out is None:
        return None, None
    paths = output_paths(spec.out)
    lock = stack.enter_context(OutputLock(paths, run_id=spec.run_id))
    if spec.fresh:
        set_aside(paths)
    else:
        repair(paths)
    lock.relock()
    return lock, paths


async def _in_background(work: Callable[[], JobIndex], stop: Stop) -> JobIndex:
    """Do blocking work in a thread of its own that cannot hold up the end of the process.

    Reading a pipe may block for ever, and asyncio's own threads are waited for when the loop closes.

    Raises:
        InterruptedRun: `stop` came first.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[JobIndex] = loop.create_future()

    def settle(index: JobIndex | None, error: BaseException | None) -> None:
        if done.done():
            return
        if index is not None:
            done.set_result(index)
        elif error is not None:
            done.set_exception(error)

    def run() -> None:
        index, failure = None, None
        try:
            index = work()
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, index, failure)

    threading.Thread(target=run, name="batcher-index", daemon=True).start()
    draining = asyncio.ensure_future(stop.draining.wait())
    waited: set[asyncio.Future[Any]] = {done, draining}
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            await asyncio.wait({done}, timeout=STOP_READING_S)
    finally:
        draining.cancel()
    if not done.done():
        done.cancel()
        raise InterruptedRun(f"{stop.message}; nothing was sent yet")
    return done.result()


def _index(
    spec: RunSpec, settings: Settings, paths: OutputPaths | None, stop: Stop, watcher: Watcher
) -> JobIndex:
    def progress(done_bytes: int, total_bytes: int) -> None:
        if stop.reason is not None:
            raise InterruptedRun(f"{stop.message}; nothing was sent yet")
        watcher.indexing(done_bytes, total_bytes)

    # A copy of standard input or of an unpacked archive lies beside the output, where there is room for it.
    spool_dir = Path(tempfile.gettempdir()) if paths is None else paths.results.parent
    defaults = LineDefaults(
        model=settings.model,
        fallback=settings.fallback,
        default_max_completion_tokens=settings.default_max_completion_tokens,
    )
    sources = open_sources(spec.inputs, spool_dir=spool_dir, forbidden=_inodes(paths))
    try:
        return index_jobs(
            sources,
            defaults,
            done=() if paths is None else done_records(paths),
            retry_failed=spec.retry_failed,
            on_changed=spec.on_changed,
            on_bad=watcher.bad_line,
            on_warning=watcher.warning,
            on_progress=progress,
        )
    except BaseException:
        sources.close()
        raise


def _inodes(paths: OutputPaths | None) -> set[tuple[int, int]]:
    """Return device and inode of every output file that exists, none of which may be an input."""
    inodes = set()
    for path in [] if paths is None else [getattr(paths, entry.name) for entry in fields(paths)]:
        with suppress(FileNotFoundError):
            status = path.stat()
            inodes.add((status.st_dev, status.st_ino))
    return inodes


def _refuse_unusable(index: JobIndex, spec: RunSpec) -> None:
    if spec.strict and index.bad:
        raise BadInput(f"{index.bad} bad lines, and --strict runs none of the others: mend them first")
    if index.bad and not (index.queued or index.skipped_done or index.skipped_failed or index.changed_count):
        raise BadInput(f"{index.bad} bad lines and no good one: nothing to run")
    if index.changed_count:
        examples = "; ".join(f"{where}: {job_id}" for where, job_id in index.changed)
        raise BadInput(
            f"{index.changed_count} ids have a result of another request ({examples}): choose "
            "--on-changed rerun to run them again, --on-changed keep to keep the old results, "
            "or another output with -o"
        )


def _open_journal(paths: OutputPaths | None, stack: AsyncExitStack) -> Journal:
    # A stream leaves no files behind, so its journal goes where nobody keeps it.
    journal = Journal(Path(os.devnull) if paths is None else paths.journal)
    stack.callback(journal.close)
    return journal


def _both(first: Emit, second: Emit) -> Emit:
    def emit(event: Event) -> None:
        first(event)
        second(event)

    return emit


def _tell_finished(results: Sequence[Result], emit: Emit) -> None:
    for result in results:
        emit(JobFinished(result=result))


def _counts(index: JobIndex) -> JobCounts:
    return JobCounts(
        queued=index.queued,
        done_before=index.skipped_done,
        failed_before=index.skipped_failed,
        bad_lines=index.bad,
        duplicates=index.duplicates,
    )


def _exit_code(stop: Stop, stats: Stats, counts: JobCounts, wanted: int) -> int:
    """Return the code of PRODUCT's table: the strongest reason to stop, else whether all have an answer."""
    # A signal or a deadline that came with the last result kept nobody from finishing.
    harmless = stop.reason is StopReason.INTERRUPTED and stats.finished >= wanted
    if stop.reason is not None and not harmless:
        return int(stop.reason)
    return 3 if stats.failed or counts.failed_before or counts.bad_lines else 0


def _resume_at(stop: Stop) -> str | None:
    if stop.resume_in_s is None:
        return None
    return (utcnow() + timedelta(seconds=stop.resume_in_s)).astimezone().isoformat(timespec="minutes")
