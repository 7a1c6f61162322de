"""What a journal says about earlier runs: cost, calls in doubt, safe output."""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeGuard

import msgspec
import orjson

from batcher.journal import CRC_KEY, crc_of
from batcher.results.files import output_error, output_errors

_LINE_MAX_BYTES = 1 << 20  # many times the longest record; a run of zeros is read in pieces of this size
_LOST_RESULTS = (70, 74)


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


def spent_before(path: Path) -> float:
    """Return the dollars that the last budget kept in the journal at `path` has spent, 0.0 without one.

    Calls that were in flight when a run was killed count with all that they might have cost.

    Raises:
        OutputError: the file is there and cannot be read.
    """
    run_id: object = ""
    total_usd = 0.0
    for record in read_journal(path, "run_started", "spent"):
        if record["event"] == "run_started":
            run_id = record.get("run_id")
            continue
        spent_usd, reserved_usd = record.get("spent_usd"), record.get("reserved_usd")
        # An old sector may hold the record of another run.
        if record.get("run_id") == run_id and _is_amount(spent_usd) and _is_amount(reserved_usd):
            total_usd = spent_usd + reserved_usd
    return total_usd


def _is_amount(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and value >= 0


class _Record(msgspec.Struct, gc=False):
    event: str
    id: str = ""
    status: int = 0
    run_id: str = ""
    results_bytes: int = 0
    errors_bytes: int = 0
    exit_code: int = 0


_SENT, _SENT_AGAIN, _FAILED, _UNSENT, _UNKNOWN, _DONE = range(6)
_CALLS = {"sent": _SENT, "failed": _FAILED, "unknown": _UNKNOWN}
_STATE_BITS = 7
_TELL_EVERY_LINES = 4096
_decode_record = msgspec.json.Decoder(_Record).decode


class History:
    """What the journal at `path` says about earlier runs, in one pass and at about 8 bytes a job.

    Attributes:
        committed: bytes of the result file and of the error file that were safe on disk, as far as is known.

    Args:
        path: the journal.
        on_progress: told the bytes read, every few thousand lines; what it raises ends the reading.

    Raises:
        OutputError: the journal is there and cannot be read.
    """

    def __init__(self, path: Path, on_progress: Callable[[int], None] = lambda done_bytes: None) -> None:
        self.committed = (0, 0)
        # What became of each job's calls, in order: its id's hash, whose lowest bits are the state.
        self._notes = [array("q") for _ in range(256)]
        self._room = 0
        self._fold()
        with output_errors(path), suppress(FileNotFoundError), path.open("rb", _LINE_MAX_BYTES) as file:
            self._read(file, on_progress)

    def done(self, job_id: str) -> None:
        """Note that a job has a result, so that the last call for it that is known of brought an answer."""
        self._note(job_id, _DONE)

    def maybe_charged(self) -> Container[str]:
        """Return the ids of the jobs whose last call may have been charged and brought no result."""
        self._fold()
        numbers = sorted(note & ~_STATE_BITS for notes in self._notes for note in notes)
        return _Hashes(array("q", numbers)) if numbers else ()

    def _read(self, file: BinaryIO, on_progress: Callable[[int], None]) -> None:
        run_id = ""
        for number, line in enumerate(iter(partial(file.readline, _LINE_MAX_BYTES), b"")):
            if not number % _TELL_EVERY_LINES:
                on_progress(file.tell())
            try:
                record = _decode_record(line)
            except (ValueError, RecursionError):
                continue
            state = _CALLS.get(record.event)
            if state is not None:
                self._note(record.id, _UNSENT if state == _FAILED and not record.status else state)
            elif record.event == "committed":
                if _is_summed(line, run_id) or _is_summed(line, ""):
                    self.committed = record.results_bytes, record.errors_bytes
            elif record.event == "run_started":
                run_id = record.run_id
            elif record.event == "run_ended" and record.exit_code not in _LOST_RESULTS:
                self._fold(keep_sent=False)  # every answer of such a run is a result

    def _note(self, job_id: str, state: int) -> None:
        number = hash(job_id)
        self._notes[number & 255].append(number & ~_STATE_BITS | state)
        self._room -= 1
        if not self._room:
            self._fold()

    def _fold(self, *, keep_sent: bool = True) -> None:
        """Keep of each job only how it stands, and only if a call may have been charged for nothing."""
        for bucket, notes in enumerate(self._notes):
            states: dict[int, int] = {}
            for note in notes:
                number = note & ~_STATE_BITS
                state = _state_after(states.get(number), note & _STATE_BITS)
                if state is not None:
                    states[number] = state
                else:
                    states.pop(number, None)
            kept = [number | state for number, state in states.items() if keep_sent or state == _UNKNOWN]
            self._notes[bucket] = array("q", kept)
        self._room = max(1 << 20, sum(map(len, self._notes)))


def _state_after(state: int | None, event: int) -> int | None:
    """Return how a job stands after `event`: None if none of its calls is in doubt."""
    if event == _SENT:
        return _SENT if state is None else _SENT_AGAIN
    if event == _UNKNOWN or (event == _UNSENT and state == _SENT_AGAIN):
        return _UNKNOWN
    if event == _DONE and state == _UNKNOWN:
        return state  # it failed for good, and may be tried again
    return event if event == _SENT_AGAIN else None


class _Hashes:
    """Ids as the upper bits of their hashes, 8 bytes each."""

    def __init__(self, numbers: "array[int]") -> None:
        self._numbers = numbers

    def __contains__(self, job_id: object) -> bool:
        number = hash(job_id) & ~_STATE_BITS
        at = bisect_left(self._numbers, number)
        return at < len(self._numbers) and self._numbers[at] == number


def _is_summed(line: bytes, run_id: str) -> bool:
    body, _, crc = line.rpartition(CRC_KEY)
    return crc == b"%d}\n" % crc_of(body, run_id)
