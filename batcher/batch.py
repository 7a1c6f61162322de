"""One run of a job file, from the lock on its output to its summary."""

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import orjson

from batcher.accounts import open_accounts, share_accounts
from batcher.clock import monotonic, utcnow
from batcher.config import Settings
from batcher.engines.background import in_background
from batcher.engines.stop import Stop, StopReason
from batcher.errors import BatcherError, ConfigError, OutputError
from batcher.events import AttemptFinished, Emit, JobFinished, Listeners, Notice
from batcher.history import spent_before
from batcher.intake import check_inputs, read_jobs, read_results
from batcher.jobs.index import JobIndex
from batcher.journal import Journal, forget_committed
from batcher.limits.budget import Budget
from batcher.lock import OutputLock
from batcher.observe.notices import WriteNotices
from batcher.observe.stats import Stats
from batcher.observe.summary import JobCounts, RunFacts, summary
from batcher.observe.watchdog import Watchdog
from batcher.results import ResultWriter, open_output, stream_to, write_whole
from batcher.results.mounts import shared_file_system
from batcher.resume import cost_of_results, set_aside, supersede
from batcher.scheduling.queue import JobQueue
from batcher.scheduling.routing import Account, Routing
from batcher.sharing import SharedAccount
from batcher.spec import RunSpec, Watcher
from batcher.text.durations import deadline_in_s
from batcher.types import OutputPaths, Result, output_paths
from batcher.wiring import build_run, fitting_concurrency, run_pricing

