"""What a run may cost and how long it may take: hard stops, after which nothing is lost."""

from pathlib import Path

import pytest
from harness import assert_each_once, batcher, job, names, read_lines, read_summary, simulating, write_jobs

PRICED = "prices: {openai/gpt-oss-20b: {input_usd: 0, output_usd: 1000000}}\n"
"""A dollar for each token of an answer."""

JOBS = 40


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """A directory with jobs of ten dollars each at most, and a price table."""
    jobs = (job(name, params={"max_completion_tokens": 10}) for name in names(JOBS))
    write_jobs(tmp_path / "jobs.jsonl", jobs)
    (tmp_path / "c.yaml").write_text(PRICED)
    return tmp_path


def spent_usd(cwd: Path) -> float:
    """What the answers on disk have cost."""
    return sum(float(result["batcher"]["cost_usd"]) for result in read_lines(cwd / "results" / "jobs.jsonl"))


def test_4_the_budget_is_never_exceeded_and_holds_over_runs(cwd: Path) -> None:
    with simulating(cwd, "--output-tokens", "10..10", "--latency", "0.02") as server:
        run = ("run", "jobs.jsonl", "-c", "c.yaml", "--base-url", server.url, "--concurrency", "32")
        first = batcher(*run, "--max-cost", "105", cwd=cwd)
        assert first.code == 4, first.stderr
        assert "the cost budget of $105 is reached: $100.0000 are spent" in first.stderr
        assert (server.requests, spent_usd(cwd)) == (10, 100.0)
        summary = read_summary(cwd / "results" / "jobs.jsonl")
        assert (summary["exit_code"], summary["jobs"]["pending"]) == (4, JOBS - 10)
        again = batcher(*run, "--max-cost", "105", cwd=cwd)
        assert (again.code, server.requests) == (4, 10), "the same budget covers what was spent before"
        more = batcher(*run, "--max-cost", "205", cwd=cwd)
        assert (more.code, server.requests) == (4, 20)
        rest = batcher(*run, cwd=cwd)
        assert (rest.code, server.requests) == (0, JOBS)
        assert_each_once(cwd / "results" / "jobs.jsonl", names(JOBS))


def test_75_a_run_ends_after_its_time(cwd: Path) -> None:
    with simulating(cwd, "--latency", "0.5", "--latency-shape", "fixed") as server:
        run = ("run", "jobs.jsonl", "--base-url", server.url, "--concurrency", "4")
        first = batcher(*run, "--max-runtime", "0.7s", "--deadline", "1h", cwd=cwd)
        assert first.code == 75, first.stderr
        assert "the run's deadline has passed" in first.stderr
        assert 0 < len(read_lines(cwd / "results" / "jobs.jsonl")) < JOBS
        assert batcher(*run[:-1], "40", cwd=cwd).code == 0
        assert_each_once(cwd / "results" / "jobs.jsonl", names(JOBS))
