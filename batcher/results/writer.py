"""The one writer of result lines: each whole, in the page cache at once, on disk in groups."""

import asyncio
import contextlib
import os
import select
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from batcher.errors import OutputError
from batcher.results.files import make_directory, open_private, output_error, output_errors, sync_directory
from batcher.results.line import encode_result
from batcher.types import OutputPaths, Result

_LOOK_AGAIN_S = 0.1


class Sink:
    """Where lines go: a file opened for appending, or a stream (`path` is None)."""

    def __init__(self, fd: int, path: Path | None) -> None:
        self.fd = fd
        self.path = path
        self.pending: list[bytes] = []
        self.size = self.synced = os.fstat(fd).st_size if path else 0
        self.lines_passed = 0
        self.given_up = False

    def __repr__(self) -> str:
        return f"<Sink {self.path or self.fd}: {self.size} bytes, {self.synced} on disk>"

    def take(self) -> bytes:
        """Return the pending lines, which are then no longer pending."""
        data = b"".join(self.pending)
        self.pending.clear()
        return data

    def write(self, data: bytes) -> None:
        """Write all of `data`, or leave the file as it was and raise `OSError`."""
        try:
            written = os.write(self.fd, data)
            while written < len(data):
                written += os.write(self.fd, data[written:])
        except OSError:
            self.cut(self.size)
            raise
        self.size += len(data)

    def pass_on(self, data: bytes) -> None:
        """Write `data` to the stream as its reader takes it, until it is given up; count the whole lines."""
        rest = memoryview(data)
        while rest and not self.given_up:
            # A write that blocks could not be given up. What is ready takes this much without blocking.
            if select.select([], [self.fd], [], _LOOK_AGAIN_S)[1]:
                with contextlib.suppress(BlockingIOError):  # somebody who shares it was faster
                    rest = rest[os.write(self.fd, rest[: select.PIPE_BUF]) :]
        self.lines_passed += data.count(b"\n", 0, len(data) - len(rest))

    def cut(self, size: int) -> None:
        """Cut a file back to `size` bytes if it is longer."""
        if self.path:
            with contextlib.suppress(OSError):
                if os.fstat(self.fd).st_size > size:
                    os.ftruncate(self.fd, size)

    def close(self) -> None:
        """Close a file, once; a stream stays open."""
        if self.path and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def error(self, exc: OSError) -> OutputError:
        """Say what was seen and what to do."""
        return output_error(self.path or "stdout", exc)

    def foreign_change(self) -> OutputError | None:
        """Say so if somebody else deleted, replaced, cut or wrote to the file."""
        if self.path is None:
            return None
        try:
            ours, there = os.fstat(self.fd), os.lstat(self.path)
        except FileNotFoundError:
            seen = "was deleted"
        except OSError as exc:
            return self.error(exc)
        else:
            if not os.path.samestat(ours, there):
                seen = "was replaced by another file"
            elif ours.st_size != self.size:
                seen = f"has {ours.st_size} bytes where {self.size} were written"
            else:
                return None
        advice = "keep other programs away from it and run the same command again"
        return OutputError(f"{self.path} {seen} during the run; {advice}")


def open_output(paths: OutputPaths) -> tuple[Sink, Sink]:
    """Open the result and the error file for appending; create them, and their directory, if missing.

    Raises:
        OutputError: they cannot be created or written.
    """
    with output_errors(paths.results), contextlib.ExitStack() as opened:
        make_directory(paths.results.parent)
        sinks = []
        for path in (paths.results, paths.errors):
            sink = Sink(open_private(path, os.O_WRONLY | os.O_APPEND), path)
            opened.callback(sink.close)
            os.fsync(sink.fd)  # a killed run may have left lines that are not on disk yet
            sinks.append(sink)
        sync_directory(paths.results.parent)
        opened.pop_all()
    return sinks[0], sinks[1]


def stream_to(fd: int) -> tuple[Sink, Sink]:
    """Send results and errors alike to the stream `fd`, which stays open; nothing can be resumed from it."""
    sink = Sink(fd, None)
    return sink, sink