_SHARED_RISK = "as locks may not keep another one out there; -o can name a local place"
_SPENT_EVERY_S = 1.0


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
    deadline_at = _deadline_at(settings, started_at)
    stats = Stats()
    emit = Listeners()
    emit.join(stats)
    emit.join(watcher.notice, *get_args(Notice))
    async with AsyncExitStack() as stack:
        accounts = await stack.enter_async_context(
            open_accounts(settings, environ, emit, simulate=spec.simulate)
        )
        provider = accounts[0].provider
        if deadline_at is not None:
            _end_at(deadline_at, stop, stack)
        paths = None if spec.out is None else output_paths(spec.out)
        check_inputs(spec.inputs, paths)
        lock = None if paths is None else stack.enter_context(OutputLock(paths, run_id=spec.run_id))
        if paths is not None and (kind := shared_file_system(paths.results)):
            watcher.warning(str(paths.results), f"lies on {kind}: run it on one machine only, {_SHARED_RISK}")
        earlier, stats.paid_twice.earlier = await read_results(spec, paths, provider.name, stop, watcher)
        index_began_at = monotonic()
        index = await read_jobs(spec, settings, paths, stop, watcher, earlier=earlier)
        del earlier  # many bytes that nobody needs any more
        stack.callback(index.close)
        replaced = await _make_way(spec, paths, index)
        if lock is not None:
            lock.relock()
        budget = await _budget(settings, paths, provider.name, index.models)
        run_began_at = monotonic()

        journal = await _open_journal(paths, budget, stack)
        emit.join(journal.attempt_finished, AttemptFinished)
        WriteNotices(journal.notice).join(emit)
        sinks = stream_to(1) if paths is None else open_output(paths)
        writer = ResultWriter(
            *sinks,
            on_committed=lambda results: _tell_finished(results, emit, watcher),
            journal=journal.committed,
            on_failure=journal.refuse_calls,
        )
        run, routing = build_run(
            settings=settings,
            accounts=accounts,
            queue=JobQueue(index, limit=spec.limit),
            writer=writer,
            journal=journal,
            emit=emit,
            stop=stop,
            concurrency=fitting_concurrency(settings.concurrency),
            deadline_at=deadline_at,
            room=watcher.room,
            budget=budget,
            on_lane=lambda account, lane: shared[account].prepare(lane) if account in shared else None,
        )
        shared = await stack.enter_async_context(share_accounts(accounts, routing, environ, emit))
        await _look_on(routing, shared, emit, stats, stack)
        wanted = index.queued if spec.limit is None else min(index.queued, spec.limit)
        watcher.running(stats, routing, wanted)
        journal.run_started(
            spec.run_id,
            os.getpid(),
            " ".join(spec.inputs),
            queued=wanted,
            results_before=index.earlier_results - replaced,
        )
        journal.committed(*(sink.size for sink in sinks))
        try:
            await run.run(stop, lambda: None if stats.reached_provider else stats.last_error)
        except BatcherError as error:
            stop.fail(error)
        counts = _counts(index)
        exit_code = _exit_code(stop, stats, counts, wanted, budget)
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
            stopped_because=stop.message if exit_code not in {0, 3} else "",
            resume_at=_resume_at(stop) if exit_code == stop.reason else None,
        )
        content = summary(stats, counts, facts)
        # A run with nothing to do must not wipe out what the last one cost.
        if paths is not None and (wanted or not paths.summary.exists()):
            write_whole(paths.summary, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
        return content


def _deadline_at(settings: Settings, now_utc: datetime) -> float | None:
    """Return the loop time at which the run ends: the earlier of deadline and longest duration, if any."""
    ends_in_s = [settings.max_runtime] if settings.max_runtime is not None else []
    if settings.deadline is not None:
        ends_in_s.append(deadline_in_s(settings.deadline, now_utc))
    return monotonic() + min(ends_in_s) if ends_in_s else None


def _end_at(deadline_at: float, stop: Stop, stack: AsyncExitStack) -> None:
    """Let the run's deadline end it from now on, also while it still reads its input."""
    loop = asyncio.get_running_loop()
    reason = "the run's deadline has passed"
    stack.callback(loop.call_at(deadline_at, stop.drain, StopReason.INTERRUPTED, reason).cancel)


async def _make_way(spec: RunSpec, paths: OutputPaths | None, index: JobIndex) -> int:
    """Move aside what this run replaces, and return how many result lines that were."""
    if paths is None:
        return 0
    if spec.fresh:
        await asyncio.to_thread(set_aside, paths)
    elif index.replaces:
        await asyncio.to_thread(forget_committed, paths.journal)
        return await asyncio.to_thread(supersede, paths, index.is_replaced)
    return 0


async def _budget(
    settings: Settings, paths: OutputPaths | None, provider: str, models: Sequence[str]
) -> Budget | None:
    """Return what the run may still spend: results and journal tell what was spent, and the larger sum holds.

    Raises:
        ConfigError: the price of a model or of a fallback is unknown, so that no budget can hold.
    """
    if settings.max_cost is None:
        return None
    pricing = run_pricing(settings, provider)
    wanted = dict.fromkeys((*models, *settings.fallback)) if models else ()
    if unknown := [model for model in wanted if pricing.price(model) is None]:
        raise ConfigError(
            f"max_cost: the price of {', '.join(unknown[:5])} is unknown, so no budget can hold; name it in "
            "the configuration: prices: {MODEL: {input_usd: 0.10, output_usd: 0.40}}, per million tokens"
        )
    if paths is None:
        return Budget(settings.max_cost)
    by_results_usd = await asyncio.to_thread(cost_of_results, paths)
    by_journal_usd = await asyncio.to_thread(spent_before, paths.journal)
    return Budget(settings.max_cost, spent_usd=max(by_results_usd, by_journal_usd))


async def _keep_spent(journal: Journal, budget: Budget) -> None:
    """Write down each second, and at the end, what has been spent if that has changed."""
    written = (-1.0, -1.0)

    def write() -> None:
        nonlocal written
        if (now := (budget.spent_usd, budget.reserved_usd)) != written:
            journal.spent(*now)
            written = now

    # A journal that cannot be written ends the run by its next call.
    with contextlib.suppress(OutputError):
        try:
            while True:
                await asyncio.sleep(_SPENT_EVERY_S)
                write()
        finally:
            write()


async def _open_journal(paths: OutputPaths | None, budget: Budget | None, stack: AsyncExitStack) -> Journal:
    # A stream leaves no files behind, so its journal goes where nobody keeps it.
    journal = Journal(Path(os.devnull) if paths is None else paths.journal)
    stack.callback(journal.close)
    if budget is not None:
        await stack.enter_async_context(in_background(_keep_spent(journal, budget)))
    return journal


async def _look_on(
    routing: Routing,
    shared: Mapping[Account, SharedAccount],
    emit: Listeners,
    stats: Stats,
    stack: AsyncExitStack,
) -> None:
    """Let those listen who count what accounts have used, and who notice when nothing moves."""
    for account in shared.values():
        emit.join(account.watch, AttemptFinished)
    watchdog = Watchdog(routing.waits_for, lambda: stats.calls + stats.finished)
    await stack.enter_async_context(in_background(watchdog.watch()))


def _tell_finished(results: Sequence[Result], emit: Emit, watcher: Watcher) -> None:
    for result in results:
        emit(JobFinished(result=result))
    watcher.committed(results)


def _counts(index: JobIndex) -> JobCounts:
    return JobCounts(
        queued=index.queued,
        done_before=index.skipped_done,
        failed_before=index.skipped_failed,
        bad_lines=index.bad,
        duplicates=index.duplicates,
    )


def _exit_code(stop: Stop, stats: Stats, counts: JobCounts, wanted: int, budget: Budget | None) -> int:
    """Return the exit code: the strongest reason to stop, else whether all have an answer."""
    if budget is not None and budget.turned_down_usd is not None and stats.finished < wanted:
        stop.drain(StopReason.BUDGET, budget.reached)
    # A signal or a deadline that came with the last result kept nobody from finishing.
    harmless = stop.reason is StopReason.INTERRUPTED and stats.finished >= wanted
    if stop.reason is StopReason.UNREACHABLE and set(stats.call_errors) == {"tls"}:
        return int(StopReason.CONFIG)  # a certificate that is not trusted will not become so by waiting
    if stop.reason is not None and not harmless:
        return int(stop.reason)
    return 3 if stats.failed or counts.failed_before or counts.bad_lines else 0


def _resume_at(stop: Stop) -> str | None:
    if stop.resume_in_s is None:
        return None
    return (utcnow() + timedelta(seconds=stop.resume_in_s)).astimezone().isoformat(timespec="minutes")
