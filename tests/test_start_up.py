"""What a command loads: for help next to nothing, for a run only what that run needs."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import environment, job, simulating, write_jobs

from batcher.cli.main import COMMANDS

SLOW = {"asyncio", "email", "http", "importlib.metadata", "logging", "ssl", "subprocess"}
"""Of the standard library, what takes longest to load."""

OWN_FOR_HELP = {"batcher", "batcher.cli", "batcher.cli.command", "batcher.cli.main"}
OWN_FOR_HELP |= {"batcher.text", "batcher.text.terminal"}
"""Of this package, what finds the command and prints."""

SELDOM = {
    "batcher.bench",
    "genai_prices",
    "groq",
    "httpx",
    "jsonschema",
    "pydantic",
    "rich",
    "yaml",
    "zstandard",
}
"""What only some runs need: listed prices, Groq's client, schemas, a configuration file, `.zst` files."""

AT_THE_LATEST_AT_START = {"aiolimiter", "tenacity"}
"""Needed once calls fail, which may be because this process can open no more files: not even a module's."""


def loaded(*args: object, cwd: Path) -> set[str]:
    """Return the modules that a command has loaded when it ends."""
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from batcher.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "print('modules', *sys.modules.keys() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, args)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name, *modules = done.stdout.splitlines()[-1].split(" ")
    assert name == "modules"
    return set(modules)


def foreign(modules: set[str]) -> set[str]:
    """Return the packages outside the standard library."""
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_loads_next_to_nothing(tmp_path: Path, command: str | None) -> None:
    modules = loaded(*filter(None, [command]), "--help", cwd=tmp_path)
    own = {module for module in modules if module.startswith("batcher")}
    assert own <= OWN_FOR_HELP | {f"batcher.cli.{command}"}
    assert foreign(modules) == {"batcher", "click"}
    assert not modules & SLOW


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with simulating(tmp_path_factory.mktemp("simulator")) as simulator:
        yield simulator.url


def test_a_run_loads_nothing_that_only_others_need(tmp_path: Path, url: str) -> None:
    write_jobs(tmp_path / "jobs.jsonl", [job("one")])
    run = ("run", "jobs.jsonl", "-q", "--base-url", url)
    first = loaded(*run, cwd=tmp_path)
    assert not first & SELDOM
    assert first >= AT_THE_LATEST_AT_START
    again = loaded(*run, cwd=tmp_path)
    assert not again & SELDOM, "with nothing left to do"
    assert not again - first


def test_a_configuration_file_is_what_yaml_is_loaded_for(tmp_path: Path, url: str) -> None:
    write_jobs(tmp_path / "jobs.jsonl", [job("one")])
    (tmp_path / "batcher.yaml").write_text("rpm: 100\n")
    run = ("run", "jobs.jsonl", "-q", "--base-url", url)
    assert "yaml" not in loaded(*run, cwd=tmp_path)
    assert "yaml" in loaded(*run, "-c", "batcher.yaml", cwd=tmp_path)


def test_a_check_loads_nothing_of_a_run(tmp_path: Path) -> None:
    write_jobs(tmp_path / "jobs.jsonl", [job("one")])
    modules = loaded("check", "-q", "jobs.jsonl", cwd=tmp_path)
    assert not modules & {"pyreqwest", "uvloop", "batcher.scheduling", *SELDOM}


def test_a_status_loads_neither_settings_nor_the_network(tmp_path: Path, url: str) -> None:
    write_jobs(tmp_path / "jobs.jsonl", [job("one")])
    loaded("run", "jobs.jsonl", "-q", "--base-url", url, cwd=tmp_path)
    modules = loaded("status", "results/jobs.jsonl", cwd=tmp_path)
    assert not modules & {"pyreqwest", "uvloop", "batcher.config", "batcher.scheduling", *SELDOM}
