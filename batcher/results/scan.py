"""Result files read line by line: whose each line is, and what is no line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from batcher.errors import OutputError
from batcher.results.line import check_crc

_LINE_MAX_BYTES = 1 << 26  # several times the largest body; a longer run of zeros is cut, to keep memory flat
_CHUNK_BYTES = 1 << 20


class _About(msgspec.Struct, gc=False):
    request_sha256: str
    provider: str = ""
    cost_usd: float | None = None


class _Failure(msgspec.Struct, gc=False):
    code: str


class Line(msgspec.Struct, gc=False):
    """The part of a result line that tells whose it is."""

    id: str
    custom_id: str
    error: _Failure | None
    batcher: _About


_decode_line = msgspec.json.Decoder(Line).decode


class Scan:
    """One forward pass over a result or error file: iterate it once, to the end.

    It yields `(id, request_sha256, ok)` of each intact line, in the order of the file; memory stays flat. A
    file that is not there has no lines. The pass ends with `OutputError` if batcher did not write the file:
    no line is intact, and the first one is an object of another make.

    Attributes:
        size: bytes read so far.
        good_end: where the last intact line ends.
        unterminated: whether the last intact line lacks its newline.
        bad: the byte ranges `(start, end)` that are no intact line, neighbours joined.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = 0
        self.good_end = 0
        self.unterminated = False
        self.bad: list[tuple[int, int]] = []

    @property
    def bad_bytes(self) -> int:
        """How many bytes belong to no intact line."""
        return sum(end - start for start, end in self.bad)

    def __iter__(self) -> Iterator[tuple[str, str, bool]]:
        foreign = False
        for raw, line in pieces(self._path):
            start = self.size
            self.size += len(raw)
            if line is not None:
                self.good_end = self.size
                self.unterminated = not raw.endswith(b"\n")
                yield line.custom_id, line.batcher.request_sha256, line.error is None
                continue
            foreign = foreign or (start == 0 and _is_foreign(raw))
            if self.bad and self.bad[-1][1] == start:
                start = self.bad.pop()[0]
            self.bad.append((start, self.size))
        if foreign and not self.good_end:
            raise OutputError(
                f"{self._path}:1: this line has no crc32, so batcher did not write the file and leaves it "
                "alone; name another output with -o, or move the file away"
            )


def pieces(path: Path) -> Iterator[tuple[bytes, Line | None]]:
    """Cut a file at its newlines; what is not an intact line comes with None."""
    with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=_CHUNK_BYTES) as file:
        while raw := file.readline(_LINE_MAX_BYTES):
            yield raw, _intact(raw)


def _intact(raw: bytes) -> Line | None:
    if not check_crc(raw):
        return None
    try:
        return _decode_line(raw)
    except (ValueError, RecursionError):  # bad UTF-8 is a ValueError as well
        return None


def _is_foreign(first_line: bytes) -> bool:
    """Whether a line that is not intact is an object without a trace of batcher."""
    if b'"crc32":' in first_line:
        return False
    try:
        value = msgspec.json.decode(first_line)
    except (ValueError, RecursionError):
        return False
    # A power cut may leave an old sector of the journal here.
    return isinstance(value, dict) and not {"event", "at"} <= value.keys()
