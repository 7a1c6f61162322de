"""What the README says is so: its commands run, its files parse, its tables agree with the code."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import click
import orjson
import pytest
from command_line import simulator_thread

from batcher import errors
from batcher.cli.main import COMMANDS, cli
from batcher.config import Settings, load_settings
from batcher.engines.stop import StopReason
from batcher.errors import BatcherError
from batcher.jobs.lines import LineDefaults, check_line
from batcher.providers.simulator.settings import SimulatorSettings
from batcher.types import OutputPaths, output_paths

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
KEY = "gsk_0123456789abcdefghijklmnopqrstuvwxyz"

PATIENCE_S = 30

NOT_RUN = {
    "pip install": "makes an environment and installs: .ci/run does that with the README's own block",
}
"""Commands that no test runs here: what they contain, and why."""

OTHERS_OPTIONS = {"--quiet", "--editable", "--long"}
"""Options of pip and of .ci/run."""


def blocks(language: str) -> list[str]:
    """Return the README's fenced blocks in a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for named, text in found if named == language]


def runnable(block: str) -> str:
    """Return a block of commands without those that are not run, and with the installed `batcher`."""
    lines = [line for line in block.splitlines() if not any(part in line for part in NOT_RUN)]
    return "\n".join(lines).replace(".venv/bin/batcher", "batcher")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory with the sample jobs, as a fresh checkout has them."""
    shutil.copytree(REPOSITORY / "jobs", tmp_path / "jobs")
    return tmp_path


def environment(**variables: str) -> dict[str, str]:
    """Return an environment in which `batcher` is on the path, and `variables`: nothing of the tester's."""
    return {"PATH": f"{Path(sys.executable).parent}:{os.defpath}", "HOME": "/nonexistent"} | variables


def bash(script: str, cwd: Path, **variables: str) -> str:
    """Run a script to its end, which must be a good one, and return what it said on stdout."""
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def answered(output: Path) -> int:
    return len(output.read_bytes().splitlines())


BLOCKS = blocks("bash")
TRY_IT, PASS_THE_TESTS, WITH_A_KEY, ELSEWHERE, RECIPES, SIMULATOR = BLOCKS


def test_the_first_command_brings_answers_without_a_key(checkout: Path) -> None:
    assert "batcher run " in BLOCKS[0]
    bash(runnable(TRY_IT), checkout)
    assert answered(checkout / "results" / "short.jsonl") == 8
    assert (checkout / "results" / "short.summary.json").exists()
    assert b"[simulated]" in (checkout / "results" / "short.jsonl").read_bytes()


def test_one_block_installs_and_passes_the_tests() -> None:
    assert [block for block in BLOCKS if "pytest" in block] == [PASS_THE_TESTS]
    assert runnable(PASS_THE_TESTS) == ""
    assert "pytest" in (REPOSITORY / ".ci" / "run").read_text()


def test_the_commands_for_a_key(checkout: Path) -> None:
    simulator = SimulatorSettings(keys=frozenset({KEY}))
    with simulator_thread(simulator) as server:
        there = {"BATCHER_PROVIDER": "groq", "BATCHER_BASE_URL": server.url}
        script = WITH_A_KEY.replace("gsk_...", KEY)
        assert script != WITH_A_KEY
        stdout = bash(script, checkout, **there)
    assert "ok     key and endpoint: groq answers" in stdout
    assert answered(checkout / "results" / "real.jsonl") == 8


def test_the_commands_for_other_endpoints(checkout: Path) -> None:
    with simulator_thread(SimulatorSettings()) as server:
        script = ELSEWHERE.replace("sk-...", "sk-0123456789")
        for url in ("http://localhost:8000/v1", "https://api.openai.com/v1"):
            assert script.count(url) == 1
            script = script.replace(url, f"{server.url}/v1")
        bash(script, checkout)
    assert answered(checkout / "results" / "vllm.jsonl") == 8
    assert answered(checkout / "results" / "batch.jsonl") == 5


def test_the_recipes(checkout: Path) -> None:
    stdout = bash(RECIPES, checkout).splitlines()
    streamed = (checkout / "answers.jsonl").read_bytes().splitlines()
    assert all(orjson.loads(line)["response"]["status_code"] == 200 for line in streamed)
    summary = orjson.loads(stdout[0])
    assert (summary["exit_code"], summary["jobs"]["done_before"]) == (0, 8)
    assert stdout[1] == "results/short.jsonl: 8 answered, 0 failed, 0 pending"
    assert answered(checkout / "results" / "both.jsonl") == 15


