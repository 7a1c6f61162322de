"""`batcher bench`: how fast a run is on this machine, what it costs, and how that compares."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.command import Amount, Command, Count, F
from batcher.text.terminal import on_one_line

if TYPE_CHECKING:
    from batcher.bench.processes import Cores
    from batcher.bench.report import Section

EXAMPLES = """
batcher bench                                        at 64, 256 and 1,000 calls in flight, beside bare loops
batcher bench --jobs 2000 --repeat 1                 a first look, in a few seconds
batcher bench --concurrency 4000 --latency 0.5       a slow server with much room
batcher bench --only batcher --rate 500              what 500 calls a second cost
batcher bench --only batcher --profile               where the time goes
batcher bench --start-up --scale 100000              what many jobs cost, and what none do
batcher bench --adherence                            how limits are kept, in three minutes
batcher bench --json bench.json                      all figures, for a program
"""


def _option(long: str, *names: str, **kwargs: Any) -> Callable[[F], F]:
    # Not BATCHER_CONCURRENCY and the like: those are the settings of a user's runs.
    return click.option(long, *names, envvar="BATCHER_BENCH_" + long[2:].replace("-", "_").upper(), **kwargs)


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
@_option("--jobs", type=Count(), default=20_000, help="Jobs in each run.")
@_option("--job-bytes", type=Count(), default=600, help="Length of a job's line.")
@_option("--concurrency", type=Counts(), default="64,256,1000", metavar="N,...", help="Calls in flight.")
@_option(
    "--latency",
    "latency_s",
    type=click.FloatRange(0, 86_400),
    default=0.0,
    metavar="S",
    help="Seconds to an answer.",
)
@_option(
    "--latency-shape",
    type=click.Choice(["fixed", "uniform", "exponential", "lognormal"]),
    default="fixed",
    help="How latencies spread; the others take the ordinary simulator, which is slower.",
)
@_option(
    "--rate",
    type=Amount(),
    metavar="N",
    help="Calls a second that the run is told to keep to; no yardsticks.",
)
@_option("--repeat", type=Count(), default=3, help="Rounds; the figures are their medians.")
@_option(
    "--only",
    "programs",
    type=Names(),
    metavar="NAME,...",
    help="Of batcher, aiohttp and pyreqwest, run only these.  [default: all]",
)
@_option(
    "--yardstick-loop", type=click.Choice(["asyncio", "uvloop"]), default="asyncio", help="The loops' alone."
)
@_option("--profile", is_flag=True, help="Say where the runner's time goes; costs it some.")
@_option(
    "--adherence",
    "adherence_s",
    type=Count(),
    is_flag=False,
    flag_value=180,
    metavar="[S]",
    help="Instead: how runs of S seconds (180) keep to limits, told and untold.",
)
@_option(
    "--scale",
    "scale_jobs",
    type=Count(),
    is_flag=False,
    flag_value=1_000_000,
    metavar="[N]",
    help="Instead: memory, CPU a job, index and resume up to N jobs (1,000,000).",
)
@_option("--start-up", is_flag=True, help="Instead: what commands cost against `python -c pass`.")
@_option(
    "--dir",
    "place",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where the files stand meanwhile: a disk whose syncs count.  [default: the temporary directory]",
)
@_option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures there."
)
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    *,
    adherence_s: int | None,
    scale_jobs: int | None,
    start_up: bool,
    programs: tuple[Any, ...] | None,
    place: Path | None,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Measure `batcher run` against a local simulator, beside bare loops over aiohttp and pyreqwest.

    Each is a process of its own, as a user starts it, on one core; the simulator has another where there is
    one. Exit codes: 0 measured, 1 a run did not bring exactly one result line for each job.
    """
    from batcher.bench.adherence import measure_adherence  # noqa: PLC0415 - --help stays quick
    from batcher.bench.load import PROGRAMS, LoadPlan  # noqa: PLC0415
    from batcher.bench.load_report import measure_load  # noqa: PLC0415
    from batcher.bench.processes import choose_cores  # noqa: PLC0415
    from batcher.bench.scale import measure_scale  # noqa: PLC0415
    from batcher.bench.startup import measure_start_up  # noqa: PLC0415

    plan = LoadPlan(programs=programs or PROGRAMS, **options)
    cores = choose_cores()
    measures: list[Callable[[Path], Section]] = []
    if adherence_s is not None:
        measures.append(lambda directory: measure_adherence(directory, adherence_s, cores, _tell))
    if scale_jobs is not None:
        measures.append(lambda directory: measure_scale(directory, scale_jobs, cores, _tell))
    if start_up:
        measures.append(lambda directory: measure_start_up(directory, cores, _tell))
    if not measures:
        measures.append(lambda directory: measure_load(plan, directory, cores, _tell))
    _tell(cores.words)
    with _terminable():
        sections = [_in_own_directory(measure, place) for measure in measures]
    _report(sections, cores, json_file)
    ctx.exit(1 if any(section.lost for section in sections) else 0)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the bench as Ctrl-C does, so that no simulator and no file is left behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_own_directory(measure: "Callable[[Path], Section]", place: Path | None) -> "Section":
    import tempfile  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="batcher-bench-", dir=place) as directory:
        return measure(Path(directory).resolve())


def _report(sections: "list[Section]", cores: "Cores", json_file: Path | None) -> None:
    import orjson  # noqa: PLC0415

    from batcher.bench.machine import machine  # noqa: PLC0415
    from batcher.bench.report import show, verdict_table  # noqa: PLC0415
    from batcher.results.files import write_whole  # noqa: PLC0415

    verdicts = [verdict for section in sections for verdict in section.verdicts]
    tables = [table for section in sections for table in section.tables]
    show([*tables, verdict_table(verdicts)] if verdicts else tables, sys.stdout)
    for section in sections:
        for remark in section.remarks:
            _tell(remark)
    if json_file is not None:
        content = {
            "machine": machine(cores),
            **{section.name: section.content for section in sections},
            "targets": [asdict(verdict) for verdict in verdicts],
        }
        write_whole(json_file, orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _tell(words: str) -> None:
    click.echo(on_one_line(words), err=True)
