"""What must hold of an output after any number of runs that were ended before their time."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import assert_each_once, read_journal


class Kept:
    """Remembers the lines that stood in a file after each interruption, which must stand there at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: list[tuple[int, bytes]] = []

    def remember(self) -> None:
        """Look at the file as it stands now."""
        data = self._path.read_bytes() if self._path.exists() else b""
        whole = data.rfind(b"\n") + 1
        # A run that is killed before it has mended the file leaves the damage of an earlier test round in it.
        while whole and not _is_json(data[(start := data.rfind(b"\n", 0, whole - 1) + 1) : whole]):
            whole = start
        self._seen.append((whole, hashlib.sha256(data[:whole]).digest()))

    def assert_all_there(self) -> None:
        """Check that the file begins with what was seen each time."""
        data = self._path.read_bytes()
        for number, (size, digest) in enumerate(self._seen):
            assert hashlib.sha256(data[:size]).digest() == digest, f"results of run {number} are gone"


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def assert_nothing_lost_or_repeated(
    out: Path, ids: Sequence[str], kept: Kept, stats: dict[str, Any], *, given_up: int
) -> None:
    """Check a finished output against the provider's own counts.

    Args:
        out: the result file.
        ids: all jobs, each of which has an answer.
        kept: what was seen of the result file on the way.
        stats: what the simulator has counted.
        given_up: how many calls may have been in flight, over all interruptions, when nobody waited for them.
    """
    assert_each_once(out, ids)
    kept.assert_all_there()
    assert stats["requests"] <= len(ids) + given_up
    sent = Counter(record["id"] for record in read_journal(out, "sent"))
    unseen = {name: calls for name, calls in stats["by_id"].items() if sent[name] < calls}
    assert not unseen, "calls that the journal does not know"
