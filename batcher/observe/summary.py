"""The summary of a run: one JSON object beside the results, and one line for people."""

from dataclasses import asdict, dataclass
from typing import Any

from batcher.observe.stats import Stats


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCounts:
    """The job file's lines, sorted by what became of them before the run.

    Attributes:
        queued: to be run now.
        done_before: answered in an earlier run.
        failed_before: failed in an earlier run and not tried again.
        bad_lines: lines that cannot be used.
        duplicates: lines that repeat an earlier one.
    """

    queued: int
    done_before: int
    failed_before: int
    bad_lines: int
    duplicates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a summary says besides the counts (times are ISO 8601 in UTC, durations in seconds)."""

    run_id: str
    provider: str
    inputs: list[str]
    output: str
    started_at: str
    finished_at: str
    index_s: float
    run_s: float
    exit_code: int
    stopped_because: str
    resume_at: str | None


def summary(stats: Stats, counts: JobCounts, facts: RunFacts) -> dict[str, Any]:
    """Return the content of the summary file."""
    return {
        **asdict(facts),
        "jobs": {
            **asdict(counts),
            "succeeded": stats.succeeded,
            "failed": stats.failed,
            "pending": counts.queued - stats.finished,
        },
        "calls": {
            "total": stats.calls,
            "in_vain": stats.calls_in_vain,
            "retries": stats.retries,
            "refused_429": stats.refused_429,
            "maybe_charged_without_answer": stats.maybe_charged,
            "errors": dict(stats.call_errors),
        },
        "failures": dict(stats.failures),
        "tokens": {
            "input": stats.input_tokens,
            "output": stats.output_tokens,
            "cached_input": stats.cached_tokens,
        },
        "cost_usd": round(stats.cost_usd, 6) if stats.cost_unknown < max(1, stats.succeeded) else None,
        "answers_of_unknown_cost": stats.cost_unknown,
        "latency_s": stats.latency.summary(),
        "queued_s": stats.queued.summary(),
        "jobs_per_s": round(stats.finished / facts.run_s, 3) if facts.run_s > 0 else 0.0,
        "models": {model: asdict(figures) for model, figures in stats.models.items()},
        "notices": stats.notices,
    }


def one_line(content: dict[str, Any]) -> str:
    """Return the summary as a sentence for the terminal."""
    jobs, calls = content["jobs"], content["calls"]
    if not jobs["queued"]:
        return f"nothing to run: {jobs['done_before']} answered and {jobs['failed_before']} failed before"
    parts = [f"{jobs['succeeded']} answered"]
    if jobs["failed"]:
        parts.append(f"{jobs['failed']} failed")
    if jobs["pending"]:
        parts.append(f"{jobs['pending']} pending")
    if jobs["done_before"] or jobs["failed_before"]:
        parts.append(f"{jobs['done_before'] + jobs['failed_before']} done before")
    if jobs["bad_lines"]:
        parts.append(f"{jobs['bad_lines']} bad lines")
    cost = content["cost_usd"]
    return (
        f"{', '.join(parts)} in {content['run_s']:.1f} s ({content['jobs_per_s']:.1f}/s), "
        f"{calls['total']} calls, {calls['retries']} retries, {calls['refused_429']} refused (429), "
        f"cost {'unknown' if cost is None else f'${cost:.4f}'}"
    )
