"""The next jobs of one model: those that share a prefix back to back, the first of them ahead of the rest."""

import heapq
from dataclasses import dataclass
from typing import NamedTuple

from batcher.scheduling.prefixes import WarmPrefixes
from batcher.scheduling.queue import JobQueue

LOOK_AHEAD_BATCHES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """How jobs are grouped, so that the provider's prompt cache is hit.

    Attributes:
        size: queued jobs of one priority among which those that share a prefix are put together (> 0).
        wait_s: how long the jobs of a group wait, at most, for the first one to end (>= 0).
    """

    size: int = 256
    wait_s: float = 2.0


class Run(NamedTuple):
    """Rows to be started one after the other; as a tuple it sorts by who goes first.

    Attributes:
        urgency: minus their priority.
        order: among runs of one priority.
        group: the prefix that they share, or 0.
        leads: whether this is the first job of its group, which others wait for.
        rows: the last one goes first.
    """

    urgency: int
    order: int
    group: int
    leads: bool
    rows: list[int]


class Batches:
    """Takes a model's jobs from the queue batch by batch, and says which is the next one to start.

    A group is led while its first job has not ended and `wait_s` has not passed: its other jobs are held
    back, while jobs of other groups and of lower priorities go on. A prefix that was used a short while ago
    needs no leader. What waits here is only row numbers, of a bounded number of batches.
    """

    def __init__(self, queue: JobQueue, model: str, policy: BatchPolicy) -> None:
        self._queue = queue
        self._model = model
        self._policy = policy
        self._ready: list[Run] = []
        self._led: dict[int, list[Run]] = {}
        self._held = 0
        self._order = 0
        self._warm = WarmPrefixes()

    def __repr__(self) -> str:
        ready = sum(len(run.rows) for run in self._ready)
        return f"<Batches {self._model} {ready} ready, {self._held} held back>"

    @property
    def next_run(self) -> Run | None:
        """The run whose last row is the next to be started; None if `refill` is to be asked first."""
        return self._ready[0] if self._ready else None

    def refill(self, now: float) -> Run | None:
        """Take batches until a row is ready or enough are held back; return the next run, or None."""
        size = self._policy.size
        while not self._ready and self._held < LOOK_AHEAD_BATCHES * size:
            priority = self._queue.next_priority(self._model)
            if priority is None:
                return None
            self._arrange(self._queue.take(self._model, size), -priority, now)
        return self.next_run

    def advance(self) -> None:
        """Take away the next row: it was started, or dropped."""
        rows = self._ready[0].rows
        rows.pop()
        if not rows:
            heapq.heappop(self._ready)

    def warmed(self, group: int, now: float) -> None:
        """Take note that a job of a group has ended, or has been out for `wait_s`: the others may follow."""
        self._warm.add(group, now)
        self.release(group)

    def release(self, group: int) -> None:
        """Make what is held back of a group ready."""
        for run in self._led.pop(group, ()):
            self._held -= len(run.rows)
            heapq.heappush(self._ready, run)

    def drop(self) -> None:
        """Drop what waits here and the rest of the queue, unread."""
        waiting = self._held + sum(len(run.rows) for run in self._ready)
        self._ready.clear()
        self._led.clear()
        self._held = 0
        self._queue.count_dropped(waiting)
        self._queue.drop_rest(self._model)

    def _arrange(self, batch: list[int], urgency: int, now: float) -> None:
        """Put a batch's groups in the order of their first rows; a row without a group is one of its own."""
        prefix_group = self._queue.prefix_group
        groups: dict[int, list[int]] = {}
        alone: list[int] | None = None
        in_order: list[tuple[int, list[int]]] = []
        for row in batch:
            group = prefix_group(row)
            if group and group in groups:
                groups[group].append(row)
            elif group:
                groups[group] = [row]
                in_order.append((group, groups[group]))
                alone = None
            elif alone is None:
                alone = [row]
                in_order.append((0, alone))
            else:
                alone.append(row)
        for group, rows in in_order:
            rows.reverse()
            self._stage(group, rows, urgency, now)

    def _stage(self, group: int, rows: list[int], urgency: int, now: float) -> None:
        """Make a group's rows ready, or only the first of them where the others are to be held back."""
        held: list[Run] | None = None
        if group and self._policy.wait_s > 0 and not self._warm.holds(group, now):
            held = self._led.get(group)
            if held is None:
                held = self._led[group] = []
                heapq.heappush(self._ready, self._run(urgency, group, True, [rows.pop()]))
        if not rows:
            return
        run = self._run(urgency, group, False, rows)
        if held is None:
            heapq.heappush(self._ready, run)
        else:
            held.append(run)
            self._held += len(rows)

    def _run(self, urgency: int, group: int, leads: bool, rows: list[int]) -> Run:
        self._order += 1
        return Run(urgency, self._order, group, leads, rows)
