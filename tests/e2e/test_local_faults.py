"""What this machine may do to a run: it works, or says what is wrong; the provider is never blamed."""

import os
import resource
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness import (
    Simulator,
    assert_each_once,
    batcher,
    count_lines,
    environment,
    job,
    names,
    read_journal,
    read_summary,
    simulating,
    started,
    write_jobs,
)

IDS = ["ä-Straße-日本", *names(20)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """A simulator that takes its time."""
    with simulating(tmp_path_factory.mktemp("simulator"), "--latency", 0.05) as simulator:
        yield simulator


@pytest.fixture
def server(shared: Simulator) -> Simulator:
    """The simulator, which has forgotten all counts."""
    shared.reset()
    return shared


def descriptors(count: int) -> Callable[[], object]:
    """Start a command as after `ulimit -n`."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is odd about the machine that a run finds."""

    before: Callable[[], object] | None = None
    variables: dict[str, str] = field(default_factory=dict)


MACHINES = {
    "L18 ulimit -n 64": Machine(before=descriptors(64)),
    "L20 a home that is not there": Machine(variables={"HOME": "/nonexistent", "BATCHER_STATE_DIR": ""}),
    "L20 a terminal without Unicode": Machine(
        variables={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ),
    "L20 umask 000": Machine(before=lambda: os.umask(0)),
    "L20 no directory for temporary files": Machine(variables={"TMPDIR": "/nonexistent"}),
}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES.keys())
def test_an_odd_machine_keeps_no_run_from_its_end(
    tmp_path: Path, server: Simulator, machine: Machine
) -> None:
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, IDS))
    with jobs.open("ab") as file:
        file.write('{"id": "ключ", "überflüssig": "\\u001b[2J"}\n'.encode())
    run = ("run", jobs.name, "--base-url", server.url, "--concurrency", 200, "--log-level", "debug")
    done = batcher(*run, cwd=tmp_path, env=environment(**machine.variables), before=machine.before)
    assert done.code == 3, done.stderr
    assert "jobs.jsonl:22: " in done.stderr
    assert server.stats()["by_id"] == dict.fromkeys(IDS, 1)
    assert_each_once(tmp_path / "results" / "jobs.jsonl", IDS)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "results").iterdir()}
    assert modes == dict.fromkeys(modes, 0o600)


@pytest.mark.parametrize("provider", ["groq", "openai-compatible"])
def test_descriptors_that_run_out_on_the_way_are_no_failure_of_the_provider(
    tmp_path: Path, provider: str
) -> None:
    env = environment(GROQ_API_KEY="gsk_" + "Ab1" * 16)  # with prices to look up as the first answer comes
    ids = names(80)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"
    with simulating(tmp_path, "--latency", 0.1, "--latency-shape", "fixed") as server:
        run = ("run", jobs.name, "--provider", provider, "--base-url", server.url, "--concurrency", 100)
        with started(*run, cwd=tmp_path, env=env) as command:
            command.wait_until(lambda: server.requests > 0)
            taken = len(os.listdir(f"/proc/{command.pid}/fd"))
            resource.prlimit(command.pid, resource.RLIMIT_NOFILE, (taken + 3, taken + 3))
            done = command.end()
        stats = server.stats()
    assert done.code == 0, done.stderr
    assert stats["by_id"] == dict.fromkeys(ids, 1)
    assert stats["in_flight_peak"] < 100
    assert_each_once(out, ids)
    told = [record["message"] for record in read_journal(out, "notice")]
    assert [message for message in told if "more than this machine can carry" in message], told
    assert not [message for message in told if "calls failed" in message], "the provider was blamed"


def hooked(directory: Path, program: str) -> dict[str, str]:
    """Return an environment in which every Python process first runs `program`."""
    hook = directory / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(program)
    own = environment()
    return own | {"PYTHONPATH": os.pathsep.join(filter(None, [str(hook), own.get("PYTHONPATH")]))}


JUMPING = """
import itertools, time
from datetime import timedelta
import batcher.clock

DAYS = itertools.cycle([0, 366, 366, -366, -366, -366])
now, wall = batcher.clock.utcnow, time.time
batcher.clock.utcnow = lambda: now() + timedelta(days=next(DAYS))
time.time = lambda: wall() + 86_400 * next(DAYS)
"""


def test_a_wall_clock_that_jumps_changes_no_wait(tmp_path: Path) -> None:
    """L17: waits are told by the monotonic clock, records by the other one."""
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, names(60)))
    out = tmp_path / "results" / "jobs.jsonl"
    with simulating(tmp_path, "--latency", 0.02, "--rpm", 1_200, "--fault", "status:503=0.1") as server:
        run = ("run", jobs.name, "--base-url", server.url, "--max-runtime", "1h", "--grace", "1h")
        done = batcher(*run, cwd=tmp_path, env=hooked(tmp_path, JUMPING))
    assert done.code == 0, done.stderr
    assert_each_once(out, names(60))
    written = [record["at"] for record in read_journal(out, "sent")]
    assert max(written) - min(written) > 700 * 86_400, "the clock did not jump"
    assert 0 <= read_summary(out)["run_s"] < 60


THREADLESS = """
import itertools, threading

started, start = itertools.count(), threading.Thread.start

def refuse(self):
    if next(started) >= {most}:
        raise RuntimeError("can't start new thread")
    start(self)

threading.Thread.start = refuse
"""


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_machine_that_starts_no_more_threads(tmp_path: Path, server: Simulator, most: int) -> None:
    """L20: as where `ulimit -u` or a container's limit on processes is reached."""
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, IDS))
    run = ("run", jobs.name, "--base-url", server.url)
    done = batcher(*run, cwd=tmp_path, env=hooked(tmp_path, THREADLESS.format(most=most)))
    again = batcher(*run, cwd=tmp_path)
    assert done.code == 75, done.stderr
    assert "ulimit -u" in done.stderr
    assert again.code == 0, again.stderr
    assert_each_once(tmp_path / "results" / "jobs.jsonl", IDS)


def test_an_output_in_a_file_system_that_cannot_be_written(tmp_path: Path, server: Simulator) -> None:
    """L8: a directory without leave to write is no such thing to root, a read-only file system is."""
    results = tmp_path / "results"
    results.mkdir()
    mount = 'mount -t tmpfs -o ro none "$0" && exec "$@"'
    read_only = ["unshare", "--mount", "sh", "-c", mount, str(results)]
    if not shutil.which("unshare") or subprocess.run([*read_only, "true"], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, IDS))
    run = ("run", jobs.name, "--base-url", server.url)
    with started(*run, cwd=tmp_path, under=read_only) as command:
        done = command.end()
    assert done.code == 74, done.stderr
    assert "Read-only file system" in done.stderr
    assert server.requests == 0


def test_the_holder_is_found_whatever_its_output_is_called(tmp_path: Path, server: Simulator) -> None:
    """4g: the lock belongs to the file, by whatever way one comes to it."""
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, names(200)))
    (tmp_path / "results").mkdir()
    (tmp_path / "elsewhere").symlink_to("results")
    run = ("run", jobs.name, "--base-url", server.url, "--concurrency", 4)
    with started(*run, cwd=tmp_path) as command:
        command.wait_until(lambda: count_lines(tmp_path / "results" / "jobs.jsonl") >= 4)
        second = batcher(*run, "-o", tmp_path / "elsewhere" / "jobs.jsonl", cwd=tmp_path)
        command.send(signal.SIGTERM)
        first = command.end()
    assert (first.code, second.code) == (75, 75)
    assert f"pid {command.pid} " in second.stderr
