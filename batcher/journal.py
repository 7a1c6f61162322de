"""The truth about calls: which were sent, which may have been charged, how far the output is safe."""

import errno
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import orjson

from batcher.clock import utcnow
from batcher.results.files import make_directory, open_private, output_error, output_errors, sync_directory


class Journal:
    """Appends one JSON object a line: `event`, `at` (seconds since 1970, UTC), and what the event says.

    Each record is one `write` without a sync: it survives the process, not a power cut. The journal is
    never needed to know what is done, only to know what a call may have cost.

    Raises:
        OutputError: the journal cannot be opened, or, from every method, cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        with output_errors(path):
            make_directory(path.parent)
            self._fd = open_private(path, os.O_RDWR | os.O_APPEND)
            size = os.fstat(self._fd).st_size
            if size and os.pread(self._fd, 1, size - 1) != b"\n":
                # A torn record of a killed run would swallow the first one of this run.
                os.write(self._fd, b"\n")
            sync_directory(path.parent)

    def run_started(self, run_id: str, pid: int, inputs: str, *, queued: int, results_before: int) -> None:
        """Open a run that has `queued` jobs to do and finds `results_before` result lines."""
        self._write(
            {
                "event": "run_started",
                "run_id": run_id,
                "pid": pid,
                "inputs": inputs,
                "queued": queued,
                "results_before": results_before,
            }
        )

    def sent(self, job_id: str, request_sha256: str, attempt: int, model: str) -> None:
        """Say that the first byte of a call is about to go out."""
        self._write(
            {
                "event": "sent",
                "id": job_id,
                "request_sha256": request_sha256,
                "attempt": attempt,
                "model": model,
            }
        )

    def unknown(self, job_id: str, attempt: int, code: str) -> None:
        """Say that a call ended without an answer and may have been charged."""
        self._write({"event": "unknown", "id": job_id, "attempt": attempt, "code": code})

    def committed(self, results_bytes: int, errors_bytes: int) -> None:
        """Say how many bytes of the result file and the error file are safe on disk."""
        self._write({"event": "committed", "results_bytes": results_bytes, "errors_bytes": errors_bytes})

    def notice(self, message: str, at: datetime) -> None:
        """Say what a user should know of the run, such as a lane that pauses, and when it happened."""
        self._write({"event": "notice", "message": message, "at": at.timestamp()})

    def run_ended(self, exit_code: int) -> None:
        """Close a run."""
        self._write({"event": "run_ended", "exit_code": exit_code})

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, record: dict[str, str | int | float]) -> None:
        record.setdefault("at", utcnow().timestamp())
        line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        try:
            written = os.write(self._fd, line)
            if written < len(line):
                # A full disk shows first as a short write. A torn record would swallow the next one.
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as exc:
            raise output_error(self._path, exc) from exc


def read_journal(path: Path, *events: str) -> Iterator[dict[str, object]]:
    """Yield the records of the journal at `path`, none if there is no such file; torn lines are skipped.

    Args:
        path: the journal.
        *events: the kinds of records that are wanted, all if none is named; the others are not parsed.

    Raises:
        OutputError: the file is there and cannot be read.
    """
    # A journal may hold millions of `sent`, and every record begins with its event.
    beginnings = tuple(b'{"event":"%s",' % event.encode() for event in events) or (b"",)
    try:
        with path.open("rb") as lines:
            for line in lines:
                if not line.startswith(beginnings):
                    continue
                try:
                    record = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue
                if isinstance(record, dict):
                    yield record
    except FileNotFoundError:
        return
    except OSError as exc:
        raise output_error(path, exc) from exc
