"""A disk that can lose power: watches the files of one directory, and makes what a power cut may leave.

The model is that of POSIX and of SQLite's tests: only what was synced is certain. Of the rest each sector of
512 bytes is kept, zero or stale; a file has any size that it had since its last sync; a name that was made,
moved or deleted since the last sync of the directory may stand as before; sectors are written whole.
"""

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SECTOR_BYTES = 512
_CHANGES = ("write", "ftruncate", "rename", "replace", "unlink")
_SYNCS = ("fsync", "fdatasync")


@dataclass(frozen=True)
class Moment:
    """What was on disk, what was only in memory, and what had been promised, at one moment.

    `names` are the directory as last synced and each state that it had since then; files go by their inodes.
    """

    names: list[dict[str, int]]
    synced: dict[int, bytes]
    cached: dict[int, bytes]
    promised: frozenset[str]


class Disk:
    """Watches a directory from now on; what it syncs is only noted, as a test has no use for real syncs."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.moments: list[Moment] = []
        self.promised: set[str] = set()
        self._root = root
        self._lock = threading.RLock()
        self._held: dict[int, int] = {}  # an inode that is held open is never used again
        self._names = [self._directory()]
        self._synced = {inode: _content(fd) for inode, fd in self._held.items()}
        for name in _CHANGES:
            patch.setattr(os, name, self._watched(getattr(os, name)))
        for name in _SYNCS:
            patch.setattr(os, name, self._sync)

    def close(self) -> None:
        """Let go of all files."""
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()

    def remember(self) -> None:
        """Add this moment to those at which the power may fail."""
        with self._lock:
            now = self._directory()
            if now != self._names[-1]:
                self._names.append(now)
            self.moments.append(
                Moment(
                    names=list(self._names),
                    synced=dict(self._synced),
                    cached={inode: _content(fd) for inode, fd in self._held.items()},
                    promised=frozenset(self.promised),
                )
            )

    def _sync(self, fd: int) -> None:
        with self._lock:
            self.remember()
            inode = os.fstat(fd).st_ino
            if inode == self._root.stat().st_ino:
                self._names = [self._directory()]
            elif inode in self._held:
                self._synced[inode] = _content(self._held[inode])
            self.remember()

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            with self._lock:
                try:
                    return call(*args, **options)
                finally:
                    self.remember()

        return watched

    def _directory(self) -> dict[str, int]:
        names = {}
        for entry in os.scandir(self._root):
            names[entry.name] = entry.inode()
            if entry.inode() not in self._held:
                self._held[entry.inode()] = os.open(entry.path, os.O_RDONLY)
        return names


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def after_power_loss(moment: Moment, rng: random.Random) -> dict[str, bytes]:
    """Return names and contents of files as a power cut at `moment` may leave them."""
    fate = rng.choice([(1, 1, 1), (6, 1, 1), (1, 6, 1), (1, 1, 6), (1, 0, 0), (0, 1, 0)])
    contents = [*moment.cached.values(), b"?"]
    stale = [content[start:end] for content in contents for start, end in _sectors(len(content))]
    before = moment.names[0]
    after = {}
    for name, inode in rng.choice(moment.names).items():
        if inode not in before.values() and rng.random() < 0.2:
            continue  # made since the last sync of the directory
        synced, cached = moment.synced.get(inode, b""), moment.cached[inode]
        size = rng.choice([len(synced), len(cached), rng.randint(*sorted((len(synced), len(cached))))])
        fates = rng.choices((_kept, _zeroed, _stale), fate, k=size // SECTOR_BYTES + 1)
        after[name] = b"".join(
            make(synced[start:end], cached[start:end], end - start, lambda: rng.choice(stale))
            for make, (start, end) in zip(fates, _sectors(size), strict=False)
        )
    return after


def _sectors(size: int) -> list[tuple[int, int]]:
    return [(start, min(start + SECTOR_BYTES, size)) for start in range(0, size, SECTOR_BYTES)]


def _kept(old: bytes, new: bytes, size: int, _: Callable[[], bytes]) -> bytes:
    return new if len(new) == size else old + bytes(size - len(old))


def _zeroed(old: bytes, new: bytes, size: int, _: Callable[[], bytes]) -> bytes:
    return new if old == new else old + bytes(size - len(old))


def _stale(old: bytes, new: bytes, size: int, sector: Callable[[], bytes]) -> bytes:
    return new if old == new else old + sector()[len(old) : size].ljust(size - len(old), b"\xff")
