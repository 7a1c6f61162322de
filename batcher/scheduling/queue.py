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

    def urgency(self) -> list[tuple[str, int]]:
        """Return each model that jobs wait for, with the priority of its next one."""
        priorities = ((model, self.next_priority(model)) for model in self._index.models)
        return [(model, priority) for model, priority in priorities if priority is not None]

    def next_priority(self, model: str) -> int | None:
        """Return the priority of the next job of a model, None if there is none."""
        return self._index.next_priority(model) if self._left else None

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
