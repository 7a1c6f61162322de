"""The priority queue: what is still to be started, highest priority first, for each model."""

from batcher.jobs.index import JobIndex


class JobQueue:
    """Hands out the rows of an index, and counts how many of them may still be started.

    Args:
        index: the rows.
        limit: at most so many jobs are started (None: all).

    Attributes:
        dropped: rows that are not started in this run, so that their jobs stay pending.
    """

    def __init__(self, index: JobIndex, *, limit: int | None = None) -> None:
        self._index = index
        self._rows = index.queued
        self._left = self._rows if limit is None else min(limit, self._rows)
        self.dropped = 0
        self.models = index.models
        self.read = index.read
        self.prefix_group = index.prefix_group
        self.has_fallback = index.has_fallback
        self.next_priority = index.next_priority

    def __repr__(self) -> str:
        return f"<JobQueue {self._left} left>"

    def __len__(self) -> int:
        return self._left

    def take(self, model: str, most: int) -> list[int]:
        """Take the next batch for a model: up to `most` rows of one priority, in the order of the index."""
        index = self._index
        batch: list[int] = []
        priority = index.next_priority(model)
        while len(batch) < most and index.next_priority(model) == priority:
            row = index.pop(model)
            if row is None:
                break
            batch.append(row)
        return batch

    def drop_rest(self, model: str) -> None:
        """Drop the rows of a model that have not been taken, unread."""
        self.count_dropped(self._index.drop(model))

    def count_started(self) -> None:
        """Take note that a job was started."""
        self._left -= 1
        self._rows -= 1

    def count_dropped(self, rows: int) -> None:
        """Take note that rows will not be started in this run: their jobs stay pending."""
        self.dropped += rows
        self._rows -= rows
        self._left = min(self._left, self._rows)
