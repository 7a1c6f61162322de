"""The job files as one list of lines in one space of byte offsets."""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import TracebackType
from typing import Self

from batcher.errors import BadInput, InputMissing, UsageError
from batcher.jobs.opened import STDIN, OpenedFile, open_file

MAX_LINE_BYTES = 16_000_000
MAX_SPOOL_BYTES = 256_000_000_000

CHUNK_BYTES = 1 << 18
# Jobs of one priority stand near each other, so the next lines usually come with the one asked for.
READ_AHEAD_BYTES = 1 << 14


class Sources:
    """Open job files, read once from end to end and then line by line at known offsets.

    Offsets count through all files, line numbers start anew (at 1) in each.

    Args:
        files: in the order of the list; closed with the sources.
        max_line_bytes: longer lines are reported and never held in memory.
        chunk_bytes: how much is read at once from end to end.
        read_ahead_bytes: how much is read at once at a known offset.
    """

    def __init__(
        self,
        files: Sequence[OpenedFile],
        *,
        max_line_bytes: int = MAX_LINE_BYTES,
        chunk_bytes: int = CHUNK_BYTES,
        read_ahead_bytes: int = READ_AHEAD_BYTES,
    ) -> None:
        self._files = list(files)
        self._max_line_bytes = max_line_bytes
        self._chunk_bytes = chunk_bytes
        self._read_ahead_bytes = read_ahead_bytes
        self._bases = [0]
        for file in self._files:
            self._bases.append(self._bases[-1] + file.size)
        self._ahead = b""
        self._ahead_at = 0

    def __repr__(self) -> str:
        return f"<Sources {[file.name for file in self._files]} {self.total_bytes} bytes>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def total_bytes(self) -> int:
        """Size of all files together, unpacked, as of the moment they were opened."""
        return self._bases[-1]

    def close(self) -> None:
        """Close all files, and with that delete their copies."""
        while self._files:
            os.close(self._files.pop().fd)

    def where(self, offset: int, number: int) -> str:
        """Name the place of a line as `FILE:LINE`."""
        return f"{self._files[self._file_at(offset)].name}:{number}"

    def iter_lines(self, on_bad: Callable[[str, str], None]) -> Iterator[tuple[int, int, bytes]]:
        """Yield (offset, line number, line) of every line, without its line end.

        What cannot be given (too long, lost in a damaged archive) is told to `on_bad(where, reason)`.

        Raises:
            BadInput: a file became shorter while it was read.
            InputMissing: reading failed.
        """
        for file, base in zip(tuple(self._files), self._bases, strict=False):
            yield from self._lines_of(file, base, on_bad)

    def read_line(self, offset: int) -> bytes:
        """Return the line that begins at `offset`, without its line end; b"" if the file ends before it.

        Raises:
            InputMissing: reading failed.
        """
        begin = offset - self._ahead_at
        end = self._ahead.find(b"\n", begin) if begin >= 0 else -1
        size = self._read_ahead_bytes
        while end < 0:
            which = self._file_at(offset)
            at = offset - self._bases[which]
            size = min(size, self._files[which].size - at)
            self._ahead = _read(self._files[which], size, at)
            self._ahead_at, begin = offset, 0
            end = self._ahead.find(b"\n")
            if end < 0 and (len(self._ahead) < size or at + size >= self._files[which].size):
                end = len(self._ahead)
            size *= 4
        return self._ahead[begin:end].removesuffix(b"\r")

    def _file_at(self, offset: int) -> int:
        return bisect_right(self._bases, offset, 0, len(self._files)) - 1

    def _lines_of(
        self, file: OpenedFile, base: int, on_bad: Callable[[str, str], None]
    ) -> Iterator[tuple[int, int, bytes]]:
        longest = self._max_line_bytes
        number = 0
        offset = base + file.start
        unfinished = b""
        skipping = False
        for chunk in _chunks(file, self._chunk_bytes):
            if skipping:
                end = chunk.find(b"\n") + 1
                offset += end or len(chunk)
                if not end:
                    continue
                skipping = False
                unfinished = chunk[end:]
            else:
                unfinished += chunk
            lines = unfinished.split(b"\n")
            unfinished = lines.pop()
            for line in lines:
                number += 1
                length = len(line)
                if length > longest:
                    on_bad(f"{file.name}:{number}", self._too_long())
                elif line[-1:] == b"\r":
                    yield offset, number, line[:-1]
                else:
                    yield offset, number, line
                offset += length + 1
            if len(unfinished) > longest:
                number += 1
                on_bad(f"{file.name}:{number}", self._too_long())
                offset += len(unfinished)
                unfinished = b""
                skipping = True
        if file.damage:
            on_bad(f"{file.name}:{number + 1}", file.damage)
        elif unfinished:
            yield offset, number + 1, unfinished.removesuffix(b"\r")

    def _too_long(self) -> str:
        return f"the line is longer than {self._max_line_bytes:,} bytes: split it into jobs"


def open_sources(
    names: Sequence[str],
    *,
    spool_dir: Path,
    forbidden: AbstractSet[tuple[int, int]] = frozenset(),
    max_line_bytes: int = MAX_LINE_BYTES,
    max_spool_bytes: int = MAX_SPOOL_BYTES,
) -> Sources:
    """Open FILEs as they were given on the command line; see `open_file` for the arguments.

    Raises:
        UsageError: standard input is named twice.
        InputMissing: a file is not there or cannot be read.
        BadInput: a file cannot be a job file.
        OutputError: a copy cannot be written.
    """
    if names.count(STDIN) > 1:
        raise UsageError("- (standard input) can be named only once")
    files: list[OpenedFile] = []
    try:
        for name in names:
            file = open_file(name, spool_dir=spool_dir, forbidden=forbidden, max_spool_bytes=max_spool_bytes)
            files.append(file)
    except BaseException:
        Sources(files).close()
        raise
    return Sources(files, max_line_bytes=max_line_bytes)


def _chunks(file: OpenedFile, chunk_bytes: int) -> Iterator[bytes]:
    at = file.start
    while at < file.size:
        chunk = _read(file, min(chunk_bytes, file.size - at), at)
        if not chunk:
            raise BadInput(f"{file.name}: became shorter while it was read: run the command again")
        at += len(chunk)
        yield chunk


def _read(file: OpenedFile, size: int, at: int) -> bytes:
    try:
        return os.pread(file.fd, size, at)
    except OSError as error:
        raise InputMissing(f"{file.name}: cannot be read: {error.strerror}") from error
