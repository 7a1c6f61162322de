"""Whatever a provider does wrong for a while, every job gets its own answer."""

import time
from pathlib import Path

import pytest
from harness import (
    assert_each_once,
    batcher,
    count_lines,
    job,
    names,
    read_lines,
    read_summary,
    simulating,
    started,
    without_long_waits,
    write_jobs,
)

# Each kind that a second try cures; those that answer after all, only oddly, are further below.
CURED = """
    reset refused close close-in-headers close-in-body chunks-cut chunks-bad eof-body huge-body slow-loris
    hang garbage http09 html200 empty200 json-null json-list json-string json-number json-object choices-empty
    choices-null message-null content-null error-200 truncated-json bad-utf8 gzip-truncated gzip-bad gzip-bomb
    encoding-unknown 204 json_validate_failed tool_use_failed 429 498 status:408 status:409
    status:425 status:500 status:502 status:503 status:504 status:520 status:599 html:502 empty:503
    truncated:500
""".split()  # noqa: SIM905 - fifty names read better without their quotes
ODD_ANSWERS = """
    trickle slow:0.5 early-hints close-after extra-response usage-missing usage-strings usage-negative
    usage-huge content-filter wrong-model
""".split()  # noqa: SIM905 - as above


@pytest.mark.parametrize("count", [1_000, pytest.param(5_000, marks=pytest.mark.long)])
def test_a_fifth_of_all_calls_fails_and_no_job_does(tmp_path: Path, count: int) -> None:
    ids = names(count)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    with simulating(tmp_path, "--latency", 0.005, "--fault", "mixed=0.2") as server:
        done = batcher("run", jobs.name, "--base-url", server.url, cwd=tmp_path, timeout_s=300)
        stats = server.stats()
    out = tmp_path / "results" / "jobs.jsonl"
    assert done.code == 0, done.stderr
    assert_each_once(out, ids)
    assert sum(stats["by_fault"].values()) > count * 0.15
    assert read_summary(out)["calls"]["total"] >= stats["requests"] > count


def test_each_kind_of_fault_is_cured_or_harmless(tmp_path: Path) -> None:
    # Good jobs between the faulty ones, so that the circuit breaker sees a provider that mostly works.
    kinds = CURED + ODD_ANSWERS
    good = names(10 * len(kinds))
    ids = [name for number, kind in enumerate(kinds) for name in (kind, *good[number :: len(kinds)])]
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    faults = [arg for kind in kinds for arg in ("--fault", f"id:{kind}={kind}")]
    with simulating(tmp_path, "--latency", 0.01, *faults) as server:
        options = ("--base-url", server.url, "--timeout", "1.5", "--concurrency", 16)
        quick = without_long_waits(tmp_path)
        done = batcher("run", jobs.name, *options, "-c", quick, cwd=tmp_path)
        stats = server.stats()
    out = tmp_path / "results" / "jobs.jsonl"
    assert done.code == 0, done.stderr
    assert_each_once(out, ids)
    repeated = {name for name, calls in stats["by_id"].items() if calls > 1}
    assert set(CURED) <= repeated
    assert not repeated & set(ODD_ANSWERS)
    usages = {line["custom_id"]: line["batcher"]["usage"] for line in read_lines(out)}
    odd = ("usage-missing", "usage-strings", "usage-negative")
    assert [usages[kind] for kind in odd] == [None] * 3, "nonsense is not taken for a count"


def test_an_outage_fails_no_job(tmp_path: Path) -> None:
    outlast_an_outage(tmp_path, "status:503", "-c", without_long_waits(tmp_path))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["status:500", "refused", "close", "html:502", "hang"])
def test_an_outage_of_any_kind_fails_no_job(tmp_path: Path, kind: str) -> None:
    outlast_an_outage(tmp_path, kind, "--timeout", 2)


def outlast_an_outage(directory: Path, kind: str, *options: object) -> None:
    ids = names(240)
    jobs = write_jobs(directory / "jobs.jsonl", map(job, ids))
    with simulating(directory, "--latency", 0.05, "--fault", f"outage:{kind}=0.8..1.8") as server:
        run = ("run", jobs.name, "--base-url", server.url, "--concurrency", 8, *options)
        done = batcher(*run, cwd=directory, timeout_s=300)
        stats = server.stats()
    assert done.code == 0, done.stderr
    assert_each_once(directory / "results" / "jobs.jsonl", ids)
    # While nobody got an answer only a handful of calls tried: the breaker held back the rest.
    assert 0 < stats["by_fault"][kind] < 50


def test_a_provider_that_dies_and_comes_back_costs_no_job(tmp_path: Path) -> None:
    ids = names(400)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"
    options = ("--latency", 0.05, "--latency-shape", "fixed")
    with simulating(tmp_path, *options) as first:
        run = ("run", jobs.name, "-c", without_long_waits(tmp_path), "--base-url", first.url)
        with started(*run, cwd=tmp_path, name="run") as command:
            command.wait_until(lambda: count_lines(out) >= 100)
            first.kill()
            time.sleep(0.5)
            assert command.process.poll() is None, command.stderr
            with simulating(tmp_path, *options, port=first.port):
                done = command.end()
    assert done.code == 0, done.stderr
    assert_each_once(out, ids)
