"""The `batcher` command: finds the command asked for and turns errors into messages and exit codes."""

import contextlib
import importlib
import os
import re
import sys
from typing import Any

import click

from batcher.cli.command import write_examples
from batcher.text.terminal import on_one_line, printable

EXAMPLES = """
batcher run jobs.jsonl --simulate            try it without a key; results in results/jobs.jsonl
batcher run jobs.jsonl                       run on Groq (key in GROQ_API_KEY); run again to resume
batcher run jobs.jsonl --base-url http://localhost:8000/v1 --model my-model
batcher check jobs.jsonl                     find every bad line before a cent is spent
batcher status results/jobs.jsonl            where a run stands
"""

# What Python and pyreqwest say where the system lets a process start no more threads.
_NO_THREAD = re.compile("start new thread|spawn .*thread")

COMMANDS = {
    "run": "Run a job file and write one result line for each job; run again to resume.",
    "check": "Report every bad line of a job file; nothing is sent.",
    "status": "Show where a run stands, also while it runs.",
    "doctor": "Check key, endpoint, disk and limits, and say how to mend what is wrong.",
    "models": "List the models that the account can use.",
    "bench": "Measure how fast a run is on this machine, and what it costs.",
    "simulator": "Run a local server that answers like Groq or OpenAI, with limits and faults.",
}


class LazyGroup(click.Group):
    """Imports a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"batcher.cli.{cmd_name}"), cmd_name)
        return command

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, then what click writes."""
        write_examples(EXAMPLES, formatter)
        super().format_help(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="batcher")
def cli() -> None:
    """Run files of LLM requests and bring home exactly one result line for each."""


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with the code that PRODUCT promises for what happened."""
    # Result and log files of a run may hold private text: only their owner reads them.
    os.umask(0o077)
    sys.exit(_run(args))


def command() -> None:
    """Be the installed command: `main`, and then an end without the interpreter's own clearing up.

    pyreqwest's thread may still hand a result to an interpreter that is going away, which aborts the
    process (SIGABRT) after a run that went well. Everything is closed and flushed by then.
    """
    _stand_in_for_closed_streams()
    try:
        main()
    except SystemExit as end:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)


def _stand_in_for_closed_streams() -> None:
    """Open the null device where the caller closed a stream, lest a socket or a file takes its number.

    From stdin comes an end; on stdout writing fails, as results must not vanish; words on stderr may.
    """
    for fd, name, flags, mode in (
        (0, "stdin", os.O_RDONLY, "r"),
        (1, "stdout", os.O_RDONLY, "w"),
        (2, "stderr", os.O_WRONLY, "w"),
    ):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, flags)
            assert opened == fd  # the lowest number that is free
            stream = open(fd, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the process's life
            setattr(sys, name, stream)


def _run(args: list[str] | None) -> int:
    try:
        code: Any = cli.main(args, prog_name="batcher", standalone_mode=False)
        sys.stdout.flush()  # while it can still be told that something did not get out
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        usage = error.ctx.get_usage() + "\n" if isinstance(error, click.UsageError) and error.ctx else ""
        _say(f"{usage}Error: {error.format_message()}")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except SystemExit as end:
        # click's own ways out: shell completion, and a reader of stdout that has gone.
        return 74 if end.code else 0
    except OSError as error:
        _leave_stdout_alone()
        if not isinstance(error, BrokenPipeError):
            _say(f"batcher: {error.filename or 'the output'}: {error.strerror}; check the disk")
        return 74
    except Exception as error:
        from batcher.errors import BatcherError  # noqa: PLC0415 - --help stays quick

        if isinstance(error, BatcherError):
            _say(on_one_line(f"batcher: {error}"))
            return error.exit_code
        if isinstance(error, RuntimeError) and _NO_THREAD.search(str(error)):
            advice = "raise the limit on processes (ulimit -u, or the container's)"
            _say(f"batcher: {error}: {advice}, then run the same command again")
            return 75
        _say(f"batcher: this is a bug: {type(error).__name__}: {error}")
        if os.environ.get("BATCHER_LOG_LEVEL", "").lower() == "debug":
            raise
        _say("batcher: BATCHER_LOG_LEVEL=debug shows where; what was written so far is safe")
        return 70


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # if stderr is gone, the exit code still tells
        click.echo(printable(text), err=True)


def _leave_stdout_alone() -> None:
    """Keep the interpreter from failing once more on a closed stdout as it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


if __name__ == "__main__":
    command()
