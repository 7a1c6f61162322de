"""What is urgent goes first, and no limit is ever passed."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from harness import MODEL, assert_each_once, batcher, job, names, read_summary, simulating, write_jobs


def most_within(times_s: Sequence[float], window_s: float) -> int:
    """Return the largest number of moments that any window of that length holds."""
    first, most = 0, 0
    for last, moment in enumerate(times_s):
        while moment - times_s[first] >= window_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def test_urgent_jobs_at_the_end_of_the_file_are_sent_first(tmp_path: Path) -> None:
    ids = names(3_000)
    # The simulator logs tokens, not ids: only the urgent ones are long.
    urgent = [job(name, f"{name} {'please ' * 100}", priority=9) for name in ids[2_700:]]
    jobs = write_jobs(tmp_path / "jobs.jsonl", [*map(job, ids[:2_700]), *urgent])
    with simulating(tmp_path, "--latency", 0.005) as server:
        done = batcher("run", jobs.name, "--base-url", server.url, "--concurrency", 16, cwd=tmp_path)
        tokens = [admission["tokens"] for admission in server.admissions()]
    assert done.code == 0, done.stderr
    assert len(tokens) == 3_000
    assert sum(count > 150 for count in tokens[:340]) == 300


def test_jobs_of_one_priority_keep_the_order_of_the_file(tmp_path: Path) -> None:
    jobs = write_jobs(
        tmp_path / "jobs.jsonl", [job(name, priority=number % 3) for number, name in enumerate(names(60))]
    )
    with simulating(tmp_path) as server:
        done = batcher("run", jobs.name, "--base-url", server.url, "--concurrency", 1, cwd=tmp_path)
        order = list(server.stats()["by_id"])
    assert done.code == 0, done.stderr
    assert order == [name for priority in (2, 1, 0) for name in names(60)[priority::3]]


def test_concurrency_holds_for_the_whole_run(tmp_path: Path) -> None:
    lines = [job(name, model=f"{MODEL}-{number % 3}") for number, name in enumerate(names(300))]
    jobs = write_jobs(tmp_path / "jobs.jsonl", lines)
    with simulating(tmp_path, "--latency", 0.02) as server:
        done = batcher("run", jobs.name, "--base-url", server.url, "--concurrency", 7, cwd=tmp_path)
        assert server.stats()["in_flight_peak"] == 7
    assert done.code == 0, done.stderr


def test_requests_a_minute_are_spread_and_never_passed_by_any_model(tmp_path: Path) -> None:
    # Two models in turn; the simulator logs tokens, and those of the second are more.
    long = "please " * 100
    models = [
        job(name, name + long * (at % 2), model=f"{MODEL}-{at % 2}") for at, name in enumerate(names(40))
    ]
    jobs = write_jobs(tmp_path / "jobs.jsonl", models)
    with simulating(tmp_path, "--latency", 0.02) as server:
        done = batcher("run", jobs.name, "--base-url", server.url, "--rpm", 600, cwd=tmp_path)
        admissions = server.admissions()
    assert done.code == 0, done.stderr
    for is_long in (False, True):
        times_s = [each["at_s"] for each in admissions if (each["tokens"] > 150) == is_long]
        assert len(times_s) == 20
        # 10 a second, and one or two more where a call that was let go late meets the next one.
        assert most_within(times_s, 1.0) <= 12
        assert 1.7 < times_s[-1] - times_s[0] < 3


def test_tokens_a_minute_are_never_passed(tmp_path: Path) -> None:
    limit, each = 2_000, 100
    lines = [job(name, params={"max_completion_tokens": each}) for name in names(100)]
    jobs = write_jobs(tmp_path / "jobs.jsonl", lines)
    # Answers are as long as they may be, so that nothing is given back.
    with simulating(tmp_path, "--output-tokens", f"{each}..{each}") as server:
        options = ("--base-url", server.url, "--tpm", limit, "--deadline", "1s")
        done = batcher("run", jobs.name, *options, cwd=tmp_path)
        tokens = sum(admission["tokens"] for admission in server.admissions())
    assert done.code == 75, done.stderr
    assert each < tokens <= limit
    summary = read_summary(tmp_path / "results" / "jobs.jsonl")["jobs"]
    assert summary["pending"] > 0
    assert summary["failed"] == 0


@pytest.mark.parametrize(
    ("kind", "wait_s"),
    [
        pytest.param("429", 0.2, id="as long as its header says"),
        pytest.param("429-text", 1.985, id="as long as its text says", marks=pytest.mark.long),
        pytest.param("429-bare", 4.0, id="a while if it does not say", marks=pytest.mark.long),
    ],
)
def test_a_429_holds_all_calls_back(tmp_path: Path, kind: str, wait_s: float) -> None:
    ids = names(120)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    with simulating(tmp_path, "--latency", 0.01, "--fault", f"id:{kind}=row-60") as server:
        done = batcher("run", jobs.name, "--base-url", server.url, "--concurrency", 4, cwd=tmp_path)
        times_s = [admission["at_s"] for admission in server.admissions()]
    assert done.code == 0, done.stderr
    assert_each_once(tmp_path / "results" / "jobs.jsonl", ids)
    assert max(late - early for early, late in pairwise(times_s)) >= wait_s
    assert read_summary(tmp_path / "results" / "jobs.jsonl")["calls"]["refused_429"] == 1


def test_a_limit_that_nobody_told_us_of_fails_no_job(tmp_path: Path) -> None:
    ids = names(126)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    # The bucket holds 120 calls and takes in 2 a second: the last ones have to wait, on a slow machine, too.
    with simulating(tmp_path, "--rpm", 120) as server:
        done = batcher("run", jobs.name, "--base-url", server.url, "--concurrency", 16, cwd=tmp_path)
        statuses = server.stats()["by_status"]
    assert done.code == 0, done.stderr
    assert_each_once(tmp_path / "results" / "jobs.jsonl", ids)
    refused = read_summary(tmp_path / "results" / "jobs.jsonl")["calls"]["refused_429"]
    assert refused == statuses["429"]
    assert 0 < refused <= 5 * 16, "the lane waits, not each of its jobs"


def test_a_day_limit_ends_the_run_and_says_when_to_come_back(tmp_path: Path) -> None:
    ids = names(20)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    with simulating(tmp_path, "--fault", "id:429-day=row-10") as server:
        run = ("run", jobs.name, "--base-url", server.url, "--concurrency", 1)
        done = batcher(*run, cwd=tmp_path)
        resumed = batcher(*run, cwd=tmp_path)
    out = tmp_path / "results" / "jobs.jsonl"
    assert done.code == 75, done.stderr
    assert "run the same command again after 20" in done.stderr
    assert resumed.code == 0, resumed.stderr
    assert_each_once(out, ids)
