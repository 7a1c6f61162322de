"""A job file as a row of bytes that can be read at any offset, however it was given."""

import os
import stat
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from batcher.errors import BadInput, InputMissing
from batcher.jobs.malformed import BOM
from batcher.jobs.spool import GZIP, ZSTD, spool

STDIN = "-"

_HEAD_BYTES = 512

# Only at offset 0, so that a line in the middle of a file is judged as a line.
_REFUSED: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xfe\x00\x00", "UTF-32 text: convert it to UTF-8"),
    (b"\x00\x00\xfe\xff", "UTF-32 text: convert it to UTF-8"),
    (b"\xff\xfe", "UTF-16 text: convert it to UTF-8"),
    (b"\xfe\xff", "UTF-16 text: convert it to UTF-8"),
    (b"{\x00\x00\x00", "UTF-32 text: convert it to UTF-8"),
    (b"\x00\x00\x00{", "UTF-32 text: convert it to UTF-8"),
    (b"{\x00", "UTF-16 text: convert it to UTF-8"),
    (b"\x00{", "UTF-16 text: convert it to UTF-8"),
    (b"PK\x03\x04", "a zip archive (or a spreadsheet): unpack or export it as JSON lines"),
    (b"BZh", "a bzip2 archive: unpack it, or pack it with gzip or zstd"),
    (b"\xfd7zXZ\x00", "an xz archive: unpack it, or pack it with gzip or zstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it, or pack it with gzip or zstd"),
    (b"%PDF", "a PDF"),
    (b"PAR1", "a Parquet file: export it as JSON lines"),
    (b"ARROW1", "an Arrow file: export it as JSON lines"),
    (b"SQLite format 3\x00", "an SQLite database: export it as JSON lines"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"\x7fELF", "a program"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedFile:
    """One FILE, open for reading.

    Attributes:
        name: as the user wrote it, for messages.
        fd: of the file itself, or of an unnamed copy for what cannot be read twice.
        start: where the first line begins (after a byte order mark).
        size: bytes there were when it was opened; what is appended later does not count.
        damage: why the lines are not all there, if an archive broke off.
    """

    name: str
    fd: int
    start: int
    size: int
    damage: str | None = None


def open_file(
    name: str, *, spool_dir: Path, forbidden: AbstractSet[tuple[int, int]], max_spool_bytes: int
) -> OpenedFile:
    """Open a FILE as it was given on the command line: a path, or `-` for standard input.

    Pipes and archives are copied to an unnamed file in `spool_dir`; regular files are read where they are.

    Args:
        name: the path, or `-`.
        spool_dir: a directory with room for the copy.
        forbidden: (device, inode) of the outputs, which cannot be read as input.
        max_spool_bytes: the most that a pipe or an unpacked archive may bring.

    Raises:
        InputMissing: there is nothing to read.
        BadInput: it is certainly not a text of JSON lines, or too much.
        OutputError: the copy cannot be written.
    """
    label = "stdin" if name == STDIN else name
    fd = _open(name, label)
    try:
        status = os.fstat(fd)
        in_place = _check_kind(status, label)
        if in_place and (status.st_dev, status.st_ino) in forbidden:
            raise BadInput(f"{label}: is an output of this run too: choose another name for the output")
        # A shell may hand over a standard input that another program has begun to read.
        in_place = in_place and (name != STDIN or os.lseek(fd, 0, os.SEEK_CUR) == 0)
        head = _head(fd, label) if in_place else b""
        # Files of /proc hold more than the nothing that they claim, and only once.
        in_place = in_place and not (head and not status.st_size)
        size, damage = status.st_size, None
        if not in_place or head.startswith((GZIP, *ZSTD)):
            copy = spool(fd, label, into=spool_dir, max_bytes=max_spool_bytes)
            os.close(fd)
            fd, size, damage = copy.fd, copy.size, copy.damage
            head = _head(fd, label)
        _check_head(head, label)
        start = len(BOM) if head.startswith(BOM) else 0
        return OpenedFile(name=label, fd=fd, start=start, size=size, damage=damage)
    except BaseException:
        os.close(fd)
        raise


def _open(name: str, label: str) -> int:
    try:
        if name == STDIN:
            return os.dup(0)
        # Before the open, which would wait for a device or rewind a tape.
        _check_kind(os.stat(name), label)
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if os.path.islink(name):
            raise InputMissing(f"{label}: is a link to a file that does not exist") from None
        raise InputMissing(f"{label}: no such file") from None
    except PermissionError:
        raise InputMissing(f"{label}: no permission to read it") from None
    except OSError as error:
        raise InputMissing(f"{label}: cannot be opened: {error.strerror}") from None
    except ValueError:
        raise InputMissing(f"{label}: is not the name of a file") from None


def _check_kind(status: os.stat_result, label: str) -> bool:
    """Tell whether it is a regular file; a pipe is none but can be read."""
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return True
    if stat.S_ISDIR(mode):
        raise InputMissing(f"{label}: is a directory: name the files in it")
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (label == "stdin" and stat.S_ISCHR(mode)):
        return False
    raise InputMissing(f"{label}: is a device: expected a file or a pipe")


def _head(fd: int, label: str) -> bytes:
    try:
        return os.pread(fd, _HEAD_BYTES, 0)
    except OSError as error:
        raise InputMissing(f"{label}: cannot be read: {error.strerror}") from error


def _check_head(head: bytes, label: str) -> None:
    if head.startswith((GZIP, *ZSTD)):
        raise BadInput(f"{label}: is an archive inside an archive: unpack it once")
    if head[257:262] == b"ustar":
        raise BadInput(f"{label}: is a tar archive: unpack it and name the files")
    for magic, what in _REFUSED:
        if head.startswith(magic):
            raise BadInput(f"{label}: is {what}; expected UTF-8 text with one JSON object on each line")
