"""`batcher bench`: how fast a run is on this machine, what it costs, and how that compares."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.command import Amount, Command, Count, option

if TYPE_CHECKING:
    from batcher.bench.load import LoadPlan

EXAMPLES = """
batcher bench                                        at 64, 256 and 1,000 calls in flight, beside bare loops
batcher bench --jobs 2000 --repeat 1                 a first look, in a few seconds
batcher bench --concurrency 4000 --latency 0.5       a slow server with much room
batcher bench --only batcher --rate 500              what 500 calls a second cost
batcher bench --only batcher --profile               where the time goes
batcher bench --json bench.json                      all figures, for a program
"""


class Counts(click.ParamType[tuple[int, ...]]):
    """Whole numbers from 1 on, parted by commas."""

    name = "numbers"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the numbers; a usage error where one is none."""
        if isinstance(value, tuple):
            return value
        return tuple(Count().convert(part.strip(), param, ctx) for part in value.split(","))


class Names(click.ParamType[tuple[str, ...]]):
    """Names of programs, parted by commas."""

    name = "names"

    def convert(
        self, value: str | tuple[str, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return the names in the order of the bench; a usage error where one is unknown."""
        from batcher.bench.load import PROGRAMS  # noqa: PLC0415 - --help stays quick

        given = value if isinstance(value, tuple) else tuple(part.strip() for part in value.split(","))
        for name in given:
            if name not in PROGRAMS:
                self.fail(f"{name!r} is none of {', '.join(PROGRAMS)}", param, ctx)
        return tuple(name for name in PROGRAMS if name in given)


@click.command(cls=Command, examples=EXAMPLES, context_settings={"show_default": True})
@option("--jobs", type=Count(), default=20_000, help="Jobs in each run.")
@option("--job-bytes", type=Count(), default=600, help="Length of a job's line.")
@option("--concurrency", type=Counts(), default="64,256,1000", metavar="N,...", help="Calls in flight.")
@option("--latency", "latency_s", type=float, default=0.0, metavar="S", help="Seconds to an answer.")
@option(
    "--latency-shape",
    type=click.Choice(["fixed", "uniform", "exponential", "lognormal"]),
    default="fixed",
    help="How latencies spread; the others take the ordinary simulator, which is slower.",
)
@option("--rate", type=Amount(), metavar="N", help="Calls a second that the run is told to keep to.")
@option("--repeat", type=Count(), default=3, help="Rounds; the figures are their medians.")
@option(
    "--only",
    "programs",
    type=Names(),
    metavar="NAME,...",
    help="Of batcher, aiohttp and pyreqwest, run only these.  [default: all]",
)
@option("--profile", is_flag=True, help="Say where the runner's time goes.")
@option(
    "--dir",
    "place",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where the files stand meanwhile: a disk whose syncs count.  [default: the temporary directory]",
)
@option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures there."
)
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    programs: tuple[Any, ...] | None,
    place: Path | None,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Measure `batcher run` against a local simulator, beside bare loops over aiohttp and pyreqwest.

    Each is a process of its own, as a user starts it, on one core; the simulator has another where there is
    one. Exit codes: 0 measured, 1 a run did not bring exactly one result line for each job.
    """
    from batcher.bench.load import PROGRAMS, LoadPlan  # noqa: PLC0415 - --help stays quick

    plan = LoadPlan(programs=programs or PROGRAMS, **options)
    ctx.exit(_bench(plan, place, json_file))


def _bench(plan: "LoadPlan", place: Path | None, json_file: Path | None) -> int:
    import tempfile  # noqa: PLC0415
    from dataclasses import replace  # noqa: PLC0415

    import orjson  # noqa: PLC0415

    from batcher.bench import report  # noqa: PLC0415
    from batcher.bench.load import available, compare  # noqa: PLC0415
    from batcher.bench.machine import machine  # noqa: PLC0415
    from batcher.bench.processes import choose_cores  # noqa: PLC0415
    from batcher.results.files import write_whole  # noqa: PLC0415
    from batcher.wiring import fitting_concurrency  # noqa: PLC0415

    absent = available(plan.programs)
    for words in absent.values():
        _tell(f"left out: {words}")
    plan = replace(plan, programs=tuple(name for name in plan.programs if name not in absent))
    fitting_concurrency(max(plan.concurrency))  # the children inherit the raised limit
    cores = choose_cores()
    _tell(cores.words)
    with tempfile.TemporaryDirectory(prefix="batcher-bench-", dir=place) as directory:
        comparisons = list(compare(plan, Path(directory), cores, _tell))
    verdicts = [verdict for one in comparisons for verdict in one.verdicts(plan)]
    tables = report.load_tables(comparisons)
    if verdicts:
        tables.append(report.verdict_table(verdicts))
    report.show(tables, sys.stdout)
    for remark in report.remarks(comparisons):
        _tell(remark)
    if json_file is not None:
        content = {
            "machine": machine(cores),
            "load": report.load_content(plan, comparisons, absent),
            "targets": [verdict.as_dict() for verdict in verdicts],
        }
        write_whole(json_file, orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    lost = sum(measured.lost for one in comparisons for measured in one.programs.values())
    return 1 if lost else 0


def _tell(words: str) -> None:
    click.echo(words, err=True)
