"""Where an output stands, read from its files alone, so that any process can ask, also during a run."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from batcher.types import OutputPaths

EVENTS_READ = ("run_started", "notice")
"""The kinds of journal records that tell where an output stands."""

NOTICES_SHOWN = 5
_NEEDED = {"jobs", "stopped_because", "finished_at", "exit_code", "resume_at"}
_CHUNK_BYTES = 1 << 20


def standing(
    paths: OutputPaths, holder: Mapping[str, object] | None, journal: Iterable[Mapping[str, object]]
) -> dict[str, Any]:
    """Return counts of result lines, the run that is going on, the last summary and the last run's notices.

    Args:
        paths: the output's files.
        holder: what the run that holds the output says of itself, None if none does.
        journal: the journal's records, `EVENTS_READ` of them at least.
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
        "notices": [],
    }
    start, notices = _last_run(journal)
    has_begun = holder is not None and start is not None and start.get("run_id") == holder.get("run_id")
    if holder is None or has_begun:
        content["notices"] = notices
    if start is not None and has_begun:
        queued, before = start.get("queued"), start.get("results_before")
        if isinstance(queued, int) and isinstance(before, int):
            content["pending"] = max(0, queued + before - answered - failed)
    elif isinstance(content["summary"], dict):
        content["pending"] = content["summary"].get("jobs", {}).get("pending")
    return content


def in_words(content: dict[str, Any], now: datetime) -> str:
    """Return the same for a person, with times as the clock on the wall shows them; `now` is not naive."""
    lines = [f"{content['output']}: {content['answered']:,} answered, {content['failed']:,} failed"]
    if content["pending"] is not None:
        lines[0] += f", {content['pending']:,} pending"
    if holder := content["holder"]:
        lines.append(
            f"running: pid {holder.get('pid')} on {holder.get('host')}, "
            f"since {_wall_time_of(holder.get('started'), now)}"
        )
    elif summary := content["summary"]:
        ended = summary["stopped_because"] or "finished"
        finished_at = _wall_time_of(summary["finished_at"], now)
        lines.append(f"last run: {finished_at}, exit code {summary['exit_code']}, {ended}")
        if summary["resume_at"]:
            lines.append(f"run the same command again after {summary['resume_at']}")
    else:
        lines.append("no run has ended here yet")
    if notices := content["notices"]:
        lines.append("last notices:")
        # Of equal ones the last tells all, or they would hide the others.
        latest: dict[str, dict[str, str]] = {}
        for notice in reversed(notices):
            latest.setdefault(notice["message"], notice)
        for notice in reversed(list(latest.values())[:NOTICES_SHOWN]):
            said = " ".join(notice["message"].split())
            lines.append(f"  {_wall_time(datetime.fromisoformat(notice['at']), now)} {said}")
    return "\n".join(lines)


def _last_run(
    journal: Iterable[Mapping[str, object]],
) -> tuple[Mapping[str, object] | None, list[dict[str, str]]]:
    """Return the start of the last run, and the notices of the last that had something to do."""
    start: Mapping[str, object] | None = None
    notices: list[tuple[float, str]] = []
    for record in journal:
        at, message = record.get("at"), record.get("message")
        if record.get("event") == "run_started":
            start = record
            if record.get("queued") != 0:
                notices.clear()
        elif record.get("event") == "notice" and isinstance(at, float) and isinstance(message, str):
            notices.append((at, message))
    notices.sort(key=lambda notice: notice[0])  # what was held back stands later than it happened
    return start, [{"at": _iso(at), "message": message} for at, message in notices]


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _wall_time_of(written: object, now: datetime) -> str:
    """Return a time from a file as the clock on the wall shows it, or what stands there instead."""
    try:
        return _wall_time(datetime.fromisoformat(str(written)), now)
    except ValueError:
        return str(written)


def _wall_time(at: datetime, now: datetime) -> str:
    local, today = at.astimezone(), now.astimezone().date()
    return f"{local:%H:%M:%S}" if local.date() == today else f"{local:%Y-%m-%d %H:%M:%S}"


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


def _summary(path: Path) -> dict[str, Any] | None:
    """Return the last summary, None where there is none, or one that batcher did not write."""
    try:
        content = orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None
    whole = isinstance(content, dict) and content.keys() >= _NEEDED and isinstance(content["jobs"], dict)
    return content if whole else None
