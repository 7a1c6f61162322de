"""From job files to the index of what is to run, read in the background and refused if unusable."""

import asyncio
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from batcher.config import Settings, line_defaults
from batcher.engines.stop import Stop
from batcher.errors import BadInput, InputMissing, InterruptedRun
from batcher.jobs.index import JobIndex, index_jobs
from batcher.jobs.opened import STDIN
from batcher.jobs.source import open_sources
from batcher.results.earlier import EarlierResults
from batcher.results.fingerprints import Fingerprints
from batcher.resume import done_records
from batcher.spec import RunSpec, Watcher, check_name
from batcher.types import OutputPaths

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


async def read_jobs(
    spec: RunSpec, settings: Settings, paths: OutputPaths | None, stop: Stop, watcher: Watcher
) -> JobIndex:
    """Index the job files, less what earlier runs have done.

    Args:
        spec: which files, and what becomes of earlier results.
        settings: what fills in a line's silence.
        paths: where earlier results are, None for a stream.
        stop: ends the reading, too.
        watcher: is told of bad lines and progress, and of outputs that are open to others.

    Raises:
        BadInput: the jobs cannot be run as they are.
        InterruptedRun: `stop` came first.
        BatcherError: a file cannot be read.
    """
    for where, reason in [] if paths is None else exposures(paths):
        watcher.warning(where, reason)
    index = await _in_background(lambda: _index(spec, settings, paths, stop, watcher), stop)
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
    sources = open_sources(spec.inputs, spool_dir=spool_dir, forbidden=_inodes(paths))
    try:
        return index_jobs(
            sources,
            line_defaults(settings),
            earlier=None if paths is None or spec.fresh else _earlier(paths),
            retry_failed=spec.retry_failed,
            on_changed=spec.on_changed,
            on_bad=watcher.bad_line,
            on_warning=watcher.warning,
            on_progress=progress,
        )
    except BaseException:
        sources.close()
        raise


def _earlier(paths: OutputPaths) -> Fingerprints:
    found = EarlierResults()
    for record in done_records(paths):
        found.add(*record)
    return found.hand_over()


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
