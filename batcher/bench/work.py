"""The jobs of a measurement, and the check that each has exactly one result line."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from batcher.errors import UsageError

MODEL = "openai/gpt-oss-20b"
_FILLING = "How does this sentence sound to a reader who has never seen the product before? "


def write_jobs(file: Path, jobs: int, job_bytes: int) -> None:
    """Write `jobs` Batch lines of `job_bytes` each, newline included, with ids from `job-0000000` on.

    Raises:
        UsageError: a line cannot be that short.
    """
    shortest = len(_line(0, ""))
    if job_bytes < shortest:
        raise UsageError(f"a job of {job_bytes} bytes: the shortest line of a job has {shortest}")
    filling = (_FILLING * (job_bytes // len(_FILLING) + 1))[: job_bytes - shortest]
    with file.open("wb") as sink:
        for number in range(jobs):
            sink.write(_line(number, filling))


def _line(number: int, filling: str) -> bytes:
    body = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "Classify the sentence as positive, neutral or negative."},
            {"role": "user", "content": f"{number:07d} {filling}"},
        ],
        "max_completion_tokens": 32,
    }
    line = {"custom_id": f"job-{number:07d}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


@dataclass(slots=True)
class Found:
    """What the result files of one process hold.

    Attributes:
        answered: jobs with one good line.
        missing: jobs without a line.
        repeated: lines beyond the first of a job, and lines of no job.
        failed: jobs whose line is an error.
        latency_s: of each line that says so, in seconds; so is `queued_s`.
    """

    answered: int = 0
    missing: int = 0
    repeated: int = 0
    failed: int = 0
    latency_s: "array[float]" = field(default_factory=lambda: array("d"))
    queued_s: "array[float]" = field(default_factory=lambda: array("d"))

    @property
    def lost(self) -> int:
        """How many jobs do not have exactly one line."""
        return self.missing + self.repeated


def read_results(files: Sequence[Path], jobs: int) -> Found:
    """Read result lines of jobs `0` to `jobs - 1`, line by line; a file that is not there holds none."""
    found = Found()
    seen = bytearray(jobs)
    for file in files:
        if file.exists():
            with file.open("rb") as source:
                for line in source:
                    _take(line, seen, found)
    found.missing = seen.count(0)
    return found


def _take(line: bytes, seen: bytearray, found: Found) -> None:
    result = orjson.loads(line)
    number = _number(result["custom_id"])
    if not 0 <= number < len(seen) or seen[number]:
        found.repeated += 1
        return
    seen[number] = 1
    if result["error"] is None:
        found.answered += 1
    else:
        found.failed += 1
    about = result.get("batcher")
    if about is not None:
        found.latency_s.append(about["latency_s"])
        found.queued_s.append(about["queued_s"])


def _number(custom_id: str) -> int:
    digits = custom_id.removeprefix("job-")
    return int(digits) if digits.isdecimal() else -1