@contextmanager
def serving(command: str, cwd: Path) -> Iterator[str]:
    """Start a simulator as the README does, but on a free port; return its address."""
    port_file = cwd / "port"
    process = subprocess.Popen(
        [*command.replace("--port 8123", "--port 0").split(), "--port-file", str(port_file)],
        cwd=cwd,
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(500):
            if port_file.exists() or process.poll() is not None:
                break
            time.sleep(0.02)
        yield f"http://127.0.0.1:{int(port_file.read_text())}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.wait()


def test_the_simulator_and_a_run_against_it(checkout: Path) -> None:
    serve, run = SIMULATOR.strip().splitlines()
    command = str(Path(sys.executable).with_name("batcher"))
    with serving(serve.replace("batcher", command, 1), checkout) as url:
        bash(run.replace("http://127.0.0.1:8123", url), checkout)
    assert answered(checkout / "results" / "faulty.jsonl") == 8


def test_the_python_example(checkout: Path) -> None:
    [example] = blocks("python")
    script = (
        f"{example}\n"
        "import asyncio\n"
        "assert summary['jobs']['succeeded'] == 8\n"
        "asyncio.run(classify([{'id': 'a', 'text': 'hi'}, {'id': 'b', 'text': 'ho'}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=checkout,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "a [simulated] Answer to: hi",
        "b [simulated] Answer to: ho",
    ]
    assert answered(checkout / "results" / "short.jsonl") == 8


def test_the_configuration_is_understood(tmp_path: Path) -> None:
    example, several = blocks("yaml")
    for text in (example, example.replace("\n# ", "\n")):
        (tmp_path / "batcher.yaml").write_text(text)
        settings = load_settings(tmp_path / "batcher.yaml", {})
        assert (settings.provider, settings.timeout, settings.retry.server.attempts) == ("groq", 120.0, 7)
        assert settings.prices["my-model"].output_usd == 0.4
    (tmp_path / "several.yaml").write_text(several)
    assert load_settings(tmp_path / "several.yaml", {}).accounts["team-a"].weight == 2
    assert settings.proxy == "http://proxy.internal:3128"
    assert settings.ca_file == "/etc/ssl/internal.pem"
    assert settings != Settings()


def test_the_example_lines_are_like_real_ones(checkout: Path) -> None:
    job, result = blocks("json")
    checked = check_line(job.encode().strip(), LineDefaults())
    assert (checked.id, checked.model) == ("greet-1", "openai/gpt-oss-20b")
    bash("batcher run jobs/short.jsonl -o x.jsonl --simulate -q", checkout)
    real = orjson.loads((checkout / "x.jsonl").read_bytes().splitlines()[0])
    shown = orjson.loads(result)
    assert list(shown) == list(real)
    assert set(shown["response"]) == set(real["response"])
    assert set(shown["batcher"]) <= set(real["batcher"])
    assert set(shown["batcher"]["usage"]) <= set(real["batcher"]["usage"])


def table(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading of its own, without its first row."""
    rows = README.partition(f"\n{heading}\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert rows
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_the_exit_codes_are_those_of_the_code() -> None:
    listed = {int(code) for cells in table("| code | meaning |") for code in re.findall(r"\d+", cells[0])}
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BatcherError)
    ]
    raised = {kind.exit_code for kind in kinds}
    assert listed == raised | {int(reason) for reason in StopReason} | {0, 2, 3}


def test_the_files_are_those_of_an_output() -> None:
    listed = [cells[0].strip("`") for cells in table("| file | holds |")]
    paths = output_paths(Path("x.jsonl"))
    assert sorted(listed) == sorted(str(getattr(paths, entry.name)) for entry in fields(OutputPaths))


def test_the_fields_of_a_job_are_known() -> None:
    cells = [cells[0] for cells in table("| field | meaning |")]
    names = re.findall(r"`(\w+)`", " ".join(cells))
    values = {
        "prompt": "hi",
        "messages": [{"role": "user", "content": "hi"}],
        "priority": 1,
        "deadline_s": 5,
        "fallback": ["m"],
        "params": {"seed": 1},
        "metadata": {},
        "schema": {"type": "object"},
        "kind": "chat",
    }
    for asked in ("prompt", "messages"):
        other = {"prompt", "messages"} - {asked}
        job = {name: values.get(name, "x") for name in names if name not in other}
        assert check_line(orjson.dumps(job), LineDefaults()).id == "x"


def options_of(command: click.Command) -> set[str]:
    return {opt for param in command.params if isinstance(param, click.Option) for opt in param.opts}


def test_every_option_that_is_mentioned_exists() -> None:
    with click.Context(cli) as ctx:
        commands = [command for name in COMMANDS if (command := cli.get_command(ctx, name))]
    known = set().union(*map(options_of, commands)) | OTHERS_OPTIONS
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) <= known


def test_every_command_that_is_mentioned_exists() -> None:
    mentioned = set(
        re.findall(r"^(?:.*[|] )?(?:\.venv/bin/)?batcher ([a-z]+)", "".join(BLOCKS), re.MULTILINE)
    )
    assert mentioned == {"run", "doctor", "check", "status", "simulator"}
    assert mentioned <= set(COMMANDS)


def test_every_path_that_is_mentioned_exists() -> None:
    [tree] = [block for block in blocks("") if block.startswith("batcher/")]
    named = re.findall(r"[\w.]+/(?= )|\w+\.py", tree.removeprefix("batcher/"))
    named += re.findall(r"`((?:\.ci|\w+)/[\w./]*|\w+\.py)`", README)
    assert len(named) > 30
    for path in named:
        made = path.startswith("results/") and path.endswith(("jsonl", "json"))
        assert made or (REPOSITORY / path).exists() or (REPOSITORY / "batcher" / path).exists(), path


def test_every_room_stands_in_the_tree() -> None:
    [tree] = [block for block in blocks("") if block.startswith("batcher/")]
    rooms = {
        path.name.removesuffix(".py")
        for path in (REPOSITORY / "batcher").iterdir()
        if path.suffix in ("", ".py")
    }
    assert rooms - set(re.findall(r"\w+", tree)) <= {"__init__", "__pycache__"}


def test_completion_is_switched_on_as_told(tmp_path: Path) -> None:
    [command] = re.findall(r'`eval "\$\((.*?)\)"`', README)
    assert "_batcher_completion" in bash(command, tmp_path)
