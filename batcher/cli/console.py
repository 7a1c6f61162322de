"""What a run tells a person, on stderr."""

import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import click

from batcher.events import Notice
from batcher.observe.notices import LogNotices
from batcher.observe.progress import Snapshot, for_stderr, watch
from batcher.observe.stats import Stats
from batcher.observe.summary import counted
from batcher.scheduling.routing import Routing
from batcher.text.terminal import on_one_line, printable
from batcher.types import Result, output_paths


class Console:
    """The watcher of a run at the command line: an async context that keeps the display going.

    With `quiet` only what is wrong is said.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._watching: asyncio.Task[None] | None = None
        self._reading_told_at = 0.0
        self._log = LogNotices()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    def say(self, text: str) -> None:
        """Say something that a person may want to know."""
        if not self._quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Say something that must be known."""
        try:
            click.echo(on_one_line(text), err=True)
        except OSError:
            self._quiet = True  # stderr was closed: the results go on without words

    def conclude(self, line: str, output: Path | None, *, succeeded: bool) -> None:
        """Say how the run ended; `output` is None for a stream."""
        if self._quiet and succeeded:
            return
        self.warn(line)
        if output is not None:
            errors = output_paths(output).errors
            failed = errors.exists() and errors.stat().st_size
            self.warn(f"results: {output}" + (f", failed jobs: {errors}" if failed else ""))

    def bad_line(self, where: str, reason: str) -> None:
        """Report a line that cannot be used."""
        self.warn(f"{where}: {reason}")

    def warning(self, where: str, reason: str) -> None:
        """Report something worth knowing about a line."""
        self.say(f"{where}: warning: {reason}")

    def reading(self, what: str, done_bytes: int, total_bytes: int) -> None:
        """Say every few seconds how far files have been read."""
        now = self._loop.time()
        if self._reading_told_at == 0.0:
            self._reading_told_at = now
        elif now - self._reading_told_at > 5 and done_bytes < total_bytes:
            self._reading_told_at = now
            self.say(f"reading {what}: {100 * done_bytes / total_bytes:.0f} %")

    def running(self, stats: Stats, routing: Routing, queued: int) -> None:
        """Start the display."""
        if self._quiet or not queued:
            return
        self.say(f"{counted(queued, 'job')} to run")

        def take() -> Snapshot:
            lanes, now = routing.lanes(), self._loop.time()
            return Snapshot(
                done=stats.finished,
                failed=stats.failed,
                total=queued,
                in_flight=sum(lane.in_flight for lane in lanes),
                retries=stats.retries,
                refused_429=stats.refused_429,
                cost_usd=stats.cost_usd,
                hindrances=tuple(on_one_line(words) for lane in lanes if (words := lane.hindrance(now))),
            )

        self._watching = asyncio.create_task(watch(take, for_stderr()))

    async def room(self) -> None:
        """Results are not kept here, so there always is."""

    def committed(self, results: Sequence[Result]) -> None:
        """The display counts them."""

    def notice(self, notice: Notice) -> None:
        """Tell what happens to lanes, keys and models."""
        self._log(notice)


def log_to_stderr(level: str) -> None:
    """Send the log to stderr; foreign packages stay at warnings, as their debug logs hold prompts."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("batcher").setLevel(level.upper())


class _PlainFormatter(logging.Formatter):
    """Keeps foreign text from steering the terminal or forging lines of the log."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as printable text; only a traceback has several lines."""
        text = super().format(record)
        return printable(text) if record.exc_info else on_one_line(text)
