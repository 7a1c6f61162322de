"""`batcher simulator`: a provider of one's own, with any limits and any faults."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.command import Command, F

if TYPE_CHECKING:
    from batcher.providers.simulator.settings import SimulatorSettings
    from batcher.types import ModelInfo

EXAMPLES = """
batcher simulator                                    listen on http://127.0.0.1:8089
batcher simulator --latency 0.5 --rpm 30 --tpm 6000  a small account at a slow provider
batcher simulator --fault mixed=0.2                  every fifth call fails in one of many ways
batcher simulator --fault outage:status:503=10..40   down from the 10th to the 40th second
batcher simulator --fault id:reset=row-7             the first call of request row-7 is reset
batcher simulator --list-faults                      every kind of fault there is
batcher run jobs.jsonl --base-url http://127.0.0.1:8089/v1
"""


def _option(long: str, *names: str, **kwargs: Any) -> Callable[[F], F]:
    # Not BATCHER_RPM and the like: those are the limits a run keeps, these the limits it meets.
    return click.option(
        long, *names, envvar="BATCHER_SIMULATOR_" + long[2:].replace("-", "_").upper(), **kwargs
    )


@click.command(
    "simulator",
    cls=Command,
    examples=EXAMPLES,
    context_settings={"show_default": True},
)
@_option("--host", default="127.0.0.1", help="Address to listen on; anyone who reaches it may call.")
@_option("--port", type=click.IntRange(0, 65535), default=8089, help="0 picks a free port.")
@_option("--port-file", type=click.Path(path_type=Path), help="Write the port there once it listens.")
@_option("--latency", "latency_s", type=float, default=0.0, metavar="S", help="Mean seconds to an answer.")
@_option(
    "--latency-shape",
    type=click.Choice(["fixed", "uniform", "exponential", "lognormal"]),
    default="lognormal",
    help="How latencies spread around the mean.",
)
@_option("--seed", type=int, default=0, help="Equal seeds: equal latencies, lengths and faults.")
@_option("--rpm", type=int, help="Requests per minute, for each key and model.")
@_option("--tpm", type=int, help="Tokens per minute.")
@_option("--itpm", type=int, help="Input tokens per minute.")
@_option("--otpm", type=int, help="Output tokens per minute.")
@_option("--rpd", type=int, help="Requests per day.")
@_option("--tpd", type=int, help="Tokens per day.")
@_option(
    "--limiter",
    type=click.Choice(["token-bucket", "fixed-window", "sliding-window"]),
    default="token-bucket",
    help="How limits are kept; Groq has token buckets.",
)
@_option("--output-tokens", default="8..32", metavar="MIN..MAX", help="Length of answers.")
@_option(
    "--fault",
    "faults",
    multiple=True,
    metavar="SPEC",
    help="KIND=RATE, outage:KIND=START..END (seconds since start) or id:KIND=ID; may be repeated.",
)
@_option(
    "--max-faults-in-a-row",
    type=click.IntRange(min=0),
    default=3,
    help="Bound on the faults by rate that one request meets in a row.",
)
@_option("--redirect-to", default="http://127.0.0.1:9/", help="Where the redirecting faults point.")
@_option(
    "--model",
    "models",
    multiple=True,
    metavar="ID[=CONTEXT]",
    help="List only these models; may be repeated.",
)
@_option("--only-listed-models", is_flag=True, help="Answer 404 for any other model.")
@_option(
    "--accept-key", "keys", multiple=True, metavar="KEY", help="Answer 401 to any other key; make one up."
)
@_option("--fast", is_flag=True, help="One canned answer, no limits or faults: for benchmarks.")
@_option("--list-faults", is_flag=True, help="List the kinds of faults, and stop.")
def simulator(
    *,
    host: str,
    port: int,
    port_file: Path | None,
    output_tokens: str,
    faults: tuple[str, ...],
    max_faults_in_a_row: int,
    redirect_to: str,
    models: tuple[str, ...],
    only_listed_models: bool,
    keys: tuple[str, ...],
    list_faults: bool,
    **behaviour: object,
) -> None:
    """Run a local server that answers like Groq or OpenAI, with limits and faults.

    Answers are marked as simulated. GET /admin/stats tells what was asked of it.
    """
    import asyncio  # noqa: PLC0415 - --help stays quick

    from batcher.providers.simulator.fault_plan import parse_faults  # noqa: PLC0415
    from batcher.providers.simulator.settings import DEFAULT_MODELS, SimulatorSettings  # noqa: PLC0415
    from batcher.wiring import fastest_loop  # noqa: PLC0415

    if list_faults:
        _list_faults()
        return
    settings = SimulatorSettings(
        output_tokens=_range(output_tokens),
        faults=parse_faults(faults, max_in_a_row=max_faults_in_a_row, redirect_to=redirect_to),
        models=tuple(_model(text) for text in models) or DEFAULT_MODELS,
        any_model=not only_listed_models,
        keys=frozenset(keys),
        **behaviour,  # type: ignore[arg-type]  # the options above, which carry the fields' names and types
    )
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(_serve(settings, host, port, port_file))


async def _serve(settings: "SimulatorSettings", host: str, port: int, port_file: Path | None) -> None:
    import asyncio  # noqa: PLC0415
    import signal  # noqa: PLC0415

    from batcher.providers.simulator.server import serve  # noqa: PLC0415
    from batcher.results.files import write_whole  # noqa: PLC0415

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await serve(settings, host, port)
    try:
        if port_file is not None:
            # Put in place whole, so that whoever waits for the file never reads half of it.
            write_whole(port_file, b"%d\n" % server.port)
        click.echo(f"simulator listening on {server.url}", err=True)
        await stop.wait()
    finally:
        await server.close()


def _range(text: str) -> tuple[int, int]:
    from batcher.errors import UsageError  # noqa: PLC0415

    low, dots, high = text.partition("..")
    if not (dots and low.isdecimal() and high.isdecimal()):
        raise UsageError(f"--output-tokens {text!r}: expected MIN..MAX, such as 8..32")
    return int(low), int(high)


def _model(text: str) -> "ModelInfo":
    from batcher.errors import UsageError  # noqa: PLC0415
    from batcher.types import ModelInfo  # noqa: PLC0415

    name, equals, context = text.partition("=")
    if not name or (equals and not context.isdecimal()):
        raise UsageError(f"--model {text!r}: expected ID or ID=CONTEXT, such as openai/gpt-oss-20b=131072")
    return ModelInfo(id=name, owner="simulated", context_tokens=int(context or 0))


def _list_faults() -> None:
    from batcher.providers.simulator.faults import FAULTS, MIXED, PATTERNS  # noqa: PLC0415

    kinds = {name: fault.says for name, fault in FAULTS.items()} | dict(PATTERNS)
    kinds["mixed"] = f"shares its rate out among: {', '.join(MIXED)}"
    for name, says in kinds.items():
        click.echo(f"{name:<22} {says}")
