"""What all commands share: help that starts with examples, and options that read `BATCHER_*`."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_LONGEST_SHOWN = 60


class Command(click.Command):
    """A command whose help starts with its examples."""

    def __init__(self, *args: Any, examples: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, then what click writes."""
        write_examples(self.examples, formatter)
        super().format_help(ctx, formatter)


def write_examples(examples: str, formatter: click.HelpFormatter) -> None:
    """Write lines of examples, two columns in, as they are."""
    formatter.write("Examples:\n")
    for line in examples.strip().splitlines():
        formatter.write(f"  {line.strip()}\n")
    formatter.write("\n")


def option(*names: str, **kwargs: Any) -> Callable[[F], F]:
    """Declare an option that may also be set through `BATCHER_` and its long name in capitals."""
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    return click.option(*names, envvar="BATCHER_" + long[2:].replace("-", "_").upper(), **kwargs)


class Duration(click.ParamType[str]):
    """A duration such as 90, 15m or 2h, checked and handed on as written."""

    name = "duration"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return `value` if it is a duration; a usage error otherwise."""
        from batcher.errors import ConfigError  # noqa: PLC0415 - --help stays quick
        from batcher.text.durations import duration_s  # noqa: PLC0415

        try:
            duration_s(value, "duration")
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        return value


class Deadline(click.ParamType[str]):
    """A duration or an ISO time that is still to come, checked and handed on as written."""

    name = "deadline"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return `value` if it is a deadline; a usage error otherwise."""
        from batcher.clock import utcnow  # noqa: PLC0415 - --help stays quick
        from batcher.errors import ConfigError  # noqa: PLC0415
        from batcher.text.durations import deadline_in_s  # noqa: PLC0415

        try:
            if deadline_in_s(value, utcnow()) <= 0:
                self.fail(f"{value!r} has passed already: choose a later time", param, ctx)
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        return value


class Count(click.ParamType[int]):
    """A whole number from 1 on."""

    name = "number"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number; a usage error where it is none, or less than 1."""
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"expected a whole number from 1 on, got {_seen(value)}", param, ctx)
        return number


class Amount(click.ParamType[float]):
    """A number above 0."""

    name = "number"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; a usage error where it is none, endless, or not above 0."""
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not 0 < number < math.inf:
            self.fail(f"expected a number above 0, got {_seen(value)}", param, ctx)
        return number


def _seen(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


_PROVIDER_OPTIONS = (
    option("-c", "--config", type=click.Path(path_type=Path), help="YAML file with settings."),
    option("--provider", type=click.Choice(["groq", "openai-compatible"]), help="Who answers."),
    option("--base-url", metavar="URL", help="Any OpenAI-compatible endpoint."),
    option("--api-key-env", metavar="NAME", help="Variable that holds the key."),
    option("--env-file", metavar="PATH", help="File of NAME=value lines to look for the key in."),
    option("--insecure-http", is_flag=True, default=None, help="Allow plain http to other machines."),
    option("--timeout", type=Duration(), metavar="S", help="One attempt in total, e.g. 90 or 5m (300)."),
)


def provider_options(command: F) -> F:
    """Declare the options that say who answers and how to reach them."""
    for declare in reversed(_PROVIDER_OPTIONS):
        command = declare(command)
    return command
