"""Where a run stands: a live display on a terminal, otherwise a line a minute."""

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TextIO

from batcher.clock import monotonic
from batcher.text.durations import in_words
from batcher.text.terminal import printable

LIVE_EVERY_S = 0.25
PLAIN_EVERY_S = 60.0
RATE_OVER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The figures of one moment."""

    done: int
    failed: int
    total: int
    in_flight: int
    retries: int
    refused_429: int
    cost_usd: float
    hindrances: tuple[str, ...] = ()


class RateMeter:
    """Jobs a second over the last minute."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def rate(self, done: int, now: float) -> float:
        """Note how many jobs are done at `now` and return the recent rate."""
        self._points.append((now, done))
        while len(self._points) > 2 and now - self._points[0][0] > RATE_OVER_S:
            self._points.popleft()
        began, before = self._points[0]
        return (done - before) / (now - began) if now > began else 0.0


class Display(Protocol):
    """Shows snapshots."""

    every_s: float

    def show(self, snapshot: Snapshot, rate: float) -> None:
        """Bring the display up to date."""

    def close(self) -> None:
        """Leave the terminal as a person expects it."""


def line(snapshot: Snapshot, rate: float) -> str:
    """Return a snapshot as one line; `rate` is in jobs a second."""
    parts = [f"{snapshot.done:,} of {snapshot.total:,} done"]
    if snapshot.failed:
        parts.append(f"{snapshot.failed:,} failed")
    parts.append(f"{rate:.1f}/s")
    if rate > 0 and snapshot.done < snapshot.total:
        parts.append(f"{in_words((snapshot.total - snapshot.done) / rate)} left")
    parts.append(f"{snapshot.in_flight} in flight")
    if snapshot.retries:
        parts.append(f"{snapshot.retries:,} retries")
    if snapshot.refused_429:
        parts.append(f"{snapshot.refused_429:,} refused")
    if snapshot.cost_usd:
        parts.append(f"${snapshot.cost_usd:.4f}")
    return ", ".join([*parts, *snapshot.hindrances])


class PlainLines:
    """One line a minute, for logs."""

    every_s = PLAIN_EVERY_S

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, snapshot: Snapshot, rate: float) -> None:
        """Write one line, unless the stream has gone."""
        try:
            print(printable(line(snapshot, rate)), file=self._stream, flush=True)
        except OSError:
            self.every_s = float("inf")  # stderr was closed: the results matter, the lines do not

    def close(self) -> None:
        """Nothing to put right."""


class LiveBar:
    """A progress bar that redraws itself, for a person at a terminal."""

    every_s = LIVE_EVERY_S

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - 60 ms that only a person at a terminal pays
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

        self._bar = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[words]}", markup=False),
            console=Console(stderr=True),
            auto_refresh=False,
        )
        self._task = self._bar.add_task("", words="")
        self._bar.start()

    def show(self, snapshot: Snapshot, rate: float) -> None:
        """Redraw."""
        self._bar.update(
            self._task,
            total=max(1, snapshot.total),
            completed=snapshot.done,
            words=printable(line(snapshot, rate)),
        )
        self._bar.refresh()

    def close(self) -> None:
        """Leave the last state standing and give the cursor back."""
        self._bar.stop()


async def watch(take: Callable[[], Snapshot], display: Display) -> None:
    """Show a snapshot at the display's own pace until cancelled, and once more at the end."""
    meter = RateMeter()
    meter.rate(take().done, monotonic())
    try:
        while True:
            await asyncio.sleep(min(display.every_s, 3600.0))
            snapshot = take()
            display.show(snapshot, meter.rate(snapshot.done, monotonic()))
    finally:
        if isinstance(display, LiveBar):
            snapshot = take()
            display.show(snapshot, meter.rate(snapshot.done, monotonic()))
        display.close()


def for_stderr() -> Display:
    """Return the display that suits where stderr goes."""
    return LiveBar() if sys.stderr.isatty() else PlainLines(sys.stderr)
