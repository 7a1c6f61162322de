"""One run per output, held by locks that vanish with the process."""

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path
from types import TracebackType

import orjson

from batcher.clock import utcnow
from batcher.errors import LockHeld, OutputError
from batcher.results.files import make_directory, open_private, output_error, output_errors
from batcher.types import OutputPaths

_REPLACED_MAX = 20
_HOLDER_MAX_BYTES = 4096
_LOOKS = 3
_LOOKS_FOR_A_NAME = 50
_LOOK_AGAIN_S = 0.02


class OutputLock:
    """Holds an output for this process: as a context manager, or by `acquire` and `release`.

    Both the lock file and the result file itself are locked (flock), because a cleaner that deletes the lock
    file would let a second run lock a new one. Neither is ever unlinked here; what the lock file says about
    its holder is for messages only.

    A result file that is replaced by another one, by `repair` or `supersede` or `set_aside`, takes its lock
    with it: call `relock` after each of them. Until then the lock file keeps other runs out.

    Args:
        paths: the output; the result file is created empty if it is missing.
        run_id: told to whoever finds the output held.
    """

    def __init__(self, paths: OutputPaths, *, run_id: str) -> None:
        self._paths = paths
        self._run_id = run_id
        self._lock_fd = -1
        self._results_fd = -1

    def __enter__(self) -> "OutputLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the output, or fail at once.

        Raises:
            LockHeld: another run holds it.
            OutputError: the lock file or the result file cannot be created or locked.
        """
        with output_errors(self._paths.lock), contextlib.ExitStack() as on_failure:
            on_failure.callback(self.release)
            make_directory(self._paths.lock.parent)
            self._lock_fd = self._locked(self._paths.lock)
            # The run that held it last must not be named as the holder any more.
            os.ftruncate(self._lock_fd, 0)
            self._results_fd = self._locked(self._paths.results)
            self._sign()
            on_failure.pop_all()

    def relock(self) -> None:
        """Lock the file that stands at the result file's path now; create it if there is none.

        Raises:
            LockHeld: another run took it first.
            OutputError: it cannot be created or locked.
        """
        replaced, self._results_fd = self._results_fd, -1
        os.close(replaced)
        self._results_fd = self._locked(self._paths.results)

    def release(self) -> None:
        """Let go of the output; a second call does nothing."""
        for fd in (self._results_fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._results_fd = self._lock_fd = -1

    def _locked(self, path: Path) -> int:
        for _ in range(_REPLACED_MAX):
            with output_errors(path), contextlib.ExitStack() as opened:
                fd = open_private(path, os.O_RDWR)
                opened.callback(os.close, fd)
                self._take(path, fd)
                # A lock on a file that was deleted or replaced in between protects nothing.
                if _stands_at(path, fd):
                    opened.pop_all()
                    return fd
        raise OutputError(f"{path} is replaced again and again; keep other programs away from it")

    def _take(self, path: Path, fd: int) -> None:
        # Who asks for the holder has the lock for a moment, and a holder of the lock file needs one to sign.
        by = None
        for look in range(_LOOKS_FOR_A_NAME if path == self._paths.lock else _LOOKS):
            try:
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                by = self._holder()
                if by and look >= _LOOKS:
                    break
                time.sleep(_LOOK_AGAIN_S)
        advice = "wait until it has ended, or name another output with -o"
        raise LockHeld(f"{self._paths.results} is in use by {by or 'another run'}; {advice}")

    def _sign(self) -> None:
        signature = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": utcnow().isoformat(timespec="seconds"),
            "run_id": self._run_id,
        }
        os.pwrite(self._lock_fd, orjson.dumps(signature, option=orjson.OPT_APPEND_NEWLINE), 0)

    def _holder(self) -> str | None:
        with contextlib.suppress(OSError, orjson.JSONDecodeError, KeyError, TypeError):
            with self._paths.lock.open("rb") as file:
                by = orjson.loads(file.read(_HOLDER_MAX_BYTES))
            return f"run {by['run_id']} (pid {by['pid']} on {by['host']}, since {by['started']})"
        return None


def _stands_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def holder(paths: OutputPaths) -> dict[str, object] | None:
    """Return pid, host, start and run id of the run that holds an output, None if none does.

    Raises:
        OutputError: the lock file is there and cannot be read.
    """
    try:
        with paths.lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                signature = file.read(_HOLDER_MAX_BYTES)
            else:
                return None
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise output_error(paths.lock, exc) from exc
    with contextlib.suppress(orjson.JSONDecodeError):
        if isinstance(said := orjson.loads(signature), dict):
            return said
    return {}
