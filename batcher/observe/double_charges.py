"""Which calls may have been paid twice."""

from collections.abc import Container

from batcher.events import AttemptFinished

NAMED_MAX = 20


class PaidTwice:
    """Counts calls that may have been charged, brought nothing, and were made again.

    Attributes:
        earlier: ids of jobs whose last call in an earlier run may have been charged and brought nothing.
        count: such calls that were made again in this run.
        ids: of whose jobs, the first `NAMED_MAX` of them.
    """

    def __init__(self) -> None:
        self.earlier: Container[str] = ()
        self.count = 0
        self.ids: list[str] = []
        self._in_doubt: set[str] = set()

    def __repr__(self) -> str:
        return f"<PaidTwice {self.count} {self.ids}>"

    def finished(self, job_id: str) -> None:
        """Take note that no more calls come for a job."""
        self._in_doubt.discard(job_id)

    def called(self, event: AttemptFinished) -> None:
        """Take note of a call."""
        job_id = event.job_id
        in_doubt = job_id in (self.earlier if event.call == 1 else self._in_doubt)
        if event.sent and in_doubt:
            self.count += 1
            if len(self.ids) < NAMED_MAX and job_id not in self.ids:
                self.ids.append(job_id)
        if (event.sent and not event.status) or (in_doubt and not event.sent):
            self._in_doubt.add(job_id)
        else:
            self._in_doubt.discard(job_id)
