"""How FILEs become lines: kinds of files, archives, bounds."""

import gzip
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import BadInput, BatcherError, InputMissing, OutputError, UsageError
from batcher.jobs.opened import OpenedFile
from batcher.jobs.source import Sources, open_sources

TEXT = b"".join(b'{"id":%d}\n' % number for number in range(1000))


def lines_of(sources: Sources) -> tuple[list[tuple[int, int, bytes]], list[tuple[str, str]]]:
    bad: list[tuple[str, str]] = []
    return list(sources.iter_lines(lambda where, reason: bad.append((where, reason)))), bad


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def zst(data: bytes) -> bytes:
    return zstandard.compress(data)


SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"

PACKED = {
    "plain": TEXT,
    "gzip": gz(TEXT),
    "zstd": zst(TEXT),
    "gzip members": gz(TEXT[:500]) + gz(b"") + gz(TEXT[500:]),
    "zstd frames": zst(TEXT[:500]) + zst(TEXT[500:]),
    "zstd skippable": SKIPPABLE + zst(TEXT) + SKIPPABLE,
    "gzip padded": gz(TEXT) + bytes(512),
}


@pytest.mark.parametrize("data", PACKED.values(), ids=PACKED.keys())
@pytest.mark.parametrize("name", ["jobs.jsonl", "jobs.gz"])
def test_archives_are_known_by_their_content(tmp_path: Path, name: str, data: bytes) -> None:
    with open_sources([write(tmp_path / name, data)], spool_dir=tmp_path) as sources:
        lines, bad = lines_of(sources)
        assert sources.total_bytes == len(TEXT)
        assert os.listdir(tmp_path) == [name]
        assert [sources.read_line(offset) for offset, _, _ in lines] == [line for _, _, line in lines]
    assert b"".join(line + b"\n" for _, _, line in lines) == TEXT
    assert bad == []


DAMAGED = {
    "gzip cut": (gz(TEXT)[:-40], "cut off"),
    "zstd cut": (zst(TEXT)[:-40], "cut off"),
    "gzip wrong sum": (gz(TEXT)[:-8] + bytes(8), "damaged"),
    "gzip rest": (gz(TEXT) + b"rest", "damaged"),
    "zstd rest": (zst(TEXT) + b"rest", "damaged"),
    "second member cut": (gz(TEXT) + gz(TEXT)[:20], "cut off"),
}


