"""The one writer of result lines: each whole, with the kernel in small groups, on disk in larger ones."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from batcher.errors import OutputError
from batcher.results.line import encode_result
from batcher.results.sink import Sink
from batcher.types import Result


class ResultWriter:
    """Appends result lines, and reports them once they are safe.

    Lines for a file reach the kernel at the end of their step of the loop, or earlier by `flush`: who flushes
    before calls go out loses only calls in flight if the process is killed, and knows of a full disk before
    the next call is made. They are synced to disk in groups, and only then committed. After a failure nothing
    is written or synced again: a sync that succeeds after one that failed proves nothing.

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
        self._loop = asyncio.get_running_loop()
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
        if not (self._is_stream or self._results.pending or self._errors.pending):
            self._loop.call_soon(self.flush)
        sink.pending.append(line)
        self._uncommitted.append(result)
        self._appended_bytes += len(line) + len(result.job.body) + len(result.answer.body)
        if self.backlog_bytes >= self._max_batch_bytes:
            self._due.set()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._max_delay_s, self._due.set)

    def flush(self) -> None:
        """Bring the lines for files that were appended so far to the kernel."""
        if self._failure is not None or self._is_stream:
            return
        for sink in (self._results, self._errors):
            try:
                sink.write_pending()
            except OSError as exc:
                self._fail(sink.error(exc))
                self._due.set()
                return

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
            self.flush()
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
            safe = self._loop.run_in_executor(self._thread, self._sync, stream_data)
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
