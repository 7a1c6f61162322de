"""Signals at any moment of a run, from its start to its end: the same command goes on as if nothing was."""

import random
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import (
    FirstAnswer,
    Started,
    batcher,
    catches,
    job,
    names,
    read_journal,
    simulating,
    started,
    write_jobs,
)
from interrupted import Kept, assert_nothing_lost_or_repeated

CONCURRENCY = 16
TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
SEQUENCES = {
    "TERM": [TERM],
    "INT": [INT],
    "HUP": [HUP],
    "TERM TERM": [TERM, TERM],
    "INT INT": [INT, INT],
    "INT INT INT": [INT, INT, INT],
}
DRAINING = re.compile("^SIG[A-Z]+: finishing", re.MULTILINE)
ABORTING = re.compile("^SIG[A-Z]+: giving up", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """How often a run is interrupted, in how large a job file."""

    jobs: int
    each: int


def wait_for_a_moment(command: Started, answered: FirstAnswer, rng: random.Random) -> None:
    """Wait for a time while the run starts, or while it runs, or about its end."""
    command.wait_until(lambda: catches(command.pid, TERM))
    if rng.random() < 0.3:
        time.sleep(rng.uniform(0, 0.2))
    else:
        # Without a word of an answer: a run that has ended is as good a moment.
        ends_at = time.monotonic() + 20
        while not answered() and command.process.poll() is None:
            assert time.monotonic() < ends_at, command.stderr
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))


def send(command: Started, numbers: Sequence[signal.Signals], rng: random.Random) -> None:
    """Send signals a short while apart, as long as there is somebody to take them."""
    for number in numbers:
        if command.process.poll() is None:
            command.send(number)
            time.sleep(rng.uniform(0, 0.03))


def assert_fitting(code: int, stderr: str, numbers: Sequence[signal.Signals], recorded: int | None) -> None:
    """Check the exit code of an interrupted run against what it said and what its journal recorded last."""
    if code < 0 or (code in {130, 143} and not ABORTING.search(stderr)):
        # Before a run and after it nothing is given up, and a third signal waits for no words.
        assert {-code, code - 128} & set(numbers)
        assert recorded is not None or "jobs to run" not in stderr or len(numbers) == 3, stderr
        return
    forced = {130 if number is INT else 143 for number in numbers[1:]}
    assert code in {0, 75} | forced, stderr
    if code == 75:
        assert DRAINING.search(stderr), stderr
        assert "run the same command again" in stderr or "nothing was sent" in stderr
    if recorded is not None and code not in forced:
        assert code == recorded


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param(Moments(jobs=700, each=2), id="12 moments"),
        pytest.param(Moments(jobs=12_000, each=34), id="204 moments", marks=pytest.mark.long),
    ],
)
def test_signals_at_any_moment_lose_and_repeat_nothing(tmp_path: Path, moments: Moments) -> None:
    rng = random.Random(moments.jobs)
    ids = names(moments.jobs)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"
    kept, gave_up, codes = Kept(out), 0, list[int]()
    sequences = list(SEQUENCES.values()) * moments.each
    rng.shuffle(sequences)
    with simulating(tmp_path, "--latency", 0.02) as server:
        run = ("run", jobs.name, "--base-url", server.url, "--concurrency", CONCURRENCY)
        for number, numbers in enumerate(sequences):
            answered, runs = FirstAnswer(out), len(ended_runs(out))
            # Some are about to end by themselves when the signal comes.
            limit = ("--limit", rng.randrange(10, 60)) if rng.random() < 0.3 else ()
            with started(*run, *limit, cwd=tmp_path, name=f"run-{number}") as command:
                wait_for_a_moment(command, answered, rng)
                send(command, numbers, rng)
                done = command.end(10)
            recorded = ended_runs(out)[runs:]
            assert_fitting(done.code, done.stderr, numbers, recorded[-1] if recorded else None)
            gave_up += done.code in {130, 143}
            codes.append(done.code)
            kept.remember()
        done = batcher(*run, cwd=tmp_path)
        stats = server.stats()

    assert done.code == 0, done.stderr
    assert codes.count(75) >= len(codes) // 4, codes
    assert_nothing_lost_or_repeated(out, ids, kept, stats, given_up=gave_up * CONCURRENCY)


def ended_runs(out: Path) -> list[int]:
    """Return the exit codes of all runs that came to write theirs down."""
    if not out.with_suffix(".journal").exists():
        return []
    return [record["exit_code"] for record in read_journal(out, "run_ended")]


def test_a_signal_before_the_program_is_there_leaves_nothing_behind(tmp_path: Path) -> None:
    ids = names(20)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    with simulating(tmp_path) as server:
        run = ("run", jobs.name, "--base-url", server.url)
        for number, kind in enumerate((TERM, HUP)):
            with started(*run, cwd=tmp_path, name=f"run-{number}") as command:
                command.send(kind)
                assert command.process.wait(10) in {-kind, 75}
        assert server.requests == 0
        done = batcher(*run, cwd=tmp_path)
        stats = server.stats()
    assert done.code == 0, done.stderr
    out = tmp_path / "results" / "jobs.jsonl"
    assert_nothing_lost_or_repeated(out, ids, Kept(out), stats, given_up=0)
