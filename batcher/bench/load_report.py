"""The load as a section of the report."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from batcher.bench.figures import Figures, Ratio
from batcher.bench.load import Comparison, LoadPlan, compare, left_out
from batcher.bench.processes import Cores, raise_descriptor_limit
from batcher.bench.report import Section, Table, number

_SHOWN_FUNCTIONS = 12


def measure_load(plan: LoadPlan, directory: Path, cores: Cores, tell: Callable[[str], None]) -> Section:
    """Measure what the plan says, without the programs that cannot be measured.

    Raises:
        UsageError: none is left.
    """
    absent = left_out(plan)
    for words in absent.values():
        tell(f"left out: {words}")
    plan = replace(plan, programs=tuple(name for name in plan.programs if name not in absent))
    raise_descriptor_limit()
    comparisons = list(compare(plan, directory, cores, tell))
    return Section(
        name="load",
        tables=[*_tables(comparisons), *_profiles(comparisons)],
        content=_content(plan, comparisons, absent),
        verdicts=[verdict for one in comparisons for verdict in one.verdicts(plan)],
        remarks=_remarks(comparisons),
        lost=sum(measured.lost for one in comparisons for measured in one.programs.values()),
    )


def _tables(comparisons: Sequence[Comparison]) -> list[Table]:
    """Return what the programs reached, and how they compare."""
    reached = [
        [f"{one.concurrency:,}", name, *_cells(measured.figures)]
        for one in comparisons
        for name, measured in one.programs.items()
    ]
    head = [
        "in flight",
        "program",
        "jobs/s",
        "with start",
        "CPU us/job",
        "user",
        "system",
        "own CPU",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "queued p50 ms",
        "peak MB",
        "connections",
        "server CPU",
    ]
    tables = [Table("Load", head, reached)]
    compared = [
        [f"{one.concurrency:,}", f"batcher / {name}", *_ratio_cells(found)]
        for one in comparisons
        for name, found in one.ratios.items()
    ]
    if compared:
        head = ["in flight", "ratio", "jobs/s", "with start", "jobs per CPU s", "valid"]
        tables.append(Table("Ratios (above 1: batcher does more)", head, compared))
    return tables


def _profiles(comparisons: Sequence[Comparison]) -> Iterator[Table]:
    for one in comparisons:
        for measured in one.programs.values():
            if measured.profile is not None:
                of = f"of {measured.profile['cpu_s']:.1f} CPU s at {one.concurrency:,} in flight"
                for name, shown in (("rooms", None), ("functions", _SHOWN_FUNCTIONS)):
                    shares = list(measured.profile[name].items())[:shown]
                    rows = [[what, "", f"{share:.1%}"] for what, share in shares]
                    yield Table(f"Profile: {name}, {of}", ["where", "", "share"], rows)


def _remarks(comparisons: Sequence[Comparison]) -> list[str]:
    """Return what speaks against figures, a sentence each."""
    return [
        f"concurrency {one.concurrency}, {name}: {reason}"
        for one in comparisons
        for name, measured in one.programs.items()
        for reason in [*measured.reasons, *one.doubts(name, measured)]
    ]


def _content(plan: LoadPlan, comparisons: Sequence[Comparison], absent: dict[Any, str]) -> dict[str, Any]:
    """Return the load's part of the JSON file; see `Figures`, `Ratio` and `LoadPlan` for its fields."""
    return {
        "plan": asdict(plan),
        "left_out": dict(absent),
        "concurrency": [
            {
                "concurrency": one.concurrency,
                "programs": {
                    name: {
                        **asdict(measured.figures),
                        "valid": not measured.reasons,
                        "reasons": measured.reasons,
                        "rounds": [asdict(figures) for figures in measured.rounds],
                        "profile": measured.profile,
                    }
                    for name, measured in one.programs.items()
                },
                "ratios": {name: asdict(found) for name, found in one.ratios.items()},
            }
            for one in comparisons
        ],
    }


def _cells(figures: Figures) -> list[str]:
    return [
        number(figures.jobs_per_s, "{:,.0f}"),
        number(figures.whole_jobs_per_s, "{:,.0f}"),
        number(figures.cpu_us_per_job, "{:,.0f}"),
        number(figures.cpu_user_us_per_job, "{:,.0f}"),
        number(figures.cpu_system_us_per_job, "{:,.0f}"),
        number(figures.cpu_share, "{:.0%}"),
        *(
            number(None if value is None else value * 1000, "{:,.1f}")
            for value in (
                figures.latency_p50_s,
                figures.latency_p95_s,
                figures.latency_p99_s,
                figures.queued_p50_s,
            )
        ),
        number(figures.peak_mb, "{:,.0f}"),
        number(figures.connections, "{:,.0f}"),
        number(figures.server_cpu_share, "{:.0%}"),
    ]


def _ratio_cells(found: Ratio) -> list[str]:
    values = (found.throughput, found.whole_throughput, found.cpu)
    return [*(number(value, "{:.2f}") for value in values), "yes" if found.valid else "no"]
