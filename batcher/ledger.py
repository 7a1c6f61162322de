"""What all runs of a user on this machine share for one account: who is alive, and what a day has used.

Everything here is advice: the provider is the judge. So nothing of it ever ends a run; what cannot be read
or written is told once, and the run goes on with its own counts.
"""

import contextlib
import errno
import fcntl
import hashlib
import math
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

import msgspec

from batcher.limits.daybook import (
    NOTHING_SPENT,
    Counts,
    DayUse,
    Spent,
    added,
    count,
    day_use,
    merged,
    slot_of,
)

_SYNC_EVERY_S = 1.0
_FILE_MAX_BYTES = 1 << 22
_LOCK_TRIES_AT_START = 50
_LOCK_TRIES_AT_END = 500
_LOCK_RETRY_S = 0.002
_JOIN_TRIES = 20
_PRIVATE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # NONBLOCK: a FIFO must not stall the run


class _File(msgspec.Struct, forbid_unknown_fields=True):
    models: Counts


class Ledger:
    """The shared books of one account, used between `join` and `leave`.

    Use is buffered and written at most once a second by `refresh`: a crash loses what was added since, a
    power cut may lose more. Times are wall-clock times with a time zone; use that lies in the future,
    because the clock was set back, counts as of now.

    Args:
        directory: where the books are kept (see `state_directory`), None for a run that shares nothing.
        account: tells accounts apart, such as a fingerprint of the key; only its hash is stored.
        on_warning: told once about each thing that keeps the runs from sharing.
    """

    def __init__(self, directory: Path | None, account: str, *, on_warning: Callable[[str], None]) -> None:
        self._directory = directory
        self._name = hashlib.sha256(account.encode()).hexdigest()[:16]
        self._on_warning = on_warning
        self._told: set[str] = set()
        self._directory_fd = -1
        self._run_name = ""
        self._run_fd = -1
        self._stored: Counts = {}
        self._pending: Counts = {}
        self._elsewhere: dict[str, Spent] = {}
        self._synced_at = -math.inf
        self._has_read = False

    def __repr__(self) -> str:
        state = "joined" if self._directory_fd >= 0 else "alone"
        return f"<Ledger {self._name} {state} models={sorted({*self._stored, *self._pending})}>"

    def join(self, now_utc: datetime) -> None:
        """Register this run as alive, until `leave` or the end of the process, and read the books.

        Waits up to 0.1 s if another run holds them; a second call does nothing.
        """
        if self._directory_fd >= 0:
            return
        if self._directory is None:
            self._warn("there is no directory for state (set HOME or BATCHER_STATE_DIR)")
            return
        with self._told_errors():
            self._directory_fd = _open_directory(self._directory)
            self._register()
        self._sync(now_utc, tries=_LOCK_TRIES_AT_START)

    def leave(self, now_utc: datetime) -> None:
        """Write what is buffered and free this run's place; a second call does nothing.

        Waits up to 1 s if another run holds the books.
        """
        if self._directory_fd < 0:
            return
        if self._pending and not self._sync(now_utc, tries=_LOCK_TRIES_AT_END):
            self._warn("the last counts of this run could not be written")
        if self._run_fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._run_name, dir_fd=self._directory_fd)
            os.close(self._run_fd)
        os.close(self._directory_fd)
        self._run_fd = self._directory_fd = -1

    def runs_alive(self) -> int:
        """Return how many runs use the account right now, this one included (>= 1)."""
        alive = 1
        if self._directory_fd >= 0:
            with self._told_errors():
                for name in os.listdir(self._directory_fd):
                    if name.startswith(f"{self._name}.") and name.endswith(".run") and name != self._run_name:
                        alive += self._is_alive(name)
        return alive

    def used_today(self, model: str, now_utc: datetime) -> DayUse:
        """Return what all runs have used of a model; of the other runs, as of at most a second or so ago."""
        self.refresh(now_utc)
        stored, pending = ({model: counts.get(model, {})} for counts in (self._stored, self._pending))
        return day_use(merged(stored, pending, slot_of(now_utc)).get(model, {}), now_utc)

    @property
    def models_elsewhere(self) -> frozenset[str]:
        """The models of which `take_elsewhere` has something to tell."""
        return frozenset(self._elsewhere)

    def take_elsewhere(self, model: str) -> Spent:
        """Return what others were seen to have used of a model since the last call.

        What the books hold when they are read for the first time is of no known age and is left out: ask
        `used_today` for that.
        """
        return self._elsewhere.pop(model, NOTHING_SPENT)

    def add(self, model: str, requests: int, tokens: int, now_utc: datetime) -> None:
        """Count requests and tokens of a model as used now; they are written with the next refresh.

        Raises:
            ValueError: one of them is below 0.
        """
        if requests < 0 or tokens < 0:
            raise ValueError(f"use is never negative: {requests} requests, {tokens} tokens")
        count(self._pending, model, slot_of(now_utc), Spent(requests, tokens))

    def flush(self, now_utc: datetime) -> None:
        """Write what is buffered and read what the others wrote; does not wait for a run that is writing."""
        self._sync(now_utc)

    def refresh(self, now_utc: datetime) -> None:
        """Do what `flush` does, unless it was done within the last second."""
        # A clock that was set back must not put this off.
        if abs(now_utc.timestamp() - self._synced_at) >= _SYNC_EVERY_S:
            self._sync(now_utc)

    def _sync(self, now_utc: datetime, *, tries: int = 1) -> bool:
        """Bring the file and this run together; return whether that was possible."""
        self._synced_at = now_utc.timestamp()
        if self._directory_fd < 0:
            return False
        with self._told_errors(), contextlib.ExitStack() as opened:
            fd = _open_own(f"{self._name}.json", os.O_RDWR | os.O_CREAT, self._directory_fd)
            opened.callback(os.close, fd)
            if not _locked(fd, fcntl.LOCK_EX, tries):
                return False
            slot = slot_of(now_utc)
            found = self._read(fd)
            stored = self._stored if found is None else found
            for model, more in added(self._stored, stored, slot).items() if self._has_read else ():
                known = self._elsewhere.get(model, NOTHING_SPENT)
                self._elsewhere[model] = Spent(known.requests + more.requests, known.tokens + more.tokens)
            self._has_read = True
            self._stored = stored  # what the others used is not new a second time, should the disk be full
            both = merged(stored, self._pending, slot)
            if both != (found or {}):
                _write(fd, both)
            self._stored, self._pending = both, {}
            return True
        return False

    def _read(self, fd: int) -> Counts | None:
        """Return what the file holds, None if it is empty or damaged."""
        content = os.pread(fd, _FILE_MAX_BYTES, 0)
        if not content:
            return None
        # One line is one state: what stands behind it is the rest of a longer one that was replaced.
        line, newline, _ = content.partition(b"\n")
        try:
            if not newline:
                raise msgspec.DecodeError("it is cut off")
            return msgspec.json.decode(line, type=_File).models
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            self._warn(f"the day counts in {self._name}.json are damaged and start anew ({exc})")
            return None

    def _register(self) -> None:
        for _ in range(_JOIN_TRIES):
            name = f"{self._name}.{os.getpid()}-{secrets.token_hex(4)}.run"
            with contextlib.ExitStack() as opened:
                fd = _open_own(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, self._directory_fd)
                opened.callback(os.close, fd)
                # Until it is locked the file looks stale, so that another run may clear it away.
                if _locked(fd, fcntl.LOCK_EX) and os.fstat(fd).st_nlink:
                    self._run_name, self._run_fd = name, fd
                    opened.pop_all()
                    return
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def _is_alive(self, name: str) -> bool:
        """Return whether the run that owns a file still holds it; a stale file is unlinked."""
        try:
            fd = _open_own(name, os.O_RDONLY, self._directory_fd)
        except OSError:
            return False  # gone since it was listed, or no file of ours
        try:
            # Shared, so that two runs that look at once do not take each other for the owner.
            if not _locked(fd, fcntl.LOCK_SH):
                return True
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._directory_fd)
            return False
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _told_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            self._warn(exc.strerror or str(exc))

    def _warn(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            where = f"{self._directory}: " if self._directory else ""
            self._on_warning(f"{where}{reason}; limits may not be shared with other runs and other days")


def state_directory(environ: Mapping[str, str]) -> Path | None:
    """Return where this user's state lives, None if the environment names no home.

    That is BATCHER_STATE_DIR itself, else `batcher` in XDG_STATE_HOME or in `~/.local/state`.
    """
    if own := environ.get("BATCHER_STATE_DIR"):
        return Path(own).absolute()
    # The XDG rules say to ignore a relative path.
    if (shared := Path(environ.get("XDG_STATE_HOME", ""))).is_absolute():
        return shared / "batcher"
    if (home := Path(environ.get("HOME", ""))).is_absolute():
        return home / ".local" / "state" / "batcher"
    return None


def _open_directory(path: Path) -> int:
    """Open a directory, created if need be, in which nobody else can plant files."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _PRIVATE)
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        os.close(fd)
        raise PermissionError(errno.EPERM, "others can write to this directory, so it is not used")
    return fd


def _open_own(name: str, flags: int, directory_fd: int) -> int:
    """Open a regular file of this user; a symbolic link is not followed (ELOOP)."""
    fd = os.open(name, flags | _PRIVATE, 0o600, dir_fd=directory_fd)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(fd)
        raise PermissionError(errno.EPERM, f"{name} is not a file of this user")
    return fd


def _locked(fd: int, kind: int, tries: int = 1) -> bool:
    """Lock a file without waiting for longer than the tries take; return whether it is locked."""
    for left in reversed(range(tries)):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return True
        if left:
            time.sleep(_LOCK_RETRY_S)
    return False


def _write(fd: int, counts: Counts) -> None:
    line = msgspec.json.encode(_File(models=counts)) + b"\n"
    # Written before the old rest is cut off: a process that is killed in between leaves a whole line.
    if os.pwrite(fd, line, 0) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(fd, len(line))
