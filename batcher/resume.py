"""What is already done: read from the result files, which are mended first.

Everything here happens before a run writes, while it holds the output's lock. Nothing is ever deleted:
damaged bytes go to `x.quarantine`, lines that are replaced or stand twice to `x.superseded.jsonl`. Their copy
is on disk before the original goes, so a crash in between leaves a line in both places, never in none.
What was safe on disk and is damaged or gone was no crash's doing, and is left for a person to look at.
A result file may be another file afterwards (another inode), so its lock must be taken again.
"""

import math
import os
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from batcher.clock import utcnow
from batcher.errors import OutputError
from batcher.results.earlier import EarlierResults
from batcher.results.files import output_errors, replacement, sync_directory, written_to_disk
from batcher.results.fingerprints import Fingerprints, hash_id
from batcher.results.scan import Line, Scan, pieces
from batcher.types import OutputPaths, output_paths

_CHUNK_BYTES = 1 << 20


def done_records(paths: OutputPaths) -> Iterator[tuple[str, str, bool]]:
    """Yield `(id, request_sha256, ok)` of all jobs that have a result, answers first.

    Raises:
        OutputError: a file cannot be read, or was not written by batcher.
    """
    with output_errors(paths.results):
        for path in (paths.results, paths.errors):
            yield from Scan(path)


def provider_of(paths: OutputPaths) -> str:
    """Return the name of the provider that the first result came from, "" where there is none yet.

    Raises:
        OutputError: a file cannot be read.
    """
    with output_errors(paths.results):
        for path in (paths.results, paths.errors):
            for _, line in pieces(path):
                if line is not None:
                    return line.batcher.provider
    return ""