class ResultWriter:
    """Appends result lines, and reports them once they are safe.

    A line for a file reaches the kernel as it is appended, so that a killed process loses only calls in
    flight, and a full disk is known of before the next call is made. It is synced to disk with its group, and
    only then committed. After a failure nothing is written or synced again: a sync that succeeds after one
    that failed proves nothing.

    Args:
        results: where answers go.
        errors: where failed jobs go.
        on_committed: told of each group of results once it is safe.
        journal: told how many bytes of the result and the error file are safe, none if others changed them.
        on_failure: told at once what went wrong, so that no further call is paid for; maybe from a thread.
        durable: whether a group is synced before it counts as safe; a stream never is.
        max_delay_s: how long the first line of a group may wait for others (seconds, >= 0).
        max_batch_bytes: a backlog of this size waits no longer.
        max_backlog_bytes: a larger backlog makes `room` wait.
    """

    def __init__(
        self,
        results: Sink,
        errors: Sink,
        *,
        on_committed: Callable[[Sequence[Result]], None],
        journal: Callable[[int, int], None] | None = None,
        on_failure: Callable[[OutputError], None] = lambda _: None,
        durable: bool = True,
        max_delay_s: float = 0.05,
        max_batch_bytes: int = 4 << 20,
        max_backlog_bytes: int = 64 << 20,
    ) -> None:
        self._results = results
        self._errors = errors
        self._on_committed = on_committed
        self._journal = journal
        self._on_failure = on_failure
        self._max_delay_s = max_delay_s
        self._max_batch_bytes = max_batch_bytes
        self._max_backlog_bytes = max_backlog_bytes
        self._is_stream = results.path is None
        # A thread of our own, so that it can be joined: a full pipe or a slow disk must not stop the loop.
        self._thread = ThreadPoolExecutor(1, "batcher-commit") if durable or self._is_stream else None
        self._uncommitted: list[Result] = []
        self._appended_bytes = self._committed_bytes = 0
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._committing = asyncio.Lock()
        self._committed = asyncio.Event()
        self._failure: OutputError | None = None
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<ResultWriter {self.backlog_bytes} bytes uncommitted, {self._results!r}, {self._errors!r}>"

    @property
    def backlog_bytes(self) -> int:
        """Bytes that the results not yet committed hold in memory: their lines, requests and replies."""
        return self._appended_bytes - self._committed_bytes

    @property
    def has_room(self) -> bool:
        """Whether `room` would neither wait nor raise."""
        return self._failure is None and self.backlog_bytes <= self._max_backlog_bytes

    @property
    def uncommitted(self) -> int:
        """How many results are not yet committed; after `aclose`, those that a stream did not take."""
        return len(self._uncommitted)

    def append(self, result: Result) -> None:
        """Take over `result`; it is safe when `on_committed` names it.

        After a failure nothing is taken any more: `commit_forever` and `aclose` raise what went wrong.
        """
        if self._closing is not None:
            raise RuntimeError("a result came after its writer was closed")
        if self._failure is not None:
            return
        line = encode_result(result)
        sink = self._results if result.ok else self._errors
        if self._is_stream:
            sink.pending.append(line)
        else:
            try:
                sink.write(line)
            except OSError as exc:
                self._fail(sink.error(exc))
        self._uncommitted.append(result)
        self._appended_bytes += len(line) + len(result.job.body) + len(result.answer.body)
        if self._failure or self.backlog_bytes >= self._max_batch_bytes:
            self._due.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._max_delay_s, self._due.set)

    async def room(self) -> None:
        """Wait until the backlog is small enough for more.

        Raises:
            OutputError: the output failed, so that there will never be room.
        """
        while self._failure is None and self.backlog_bytes > self._max_backlog_bytes:
            self._committed.clear()
            await self._committed.wait()
        if self._failure is not None:
            raise self._failure

    async def commit_forever(self) -> None:
        """Commit group after group until cancelled; what was not committed then is left to `aclose`.

        Raises:
            OutputError: a write or a sync failed, or somebody else changed the files.
        """
        while True:
            await self._due.wait()
            await self._commit()

    def give_up(self) -> None:
        """Write no more to a stream, so that `aclose` need not wait for its reader; files are unaffected."""
        self._results.given_up = True

    async def aclose(self) -> None:
        """Commit all that was appended and close the files; cancellation is delivered only afterwards.

        Raises:
            OutputError: not everything could be committed.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._drain())
        cancelled = False
        while not self._closing.done():
            try:
                await asyncio.wait([self._closing])
            except asyncio.CancelledError:
                cancelled = True
        self._closing.result()
        if cancelled:
            raise asyncio.CancelledError

    def _fail(self, error: OutputError) -> None:
        self._failure = error
        self._on_failure(error)

    async def _commit(self) -> None:
        async with self._committing:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._due.clear()
            # More may be appended meanwhile, and after a cancelled commit another does its work again:
            # so nothing leaves the list before it is safe.
            count, appended_bytes = len(self._uncommitted), self._appended_bytes
            sizes = self._results.size, self._errors.size
            await self._make_safe()
            self._committed.set()
            if self._failure is not None:
                raise self._failure
            if self._is_stream:
                count, self._results.lines_passed = self._results.lines_passed, 0
            self._results.synced, self._errors.synced = sizes
            batch = self._uncommitted[:count]
            del self._uncommitted[:count]
            self._committed_bytes = appended_bytes
            self._on_committed(batch)
            if self._journal is not None:
                try:
                    self._journal(*sizes)
                except OutputError as exc:
                    self._fail(exc)
                    raise

    async def _make_safe(self) -> None:
        """Bring to disk, or down the stream, what there is; what goes wrong is left in `_failure`."""
        if self._failure is None and (changed := self._foreign_change()):
            self._fail(changed)
        if self._failure is None and self._thread is not None:
            stream_data = self._results.take() if self._is_stream else b""
            safe = asyncio.get_running_loop().run_in_executor(self._thread, self._sync, stream_data)
            # A write to the stream that has begun must not be forgotten by a cancelled commit.
            await asyncio.shield(safe)

    def _foreign_change(self) -> OutputError | None:
        """Say so if somebody else changed a file; the next run takes it as it is, for it was told now."""
        changed = self._results.foreign_change() or self._errors.foreign_change()
        if changed is not None and self._journal is not None:
            with contextlib.suppress(OutputError):
                self._journal(0, 0)
        return changed

    def _sync(self, stream_data: bytes) -> None:
        """Do the part of `_make_safe` that takes time; runs in the thread."""
        if self._failure is not None:
            return
        sink = self._results
        try:
            if self._is_stream:
                sink.pass_on(stream_data)
                return
            for sink in (self._results, self._errors):
                if sink.size > sink.synced:
                    os.fdatasync(sink.fd)
        except OSError as exc:
            self._fail(sink.error(exc))
            self._results.cut(self._results.synced)
            self._errors.cut(self._errors.synced)

    async def _drain(self) -> None:
        try:
            if self._uncommitted or self._failure:
                await self._commit()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
            self._results.close()
            self._errors.close()
