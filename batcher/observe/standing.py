"""Where an output stands, read from its files alone, so that any process can ask, also during a run."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from batcher.types import OutputPaths

_CHUNK_BYTES = 1 << 20


def standing(
    paths: OutputPaths, holder: Mapping[str, object] | None, journal: Iterable[Mapping[str, object]]
) -> dict[str, Any]:
    """Return counts of result lines, the run that is going on, and the last summary.

    Args:
        paths: the output's files.
        holder: what the run that holds the output says of itself, None if none does.
        journal: the journal's records.
    """
    answered, failed = _count_lines(paths.results), _count_lines(paths.errors)
    content: dict[str, Any] = {
        "output": str(paths.results),
        "answered": answered,
        "failed": failed,
        "running": holder is not None,
        "holder": holder,
        "pending": None,
        "summary": _summary(paths.summary),
    }
    starts = [record for record in journal if record.get("event") == "run_started"]
    if holder is not None and starts and starts[-1].get("run_id") == holder.get("run_id"):
        queued, before = starts[-1].get("queued"), starts[-1].get("results_before")
        if isinstance(queued, int) and isinstance(before, int):
            content["pending"] = max(0, queued + before - answered - failed)
    elif isinstance(content["summary"], dict):
        content["pending"] = content["summary"].get("jobs", {}).get("pending")
    return content


def in_words(content: dict[str, Any]) -> str:
    """Return the same for a person."""
    lines = [f"{content['output']}: {content['answered']:,} answered, {content['failed']:,} failed"]
    if content["pending"] is not None:
        lines[0] += f", {content['pending']:,} pending"
    if holder := content["holder"]:
        lines.append(
            f"running: pid {holder.get('pid')} on {holder.get('host')}, since {holder.get('started')}"
        )
    elif summary := content["summary"]:
        ended = summary["stopped_because"] or "finished"
        lines.append(f"last run: {summary['finished_at']}, exit code {summary['exit_code']}, {ended}")
        if summary["resume_at"]:
            lines.append(f"run the same command again after {summary['resume_at']}")
    else:
        lines.append("no run has ended here yet")
    return "\n".join(lines)


def _count_lines(path: Path) -> int:
    """Return the number of whole lines in a file, 0 if there is none."""
    count = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                count += chunk.count(b"\n")
    except FileNotFoundError:
        return 0
    return count


def _summary(path: Path) -> object:
    try:
        return orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None
