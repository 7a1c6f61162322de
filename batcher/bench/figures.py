"""What is made of measured numbers: percentiles, medians, ratios, and whether they are to be believed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import median

BUSY_SHARE = 0.85
"""A server that used more of its core than this may be what was measured."""

IDLE_SHARE = 0.8
"""An unbounded loop that used less of its core was kept from it; a run may have waited for the disk."""


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return p50, p95 and p99 (nearest rank) of `values`; None if there are none."""
    if not values:
        return None
    ranked = sorted(values)
    return {f"p{p}": round(ranked[math.ceil(p * len(ranked) / 100) - 1], 6) for p in (50, 95, 99)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of one program at one concurrency; None is unknown.

    Attributes:
        jobs_per_s: from the first connection to the end of the process.
        whole_jobs_per_s: from the start of the process to its end.
        cpu_user_us_per_job: what a job costs beyond what a process with one job costs, in microseconds; so
            are `cpu_system_us_per_job` and, for both, `cpu_us_per_job`.
        whole_cpu_us_per_job: the CPU time of the whole process by its jobs, in microseconds.
        cpu_share: of one core, from the start of the process to its end, used by the program.
        peak_mb: most memory (resident, MB of 10**6 bytes); unknown where the bench itself has used more.
        connections: opened during the run.
        server_cpu_us_per_job: what the server used meanwhile, in microseconds.
        server_cpu_share: of one core, from the first connection to the end, used by the server.
        latency_p50_s: from call to answer as the program itself saw it, in seconds; so are the others.
        queued_p50_s: how long a job waited before its call, in seconds; so are the others.
    """

    jobs_per_s: float | None = None
    whole_jobs_per_s: float | None = None
    cpu_user_us_per_job: float | None = None
    cpu_system_us_per_job: float | None = None
    cpu_us_per_job: float | None = None
    whole_cpu_us_per_job: float | None = None
    cpu_share: float | None = None
    peak_mb: float | None = None
    connections: float | None = None
    server_cpu_us_per_job: float | None = None
    server_cpu_share: float | None = None
    latency_p50_s: float | None = None
    latency_p95_s: float | None = None
    latency_p99_s: float | None = None
    queued_p50_s: float | None = None
    queued_p95_s: float | None = None
    queued_p99_s: float | None = None


def medians(rounds: Sequence[Figures]) -> Figures:
    """Return the median of each figure over the rounds that know it."""
    found = {}
    for field in fields(Figures):
        known = [value for one in rounds if (value := getattr(one, field.name)) is not None]
        found[field.name] = _rounded(median(known)) if known else None
    return Figures(**found)


def problems(
    *, jobs: int, exit_code: int, answered: int, missing: int, repeated: int, server_cpu_share: float | None
) -> list[str]:
    """Return why a measurement does not count, in words; an empty list if it does."""
    found = []
    if exit_code:
        found.append(f"it ended with exit code {exit_code}")
    if missing:
        found.append(f"{missing:,} of {jobs:,} jobs have no result")
    if repeated:
        found.append(f"{repeated:,} result lines too many")
    if failed := jobs - missing - answered:
        found.append(f"{failed:,} jobs failed")
    if server_cpu_share is not None and server_cpu_share > BUSY_SHARE:
        found.append(f"the server used {server_cpu_share:.0%} of its core: it may be what was measured")
    return found


def idle(program: str, cpu_share: float | None) -> list[str]:
    """Return what speaks against jobs a second of a program that used so much of its core."""
    if cpu_share is None or cpu_share >= IDLE_SHARE:
        return []
    return [
        f"{program} used only {cpu_share:.0%} of its core: other programs were at work, or it waited for"
        " server or disk; believe jobs per CPU s"
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Runner to yardstick; above 1 the runner is the better one.

    Attributes:
        throughput: of the jobs a second, start-up left out.
        whole_throughput: of the jobs a second, start-up included.
        cpu: of the jobs that a second of CPU time carries, start-up left out.
        valid: whether nothing speaks against it.
        reasons: what does.
    """

    throughput: float | None
    whole_throughput: float | None
    cpu: float | None
    valid: bool
    reasons: tuple[str, ...]


def ratio(runner: Sequence[Figures], yardstick: Sequence[Figures], reasons: Sequence[str]) -> Ratio:
    """Compare round with round, as rounds lie close in time, and return the medians."""
    return Ratio(
        throughput=_compared(runner, yardstick, "jobs_per_s"),
        whole_throughput=_compared(runner, yardstick, "whole_jobs_per_s"),
        cpu=_compared(yardstick, runner, "cpu_us_per_job"),
        valid=not reasons,
        reasons=tuple(reasons),
    )


def _compared(above: Sequence[Figures], below: Sequence[Figures], name: str) -> float | None:
    pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(above, below, strict=True)]
    known = [a / b for a, b in pairs if a is not None and b]
    return _rounded(median(known)) if known else None


def per_job_us(seconds: float, seconds_of_one: float, jobs: int) -> float | None:
    """Return microseconds a job beyond what one job cost; None where there are too few jobs to tell."""
    return (seconds - seconds_of_one) * 1e6 / (jobs - 1) if jobs > 1 else None


def _rounded(value: float) -> float:
    """Round to six significant digits: more are noise."""
    return float(f"{value:.6g}")
