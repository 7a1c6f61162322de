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
            "possibly_paid_twice": stats.paid_twice.count,
            "possibly_paid_twice_ids": list(stats.paid_twice.ids),
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
        "accounts": {name: asdict(figures) for name, figures in stats.accounts.items() if name},
        "fallbacks": [
            {"wanted": wanted, "taken": taken, "jobs": jobs}
            for (wanted, taken), jobs in stats.fallbacks.most_common()
        ],
        "notices": stats.notices.lines(),
    }


def one_line(content: dict[str, Any]) -> str:
    """Return the summary as a sentence for the terminal."""
    jobs, calls = content["jobs"], content["calls"]
    before = [f"{jobs['done_before']:,} answered before"] if jobs["done_before"] else []
    if jobs["failed_before"]:
        before.append(f"{jobs['failed_before']:,} failed before (--retry-failed runs them again)")
    if jobs["bad_lines"]:
        before.append(counted(jobs["bad_lines"], "bad line"))
    if not jobs["queued"]:
        return ", ".join(["nothing to run", *before])
    now = [f"{jobs['succeeded']:,} answered"]
    for what in ("failed", "pending"):
        if jobs[what]:
            # Why jobs are pending is said by what ended the run; errors that were overcome are no reason.
            why = _most_common(content["failures"]) if what == "failed" else ""
            now.append(f"{jobs[what]:,} {what}{why}")
    pace = f"in {content['run_s']:.1f} s ({content['jobs_per_s']:.1f}/s)"
    made = f"{counted(calls['total'], 'call')}, {calls['retries']:,} retries"
    refused = f"{calls['refused_429']:,} refused (429)"
    if twice := calls["possibly_paid_twice"]:
        refused += f", {twice:,} possibly paid twice"
    return f"{', '.join(now + before)} {pace}; {made}, {refused}, {_cost(content)}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, e.g. `1 job` or `2,000 jobs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _most_common(codes: dict[str, int]) -> str:
    if not codes:
        return ""
    code = max(codes, key=lambda name: codes[name])
    return f" ({code}{', ...' if len(codes) > 1 else ''})"


def _cost(content: dict[str, Any]) -> str:
    cost, unknown = content["cost_usd"], content["answers_of_unknown_cost"]
    if cost is None:
        return "cost unknown"
    return f"cost ${cost:.4f}" + (f" and {counted(unknown, 'answer')} of unknown cost" if unknown else "")
