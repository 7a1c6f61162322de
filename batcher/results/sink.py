"""Where result lines go: a file that only grows by whole lines, or a stream."""

import contextlib
import os
import select
from pathlib import Path

from batcher.errors import OutputError
from batcher.results.files import make_directory, open_private, output_error, output_errors, sync_directory
from batcher.types import OutputPaths

_LOOK_AGAIN_S = 0.1


class Sink:
    """Where lines go: a file opened for appending, or a stream (`path` is None)."""

    def __init__(self, fd: int, path: Path | None) -> None:
        self.fd = fd
        self.path = path
        self.pending: list[bytes] = []
        self.size = self.synced = os.fstat(fd).st_size if path else 0
        self.lines_passed = 0
        self.given_up = False

    def __repr__(self) -> str:
        return f"<Sink {self.path or self.fd}: {self.size} bytes, {self.synced} on disk>"

    def take(self) -> bytes:
        """Return the pending lines, which are then no longer pending."""
        data = b"".join(self.pending)
        self.pending.clear()
        return data

    def write_pending(self) -> None:
        """Write the pending lines to the file, or as many as it takes and raise `OSError`."""
        if not self.pending:
            return
        data = self.take()
        written = 0
        try:
            while written < len(data):
                written += os.write(self.fd, data[written:] if written else data)
        except OSError:
            self.size += data.rfind(b"\n", 0, written) + 1
            self.cut(self.size)
            raise
        self.size += written

    def pass_on(self, data: bytes) -> None:
        """Write `data` to the stream as its reader takes it, until it is given up; count the whole lines."""
        rest = memoryview(data)
        while rest and not self.given_up:
            # A write that blocks could not be given up. What is ready takes this much without blocking.
            if select.select([], [self.fd], [], _LOOK_AGAIN_S)[1]:
                with contextlib.suppress(BlockingIOError):  # somebody who shares it was faster
                    rest = rest[os.write(self.fd, rest[: select.PIPE_BUF]) :]
        self.lines_passed += data.count(b"\n", 0, len(data) - len(rest))

    def cut(self, size: int) -> None:
        """Cut a file back to `size` bytes if it is longer."""
        if self.path:
            with contextlib.suppress(OSError):
                if os.fstat(self.fd).st_size > size:
                    os.ftruncate(self.fd, size)

    def close(self) -> None:
        """Close a file, once; a stream stays open."""
        if self.path and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def error(self, exc: OSError) -> OutputError:
        """Say what was seen and what to do."""
        return output_error(self.path or "stdout", exc)

    def foreign_change(self) -> OutputError | None:
        """Say so if somebody else deleted, replaced, cut or wrote to the file."""
        if self.path is None:
            return None
        try:
            ours, there = os.fstat(self.fd), os.lstat(self.path)
        except FileNotFoundError:
            seen = "was deleted"
        except OSError as exc:
            return self.error(exc)
        else:
            if not os.path.samestat(ours, there):
                seen = "was replaced by another file"
            elif ours.st_size != self.size:
                seen = f"has {ours.st_size} bytes where {self.size} were written"
            else:
                return None
        advice = "keep other programs away from it and run the same command again"
        return OutputError(f"{self.path} {seen} during the run; {advice}")


def open_output(paths: OutputPaths) -> tuple[Sink, Sink]:
    """Open the result and the error file for appending; create them, and their directory, if missing.

    Raises:
        OutputError: they cannot be created or written.
    """
    with output_errors(paths.results), contextlib.ExitStack() as opened:
        make_directory(paths.results.parent)
        sinks = []
        for path in (paths.results, paths.errors):
            sink = Sink(open_private(path, os.O_WRONLY | os.O_APPEND), path)
            opened.callback(sink.close)
            os.fsync(sink.fd)  # a killed run may have left lines that are not on disk yet
            sinks.append(sink)
        sync_directory(paths.results.parent)
        opened.pop_all()
    return sinks[0], sinks[1]


def stream_to(fd: int) -> tuple[Sink, Sink]:
    """Send results and errors alike to the stream `fd`, which stays open; nothing can be resumed from it."""
    sink = Sink(fd, None)
    return sink, sink
