"""The first signal lets the calls in flight finish, the second ends the run at once."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import (
    Simulator,
    assert_each_once,
    batcher,
    catches,
    count_lines,
    job,
    names,
    read_journal,
    read_lines,
    read_summary,
    simulating,
    started,
    write_jobs,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """A simulator that takes its time."""
    with simulating(
        tmp_path_factory.mktemp("simulator"), "--latency", 0.1, "--latency-shape", "fixed"
    ) as simulator:
        yield simulator


@pytest.fixture
def server(shared: Simulator) -> Simulator:
    """The simulator, which has forgotten all counts."""
    shared.reset()
    return shared


def ignoring(number: signal.Signals) -> Callable[[], object]:
    """Start a command as a shell or `nohup` does, with a signal ignored."""
    return lambda: signal.signal(number, signal.SIG_IGN)


@pytest.mark.parametrize(
    ("number", "before"),
    [
        pytest.param(signal.SIGTERM, None, id="SIGTERM"),
        pytest.param(signal.SIGHUP, None, id="SIGHUP"),
        pytest.param(signal.SIGINT, ignoring(signal.SIGINT), id="SIGINT in a shell's background"),
    ],
)
def test_one_signal_drains(
    tmp_path: Path, server: Simulator, number: signal.Signals, before: Callable[[], object] | None
) -> None:
    ids = names(100)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"
    run = ("run", jobs.name, "--base-url", server.url)
    with started(*run, "--concurrency", 8, cwd=tmp_path, before=before) as command:
        command.wait_until(lambda: count_lines(out) >= 16)
        command.send(number)
        drained = command.end(5)
    in_time = read_lines(out)
    calls = server.requests
    resumed = batcher(*run, cwd=tmp_path)
    assert server.requests == len(ids), "a call was paid twice"

    assert drained.code == 75
    assert number.name in drained.stderr
    assert "run the same command again" in drained.stderr
    assert len(in_time) == calls < len(ids), "an answer that was paid is not there"
    assert resumed.code == 0, resumed.stderr
    assert_each_once(out, ids)


def test_a_run_under_nohup_ignores_the_hangup(tmp_path: Path, server: Simulator) -> None:
    ids = names(30)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"
    run = ("run", jobs.name, "--base-url", server.url, "--concurrency", 8)
    with started(*run, cwd=tmp_path, before=ignoring(signal.SIGHUP)) as command:
        command.wait_until(lambda: count_lines(out) >= 8)
        command.send(signal.SIGHUP)
        done = command.end()
    assert done.code == 0, done.stderr
    assert_each_once(out, ids)


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGTERM, signal.SIGTERM, 143),
        (signal.SIGINT, signal.SIGINT, 130),
    ],
    ids=["SIGTERM twice", "SIGINT twice"],
)
def test_a_second_signal_gives_up_what_is_in_flight(
    tmp_path: Path, first: signal.Signals, second: signal.Signals, code: int
) -> None:
    ids = names(30)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"
    # The first 20 are answered, the others never. Four calls go out at once from the start; for a fifth the
    # answers would have to show that more are of use, and on a busy machine each may be there before the next
    # call is made.
    hangs = [arg for name in ids[20:] for arg in ("--fault", f"id:hang={name}")]
    with simulating(tmp_path, *hangs) as server:
        run = ("run", jobs.name, "--base-url", server.url, "--concurrency", 4)
        with started(*run, cwd=tmp_path) as command:
            command.wait_until(lambda: count_lines(out) == 20 and server.stats()["in_flight"] == 4)
            command.send(first)
            command.wait_until(lambda: first.name in command.stderr)
            assert command.process.poll() is None
            command.send(second)
            forced_at = time.monotonic()
            forced = command.end(10)
            assert time.monotonic() - forced_at < 3
        in_doubt = {record["id"] for record in read_journal(out, "unknown")}
        assert server.requests == 24, "a drained run starts nothing new"
        assert_each_once(out, ids[:20])
        # A hang strikes the first call of its id: what was in flight is free of it now.
        rest = batcher(*run[:4], "--limit", 4, cwd=tmp_path)

    assert forced.code == code
    assert in_doubt == set(ids[20:24])
    assert rest.code == 0, rest.stderr
    assert_each_once(out, ids[:24])


def test_after_its_grace_a_drained_run_waits_no_longer(tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, names(4)))
    out = tmp_path / "results" / "jobs.jsonl"
    with simulating(tmp_path, "--fault", "hang=1") as server:
        run = ("run", jobs.name, "--base-url", server.url, "--grace", "0.5s")
        with started(*run, cwd=tmp_path) as command:
            command.wait_until(lambda: server.stats()["in_flight"] == 4)
            command.send(signal.SIGTERM)
            done = command.end(5)
    assert done.code == 75
    assert read_summary(out)["jobs"]["pending"] == 4
    assert len(read_journal(out, "unknown")) == 4


def test_a_deadline_drains_as_well(tmp_path: Path, server: Simulator) -> None:
    ids = names(80)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"
    run = ("run", jobs.name, "--base-url", server.url)
    done = batcher(*run, "--concurrency", 8, "--deadline", "0.5s", cwd=tmp_path)
    resumed = batcher(*run, cwd=tmp_path)
    assert server.requests == len(ids)
    assert done.code == 75, done.stderr
    assert "deadline" in done.stderr
    assert resumed.code == 0, resumed.stderr
    assert_each_once(out, ids)


def test_a_run_that_was_stopped_for_a_while_goes_on(tmp_path: Path) -> None:
    ids = names(40)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"
    with simulating(tmp_path, "--latency", 0.1, "--latency-shape", "fixed") as server:
        run = ("run", jobs.name, "--base-url", server.url, "--concurrency", 8, "--timeout", "1")
        with started(*run, cwd=tmp_path) as command:
            command.wait_until(lambda: count_lines(out) >= 8)
            command.send(signal.SIGSTOP)
            # For longer than a call may last: as when a laptop sleeps.
            wakes_at = server.stats()["uptime_s"] + 1.2
            command.wait_until(lambda: server.stats()["uptime_s"] > wakes_at)
            stopped_at = count_lines(out)
            command.send(signal.SIGCONT)
            done = command.end()
        requests = server.requests
    assert stopped_at < len(ids)
    assert done.code == 0, done.stderr
    assert requests <= len(ids) + 8
    assert_each_once(out, ids)


def test_a_broken_pipe_of_somebody_else_ends_no_run(tmp_path: Path, server: Simulator) -> None:
    ids = names(30)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"
    with started("run", jobs.name, "--base-url", server.url, "--concurrency", 8, cwd=tmp_path) as command:
        command.wait_until(lambda: count_lines(out) >= 8)
        command.send(signal.SIGPIPE)
        done = command.end()
    assert done.code == 0, done.stderr
    assert_each_once(out, ids)


def test_the_first_process_of_a_container_drains_as_well(tmp_path: Path, server: Simulator) -> None:
    isolated = ["unshare", "--pid", "--fork", "--kill-child"]
    if not shutil.which("unshare") or subprocess.run([*isolated, "true"], check=False).returncode:
        pytest.skip("no namespace of processes can be made here")
    ids = names(100)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"
    run = ("run", jobs.name, "--base-url", server.url)
    with started(*run, "--concurrency", 8, cwd=tmp_path, under=isolated) as command:
        command.wait_until(lambda: count_lines(out) >= 16)
        [first] = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
        # The system gives a process 1 no default for a signal: without a handler it would go on.
        os.kill(int(first), signal.SIGTERM)
        drained = command.end(10)
    assert drained.code == 75, drained.stderr
    assert json.loads(out.with_suffix(".lock").read_bytes())["pid"] == 1
    assert len(read_lines(out)) == server.requests < len(ids)


def test_a_signal_before_the_run_begins_counts(tmp_path: Path, server: Simulator) -> None:
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, names(10)))
    config = tmp_path / "slow.yaml"
    os.mkfifo(config)
    run = ("run", jobs.name, "--base-url", server.url, "-c", config)
    with started(*run, cwd=tmp_path) as command:
        command.wait_until(lambda: catches(command.pid, signal.SIGTERM))
        command.send(signal.SIGTERM)
        config.write_text("grace: 5\n")
        done = command.end(10)
    assert server.requests == 0
    assert done.code == 75, done.stderr
    assert "nothing was sent" in done.stderr


def test_a_signal_after_the_run_has_ended_changes_nothing(tmp_path: Path, server: Simulator) -> None:
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, names(10)))
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, b" "):  # until not even a summary fits
            pass
    os.set_blocking(writer, True)
    run = ("run", jobs.name, "--base-url", server.url, "--json")
    with (
        open(reader, "rb") as stdout,
        started(*run, cwd=tmp_path, before=lambda: os.dup2(writer, 1)) as command,
    ):
        os.close(writer)
        command.wait_until(lambda: "results: " in command.stderr)
        command.send(signal.SIGTERM)
        summary = json.loads(stdout.read())
        done = command.end(10)
    assert done.code == 0, done.stderr
    assert summary["exit_code"] == 0


def test_a_signal_while_the_job_file_is_read_ends_the_run_before_anything_is_sent(
    tmp_path: Path, server: Simulator
) -> None:
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_bytes(
        b"".join(b'{"id":"%d","model":"m","prompt":"%0200d"}\n' % (n, n) for n in range(300_000))
    )
    out = tmp_path / "results" / "jobs.jsonl"
    with started("run", jobs.name, "--base-url", server.url, cwd=tmp_path) as command:
        command.wait_until(out.exists)
        command.send(signal.SIGTERM)
        done = command.end(5)
    assert server.requests == 0
    assert done.code == 75
    assert "nothing was sent" in done.stderr
