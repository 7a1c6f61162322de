"""Files that only their owner may read, made to last, and what to say when that fails."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from batcher.errors import OutputError

_BUFFER_BYTES = 1 << 20

_ADVICE = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "name a place that can be written with -o",
    errno.EACCES: "make it writable, or name another place with -o",
    errno.EPERM: "make it writable, or name another place with -o",
    errno.ELOOP: "it is a symbolic link: name the file itself with -o",
    errno.EISDIR: "name a file with -o",
    errno.EPIPE: "let the reader of stdout read to the end, or name a file with -o",
}


def output_error(where: Path | str, exc: OSError) -> OutputError:
    """Say what was seen, where, and what to do."""
    advice = _ADVICE.get(exc.errno or 0, "check the disk")
    return OutputError(f"{where}: {exc.strerror or exc}; {advice}, then run the same command again")


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn every `OSError` of the block into an `OutputError` about its own file, or else about `path`."""
    try:
        yield
    except OSError as exc:
        raise output_error(exc.filename or path, exc) from exc


def make_directory(path: Path) -> None:
    """Create a directory for its owner alone, if there is none."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def open_private(path: Path, flags: int) -> int:
    """Open a file, creating it for its owner alone; a symbolic link is not followed (ELOOP)."""
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


@contextlib.contextmanager
def written_to_disk(path: Path, how: int) -> Iterator[BinaryIO]:
    """Open a file to write, with O_APPEND or O_TRUNC; at the end of the block all of it is on disk."""
    with os.fdopen(open_private(path, os.O_WRONLY | how), "wb", buffering=_BUFFER_BYTES) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacement(path: Path) -> Iterator[BinaryIO]:
    """Write a file that takes the place of `path` at the end of the block, or never is seen."""
    fresh = path.with_name(f"{path.name}.tmp")
    try:
        with written_to_disk(fresh, os.O_TRUNC) as file:
            yield file
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path`, so that a reader and a crash find all of it or what was there before.

    Raises:
        OutputError: it cannot be written.
    """
    with output_errors(path), replacement(path) as file:
        file.write(content)


def sync_directory(path: Path) -> None:
    """Make what was created, renamed or deleted in a directory last."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
