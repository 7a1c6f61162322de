"""`batcher simulator` as a process of its own."""

import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from batcher.cli.simulator import simulator
from batcher.errors import BatcherError, OutputError, UsageError
from batcher.providers.simulator.faults import FAULTS, PATTERNS

pytestmark = pytest.mark.real_loop

COMMAND = [sys.executable, "-c", "from batcher.cli.simulator import simulator; simulator()"]


@contextmanager
def _running(port_file: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command and wait for its port file; whatever happens, it is gone afterwards."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--port-file", str(port_file), *options], stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(500):
            if port_file.exists() or process.poll() is not None:
                break
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()[1]
        yield process, f"http://127.0.0.1:{int(port_file.read_text())}"
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_it_serves_until_it_is_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    with _running(tmp_path / "port", "--rpm", "2", "--fault", "id:status:503=x") as (process, url):
        with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as response:
            assert len(orjson.loads(response.read())["data"]) == 3
        process.send_signal(number)
        _, stderr = process.communicate(timeout=10)
        assert process.returncode == 0
        assert stderr == f"simulator listening on {url}\n"


def test_fast_mode_serves_the_admin_page(tmp_path: Path) -> None:
    with (
        _running(tmp_path / "port", "--fast") as (_, url),
        urllib.request.urlopen(f"{url}/admin/stats", timeout=5) as response,
    ):
        assert orjson.loads(response.read())["requests"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fault", "rest=0.1"], "did you mean 'reset'"),
        (["--output-tokens", "many"], "expected MIN..MAX"),
        (["--output-tokens", "9..3"], "1 <= MIN <= MAX"),
        (["--model", "m=big"], "expected ID or ID=CONTEXT"),
        (["--latency", "-1"], "between 0 and 86400"),
        (["--rpm", "0"], "rpm must be 1 or more"),
        (["--host", "no.such.host.invalid"], "cannot listen on"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_make_no_sense_say_why(options: list[str], message: str) -> None:
    error = _error_of(options)
    assert isinstance(error, UsageError)
    assert message in str(error)


def test_a_port_file_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    assert isinstance(_error_of(["--port", "0", "--port-file", str(tmp_path / "no" / "port")]), OutputError)


def _error_of(options: list[str]) -> BaseException | None:
    result = CliRunner().invoke(simulator, options)
    assert result.exit_code == 1
    assert isinstance(result.exception, BatcherError)
    return result.exception


def test_help_starts_with_examples() -> None:
    output = CliRunner().invoke(simulator, ["--help"]).output
    assert output.startswith("Examples:\n  batcher simulator ")
    assert "--port-file" in output


def test_every_kind_of_fault_is_listed() -> None:
    listed = CliRunner().invoke(simulator, ["--list-faults"]).output
    assert {line.split()[0] for line in listed.splitlines()} == {*FAULTS, *PATTERNS, "mixed"}


def test_options_read_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHER_SIMULATOR_FAULT", "rest=0.1")
    assert isinstance(_error_of([]), UsageError)
