"""The one pass over the job files that finds out what is to run."""

from collections.abc import Callable
from time import monotonic
from typing import Literal, TypeAlias

from batcher.errors import BadLine
from batcher.jobs.lines import LineDefaults, assigned_id, check_line
from batcher.jobs.rows import JobIndex
from batcher.jobs.source import Sources
from batcher.results.earlier import FAILED
from batcher.results.fingerprints import Fingerprints, hash_id, hash_request

__all__ = ["JobIndex", "OnChanged", "index_jobs"]

OnChanged: TypeAlias = Literal["error", "rerun", "keep"]
"""What to do when an id that has a result comes back with another request."""

CHANGED_KEPT = 5

_PROGRESS_BYTES = 1 << 20
_PROGRESS_S = 0.1

# Stands beside a request's hash in the table of ids once a line has asked for it.
_SEEN = 1
_STATE = _SEEN | FAILED


def index_jobs(
    sources: Sources,
    defaults: LineDefaults,
    *,
    earlier: Fingerprints | None = None,
    retry_failed: bool = False,
    on_changed: OnChanged = "error",
    on_bad: Callable[[str, str], None],
    on_warning: Callable[[str, str], None],
    on_progress: Callable[[int, int], None] | None = None,
) -> JobIndex:
    """Read all lines once, and put those that are to run into an index, which then owns the sources.

    Args:
        sources: the job files.
        defaults: what stands in for a line's silence.
        earlier: the results of earlier runs, as `EarlierResults` hands them over; the pass's own from now on.
        retry_failed: whether jobs that failed for good run again.
        on_changed: `error` counts the line in `changed`, `rerun` queues it, `keep` skips it.
        on_bad: told (where, reason) of every bad line.
        on_warning: told (where, reason) of lines that are good but superfluous.
        on_progress: told (bytes done, bytes in total) about every 0.1 s, and at the end.

    Raises:
        BadInput: a file became shorter while it was read.
        InputMissing: reading failed.
    """
    table = Fingerprints() if earlier is None else earlier
    index = JobIndex(sources, defaults)
    index.earlier_results = len(table)

    def refuse(where: str, reason: str) -> None:
        index.bad += 1
        on_bad(where, reason)

    indexing = _Pass(
        index,
        table,
        defaults,
        retry_failed=retry_failed,
        on_changed=on_changed,
        on_bad=refuse,
        on_warning=on_warning,
    )
    total = sources.total_bytes
    look_at, tell_at = _PROGRESS_BYTES, monotonic() + _PROGRESS_S
    for offset, number, line in sources.iter_lines(refuse):
        indexing.take(offset, number, line)
        if offset >= look_at:
            look_at = offset + _PROGRESS_BYTES
            if on_progress is not None and monotonic() >= tell_at:
                on_progress(offset, total)
                tell_at = monotonic() + _PROGRESS_S
    if on_progress is not None:
        on_progress(total, total)
    return index


class _Pass:
    """The one pass over the lines; its table of all ids is gone when it is."""

    def __init__(
        self,
        index: JobIndex,
        table: Fingerprints,
        defaults: LineDefaults,
        *,
        retry_failed: bool,
        on_changed: OnChanged,
        on_bad: Callable[[str, str], None],
        on_warning: Callable[[str, str], None],
    ) -> None:
        self._index = index
        self._defaults = defaults
        self._retry_failed = retry_failed
        self._on_changed = on_changed
        self._on_bad = on_bad
        self._on_warning = on_warning
        self._table = table
        self._last_ordinals: dict[str, int] = {}

    def take(self, offset: int, number: int, line: bytes) -> None:
        """Queue, skip or refuse a line."""
        index = self._index
        if not line or line.isspace():
            index.blank += 1
            return
        try:
            checked = check_line(line, self._defaults)
        except BadLine as reason:
            self._on_bad(index.where(offset, number), str(reason))
            return
        job_id, ordinal = checked.id, 1
        if not job_id:
            ordinal = self._free_ordinal(checked.request_sha256)
            job_id = assigned_id(checked.request_sha256, ordinal)
        key, request = hash_id(job_id), hash_request(checked.request_sha256)
        known = self._table.add(key, request | _SEEN)
        if known is not None:
            where = index.where(offset, number)
            if known & _SEEN:
                self._refuse_repeated(where, job_id, same_request=known & ~_STATE == request)
                return
            self._table.put(key, request | _SEEN)
            if not self._runs_again(where, job_id, known, request):
                return
            index.mark_replaced(key)
        index.append(checked, line, offset=offset, number=number, ordinal=ordinal)

    def _free_ordinal(self, request_sha256: str) -> int:
        """Find the first ordinal that no line before has used for this request."""
        base = assigned_id(request_sha256)
        ordinal = self._last_ordinals.get(base, 1)
        while (self._table.get(hash_id(assigned_id(request_sha256, ordinal))) or 0) & _SEEN:
            ordinal += 1
            self._last_ordinals[base] = ordinal
        return ordinal

    def _refuse_repeated(self, where: str, job_id: str, *, same_request: bool) -> None:
        if same_request:
            self._index.duplicates += 1
            self._on_warning(
                where, f'id "{job_id}" with the same request stands in an earlier line: runs once'
            )
        else:
            self._on_bad(
                where, f'id "{job_id}" stands in an earlier line with another request: ids are unique'
            )

    def _runs_again(self, where: str, job_id: str, known: int, request: int) -> bool:
        """Decide about a job that has a result from an earlier run."""
        index = self._index
        failed = bool(known & FAILED)
        if known & ~_STATE == request:
            if failed and self._retry_failed:
                return True
        elif self._on_changed == "rerun":
            return True
        elif self._on_changed == "error":
            index.changed_count += 1
            if len(index.changed) < CHANGED_KEPT:
                index.changed.append((where, job_id))
            return False
        index.skipped_failed += failed
        index.skipped_done += not failed
        return False
