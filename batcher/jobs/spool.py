"""Copies what can be read only once (a pipe, an archive) into an unnamed file, readable at any offset."""

import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

from batcher.errors import BadInput, InputMissing, OutputError

GZIP = b"\x1f\x8b\x08"
# The second is a skippable frame, which parallel packers write first.
ZSTD = (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18")

MAX_RATIO = 200
FREE_OF_RATIO_BYTES = 1_000_000

_READ_BYTES = 1 << 18
# An unpacker has no bound on what one call brings: 1 KB of the worst zstd frame makes 32 MB.
_UNPACK_BYTES = 1 << 10
_ZSTD_WINDOW_BYTES = 1 << 27


@dataclass(frozen=True, slots=True, kw_only=True)
class Spooled:
    """The copy: readable by nobody else, and gone once `fd` is closed. `damage` says why it is not whole."""

    fd: int
    size: int
    damage: str | None


class _Unpacker(Protocol):
    """One member of an archive, as zlib and zstandard both have it."""

    def decompress(self, data: bytes, /) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


def spool(fd: int, label: str, *, into: Path, max_bytes: int) -> Spooled:
    """Copy what `fd` brings, unpacked if it begins like a gzip or zstd archive.

    A damaged archive is copied up to the damage.

    Raises:
        BadInput: more than `max_bytes`, or an archive that grows more than 200 times after its first MB.
        InputMissing: reading failed.
        OutputError: writing failed.
    """
    damage = None
    size = 0
    try:
        with tempfile.TemporaryFile(dir=into, prefix="batcher-") as copy:
            try:
                for data in _contents(_chunks(fd, label), label):
                    size += len(data)
                    if size > max_bytes:
                        raise BadInput(f"{label}: brings more than {max_bytes:,} bytes: split it")
                    copy.write(data)
            except _DamagedArchiveError as fault:
                damage = str(fault)
            copy.flush()
            return Spooled(fd=os.dup(copy.fileno()), size=size, damage=damage)
    except OSError as error:
        raise OutputError(f"{label}: cannot be copied to {into}: {error.strerror}") from error


class _DamagedArchiveError(Exception):
    """The archive cannot be unpacked any further."""


def _chunks(fd: int, label: str) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(fd, _READ_BYTES)
        except OSError as error:
            raise InputMissing(f"{label}: cannot be read: {error.strerror}") from error
        if not data:
            return
        yield data


def _contents(chunks: Iterator[bytes], label: str) -> Iterator[bytes]:
    head = b""
    for data in chunks:
        head += data
        if len(head) >= len(ZSTD[0]):
            break
    if head.startswith(GZIP):
        yield from _unpack(head, chunks, lambda: zlib.decompressobj(wbits=31), (zlib.error,), label)
    elif head.startswith(ZSTD):
        import zstandard  # noqa: PLC0415  # most job files are not packed

        zstd = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        yield from _unpack(head, chunks, zstd.decompressobj, (zstandard.ZstdError,), label)
    else:
        yield head
        yield from chunks


def _unpack(
    head: bytes,
    chunks: Iterator[bytes],
    new_member: Callable[[], _Unpacker],
    faults: tuple[type[Exception], ...],
    label: str,
) -> Iterator[bytes]:
    """Unpack an archive of any number of members, in steps that keep memory flat."""
    packed_bytes = unpacked_bytes = 0
    member = None
    for data in _steps(head, chunks):
        packed_bytes += len(data)
        rest = data
        while rest:
            # Tapes and block devices fill the space behind the last member with zeros.
            rest = rest if member else rest.lstrip(b"\0")
            if not rest:
                break
            member = member or new_member()
            try:
                unpacked = member.decompress(rest)
            except faults as fault:
                raise _DamagedArchiveError(f"the archive is damaged from here on: {fault}") from None
            unpacked_bytes += len(unpacked)
            if unpacked_bytes > FREE_OF_RATIO_BYTES + MAX_RATIO * packed_bytes:
                reason = f"grows more than {MAX_RATIO} times when unpacked: unpack it first if you trust it"
                raise BadInput(f"{label}: {reason}")
            yield unpacked
            rest = b""
            if member.eof:
                rest, member = member.unused_data, None
    if member is not None:
        raise _DamagedArchiveError("the archive ends here in the middle: it was cut off")


def _steps(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chain((head,), chunks):
        for at in range(0, len(chunk), _UNPACK_BYTES):
            yield chunk[at : at + _UNPACK_BYTES]
