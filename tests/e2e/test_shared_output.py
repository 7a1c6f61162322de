"""One output has one writer, whoever else wants it."""

import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import assert_each_once, batcher, job, names, simulating, started, write_jobs

STARTS = 20


def test_of_twenty_simultaneous_starts_one_runs_and_the_others_name_it(tmp_path: Path) -> None:
    ids = names(12)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"
    # The one that runs gets no answer while the others start: it is killed, and the next start goes on.
    hangs = [arg for name in ids[:4] for arg in ("--fault", f"id:hang={name}")]
    with simulating(tmp_path, *hangs) as server, ExitStack() as stack:
        run = ("run", jobs.name, "--base-url", server.url, "--concurrency", 4)
        commands = [
            stack.enter_context(started(*run, cwd=tmp_path, name=f"run-{number}")) for number in range(STARTS)
        ]
        ends_at = time.monotonic() + 60
        while len(running := [command for command in commands if command.process.poll() is None]) > 1:
            assert time.monotonic() < ends_at, "more than one runs"
            time.sleep(0.01)
        [winner] = running
        winner.wait_until(lambda: server.stats()["in_flight"] == 4)
        losers = [command.end() for command in commands if command is not winner]
        winner.kill()
        assert server.requests == 4
        with started(*run, cwd=tmp_path, name="next") as following:
            done = following.end()

    assert [loser.code for loser in losers] == [75] * (STARTS - 1)
    assert all(f"pid {winner.pid} on {socket.gethostname()}" in loser.stderr for loser in losers)
    assert done.code == 0, done.stderr
    assert_each_once(out, ids)


@pytest.mark.parametrize("races", [8, pytest.param(200, marks=pytest.mark.long)])
def test_two_that_race_for_an_output_never_both_run(tmp_path: Path, races: int) -> None:
    ids = names(2)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    refused = 0
    with simulating(tmp_path, "--latency", 0.1, "--latency-shape", "fixed") as server:
        for race in range(races):
            out = tmp_path / f"out-{race}" / "jobs.jsonl"
            run = ("run", jobs.name, "--base-url", server.url, "-o", out)
            with (
                started(*run, cwd=tmp_path, name=f"{race}-first") as first,
                started(*run, cwd=tmp_path, name=f"{race}-second") as second,
            ):
                ends = [first.end(), second.end()]
            codes = sorted(done.code for done in ends)
            # If one had ended before the other looked, that one had nothing to do.
            assert codes in ([0, 75], [0, 0]), ends
            refused += codes == [0, 75]
            assert server.requests == len(ids) * (race + 1), "both ran"
            assert_each_once(out, ids)
    assert refused >= races // 3, "they did not race"


def test_a_lock_file_that_a_cleaner_deleted_still_protects_the_output(tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, names(4)))
    out = tmp_path / "results" / "jobs.jsonl"
    with simulating(tmp_path, "--latency", 1, "--latency-shape", "fixed") as server:
        run = ("run", jobs.name, "--base-url", server.url)
        with started(*run, cwd=tmp_path) as command:
            command.wait_until(lambda: server.stats()["in_flight"] == 4)
            out.with_suffix(".lock").unlink()
            second = batcher(*run, cwd=tmp_path)
            first = command.end()
        assert server.requests == 4
    assert (first.code, second.code) == (0, 75)


def test_status_tells_about_a_run_that_still_runs(tmp_path: Path) -> None:
    ids = names(8)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    hangs = [arg for name in ids[4:] for arg in ("--fault", f"id:hang={name}")]
    with simulating(tmp_path, *hangs) as server:
        run = ("run", jobs.name, "--base-url", server.url, "--concurrency", 4, "--grace", "0s")
        with started(*run, cwd=tmp_path) as command:
            command.wait_until(lambda: server.stats()["in_flight"] == 4 and server.requests == 8)
            during = batcher("status", "results/jobs.jsonl", cwd=tmp_path)
            command.send(signal.SIGTERM)
            done = command.end()
        after = batcher("status", "results/jobs.jsonl", cwd=tmp_path)
    assert done.code == 75, done.stderr
    assert (during.code, after.code) == (0, 0)
    assert str(command.pid) in during.stdout + during.stderr
    assert str(command.pid) not in after.stdout + after.stderr
