"""The priority queue: what is still to be started, highest priority first, for each model."""

from batcher.jobs.index import JobIndex


class JobQueue:
    """Hands out the rows of an index, at most `limit` of them (None: all)."""

    def __init__(self, index: JobIndex, *, limit: int | None = None) -> None:
        self._index = index
        self._left = index.queued if limit is None else min(limit, index.queued)
        self.read = index.read

    def __repr__(self) -> str:
        return f"<JobQueue {self._left} left>"

    def __len__(self) -> int:
        return self._left

    @property
    def models(self) -> list[str]:
        """The models that jobs ask for, those with the most urgent next job first."""
        return sorted(self._index.models, key=lambda model: -(self._index.next_priority(model) or 0))

    def take(self, model: str, most: int) -> list[int]:
        """Take the next batch for a model: up to `most` rows of one priority, in the order of the file."""
        batch: list[int] = []
        priority = self._index.next_priority(model)
        while self._left and len(batch) < most and self._index.next_priority(model) == priority:
            row = self._index.pop(model)
            if row is None:
                break
            batch.append(row)
            self._left -= 1
        return batch
