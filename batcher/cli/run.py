"""`batcher run`: the main job."""

import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from batcher.cli.command import Amount, Command, Count, Deadline, Duration, option, provider_options

EXAMPLES = """
batcher run jobs.jsonl --simulate                  try it without a key
batcher run jobs.jsonl                             on Groq; the same command again resumes
batcher run jobs.jsonl -o out/{stem}-{date}.jsonl  choose where the results go
batcher run a.jsonl b.jsonl -o both.jsonl          several files are one list of jobs
cat jobs.jsonl | batcher run - -o - > answers.jsonl
batcher run jobs.jsonl --base-url http://localhost:8000/v1 --model my-model --concurrency 256
batcher run jobs.jsonl --retry-failed              run those again that failed for good
"""


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@option(
    "-o",
    "--output",
    metavar="OUT",
    help="Result file (*.jsonl), or - for stdout. Default: results/STEM.jsonl.",
)
@provider_options
@option("--model", help="Model for lines that name none.")
@option("--rpm", type=Count(), help="Requests a minute, per model.")
@option("--tpm", type=Count(), help="Tokens a minute, per model.")
@option("--concurrency", type=Count(), help="Most calls in flight over the whole run (256).")
@option("--deadline", type=Deadline(), metavar="WHEN", help="Ends the run: a duration (2h) or an ISO time.")
@option("--max-runtime", type=Duration(), metavar="S", help="Ends the run after so long, e.g. 50m.")
@option(
    "--max-cost",
    type=Amount(),
    metavar="USD",
    help="Most that the answers in OUT may cost, those of earlier runs included (exit 4).",
)
@option("--grace", type=Duration(), metavar="S", help="How long calls in flight may go on after a stop (60).")
@option("--limit", type=Count(), metavar="N", help="At most N more jobs.")
@option("--retry-failed", is_flag=True, help="Run jobs again that failed for good.")
@option(
    "--on-changed",
    type=click.Choice(["error", "rerun", "keep"]),
    default="error",
    help="An id with a result comes back with another request: refuse (default), run again, keep the old.",
)
@option("--fresh", is_flag=True, help="Move earlier results aside and begin anew; nothing is deleted.")
@option("--strict", is_flag=True, help="A bad line ends the run before anything is sent (65).")
@option("--simulate", is_flag=True, help="Answer from the embedded simulator; no key, no cost.")
@option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What goes to stderr.")
@option("--show-config", is_flag=True, help="Print the settings in force and exit.")
@option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
@option("-q", "--quiet", is_flag=True, help="Silent on success.")
@click.pass_context
def run(ctx: click.Context, /, files: tuple[str, ...], **options: Any) -> None:
    """Run the jobs in FILE... and write one result line for each.

    The same command again resumes. Exit codes: 0 every job has an answer, 3 some failed for good or some
    lines were bad, 75 stopped early (run it again), 2, 65, 66, 69, 70, 74, 77, 78: see the README.
    """
    from batcher.cli.signals import EndingSignals  # noqa: PLC0415 - --help stays quick

    with EndingSignals() as signals:
        from batcher.config import load_settings, shown  # noqa: PLC0415

        config = options.pop("config")
        ours = {name: options.pop(name) for name in _NOT_SETTINGS}
        settings = load_settings(config, options)
        if ours["show_config"]:
            click.echo(shown(settings), nl=False)
            return
        ctx.exit(_run(files, settings, config, ours, signals))


_NOT_SETTINGS = (
    "output",
    "limit",
    "retry_failed",
    "on_changed",
    "fresh",
    "strict",
    "simulate",
    "show_config",
    "as_json",
    "quiet",
)


def _run(
    files: tuple[str, ...], settings: Any, config: Path | None, ours: dict[str, Any], signals: Any
) -> int:
    import asyncio  # noqa: PLC0415 - --help stays quick
    import json  # noqa: PLC0415

    from batcher.batch import run_batch  # noqa: PLC0415
    from batcher.cli.console import Console, log_to_stderr  # noqa: PLC0415
    from batcher.engines.stop import Stop  # noqa: PLC0415
    from batcher.observe.summary import one_line  # noqa: PLC0415
    from batcher.spec import RunSpec  # noqa: PLC0415
    from batcher.wiring import fastest_loop  # noqa: PLC0415

    log_to_stderr(settings.log_level)
    console = Console(quiet=ours["quiet"])
    if config is None and Path("batcher.yaml").exists():
        console.say("./batcher.yaml is not read without -c batcher.yaml")
    run_id = os.urandom(4).hex()
    spec = RunSpec(
        inputs=files,
        out=output_path(ours["output"], files, run_id),
        strict=ours["strict"],
        fresh=ours["fresh"],
        retry_failed=ours["retry_failed"],
        on_changed=ours["on_changed"],
        limit=ours["limit"],
        simulate=ours["simulate"],
        run_id=run_id,
    )

    async def story() -> dict[str, Any]:
        stop = Stop()
        async with console:
            with signals.ending(stop, console.say):
                return await run_batch(spec, settings, os.environ, stop, console)

    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        content = runner.run(story())
    code: int = content["exit_code"]
    if content["stopped_because"]:
        console.warn(f"stopped: {content['stopped_because']}{_what_next(code, content)}")
    console.conclude(one_line(content), spec.out, succeeded=code == 0)
    if ours["as_json"]:
        click.echo(json.dumps(content), err=spec.out is None)  # in ASCII, so that no terminal obeys it
    return code


def output_path(given: str | None, files: tuple[str, ...], run_id: str) -> Path | None:
    """Return where results go: what was given with its {names} filled in, else results/STEM.jsonl.

    Raises:
        UsageError: no name can be derived, or it is none for a result file.
    """
    from batcher.spec import checked_output  # noqa: PLC0415 - --help stays quick

    if given == "-":
        return None
    stem = Path(Path(files[0]).name.removesuffix(".gz").removesuffix(".zst")).stem
    if given is None:
        if len(files) > 1 or files[0] == "-" or not stem:
            raise click.UsageError("name the result file with -o: it cannot be derived from the input")
        return checked_output(Path("results") / f"{stem}.jsonl")
    now = datetime.now().astimezone()
    names = {"date": f"{now:%Y-%m-%d}", "time": f"{now:%H%M%S}", "run_id": run_id, "stem": stem}
    filled = re.sub(r"\{(\w+)\}", lambda match: names.get(match[1], match[0]), given)
    if "{" in filled or "}" in filled:
        known = ", ".join("{" + name + "}" for name in names)
        raise click.UsageError(f"-o {given}: only {known} are filled in")
    return checked_output(Path(filled))


def _what_next(code: int, content: dict[str, Any]) -> str:
    if content["resume_at"]:
        return f"; run the same command again after {content['resume_at']}"
    resumable = code in (75, 130, 143) and content["output"] != "-"
    return "; run the same command again to go on" if resumable else ""
