"""`batcher doctor`: what is wrong, and how to mend it."""

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.command import Command, option, provider_options
from batcher.text.terminal import on_one_line

if TYPE_CHECKING:
    from batcher.config import Settings

EXAMPLES = """
batcher doctor                                       before the first run on Groq
batcher doctor --base-url http://localhost:8000/v1   before a run on a local server
"""

ENOUGH_BYTES = 1 << 30
ENOUGH_DESCRIPTORS = 256


class Finding(Exception):
    """Something wrong: what was seen, what to do, and the exit code that a run would end with."""

    def __init__(self, seen: str, *, remedy: str, exit_code: int) -> None:
        super().__init__(seen)
        self.remedy = remedy
        self.exit_code = exit_code


@click.command(cls=Command, examples=EXAMPLES)
@provider_options
@option("--results", type=click.Path(path_type=Path), default="results", help="Where results will go.")
@click.pass_context
def doctor(ctx: click.Context, /, results: Path, **options: Any) -> None:
    """Check key, endpoint, models, disk and limits of this machine; exit 0 if a run can begin."""
    from batcher.config import load_settings  # noqa: PLC0415 - --help stays quick

    settings = load_settings(options.pop("config"), options)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("key and endpoint", lambda: _endpoint(settings)),
        ("disk", lambda: _disk(results)),
        ("open files", _descriptors),
        ("event loop", _event_loop),
    ]
    worst = 0
    for name, check in checks:
        try:
            click.echo(on_one_line(f"ok     {name}: {check()}"))
        except Finding as finding:
            worst = worst or finding.exit_code
            click.echo(on_one_line(f"WRONG  {name}: {finding}"))
            click.echo(on_one_line(f"       {finding.remedy}"))
    ctx.exit(worst)


def _endpoint(settings: "Settings") -> str:
    import asyncio  # noqa: PLC0415 - --help stays quick

    from batcher.cli.models import list_models  # noqa: PLC0415
    from batcher.errors import BatcherError, KeysRefused, Unreachable  # noqa: PLC0415

    remedies = {
        KeysRefused: f"put a valid key into {settings.key_variable}",
        Unreachable: "check --base-url (the address before /chat/completions), the network, and `proxy:`",
    }
    try:
        found = asyncio.run(list_models(settings))
    except BatcherError as error:
        remedy = remedies.get(type(error), "then run batcher doctor again")
        raise Finding(str(error), remedy=remedy, exit_code=error.exit_code) from error
    if not found:
        raise Finding("the account lists no models", remedy="ask the provider for access", exit_code=78)
    names = ", ".join(sorted(model.id for model in found)[:3])
    return f"{settings.provider_name} answers and offers {len(found)} models ({names}, ...)"


def _disk(results: Path) -> str:
    standing = next(place for place in (results.absolute(), *results.absolute().parents) if place.exists())
    if not (standing.is_dir() and os.access(standing, os.W_OK | os.X_OK)):
        raise Finding(
            f"{standing} cannot be written",
            remedy="name another place with -o, or mend its rights",
            exit_code=74,
        )
    free = shutil.disk_usage(standing).free
    if free < ENOUGH_BYTES:
        raise Finding(
            f"{free / 1e6:.0f} MB free at {standing}",
            remedy="a job needs about 2 KB: make room, or name another place with -o",
            exit_code=74,
        )
    return f"{free / 1e9:.0f} GB free at {standing}"


def _descriptors() -> str:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < ENOUGH_DESCRIPTORS:
        raise Finding(
            f"this process may open {hard} files",
            remedy="raise the limit (ulimit -Hn 4096), or run with a small --concurrency",
            exit_code=78,
        )
    return "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard}"


def _event_loop() -> str:
    import asyncio  # noqa: PLC0415

    from batcher.wiring import fastest_loop  # noqa: PLC0415

    return "uvloop" if fastest_loop() is not asyncio.new_event_loop else "asyncio (uvloop is not installed)"
