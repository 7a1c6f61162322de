"""Results that go to stdout go at the pace of who reads them, but no stop waits for a reader."""

import fcntl
import os
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from harness import Started, job, names, simulating, started, write_jobs

JOBS = 300


@pytest.fixture
def stalled() -> Iterator[int]:
    """The writing end of a pipe that nobody reads, and that a few results fill."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield writer
    os.close(writer)
    os.close(reader)


def said_often(command: Started, word: str, count: int) -> bool:
    """Return whether a command has said a word so often."""
    return command.stderr.count(word) >= count


@pytest.mark.parametrize(
    ("options", "signals", "code"),
    [
        pytest.param(("--deadline", "2s", "--grace", "0.2s"), (), 75, id="deadline"),
        pytest.param(("--grace", "0.2s"), (signal.SIGTERM,), 75, id="SIGTERM and its grace"),
        pytest.param((), (signal.SIGINT, signal.SIGINT), 130, id="SIGINT twice"),
        pytest.param((), (signal.SIGTERM, signal.SIGTERM), 143, id="SIGTERM twice"),
    ],
)
def test_a_run_ends_without_the_reader_of_its_stream(
    tmp_path: Path, stalled: int, options: Sequence[str], signals: Sequence[signal.Signals], code: int
) -> None:
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, names(JOBS)))
    with simulating(tmp_path, "--latency", 0.001) as server:
        run = ("run", jobs.name, "--base-url", server.url, "-o", "-", *options)
        with started(*run, cwd=tmp_path, before=lambda: os.dup2(stalled, 1)) as command:
            if signals:
                command.wait_until(lambda: server.requests == JOBS)
            for count, number in enumerate(signals, 1):
                command.send(number)
                command.wait_until(partial(said_often, command, number.name, count))
            ended = command.end(10)
    assert ended.code == code, ended.stderr
    assert "the reader of stdout did not take" in ended.stderr
