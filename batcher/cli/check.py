"""`batcher check`: every bad line of a job file, before a cent is spent."""

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from batcher.cli.command import Command, option
from batcher.text.terminal import on_one_line

if TYPE_CHECKING:
    from batcher.jobs.index import JobIndex

_BAD_INPUT = 65

EXAMPLES = """
batcher check jobs.jsonl
batcher check part-1.jsonl.gz part-2.jsonl.zst       several files are one job list
batcher check --model openai/gpt-oss-20b -           lines from standard input, some without a model
batcher check --json jobs.jsonl | jq .bad
"""


@click.command("check", cls=Command, examples=EXAMPLES)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@option("-c", "--config", type=click.Path(path_type=Path), help="YAML file with settings.")
@option("--model", help="The model of lines that name none.")
@option("--json", "as_json", is_flag=True, help="Print one JSON summary on stdout.")
@option("--quiet", "-q", is_flag=True, help="Be silent unless a line is bad.")
@click.pass_context
def check(
    ctx: click.Context,
    /,
    files: tuple[str, ...],
    *,
    config: Path | None,
    model: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check every line of job FILEs (- is standard input) without any network.

    Each bad line is reported on stderr as FILE:LINE: reason.

    Exits with 0 if all lines are good, 65 if some are bad, 66 if there is no such file.
    """
    import tempfile  # noqa: PLC0415 - --help stays quick

    from batcher.config import line_defaults, load_settings  # noqa: PLC0415
    from batcher.jobs.index import index_jobs  # noqa: PLC0415
    from batcher.jobs.source import open_sources  # noqa: PLC0415

    def report(where: str, reason: str) -> None:
        click.echo(on_one_line(f"{where}: {reason}"), err=True)

    def warn(where: str, reason: str) -> None:
        if not quiet:
            report(where, f"warning: {reason}")

    defaults = line_defaults(load_settings(config, {"model": model or None}))
    started = perf_counter()
    with open_sources(files, spool_dir=Path(tempfile.gettempdir())) as sources:
        size = sources.total_bytes
        index = index_jobs(sources, defaults, on_bad=report, on_warning=warn)
    seconds = perf_counter() - started
    if as_json:
        click.echo(_json_summary(index, size, seconds))
    elif index.bad or not quiet:
        click.echo(_summary(index, size, seconds), err=True)
    ctx.exit(_BAD_INPUT if index.bad else 0)


def _summary(index: "JobIndex", size: int, seconds: float) -> str:
    from batcher.observe.summary import counted  # noqa: PLC0415

    counts = (
        counted(index.queued, "job"),
        counted(len(index.models), "model"),
        counted(index.bad, "bad line"),
        counted(index.duplicates, "duplicate"),
        counted(index.blank, "blank line"),
    )
    return f"{', '.join(counts)}; {seconds:.1f} s, {_mb_per_s(size, seconds):.0f} MB/s"


def _json_summary(index: "JobIndex", size: int, seconds: float) -> str:
    import json  # noqa: PLC0415

    return json.dumps(
        {
            "jobs": index.queued,
            "models": {model: index.remaining(model) for model in index.models},
            "bad": index.bad,
            "duplicates": index.duplicates,
            "blank": index.blank,
            "bytes": size,
            "seconds": round(seconds, 3),
            "mb_per_s": round(_mb_per_s(size, seconds), 1),
        }
    )


def _mb_per_s(size: int, seconds: float) -> float:
    return size / 1e6 / max(seconds, 1e-9)
