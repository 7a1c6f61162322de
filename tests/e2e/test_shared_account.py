"""Runs that are started at once, or one after the other, keep the limits of their account together."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import (
    Done,
    Simulator,
    Started,
    assert_each_once,
    batcher,
    count_lines,
    environment,
    job,
    names,
    read_summary,
    simulating,
    started,
    write_jobs,
)

KEY = "sk-made-up"
LONG = "please " * 100


class Admission(NamedTuple):
    """A call that the simulator let in; those of the second run are told by their length."""

    at_s: float
    is_second: bool


def admissions(server: Simulator) -> list[Admission]:
    return [Admission(each["at_s"], each["tokens"] > 150) for each in server.admissions()]


def rate(calls: Sequence[Admission], since_s: float, until_s: float) -> float:
    """Return the calls a second within a time."""
    return sum(since_s <= each.at_s < until_s for each in calls) / (until_s - since_s)


def most_a_minute(times_s: Sequence[float]) -> int:
    """Return the largest number of moments that any 60 s hold."""
    first, most = 0, 0
    for last, moment in enumerate(times_s):
        while moment - times_s[first] >= 60.0:
            first += 1
        most = max(most, last - first + 1)
    return most


def write_both(directory: Path, count: int) -> None:
    """Write the jobs of two runs; those of the second are longer."""
    write_jobs(directory / "first.jsonl", map(job, names(count)))
    write_jobs(directory / "second.jsonl", [job(name, name + LONG) for name in names(count)])


def command(name: str, server: Simulator, *options: object) -> tuple[object, ...]:
    return ("run", f"{name}.jsonl", "-o", f"{name}-out.jsonl", "--base-url", server.url, *options)


def answered(directory: Path, name: str) -> int:
    return count_lines(directory / f"{name}-out.jsonl")


def ended(run: Started) -> Done:
    """End a run as a user does who has seen enough."""
    run.send(signal.SIGTERM)
    done = run.end()
    assert done.code == 75, done.stderr
    return done


def test_two_runs_at_once_keep_one_limit_and_a_survivor_has_it_all(tmp_path: Path) -> None:
    rpm, a_second = 1_200, 20.0
    write_both(tmp_path, 2_000)
    env = environment(OPENAI_API_KEY=KEY)
    with simulating(tmp_path, "--latency", 0.02) as server:
        first_run, second_run = (command(name, server, "--rpm", rpm) for name in ("first", "second"))
        with (
            started(*first_run, cwd=tmp_path, name="first", env=env) as first,
            started(*second_run, cwd=tmp_path, name="second", env=env) as second,
        ):
            second.wait_until(lambda: answered(tmp_path, "second") >= 55)
            first.kill()
            second.wait_until(lambda: answered(tmp_path, "second") >= 120)
            ended(second)
        calls = admissions(server)
        statuses = server.stats()["by_status"]
    both_s = max(next(each.at_s for each in calls if each.is_second is which) for which in (False, True))
    killed_s = max(each.at_s for each in calls if not each.is_second)
    # Once each has seen the other, both keep to a half; then the survivor is told within a second.
    together = rate(calls, both_s + 1.0, killed_s)
    assert 0.85 * a_second <= together <= 1.05 * a_second
    for which in (False, True):
        half = rate([each for each in calls if each.is_second is which], both_s + 1.0, killed_s)
        assert 0.4 * a_second <= half <= 0.6 * a_second
    assert 0.85 * a_second <= rate(calls, killed_s + 1.5, calls[-1].at_s) <= 1.05 * a_second
    assert statuses.get("429", 0) == 0
    notices = read_summary(tmp_path / "second-out.jsonl")["notices"]
    assert "2 runs use this account" in str(notices)


@pytest.mark.long
@pytest.mark.parametrize("limiter", ["sliding-window", "token-bucket"])
def test_a_run_that_joins_another_in_mid_minute_keeps_the_limit_with_it(tmp_path: Path, limiter: str) -> None:
    rpm, a_second = 1_200, 20.0
    write_both(tmp_path, 4_000)
    env = environment(OPENAI_API_KEY=KEY)
    with simulating(tmp_path, "--latency", 0.1, "--rpm", rpm, "--limiter", limiter) as server:
        first_run, second_run = (command(name, server, "--rpm", rpm) for name in ("first", "second"))
        with started(*first_run, cwd=tmp_path, name="first", env=env) as first:
            first.wait_until(lambda: answered(tmp_path, "first") >= 400)
            with started(*second_run, cwd=tmp_path, name="second", env=env) as second:
                second.wait_until(lambda: answered(tmp_path, "second") >= 550)
                ended(first)
                ended(second)
        calls = admissions(server)
        statuses = server.stats()["by_status"]
    assert statuses.get("429", 0) <= 0.01 * len(calls)
    assert most_a_minute([each.at_s for each in calls]) <= rpm
    assert rate(calls, calls[0].at_s + 3.0, calls[-1].at_s) >= 0.85 * a_second


@pytest.mark.long
def test_two_runs_at_once_keep_a_limit_of_tokens(tmp_path: Path) -> None:
    tpm = 240_000
    write_both(tmp_path, 6_000)
    env = environment(OPENAI_API_KEY=KEY)
    limits = ("--tpm", tpm, "--limiter", "sliding-window", "--output-tokens", "20..200")
    with simulating(tmp_path, "--latency", 0.1, *limits) as server:
        options = ("--tpm", tpm, "--deadline", "75s")
        first_run, second_run = (command(name, server, *options) for name in ("first", "second"))
        with (
            started(*first_run, cwd=tmp_path, name="first", env=env) as first,
            started(*second_run, cwd=tmp_path, name="second", env=env) as second,
        ):
            codes = {first.end(120).code, second.end(120).code}
        statuses = server.stats()["by_status"]
        log = server.admissions()
    assert codes == {75}
    assert statuses.get("429", 0) <= 0.01 * len(log)
    usages = [read_summary(tmp_path / f"{name}-out.jsonl")["tokens"] for name in ("first", "second")]
    used = sum(usage["input"] + usage["output"] for usage in usages)
    took_s = log[-1]["at_s"] - log[0]["at_s"]
    assert used >= 0.85 * tpm / 60 * took_s


def test_a_day_limit_counts_what_earlier_runs_used(tmp_path: Path) -> None:
    (tmp_path / "day.yaml").write_text("rpd: 10\n")
    write_jobs(tmp_path / "first.jsonl", map(job, names(6)))
    write_jobs(tmp_path / "second.jsonl", map(job, names(9)))
    env = environment(OPENAI_API_KEY=KEY)
    with simulating(tmp_path) as server:
        first = batcher(*command("first", server, "-c", "day.yaml"), cwd=tmp_path, env=env)
        again = command("second", server, "-c", "day.yaml")
        second = batcher(*again, cwd=tmp_path, env=env, timeout_s=10)
        assert server.requests == 10
        elsewhere = batcher(*again, cwd=tmp_path, env=environment(OPENAI_API_KEY="sk-of-someone-else"))
    assert first.code == 0, first.stderr
    assert second.code == 75, second.stderr
    assert "run the same command again after 20" in second.stderr
    assert elsewhere.code == 0, elsewhere.stderr
    assert_each_once(tmp_path / "second-out.jsonl", names(9))


def test_a_killed_run_has_counted_what_it_used_of_the_day(tmp_path: Path) -> None:
    (tmp_path / "day.yaml").write_text("rpd: 1000\nrpm: 1200\n")
    write_both(tmp_path, 2_000)
    env = environment(OPENAI_API_KEY=KEY)
    with simulating(tmp_path, "--latency", 0.02) as server:
        with started(*command("first", server, "-c", "day.yaml"), cwd=tmp_path, env=env) as first:
            first.wait_until(lambda: answered(tmp_path, "first") >= 60)
            first.kill()
        (tmp_path / "day.yaml").write_text("rpd: 20\n")
        used = server.requests
        again = command("second", server, "-c", "day.yaml", "--deadline", "5s")
        second = batcher(*again, cwd=tmp_path, env=env)
        # What it sent within its last second is lost, and the rest is far more than a day's worth.
        assert server.requests == used
    assert second.code == 75, second.stderr