def cost_of_results(paths: OutputPaths) -> float:
    """Return the dollars that all answers of an output have cost, as far as is known, replaced ones included.

    Raises:
        OutputError: a file cannot be read.
    """
    with output_errors(paths.results):
        return math.fsum(
            line.batcher.cost_usd or 0.0
            for path in (paths.results, paths.errors, paths.superseded)
            for _, line in pieces(path)
            if line is not None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    """What `repair` had to do, all zero for files that were whole, and what it found.

    Attributes:
        earlier: all results by the hash of their id, as `EarlierResults` hands them over.
    """

    quarantined_bytes: int
    repeated_lines: int
    missing_bytes: int
    earlier: Fingerprints


def repair(
    paths: OutputPaths,
    *,
    committed: tuple[int, int] = (0, 0),
    on_id: Callable[[str], None] = lambda job_id: None,
    on_progress: Callable[[int], None] = lambda done_bytes: None,
    before_removing: Callable[[], None] = lambda: None,
) -> RepairReport:
    """Leave only intact lines in the output, and each id once over both files.

    If an id stands more than once, its first answer stays, or its first failure where there is no answer.

    Args:
        paths: the output.
        committed: bytes of the result file and of the error file that were safe on disk.
        on_id: told the id of every result.
        on_progress: told the bytes read, every MB; what it raises ends the reading before anything is mended.
        before_removing: called before intact lines leave a file; what is `committed` no longer holds then.

    Raises:
        OutputError: a file cannot be mended, was not written by batcher, or was changed where it was safe.
    """
    found = EarlierResults()
    quarantined_bytes = 0
    with output_errors(paths.results):
        scans = {path: Scan(path) for path in (paths.results, paths.errors, paths.superseded)}
        read_bytes = 0
        for path, scan in scans.items():
            tell_at = _CHUNK_BYTES
            for job_id, request_sha256, ok in scan:
                if path != paths.superseded:
                    found.add(job_id, request_sha256, ok)
                    on_id(job_id)
                if scan.size >= tell_at:
                    on_progress(read_bytes + scan.size)
                    tell_at = scan.size + _CHUNK_BYTES
            read_bytes += scan.size
        missing_bytes = 0
        for path, safe_bytes in zip((paths.results, paths.errors), committed, strict=True):
            _refuse_damage(path, scans[path], safe_bytes, paths)
            missing_bytes += max(0, safe_bytes - scans[path].size)
        for path, scan in scans.items():
            _mend(path, scan, paths.quarantine)
            quarantined_bytes += scan.bad_bytes
        earlier, repeated_lines = found.hand_over(), 0
        if earlier.repeated:
            before_removing()
            repeated_lines = _drop_repeated(paths, earlier.repeated)
            for record in done_records(paths):
                found.add(*record)
            earlier = found.hand_over()
    return RepairReport(
        quarantined_bytes=quarantined_bytes,
        repeated_lines=repeated_lines,
        missing_bytes=missing_bytes,
        earlier=earlier,
    )


def supersede(paths: OutputPaths, is_replaced: Callable[[str], bool]) -> int:
    """Move the lines whose id `is_replaced` to `x.superseded.jsonl`; return how many lines moved.

    The files must have been repaired, and the journal must have forgotten how much of them is safe. A line
    that a crash left in both places is not moved twice.

    Raises:
        OutputError: a file cannot be read or written.
    """

    def leaves(_: int, line: Line | None) -> bool:
        return line is not None and is_replaced(line.custom_id)

    moved = 0
    with output_errors(paths.results):
        already = _line_ids(paths.superseded)
        for path in (paths.results, paths.errors):
            if any(leaves(0, line) for _, line in pieces(path)):
                moved += _move_pieces(path, leaves, paths.superseded, already)
    return moved


def set_aside(paths: OutputPaths) -> list[Path]:
    """Give all files of the output that hold something names with the time in them; return the new names.

    Raises:
        OutputError: a file cannot be renamed.
    """
    stamp = f"{paths.results.stem}.{utcnow():%Y%m%dT%H%M%SZ}"
    with output_errors(paths.results):
        there = [path for path in _movable(paths) if os.path.lexists(path) and path.lstat().st_size]
        stem, again = stamp, 1
        while any(map(os.path.lexists, _movable(output_paths(paths.results.with_stem(stem))))):
            again += 1
            stem = f"{stamp}-{again}"
        aside = dict(zip(_movable(paths), _movable(output_paths(paths.results.with_stem(stem))), strict=True))
        for path in there:
            path.rename(aside[path])
        if there:
            sync_directory(paths.results.parent)
    return [aside[path] for path in there]


def _movable(paths: OutputPaths) -> tuple[Path, ...]:
    # The journal goes first, as it vouches for the others. The answers go last: a run that is killed in
    # between has lost sight of none of them.
    return paths.journal, paths.summary, paths.superseded, paths.quarantine, paths.errors, paths.results


def _refuse_damage(path: Path, scan: Scan, safe_bytes: int, paths: OutputPaths) -> None:
    """Refuse damage to what was on disk: no crash does that."""
    if not scan.bad or (start := scan.bad[0][0]) >= safe_bytes:
        return
    place = f"{path}:{_line_number(path, start)}"
    raise OutputError(
        f"{place}: this line (byte {start:,}) was whole on disk and is not now; another program changed the "
        "file, or the disk fails: bring the file back from a copy, or begin anew with --fresh, or delete "
        f"{paths.journal} to go on with what is left (damaged lines are then kept in {paths.quarantine} and "
        "their jobs run again)"
    )


def _line_number(path: Path, offset: int) -> int:
    number = 1
    with path.open("rb") as file:
        while offset > 0 and (chunk := file.read(min(offset, _CHUNK_BYTES))):
            number += chunk.count(b"\n")
            offset -= len(chunk)
    return number


def _mend(path: Path, scan: Scan, quarantine: Path) -> None:
    if not scan.bad:
        if scan.unterminated:
            with written_to_disk(path, os.O_APPEND) as file:
                file.write(b"\n")
    elif (start := scan.bad[0][0]) < scan.good_end:
        _move_pieces(path, lambda _, line: line is None, quarantine)
    else:
        with path.open("rb") as damaged, written_to_disk(quarantine, os.O_APPEND) as kept:
            damaged.seek(start)
            while chunk := damaged.read(_CHUNK_BYTES):
                kept.write(chunk)
        sync_directory(path.parent)
        with written_to_disk(path, os.O_APPEND) as file:
            file.truncate(start)


def _drop_repeated(paths: OutputPaths, repeated: Set[int]) -> int:
    stays: dict[str, tuple[Path, int, bool]] = {}
    goes: dict[Path, set[int]] = {paths.results: set(), paths.errors: set()}
    for path in goes:
        offset = 0
        for raw, line in pieces(path):
            if line is not None and hash_id(line.custom_id) in repeated:
                loser = this = (path, offset, line.error is None)
                first = stays.setdefault(line.custom_id, this)
                if this[2] and not first[2]:
                    stays[line.custom_id], loser = this, first
                if loser is not stays[line.custom_id]:
                    goes[loser[0]].add(loser[1])
            offset += len(raw)
    already = _line_ids(paths.superseded)
    for path, offsets in goes.items():
        if offsets:
            _move_pieces(path, _standing_at(offsets), paths.superseded, already)
    return sum(map(len, goes.values()))


def _standing_at(offsets: Set[int]) -> Callable[[int, Line | None], bool]:
    return lambda offset, _: offset in offsets


def _line_ids(path: Path) -> set[str]:
    return {line.id for _, line in pieces(path) if line is not None}


def _move_pieces(
    path: Path,
    leaves: Callable[[int, Line | None], bool],
    aside: Path,
    already: Set[str] = frozenset(),
) -> int:
    """Move what `leaves(offset, line)` to the end of `aside`, but for line ids that are `already` there."""
    moved = offset = 0
    with replacement(path) as kept:
        with written_to_disk(aside, os.O_APPEND) as gone:
            for raw, line in pieces(path):
                whole = raw if line is None or raw.endswith(b"\n") else raw + b"\n"
                if not leaves(offset, line):
                    kept.write(whole)
                else:
                    moved += 1
                    if line is None or line.id not in already:
                        gone.write(whole)
                offset += len(raw)
        sync_directory(path.parent)
    return moved
