"""`batcher status`: where a run stands."""

import json
from pathlib import Path

import click

from batcher.cli.command import Command, option

EXAMPLES = """
batcher status results/jobs.jsonl          also while the run goes on
batcher status results/jobs.jsonl --json   for scripts
"""


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("out", type=click.Path(path_type=Path))
@option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(out: Path, as_json: bool) -> None:
    """Show how many jobs of OUT are answered, failed and pending, who works on it, and the last news."""
    from batcher.clock import utcnow  # noqa: PLC0415 - --help stays quick
    from batcher.errors import InputMissing  # noqa: PLC0415
    from batcher.history import read_journal  # noqa: PLC0415
    from batcher.lock import holder  # noqa: PLC0415
    from batcher.observe.standing import EVENTS_READ, in_words, standing  # noqa: PLC0415
    from batcher.resume import done_records  # noqa: PLC0415
    from batcher.text.terminal import printable  # noqa: PLC0415
    from batcher.types import output_paths  # noqa: PLC0415

    if not out.name.endswith(".jsonl"):
        raise click.UsageError(f"{out}: a result file's name ends in .jsonl")
    if not out.is_file():
        raise InputMissing(f"{out}: no such result file; name the OUT of a run, such as results/jobs.jsonl")
    paths = output_paths(out)
    next(done_records(paths), None)  # refuses a file of another make
    content = standing(paths, holder(paths), read_journal(paths.journal, *EVENTS_READ))
    # json escapes all that is not ASCII, and with it whatever could steer a terminal.
    click.echo(json.dumps(content, indent=2) if as_json else printable(in_words(content, utcnow())))
