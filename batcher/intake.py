"""From earlier results and job files to the index of what is to run, refused if unusable."""

import asyncio
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from batcher.accounts import SIMULATOR
from batcher.config import Settings, line_defaults
from batcher.engines.stop import Stop
from batcher.errors import BadInput, InputMissing, InterruptedRun
from batcher.history import History
from batcher.jobs.index import JobIndex, index_jobs
from batcher.jobs.opened import STDIN
from batcher.jobs.source import open_sources
from batcher.journal import forget_committed
from batcher.results.fingerprints import Fingerprints
from batcher.resume import provider_of, repair
from batcher.spec import RunSpec, Watcher, check_name
from batcher.types import OutputPaths

log = logging.getLogger(__name__)

STOP_READING_S = 1.0
"""How long reading the job file may take to notice that the run is to end."""


def check_inputs(inputs: Sequence[str], paths: OutputPaths | None) -> None:
    """Refuse names that lead nowhere or to the output, before anything is made or moved.

    Raises:
        UsageError: a name is no text.
        InputMissing: there is no such file.
        BadInput: a file is one of the output's own.
    """
    output = _inodes(paths)
    for name in inputs:
        if name == STDIN:
            continue
        check_name(name)
        try:
            status = os.stat(name)
        except OSError as error:
            advice = "check the name, or give - to read standard input"
            raise InputMissing(f"{name}: {error.strerror}; {advice}") from None
        if (status.st_dev, status.st_ino) in output:
            raise BadInput(f"{name}: is a file of the output: name another output with -o")


def exposures(paths: OutputPaths) -> Iterator[tuple[str, str]]:
    """Yield (place, reason) where other users can open an output's files, or put their own in their place."""
    directory = paths.results.parent
    mode = directory.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        yield str(directory), "anyone can replace the files in it: keep results in a directory of your own"
    if wide := [path.name for path in _files(paths) if _is_open_to_others(path)]:
        yield str(directory), f"others may open {', '.join(wide)}: chmod 600 what is to be private"


async def read_results(
    spec: RunSpec, paths: OutputPaths | None, provider: str, stop: Stop, watcher: Watcher
) -> tuple[Fingerprints, Container[str]]:
    """Read what earlier runs have left, and mend what a crash left behind.

    Args:
        spec: says whether it counts.
        paths: where it is, None for a stream.
        provider: who is to answer now.
        stop: ends the reading, too.
        watcher: is told of damage and progress.

    Returns:
        What is done already, and the ids of jobs that would be paid twice if sent again.

    Raises:
        BadInput: simulated and real answers would be mixed.
        InterruptedRun: `stop` came first.
        OutputError: a file cannot be read or mended.
    """
    if paths is None or spec.fresh:
        return Fingerprints(), ()
    journal_bytes = 0
    total_bytes = sum(map(_size, (paths.journal, paths.results, paths.errors, paths.superseded)))

    def progress(done_bytes: int) -> None:
        _refuse_if_stopped(stop)
        watcher.reading("earlier results", journal_bytes + done_bytes, total_bytes)

    history = await asyncio.to_thread(History, paths.journal, progress)
    journal_bytes = _size(paths.journal)
    report = await asyncio.to_thread(
        repair,
        paths,
        committed=history.committed,
        on_id=history.done,
        on_progress=progress,
        before_removing=partial(forget_committed, paths.journal),
    )
    if report.quarantined_bytes:
        seen = f"{report.quarantined_bytes} bytes were damaged, as after a crash"
        watcher.warning(str(paths.results), f"{seen}; they are kept in {paths.quarantine}")
    if report.missing_bytes:
        gone = f"{report.missing_bytes:,} bytes of results are gone that were on disk"
        log.warning("%s: %s: jobs that have no result any more run again", paths.results, gone)
    _refuse_mixture(paths, provider)
    return report.earlier, await asyncio.to_thread(history.maybe_charged)


async def read_jobs(
    spec: RunSpec,
    settings: Settings,
    paths: OutputPaths | None,
    stop: Stop,
    watcher: Watcher,
    *,
    earlier: Fingerprints,
) -> JobIndex:
    """Index the job files, less what earlier runs have done.

    Args:
        spec: which files, and what becomes of earlier results.
        settings: what fills in a line's silence.
        paths: the output, None for a stream.
        stop: ends the reading, too.
        watcher: is told of bad lines and progress, and of outputs that are open to others.
        earlier: what is done already; the index goes on to use it for the jobs.

    Raises:
        BadInput: the jobs cannot be run as they are.
        InterruptedRun: `stop` came first.
        BatcherError: a file cannot be read.
    """
    for where, reason in [] if paths is None else exposures(paths):
        watcher.warning(where, reason)
    index = await _in_background(lambda: _index(spec, settings, paths, stop, watcher, earlier=earlier), stop)
    try:
        _refuse_unusable(index, spec)
    except BadInput:
        index.close()
        raise
    return index


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
        raise _interrupted(stop)
    return done.result()


def _index(
    spec: RunSpec,
    settings: Settings,
    paths: OutputPaths | None,
    stop: Stop,
    watcher: Watcher,
    *,
    earlier: Fingerprints,
) -> JobIndex:
    def progress(done_bytes: int, total_bytes: int) -> None:
        _refuse_if_stopped(stop)
        watcher.reading("the jobs", done_bytes, total_bytes)

    # A copy of standard input or of an unpacked archive lies beside the output, where there is room for it.
    spool_dir = Path(tempfile.gettempdir()) if paths is None else paths.results.parent
    sources = open_sources(spec.inputs, spool_dir=spool_dir, forbidden=_inodes(paths))
    try:
        return index_jobs(
            sources,
            line_defaults(settings),
            earlier=earlier,
            retry_failed=spec.retry_failed,
            on_changed=spec.on_changed,
            on_bad=watcher.bad_line,
            on_warning=watcher.warning,
            on_progress=progress,
        )
    except BaseException:
        sources.close()
        raise


def _refuse_if_stopped(stop: Stop) -> None:
    if stop.reason is not None:
        raise _interrupted(stop)


def _interrupted(stop: Stop) -> InterruptedRun:
    return InterruptedRun(f"{stop.message}; nothing was sent yet")


def _inodes(paths: OutputPaths | None) -> set[tuple[int, int]]:
    """Return device and inode of every output file that exists, none of which may be an input."""
    inodes = set()
    for path in [] if paths is None else _files(paths):
        with suppress(FileNotFoundError):
            status = path.stat()
            inodes.add((status.st_dev, status.st_ino))
    return inodes


def _is_open_to_others(path: Path) -> bool:
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        return stat.S_ISREG(mode) and bool(mode & (stat.S_IRWXG | stat.S_IRWXO))
    return False


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _files(paths: OutputPaths) -> list[Path]:
    return [getattr(paths, entry.name) for entry in fields(paths)]


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


def _refuse_mixture(paths: OutputPaths, provider: str) -> None:
    """Refuse to take simulated answers for real ones, or the other way round."""
    before = provider_of(paths)
    if before and (before == SIMULATOR) != (provider == SIMULATOR):
        held, wanted = ("simulated", "real") if before == SIMULATOR else ("real", "simulated")
        raise BadInput(
            f"{paths.results} holds {held} answers, and this run would add {wanted} ones: "
            "name another output with -o, or move the old one aside with --fresh"
        )
