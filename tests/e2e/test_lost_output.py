"""A run whose output is taken away, or whose disk is full, stops, says so, and can be resumed."""

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import (
    Simulator,
    assert_each_once,
    batcher,
    count_lines,
    job,
    names,
    read_lines,
    simulating,
    started,
    write_jobs,
)

CONCURRENCY = 8


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


def replace(out: Path) -> None:
    other = out.with_name("other")
    other.write_bytes(out.read_bytes())
    other.rename(out)


TAKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "deleted": (Path.unlink, "deleted"),
    "replaced": (replace, "replaced"),
    "emptied": (lambda out: os.truncate(out, 0), "bytes"),
}


@pytest.mark.parametrize(("take", "hint"), TAKEN.values(), ids=TAKEN.keys())
def test_a_result_file_that_somebody_else_touches_ends_the_run(
    tmp_path: Path, server: Simulator, take: Callable[[Path], object], hint: str
) -> None:
    ids = names(100)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"
    run = ("run", jobs.name, "--base-url", server.url)
    with started(*run, "--concurrency", CONCURRENCY, cwd=tmp_path) as command:
        command.wait_until(lambda: count_lines(out) >= 10)
        take(out)
        done = command.end(5)
    assert server.requests < len(ids)
    again = batcher(*run, cwd=tmp_path)
    assert done.code == 74, done.stderr
    assert "results/jobs.jsonl" in done.stderr
    assert hint in done.stderr
    assert again.code == 0, again.stderr
    assert_each_once(out, ids)


def test_a_full_disk_ends_the_run_and_costs_few_answers(tmp_path: Path, server: Simulator) -> None:
    ids = names(100)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    run = ("run", jobs.name, "--base-url", server.url, "--concurrency", CONCURRENCY)
    full = batcher(*run, cwd=tmp_path, before=small_files)
    kept = read_lines(out)
    paid = server.requests
    done = batcher(*run, cwd=tmp_path)
    assert full.code == 74, full.stderr
    assert "results/jobs" in full.stderr
    # Lost are the answers of the group that did not fit and those that came after it.
    assert paid - 2 * CONCURRENCY <= len(kept) <= paid < len(ids)
    assert done.code == 0, done.stderr
    assert_each_once(out, ids)


def overwrite(jobs: Path) -> None:
    with jobs.open("r+b") as file:
        file.write(jobs.read_bytes().replace(b"row", b"raw"))


def reverse(jobs: Path) -> None:
    lines = jobs.read_bytes().split(b"\n")[:-1]
    with jobs.open("r+b") as file:
        file.write(b"\n".join(reversed(lines)) + b"\n")


def rename_another(jobs: Path) -> None:
    other = jobs.with_name("other")
    other.write_bytes(jobs.read_bytes().replace(b"row", b"raw"))
    other.rename(jobs)


def append(jobs: Path) -> None:
    with jobs.open("ab") as file:
        file.write(b'{"id":"late","model":"m","prompt":"late"}\n')


# How the job file changes, and whether the run can still finish what it set out to do.
CHANGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "L13 overwritten": (overwrite, 74),
    "L13 reversed": (reverse, 74),
    "L13 emptied": (lambda jobs: os.truncate(jobs, 0), 74),
    "L13 another in its place": (rename_another, 0),
    "L13 a line more": (append, 0),
}


@pytest.mark.parametrize(("change", "code"), CHANGES.values(), ids=CHANGES.keys())
def test_a_job_file_that_changes_under_the_run(
    tmp_path: Path, server: Simulator, change: Callable[[Path], object], code: int
) -> None:
    ids = names(300)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"
    run = ("run", jobs.name, "--base-url", server.url, "--concurrency", CONCURRENCY)
    with started(*run, cwd=tmp_path) as command:
        command.wait_until(lambda: count_lines(out) >= 10)
        change(jobs)
        done = command.end(20)
    assert done.code == code, done.stderr
    answered = {line["custom_id"] for line in read_lines(out)}
    if code:
        assert "jobs.jsonl" in done.stderr
        assert answered < set(ids)
    else:
        assert answered == set(ids)
    assert_each_once(out, answered)
