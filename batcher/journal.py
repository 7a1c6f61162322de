"""The truth about calls, written down: which were sent, how they ended, how far the output is safe."""

import errno
import os
import time
import zlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import orjson

from batcher.errors import OutputError
from batcher.events import AttemptFinished
from batcher.results.files import make_directory, open_private, output_error, output_errors, sync_directory
from batcher.types import Outcome

CRC_KEY = b',"crc32":'
"""What stands before the checksum of a record that has one."""


class Sent(NamedTuple):
    """A call that is about to go out: the number `attempt` counts the calls of its job from 1."""

    job_id: str
    request_sha256: str
    attempt: int
    model: str


class Journal:
    """Appends one JSON object a line: `event`, `at` (seconds since 1970, UTC), and what the event says.

    Records are written without a sync: they survive the process, not a power cut. The journal is never needed
    to know what is done, only to know what a call may have cost, and how much of the output can be trusted.
    What a `sent` is followed by tells how the call ended: `failed` was not charged, `unknown` may have been,
    and nothing is an answer, or a call that was cut off with its run.

    Raises:
        OutputError: the journal cannot be opened, or, from every method, cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._run_id = ""
        self._refusal: OutputError | None = None
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
        self._run_id = run_id
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

    def sent(self, calls: Sequence[Sent]) -> None:
        """Say that the first bytes of `calls` are about to go out."""
        if self._refusal is not None:
            raise self._refusal
        at = time.time()
        self._append(
            b"".join(
                [
                    orjson.dumps(
                        {
                            "event": "sent",
                            "id": call.job_id,
                            "request_sha256": call.request_sha256,
                            "attempt": call.attempt,
                            "model": call.model,
                            "at": at,
                        },
                        option=orjson.OPT_APPEND_NEWLINE,
                    )
                    for call in calls
                ]
            )
        )

    def refuse_calls(self, error: OutputError) -> None:
        """Let no more calls go out: `sent` raises `error` from now on, as their answers could not be kept."""
        self._refusal = error

    def unknown(self, job_id: str, attempt: int, code: str) -> None:
        """Say that a call ended without an answer and may have been charged."""
        self._write({"event": "unknown", "id": job_id, "attempt": attempt, "code": code})

    def failed(self, job_id: str, attempt: int, status: int) -> None:
        """Say that a call brought an HTTP status that costs nothing, or (0) that it never went out."""
        self._write({"event": "failed", "id": job_id, "attempt": attempt, "status": status})

    def attempt_finished(self, event: AttemptFinished) -> None:
        """Listen to a run: write down each call that ended without an answer and was not charged."""
        if event.outcome is not Outcome.SUCCESS and (event.status or not event.sent):
            self.failed(event.job_id, event.call, event.status)

    def committed(self, results_bytes: int, errors_bytes: int) -> None:
        """Say how many bytes of the result file and the error file are safe on disk; they must be synced.

        The record takes back all earlier ones, so two zeros say that nothing is known to be safe.
        """
        self._write(
            {"event": "committed", "results_bytes": results_bytes, "errors_bytes": errors_bytes}, summed=True
        )

    def spent(self, spent_usd: float, reserved_usd: float) -> None:
        """Say what all calls so far have cost, and what those in flight may cost (dollars, >= 0)."""
        self._write(
            {
                "event": "spent",
                "run_id": self._run_id,
                "spent_usd": spent_usd,
                "reserved_usd": reserved_usd,
            }
        )

    def sync(self) -> None:
        """Bring to disk what has been written so far."""
        with output_errors(self._path):
            os.fdatasync(self._fd)

    def notice(self, message: str, at: datetime) -> None:
        """Say what a user should know of the run, such as a lane that pauses, and when it happened."""
        self._write({"event": "notice", "message": message}, at=at.timestamp())

    def run_ended(self, exit_code: int) -> None:
        """Close a run."""
        self._write({"event": "run_ended", "exit_code": exit_code})

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(
        self, record: dict[str, str | int | float], *, at: float | None = None, summed: bool = False
    ) -> None:
        record["at"] = time.time() if at is None else at
        line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        if summed:
            line = b"%b%b%d}\n" % (line[:-2], CRC_KEY, crc_of(line[:-2], self._run_id))
        self._append(line)

    def _append(self, lines: bytes) -> None:
        try:
            written = os.write(self._fd, lines)
            if written < len(lines):
                # A full disk shows first as a short write. A torn record would swallow the next one.
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as exc:
            raise output_error(self._path, exc) from exc


def forget_committed(path: Path) -> None:
    """Say in the journal at `path`, and make it last, that nothing of the output is known to be safe.

    To be called before lines leave a result file, as no crash may leave a mark of what is not there any more.

    Raises:
        OutputError: the journal cannot be written.
    """
    journal = Journal(path)
    try:
        journal.committed(0, 0)
        journal.sync()
    finally:
        journal.close()


def crc_of(line: bytes, run_id: str) -> int:
    """Return the checksum of a record of the run `run_id`, taken over the record without it."""
    # A power cut may leave old sectors in a file: the record of another run must not count in this one.
    return zlib.crc32(line, zlib.crc32(run_id.encode()))
