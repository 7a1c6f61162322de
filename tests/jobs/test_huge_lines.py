"""Lines and archives far larger than memory should ever hold, checked by a process that is measured."""

import gzip
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

# A process of its own in between, because a child's peak starts with that of its parent.
PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
BATCHER = Path(sys.executable).with_name("batcher")
MB = 1_000_000
GOOD = b'{"id":"%d","model":"m","prompt":"x"}\n'


def check(name: str, cwd: Path) -> tuple[int, int, str]:
    """Return exit code, peak of memory in MB, and stderr."""
    ended = subprocess.run(
        [sys.executable, "-c", PEAK, BATCHER, "check", name],
        cwd=cwd,
        env={"PATH": os.defpath, "TMPDIR": str(cwd)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    code, peak_kb = map(int, ended.stdout.split())
    return code, peak_kb // 1000, ended.stderr


def sparse(path: Path, size: int) -> None:
    """A file of one good line, NULs without a newline (no blocks on the disk), and another good line."""
    with path.open("wb") as file:
        file.write(GOOD % 1)
        file.seek(size, os.SEEK_CUR)
        file.write(b"\n" + GOOD % 2)


@pytest.mark.parametrize("size", [1000 * MB, pytest.param(10_000 * MB, marks=pytest.mark.long)])
def test_a_line_of_a_gigabyte_is_one_bad_line(tmp_path: Path, size: int) -> None:
    sparse(tmp_path / "jobs.jsonl", size)
    code, peak_mb, stderr = check("jobs.jsonl", tmp_path)
    assert code == 65
    assert "jobs.jsonl:2: the line is longer than 16,000,000 bytes" in stderr
    assert "2 jobs, 1 model, 1 bad line" in stderr
    assert peak_mb < 150


def endless(size: int) -> Iterator[bytes]:
    yield GOOD % 1 + b'{"id":"2","model":"m","prompt":"'
    for _ in range(size // MB):
        yield b"x" * MB
    yield b'"}\n' + GOOD % 3


@pytest.mark.parametrize("size", [100 * MB, pytest.param(1000 * MB, marks=pytest.mark.long)])
def test_a_pipe_that_brings_one_endless_line_is_no_burden(tmp_path: Path, size: int) -> None:
    pipe = tmp_path / "jobs.fifo"
    os.mkfifo(pipe)

    def feed() -> None:
        with pipe.open("wb") as file:
            for data in endless(size):
                file.write(data)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    code, peak_mb, stderr = check("jobs.fifo", tmp_path)
    feeder.join(30)
    assert code == 65
    assert "jobs.fifo:2: the line is longer than" in stderr
    assert "2 jobs, 1 model, 1 bad line" in stderr
    assert peak_mb < 150
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.fifo"]


ALMOST = 15_900_000
AT_THE_CAP = {
    "long prompt": (b'{"model":"m","prompt":"%s"}' % (b"x" * ALMOST), ""),
    "cut off": (b'{"model":"m","prompt":"%s' % (b"x" * ALMOST), "ends in the middle of its JSON object"),
    "NULs": (bytes(ALMOST), "NUL bytes (15900000) from byte 0 on"),
    "brackets": (b"[" * ALMOST, "this looks like a JSON array file"),
    "nested": (b'{"a":' * (ALMOST // 5), "nested too deeply"),
    "one long number": (b'{"model":"m","prompt":"x","metadata":{"a":%s}}' % (b"1" * ALMOST), "too large"),
    "long id": (b'{"id":"%s","model":"m","prompt":"x"}' % (b"x" * ALMOST), '"id" is "xxx'),
    "long name": (b'{"%s":1}' % (b"x" * ALMOST), 'unknown field "xxx'),
    "bad byte at the end": (b'{"model":"m","prompt":"%s\xff"}' % (b"x" * ALMOST), "not UTF-8: byte 0xff"),
    "NaN at the end": (b'{"model":"m","prompt":"%s","params":{"n":NaN}}' % (b"x" * ALMOST), "NaN at byte"),
}


def test_lines_just_below_the_cap_cost_a_few_times_their_size(tmp_path: Path) -> None:
    with (tmp_path / "jobs.jsonl").open("wb") as file:
        file.writelines(line + b"\n" for line, _ in AT_THE_CAP.values())
    code, peak_mb, stderr = check("jobs.jsonl", tmp_path)
    assert code == 65
    expected = [(number, reason) for number, (_, reason) in enumerate(AT_THE_CAP.values(), start=1) if reason]
    reported = stderr.splitlines()[: len(expected)]
    for (number, reason), line in zip(expected, reported, strict=True):
        assert line.startswith(f"jobs.jsonl:{number}: ")
        assert reason in line
        assert len(line) < 300
    assert peak_mb < 300


BOMBS: dict[str, Callable[[int], bytes]] = {
    "gzip": lambda size: gzip.compress(bytes(size), 9),
    "zstd": lambda size: zstandard.compress(bytes(size), 19),
    "gzip of newlines": lambda size: gzip.compress(b"\n" * size, 9),
}


@pytest.mark.parametrize("pack", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_refused_before_it_grows(tmp_path: Path, pack: Callable[[int], bytes]) -> None:
    (tmp_path / "jobs.gz").write_bytes(pack(60 * MB))
    code, peak_mb, stderr = check("jobs.gz", tmp_path)
    assert code == 65
    assert "jobs.gz: grows more than 200 times when unpacked" in stderr
    assert peak_mb < 200
