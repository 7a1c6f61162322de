"""The figures as tables for people and as JSON for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from batcher.bench.targets import Verdict


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a heading; the first column holds names, the others figures."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What one kind of measurement found.

    Attributes:
        name: the key of its content in the JSON file.
        tables: for people.
        content: for programs.
        verdicts: the figures that have a target.
        remarks: what speaks against figures, a sentence each.
        lost: jobs that do not have exactly one result line.
    """

    name: str
    tables: Sequence[Table]
    content: Mapping[str, Any]
    verdicts: Sequence[Verdict] = ()
    remarks: Sequence[str] = ()
    lost: int = 0


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Return the figures beside their targets."""
    met = {True: "yes", False: "no", None: "not known"}
    rows = [
        [one.says, one.of, f"{one.value:.4g}", f"{one.kind} {one.bound:g}", met[one.met]] for one in verdicts
    ]
    return Table("Targets", ["figure", "of", "measured", "target", "met"], rows)


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


def number(value: float | None, pattern: str) -> str:
    """Return a figure as text, a dash where it is unknown."""
    return "-" if value is None else pattern.format(value)
