"""What a run may cost and how long it may take: hard stops, after which nothing is lost."""

from pathlib import Path

import pytest
from harness import (
    assert_each_once,
    batcher,
    job,
    names,
    read_journal,
    read_lines,
    read_summary,
    simulating,
    started,
    write_jobs,
)

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


def in_flight_usd(out: Path) -> float:
    """What calls in flight may cost, as the journal has it by now."""
    return float(read_journal(out, "spent")[-1]["reserved_usd"])


def test_4_the_budget_is_never_exceeded_and_holds_over_runs(cwd: Path) -> None:
    with simulating(cwd, "--output-tokens", "10..10", "--latency", "0.02") as server:
        run = ("run", "jobs.jsonl", "-c", "c.yaml", "--base-url", server.url, "--concurrency", "32")
        first = batcher(*run, "--max-cost", "105", cwd=cwd)
        assert first.code == 4, first.stderr
        assert (
            "the cost budget of $105 is reached: $100.0000 are spent, and the next call may cost $10.00"
            in first.stderr
        )
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


def test_4_a_dear_job_is_left_and_all_others_are_answered(cwd: Path) -> None:
    dear = job("dear", params={"max_completion_tokens": 2_000_000})
    write_jobs(cwd / "jobs.jsonl", [dear, *(job(name) for name in names(JOBS))])
    (cwd / "c.yaml").write_text("prices: {openai/gpt-oss-20b: {input_usd: 0, output_usd: 1}}\n")
    with simulating(cwd, "--output-tokens", "10..10", "--latency", "0.01") as server:
        run = ("run", "jobs.jsonl", "-c", "c.yaml", "--base-url", server.url, "--max-cost", "1")
        first = batcher(*run, cwd=cwd)
        assert first.code == 4, first.stderr
        assert (
            "$0.0004 are spent, and the next call may cost $2.00: raise --max-cost to go on" in first.stderr
        )
        assert_each_once(cwd / "results" / "jobs.jsonl", names(JOBS))
        assert batcher(*run[:-1], "3", cwd=cwd).code == 0


def test_what_no_result_tells_counts_in_the_next_run(cwd: Path) -> None:
    with simulating(cwd, "--output-tokens", "10..10", "--latency", "0.02", "--fault", "reset=0.5") as server:
        run = ("run", "jobs.jsonl", "-c", "c.yaml", "--base-url", server.url, "--max-cost", "105")
        ends = [batcher(*run, cwd=cwd).code for _ in range(3)]
        assert ends == [4, 4, 4]
        assert spent_usd(cwd) < 100.0
        assert len(read_journal(cwd / "results" / "jobs.jsonl", "sent")) == 10
        (cwd / "results" / "jobs.journal").unlink()
        assert batcher(*run, cwd=cwd).code == 4
        assert len(read_journal(cwd / "results" / "jobs.jsonl", "sent")) > 0, (
            "only the results are left to tell"
        )


def test_what_was_in_flight_when_a_run_was_killed_counts_as_spent(cwd: Path) -> None:
    with simulating(cwd, "--latency", "8", "--latency-shape", "fixed") as server:
        run = ("run", "jobs.jsonl", "-c", "c.yaml", "--base-url", server.url, "--max-cost", "45")
        out = cwd / "results" / "jobs.jsonl"
        with started(*run, cwd=cwd) as killed:
            killed.wait_until(lambda: server.requests == 4)
            killed.wait_until(lambda: read_journal(out, "spent")[-1:] and in_flight_usd(out) == 40.0)
            killed.kill()
        again = batcher(*run, cwd=cwd)
        assert (again.code, server.requests) == (4, 4), again.stderr
        assert "$40.0000 are spent, and the next call may cost $10.00" in again.stderr


def test_78_a_configured_fallback_of_unknown_price_is_refused_before_any_call(cwd: Path) -> None:
    (cwd / "c.yaml").write_text(PRICED + "fallback: [nobody/knows-1b]\n")
    with simulating(cwd) as server:
        run = ("run", "jobs.jsonl", "-c", "c.yaml", "--base-url", server.url)
        refused = batcher(*run, "--max-cost", "105", cwd=cwd)
        assert (refused.code, server.requests) == (78, 0)
        assert "max_cost: the price of nobody/knows-1b is unknown" in refused.stderr


def test_75_a_run_ends_after_its_time(cwd: Path) -> None:
    with simulating(cwd, "--latency", "0.5", "--latency-shape", "fixed") as server:
        run = ("run", "jobs.jsonl", "--base-url", server.url, "--concurrency", "4")
        first = batcher(*run, "--max-runtime", "0.7s", "--deadline", "1h", cwd=cwd)
        assert first.code == 75, first.stderr
        assert "the run's deadline has passed" in first.stderr
        assert 0 < len(read_lines(cwd / "results" / "jobs.jsonl")) < JOBS
        assert batcher(*run[:-1], "40", cwd=cwd).code == 0
        assert_each_once(cwd / "results" / "jobs.jsonl", names(JOBS))
