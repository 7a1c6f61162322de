"""The command as a whole: help, exit codes, and errors as messages."""

import json
import os
import stat
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from command_line import call

from batcher import errors
from batcher.cli.main import COMMANDS, cli
from batcher.errors import BatcherError

JOB = '{"id":"a","model":"m","prompt":"hi"}\n'


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_starts_with_examples_and_lists_the_commands(tmp_path: Path, flag: str) -> None:
    ended = call(flag, cwd=tmp_path)
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout.startswith("Examples:\n  batcher run jobs.jsonl --simulate ")
    listed = ended.stdout.partition("Commands:\n")[2].split()
    assert [word for word in listed if word in COMMANDS][: len(COMMANDS)]
    assert set(COMMANDS) <= set(listed)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_shows_examples_of_itself(tmp_path: Path, name: str) -> None:
    ended = call(name, "--help", cwd=tmp_path)
    assert ended.code == 0
    assert ended.stdout.startswith(f"Examples:\n  batcher {name}")
    with click.Context(cli) as ctx:
        command = cli.get_command(ctx, name)
    assert command is not None
    assert command.name == name


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    assert call("--version", cwd=tmp_path).stdout == f"batcher, version {version('batcher')}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Usage: batcher"),
        (["rnu"], "No such command 'rnu'"),
        (["plan", "jobs.jsonl"], "No such command 'plan'"),
        (["check"], "Missing argument 'FILE...'"),
        (["--nope"], "No such option '--nope'"),
    ],
    ids=["nothing", "a typo", "not built yet", "no file", "no option"],
)
def test_wrong_usage(tmp_path: Path, args: list[str], message: str) -> None:
    ended = call(*args, cwd=tmp_path)
    assert (ended.code, ended.stdout) == (2, "")
    assert message in ended.stderr


EXPECTED = (
    errors.UsageError,
    errors.InterruptedRun,
    errors.LockHeld,
    errors.BadInput,
    errors.InputMissing,
    errors.Unreachable,
    errors.OutputError,
    errors.KeysRefused,
    errors.ConfigError,
    errors.KeyMissing,
)


def raising(error: BaseException) -> click.Command:
    """Return a command that fails."""

    @click.command("run")
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize("kind", EXPECTED)
def test_an_error_meant_for_the_user_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BatcherError]
) -> None:
    monkeypatch.setattr("batcher.cli.run.run", raising(kind("seen \x1b[2J here")))
    ended = call("run", cwd=tmp_path)
    assert (ended.code, ended.stdout) == (kind.exit_code, "")
    assert ended.stderr == "batcher: seen \N{REPLACEMENT CHARACTER}[2J here\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
        (ZeroDivisionError("by zero"), 70, "batcher: this is a bug: ZeroDivisionError: by zero\n"),
    ],
    ids=["interrupt", "abort", "bug"],
)
def test_what_is_no_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    monkeypatch.setattr("batcher.cli.run.run", raising(error))
    ended = call("run", cwd=tmp_path)
    assert ended.code == code
    assert ended.stderr.startswith(message)
    assert "Traceback" not in ended.stderr


def test_a_bug_shows_where_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batcher.cli.run.run", raising(ZeroDivisionError("by zero")))
    with pytest.raises(ZeroDivisionError, match="by zero"):
        call("run", cwd=tmp_path, BATCHER_LOG_LEVEL="debug")


def installed(
    *args: str, cwd: Path, stdout: int = subprocess.PIPE, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the installed command as a process of its own."""
    return subprocess.run(
        [Path(sys.executable).with_name("batcher"), *args],
        cwd=cwd,
        env=environ or {"PATH": os.defpath},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=30,
    )


def test_a_full_disk_behind_stdout_is_no_bug(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = installed("--help", cwd=tmp_path, stdout=full.fileno())
    assert done.returncode == 74
    assert done.stderr == "batcher: the output: No space left on device; check the disk\n"


def test_a_reader_that_has_gone_is_no_bug(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = installed("--help", cwd=tmp_path, stdout=write_end)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (74, "")


def test_a_summary_that_cannot_be_written_is_told_by_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text(JOB)
    with Path("/dev/full").open("w") as full:
        done = installed(
            "run", "jobs.jsonl", "--simulate", "--json", "-q", cwd=tmp_path, stdout=full.fileno()
        )
    assert done.returncode == 74
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize(
    ("closed", "code"), [("<&-", 3), ("--json >&-", 74), (">&-", 3), ("--json 2>&-", 3), ("<&- >&- 2>&-", 3)]
)
def test_closed_streams_cost_no_result(tmp_path: Path, closed: str, code: int) -> None:
    (tmp_path / "jobs.jsonl").write_text(JOB + "{}\n")
    command = f"exec {Path(sys.executable).with_name('batcher')} run jobs.jsonl --simulate {closed}"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    [line] = (tmp_path / "results" / "jobs.jsonl").read_text().splitlines()
    assert json.loads(line)["custom_id"] == "a"
    assert (tmp_path / "results" / "jobs.errors.jsonl").read_bytes() == b""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(tmp_path: Path, shell: str) -> None:
    environ = {"PATH": os.defpath, "_BATCHER_COMPLETE": f"{shell}_source"}
    done = installed(cwd=tmp_path, environ=environ)
    assert done.returncode == 0
    assert "_BATCHER_COMPLETE" in done.stdout
    words = {"COMP_WORDS": "batcher run --retry", "COMP_CWORD": "2" if shell != "fish" else "--retry"}
    done = installed(cwd=tmp_path, environ=environ | words | {"_BATCHER_COMPLETE": f"{shell}_complete"})
    assert done.returncode == 0
    assert "--retry-failed" in done.stdout


def test_what_a_run_writes_is_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text(JOB)
    assert installed("run", "jobs.jsonl", "--simulate", "-q", cwd=tmp_path).returncode == 0
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "results").iterdir()}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "results").stat().st_mode) == 0o700
