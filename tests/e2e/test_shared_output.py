"""One output has one writer, whoever else wants it."""

from contextlib import ExitStack
from pathlib import Path

from harness import assert_each_once, batcher, job, names, simulating, started, write_jobs

STARTS = 8


def test_of_eight_simultaneous_starts_one_runs_and_the_others_name_it(tmp_path: Path) -> None:
    ids = names(12)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"
    with simulating(tmp_path, "--latency", 1, "--latency-shape", "fixed") as server, ExitStack() as stack:
        run = ("run", jobs.name, "--base-url", server.url, "--concurrency", 4)
        commands = [
            stack.enter_context(started(*run, cwd=tmp_path, name=f"run-{number}")) for number in range(STARTS)
        ]
        ends = [(command.pid, command.end()) for command in commands]
        assert server.requests == len(ids)

    [winner] = [pid for pid, done in ends if done.code == 0]
    losers = [done for pid, done in ends if pid != winner]
    assert [done.code for done in losers] == [75] * (STARTS - 1)
    assert all(f"pid {winner}" in done.stderr for done in losers)
    assert_each_once(out, ids)


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
    with simulating(tmp_path, "--latency", 0.3) as server:
        run = ("run", jobs.name, "--base-url", server.url, "--concurrency", 4)
        with started(*run, cwd=tmp_path) as command:
            command.wait_until(lambda: server.requests > 4)
            during = batcher("status", "results/jobs.jsonl", cwd=tmp_path)
            done = command.end()
        after = batcher("status", "results/jobs.jsonl", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert (during.code, after.code) == (0, 0)
    assert str(command.pid) in during.stdout + during.stderr
    assert str(command.pid) not in after.stdout + after.stderr
