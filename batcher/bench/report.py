"""The figures as tables for people and as JSON for programs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from batcher.bench.figures import Figures, Ratio
from batcher.bench.load import Comparison, LoadPlan
from batcher.bench.targets import Verdict


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a heading; the first column holds names, the others figures."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def load_tables(comparisons: Sequence[Comparison]) -> list[Table]:
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


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Return the figures beside their targets."""
    met = {True: "yes", False: "no", None: "not known"}
    rows = [
        [one.says, one.of, f"{one.value:.4g}", f"{one.kind} {one.bound:g}", met[one.met]] for one in verdicts
    ]
    return Table("Targets", ["figure", "of", "measured", "target", "met"], rows)


def remarks(comparisons: Sequence[Comparison]) -> list[str]:
    """Return what speaks against figures, a sentence each."""
    return [
        f"concurrency {one.concurrency}, {name}: {reason}"
        for one in comparisons
        for name, measured in one.programs.items()
        for reason in measured.reasons
    ]


def load_content(plan: LoadPlan, comparisons: Sequence[Comparison], absent: dict[Any, str]) -> dict[str, Any]:
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


def show(tables: Sequence[Table], out: TextIO) -> None:
    """Write tables: drawn on a terminal, else in plain columns."""
    if out.isatty():
        from rich.console import Console  # noqa: PLC0415 - only a person at a terminal waits for it
        from rich.table import Table as Drawn  # noqa: PLC0415

        console = Console(file=out)
        for table in tables:
            drawn = Drawn(title=table.title, title_justify="left")
            for number, name in enumerate(table.head):
                drawn.add_column(name, justify="left" if number < 2 else "right", overflow="fold")
            for row in table.rows:
                drawn.add_row(*row)
            console.print(drawn)
        return
    out.write("\n".join(plain(table) for table in tables))


def plain(table: Table) -> str:
    """Return a table as columns of text."""
    rows = [table.head, *table.rows]
    widths = [max(len(row[at]) for row in rows) for at in range(len(table.head))]
    lines = [
        "  ".join(
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([table.title, *lines, ""])


def _cells(figures: Figures) -> list[str]:
    return [
        _number(figures.jobs_per_s, "{:,.0f}"),
        _number(figures.whole_jobs_per_s, "{:,.0f}"),
        _number(figures.cpu_us_per_job, "{:,.0f}"),
        _number(figures.cpu_user_us_per_job, "{:,.0f}"),
        _number(figures.cpu_system_us_per_job, "{:,.0f}"),
        *(
            _number(None if value is None else value * 1000, "{:,.1f}")
            for value in (
                figures.latency_p50_s,
                figures.latency_p95_s,
                figures.latency_p99_s,
                figures.queued_p50_s,
            )
        ),
        _number(figures.peak_mb, "{:,.0f}"),
        _number(figures.connections, "{:,.0f}"),
        _number(figures.server_cpu_share, "{:.0%}"),
    ]


def _ratio_cells(found: Ratio) -> list[str]:
    values = (found.throughput, found.whole_throughput, found.cpu)
    return [*(_number(value, "{:.2f}") for value in values), "yes" if found.valid else "no"]


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)