@pytest.mark.parametrize(("data", "reason"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_archive_gives_its_good_lines_and_one_reason(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    name = write(tmp_path / "jobs.jsonl.gz", data)
    with open_sources([name], spool_dir=tmp_path) as sources:
        lines, bad = lines_of(sources)
    whole = TEXT.split(b"\n")[:-1]
    assert [line for _, _, line in lines] == whole[: len(lines)]
    assert bad[0][0] == f"{name}:{len(lines) + 1}"
    assert reason in bad[0][1]
    assert len(bad) == 1


REFUSED = {
    "UTF-16 LE": ('{"id":1}\n'.encode("utf-16"), "UTF-16"),
    "UTF-16 BE": ("\ufeff{}".encode("utf-16-be"), "UTF-16"),
    "UTF-16 without mark": ("{}".encode("utf-16-le"), "UTF-16"),
    "UTF-32": ("{}".encode("utf-32"), "UTF-32"),
    "UTF-32 without mark": ("{}".encode("utf-32-be"), "UTF-32"),
    "zip": (b"PK\x03\x04rest", "zip"),
    "PDF": (b"%PDF-1.7\n", "a PDF"),
    "Parquet": (b"PAR1\x15\x04", "Parquet"),
    "bzip2": (b"BZh91AY", "bzip2"),
    "xz": (b"\xfd7zXZ\x00\x00", "xz"),
    "SQLite": (b"SQLite format 3\x00", "SQLite"),
    "tar": (b"jobs.jsonl".ljust(257, b"\0") + b"ustar\0", "tar"),
    "twice packed": (gz(gz(TEXT)), "archive inside an archive"),
    "PDF in gzip": (gz(b"%PDF-1.7"), "a PDF"),
    "UTF-16 in zstd": (zst('{"id":1}\n'.encode("utf-16")), "UTF-16"),
    "7z": (b"7z\xbc\xaf\x27\x1crest", "7z"),
    "Arrow": (b"ARROW1\0\0", "Arrow"),
    "PNG": (b"\x89PNG\r\n", "an image"),
    "JPEG": (b"\xff\xd8\xff\xe0", "an image"),
    "ELF": (b"\x7fELF\x02", "a program"),
    "bomb of many members": (b"".join([gz(bytes(1_000_000))] * 9), "more than 200 times"),
    "gzip bomb": (gz(bytes(8_000_000)), "more than 200 times"),
    "zstd bomb": (zst(bytes(100_000_000)), "more than 200 times"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_text_is_refused_at_once(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        open_sources([write(tmp_path / "jobs.jsonl", data)], spool_dir=tmp_path)


def test_a_well_packed_small_file_is_no_bomb(tmp_path: Path) -> None:
    name = write(tmp_path / "jobs.gz", gz(b"\n" * 900_000))
    with open_sources([name], spool_dir=tmp_path) as sources:
        assert sources.total_bytes == 900_000


def no_permission(path: Path) -> None:
    path.write_bytes(TEXT)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")


def dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def loop(path: Path) -> None:
    path.symlink_to(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


MISSING: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "no such file"),
    "directory": (Path.mkdir, "is a directory"),
    "no permission": (no_permission, "no permission"),
    "dangling link": (dangling, "a link to a file that does not exist"),
    "link to itself": (loop, "cannot be opened"),
    "socket": (unix_socket, "cannot be opened"),
}


@pytest.mark.parametrize(("make", "reason"), MISSING.values(), ids=MISSING.keys())
def test_what_cannot_be_read_is_named(tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
    path = tmp_path / "jobs.jsonl"
    make(path)
    with pytest.raises(InputMissing, match=f"jobs.jsonl: .*{reason}"):
        open_sources([str(path)], spool_dir=tmp_path)


NO_INPUT = [
    ("/dev/zero", "device"),
    ("a\0b", "not the name of a file"),
    ("/proc/self/mem", "cannot be read: Input/output error"),
    ("/proc/self/environ/x", "cannot be opened: Not a directory"),
    ("x" * 300, "cannot be opened: File name too long"),
]


@pytest.mark.parametrize(("name", "reason"), NO_INPUT)
def test_devices_and_nonsense_are_no_input(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(InputMissing, match=reason):
        open_sources([name], spool_dir=tmp_path)


@pytest.mark.parametrize("link", [None, os.link, os.symlink], ids=["itself", "hard link", "symbolic link"])
@pytest.mark.parametrize("data", [TEXT, gz(TEXT)], ids=["plain", "packed"])
def test_an_output_is_no_input(tmp_path: Path, link: Callable[[str, str], None] | None, data: bytes) -> None:
    name = output = write(tmp_path / "jobs.jsonl", data)
    if link is not None:
        name = str(tmp_path / "link.jsonl")
        link(output, name)
    status = os.stat(output)
    with pytest.raises(BadInput, match="is an output of this run too"):
        open_sources([name], spool_dir=tmp_path, forbidden={(status.st_dev, status.st_ino)})


def test_a_fifo_is_copied_and_read_once(tmp_path: Path) -> None:
    name = str(tmp_path / "jobs.fifo")
    os.mkfifo(name)
    writer = threading.Thread(target=lambda: Path(name).write_bytes(gz(TEXT)))
    writer.start()
    with open_sources([name], spool_dir=tmp_path) as sources:
        writer.join(5)
        lines, bad = lines_of(sources)
        assert len(lines) == 1000
        assert sources.read_line(lines[500][0]) == b'{"id":500}'
    assert bad == []


def test_a_file_that_claims_to_be_empty_is_read_to_its_end(tmp_path: Path) -> None:
    with open_sources(["/proc/self/status"], spool_dir=tmp_path) as sources:
        lines, bad = lines_of(sources)
        assert lines[0][2].startswith(b"Name:")
        assert [sources.read_line(offset) for offset, _, _ in lines] == [line for _, _, line in lines]
        assert sources.total_bytes > 100
    assert bad == []


def test_standard_input_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only once"):
        open_sources(["-", "-"], spool_dir=tmp_path)


def test_a_copy_has_its_bound_and_needs_a_place(tmp_path: Path) -> None:
    name = write(tmp_path / "jobs.gz", gz(TEXT))
    with pytest.raises(BadInput, match="more than 999 bytes"):
        open_sources([name], spool_dir=tmp_path, max_spool_bytes=999)
    with pytest.raises(OutputError, match="cannot be copied"):
        open_sources([name], spool_dir=tmp_path / "nowhere")


def test_a_file_that_cannot_be_opened_closes_the_others(tmp_path: Path) -> None:
    name = write(tmp_path / "jobs.jsonl", TEXT)
    before = len(os.listdir("/proc/self/fd"))
    for other, error in (("nope", InputMissing), (str(tmp_path), InputMissing)):
        with pytest.raises(error):
            open_sources([name, name, other], spool_dir=tmp_path)
    bomb = write(tmp_path / "bomb", gz(bytes(8_000_000)))
    with pytest.raises(BatcherError):
        open_sources([name, bomb], spool_dir=tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


ENDS = {
    "LF": (b"a\nb\n", [b"a", b"b"]),
    "CRLF": (b"a\r\nb\r\n", [b"a", b"b"]),
    "no final newline": (b"a\nb", [b"a", b"b"]),
    "final CR": (b"a\nb\r", [b"a", b"b"]),
    "blank lines": (b"\na\n\n \r\n", [b"", b"a", b"", b" "]),
    "BOM": (b"\xef\xbb\xbfa\nb\n", [b"a", b"b"]),
    "second BOM": (b"a\n\xef\xbb\xbfb\n", [b"a", b"\xef\xbb\xbfb"]),
    "only BOM": (b"\xef\xbb\xbf", []),
    "other separators": ("a\u2028\u0085\x0b\x0c\rb\n".encode(), ["a\u2028\u0085\x0b\x0c\rb".encode()]),
    "empty": (b"", []),
}


@pytest.mark.parametrize(("data", "expected"), ENDS.values(), ids=ENDS.keys())
def test_lines_end_at_newlines_only(tmp_path: Path, data: bytes, expected: list[bytes]) -> None:
    with open_sources([write(tmp_path / "jobs.jsonl", data)], spool_dir=tmp_path) as sources:
        lines, bad = lines_of(sources)
        assert [line for _, _, line in lines] == expected
        assert [number for _, number, _ in lines] == list(range(1, len(expected) + 1))
        assert [sources.read_line(offset) for offset, _, _ in lines] == expected
    assert bad == []


texts = st.lists(
    st.sampled_from([b"a", b"\n", b"\r\n", b"\r", b"0123456789", b"\xef\xbb\xbf"]), max_size=40
).map(b"".join)


@given(st.lists(texts, min_size=1, max_size=3), st.integers(1, 30), st.data())
def test_neither_chunks_nor_files_change_a_line(
    contents: list[bytes], chunk: int, data: st.DataObject
) -> None:
    files = []
    for number, content in enumerate(contents):
        fd = os.memfd_create("jobs")
        os.write(fd, content)
        files.append(OpenedFile(name=f"f{number}", fd=fd, start=0, size=len(content)))
    with Sources(files, max_line_bytes=12, chunk_bytes=chunk, read_ahead_bytes=chunk) as sources:
        lines, bad = lines_of(sources)
        expected = [
            (f"f{number}:{at}", line)
            for number, content in enumerate(contents)
            for at, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else [], start=1)
        ]
        short = [(where, line.removesuffix(b"\r")) for where, line in expected if len(line) <= 12]
        assert [(sources.where(offset, number), line) for offset, number, line in lines] == short
        assert [where for where, _ in bad] == [where for where, line in expected if len(line) > 12]
        for offset, _, line in data.draw(st.permutations(lines)):
            assert sources.read_line(offset) == line


def test_a_line_above_the_cap_is_reported_and_never_held(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    with path.open("wb") as file:
        file.write(b"a\n")
        file.seek(50_000_000, os.SEEK_CUR)  # a sparse run of NULs without a newline
        file.write(b"\nb\n" + b"c" * 2000 + b"\nd")
    with open_sources([str(path)], spool_dir=tmp_path, max_line_bytes=1000) as sources:
        lines, bad = lines_of(sources)
        assert [(number, line) for _, number, line in lines] == [(1, b"a"), (3, b"b"), (5, b"d")]
        assert [sources.read_line(offset) for offset, _, _ in lines] == [b"a", b"b", b"d"]
    assert [where for where, _ in bad] == [f"{path}:2", f"{path}:4"]
    assert "longer than 1,000 bytes" in bad[0][1]


def test_what_is_appended_later_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b"a\nb")
    with open_sources([str(path)], spool_dir=tmp_path) as sources:
        with path.open("ab") as file:
            file.write(b"bb\nc\n")
        lines, _ = lines_of(sources)
        assert [line for _, _, line in lines] == [b"a", b"b"]
        assert sources.read_line(lines[1][0]) == b"b"


def test_a_file_that_shrinks_while_it_is_read_stops_the_pass(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b"a\nb\n")
    with open_sources([str(path)], spool_dir=tmp_path) as sources:
        path.write_bytes(b"")
        with pytest.raises(BadInput, match="became shorter"):
            lines_of(sources)
        assert sources.read_line(2) == b""


def test_repr_names_the_files(tmp_path: Path) -> None:
    name = write(tmp_path / "jobs.jsonl", TEXT)
    with open_sources([name], spool_dir=tmp_path) as sources:
        assert repr(sources) == f"<Sources ['{name}'] {len(TEXT)} bytes>"
