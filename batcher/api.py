"""`batcher` from Python: `run_jobs` for scripts, `arun_jobs` inside an event loop."""

import asyncio
import logging
import os
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, get_args

import orjson

from batcher.batch import run_batch
from batcher.config import load_settings
from batcher.engines.stop import Stop, StopReason
from batcher.errors import BadInput, InterruptedRun, UsageError
from batcher.events import Notice
from batcher.jobs.index import OnChanged
from batcher.observe.notices import LogNotices
from batcher.observe.stats import Stats
from batcher.scheduling.routing import Routing
from batcher.spec import RunSpec, checked_output
from batcher.types import Result
from batcher.wiring import fastest_loop

log = logging.getLogger(__name__)

Jobs: TypeAlias = str | os.PathLike[str] | Iterable[Mapping[str, Any]]
OnResult: TypeAlias = Callable[[Result], None]

RESULTS_AHEAD = 1000
"""Results that may wait for the consumer of an iteration before the run waits for it."""


def run_jobs(jobs: Jobs, **options: Any) -> dict[str, Any]:
    """Run jobs to their end and return the summary; see `arun_jobs` for the arguments.

    Raises:
        BatcherError: the run could not begin, or could not keep its results.
        RuntimeError: called inside a running event loop; use `await arun_jobs(...)` there.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError(
            "run_jobs cannot be called inside a running event loop: use `await arun_jobs(...)`"
        )

    async def story() -> dict[str, Any]:
        return await arun_jobs(jobs, **options)

    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        return runner.run(story())


def arun_jobs(
    jobs: Jobs,
    *,
    output: str | os.PathLike[str] | None = None,
    on_result: OnResult | None = None,
    config: str | os.PathLike[str] | None = None,
    simulate: bool = False,
    strict: bool = False,
    fresh: bool = False,
    retry_failed: bool = False,
    on_changed: OnChanged = "error",
    limit: int | None = None,
    **settings: Any,
) -> "JobRun":
    """Run jobs; await the run for its summary, or iterate over it for results as they come.

    Args:
        jobs: a job file's path, or dicts shaped like its lines.
        output: the result file, kept and resumed from; None keeps nothing.
        on_result: called with each result once it is safe.
        config: a YAML file with settings.
        simulate: answer from the embedded simulator.
        strict: a bad job ends the run before anything is sent.
        fresh: move earlier results in `output` aside and begin anew.
        retry_failed: run jobs again that failed for good.
        on_changed: `error`, `rerun` or `keep` for ids that come back with another request.
        limit: start at most so many jobs.
        **settings: as in the YAML file, e.g. `model`, `rpm`, `base_url`.

    Raises:
        ConfigError: a setting makes no sense.
        UsageError: another argument makes none.
    """
    loaded = load_settings(Path(config) if config is not None else None, settings)
    if output is not None:
        checked_output(Path(output))
    if on_changed not in get_args(OnChanged):
        raise UsageError(f"on_changed {on_changed!r}: expected {' or '.join(get_args(OnChanged))}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: expected 1 or more")

    def spec(inputs: tuple[str, ...], out: Path) -> RunSpec:
        return RunSpec(
            inputs=inputs,
            out=out,
            strict=strict,
            fresh=fresh,
            retry_failed=retry_failed,
            on_changed=on_changed,
            limit=limit,
            simulate=simulate,
        )

    async def start(stop: Stop, watcher: "_Listener") -> dict[str, Any]:
        async with AsyncExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="batcher-")))
            inputs = await asyncio.to_thread(_as_file, jobs, directory, stop)
            out = directory / "results.jsonl" if output is None else Path(output)
            return await run_batch(spec((inputs,), out), loaded, os.environ, stop, watcher)

    return JobRun(start, on_result)


class JobRun:
    """A run that begins when it is awaited, entered or iterated over.

    ::

        summary = await arun_jobs("jobs.jsonl", model="openai/gpt-oss-20b")

        async with arun_jobs(jobs, simulate=True) as run:
            async for result in run:
                print(result.job.id, result.ok)
        print(run.summary)

    Leaving the context early ends the run: calls in flight are given up, results so far are kept.
    """

    def __init__(self, start: "_Start", on_result: OnResult | None) -> None:
        self.summary: dict[str, Any] = {}
        self._start = start
        self._on_result = on_result
        self._stop = Stop()
        self._listener: _Listener | None = None
        self._task: asyncio.Task[dict[str, Any]] | None = None

    def __await__(self) -> Generator[Any, None, dict[str, Any]]:
        return self._finish().__await__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def __aiter__(self) -> AsyncIterator[Result]:
        task, listener = self._begin(iterated=True)
        try:
            while (result := await listener.next()) is not None:
                yield result
            await self._end(task, listener)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """End the run if it is still going, and wait until everything is put away."""
        task, listener = self._task, self._listener
        if task is None or listener is None:
            return
        if not task.done():
            self._stop.abort(StopReason.INTERRUPTED, "the caller closed the run")
            listener.close()
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("the run that was closed early failed: %s", error)
        if not task.cancelled() and task.exception() is None:
            self.summary = task.result()

    async def _finish(self) -> dict[str, Any]:
        task, listener = self._begin(iterated=False)
        try:
            await self._end(task, listener)
        finally:
            await self.aclose()
        return self.summary

    async def _end(self, task: "asyncio.Task[dict[str, Any]]", listener: "_Listener") -> None:
        self.summary = await asyncio.shield(task)
        if listener.failure is not None:
            raise listener.failure

    def _begin(self, *, iterated: bool) -> "tuple[asyncio.Task[dict[str, Any]], _Listener]":
        if self._task is not None:
            raise RuntimeError("a run is awaited or iterated over once")
        listener = self._listener = _Listener(self._stop, self._on_result, iterated=iterated)
        self._task = asyncio.create_task(self._start(self._stop, listener))
        self._task.add_done_callback(lambda _: listener.close())
        return self._task, listener


class _Listener:
    """Hands results on to a callback and to an iteration, and holds the run back if that falls behind."""

    def __init__(self, stop: Stop, on_result: OnResult | None, *, iterated: bool) -> None:
        self.failure: Exception | None = None
        self._stop = stop
        self._on_result = on_result
        self._iterated = iterated
        self._ready: deque[Result] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._closed = False
        self._log = LogNotices()

    async def next(self) -> Result | None:
        """Return the next result, None after the last."""
        while not self._ready and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        if len(self._ready) <= RESULTS_AHEAD:
            self._room.set()
        return self._ready.popleft() if self._ready else None

    def close(self) -> None:
        """No further result comes, or none is wanted."""
        self._closed = True
        self._room.set()
        self._changed.set()

    async def room(self) -> None:
        """Wait until the iteration has caught up."""
        await self._room.wait()

    def committed(self, results: Sequence[Result]) -> None:
        """Hand results on."""
        for result in results:
            self._finished(result)

    def notice(self, notice: Notice) -> None:
        """Log what happens to lanes, keys and models."""
        self._log(notice)

    def _finished(self, result: Result) -> None:
        if self._on_result is not None and self.failure is None:
            try:
                self._on_result(result)
            except Exception as error:
                self.failure = error
                self._stop.abort(StopReason.INTERRUPTED, f"on_result raised {type(error).__name__}")
        if self._iterated and not self._closed:
            self._ready.append(result)
            self._changed.set()
            if len(self._ready) > RESULTS_AHEAD:
                self._room.clear()

    def bad_line(self, where: str, reason: str) -> None:
        """Log a job that cannot be used."""
        log.warning("%s: %s", where, reason)

    def warning(self, where: str, reason: str) -> None:
        """Log what is worth knowing about a job."""
        log.info("%s: %s", where, reason)

    def reading(self, what: str, done_bytes: int, total_bytes: int) -> None:
        """Nothing to show."""

    def running(self, stats: Stats, routing: Routing, queued: int) -> None:
        """Nothing to show."""


_Start: TypeAlias = Callable[[Stop, _Listener], Coroutine[Any, Any, dict[str, Any]]]


def _as_file(jobs: Jobs, directory: Path, stop: Stop) -> str:
    """Return the name of the job file, written first if the jobs are dicts; they may be endless."""
    if isinstance(jobs, str | os.PathLike):
        return os.fspath(jobs)
    path = directory / "jobs.jsonl"
    with path.open("wb") as file:
        for number, job in enumerate(jobs, 1):
            if stop.reason is not None:
                raise InterruptedRun(f"{stop.message}; nothing was sent yet")
            try:
                file.write(orjson.dumps(job) + b"\n")
            except TypeError as error:
                raise BadInput(f"job {number} cannot be written as JSON: {error}") from None
    return str(path)
