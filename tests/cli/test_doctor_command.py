"""`batcher doctor`: every finding says what was seen and what to do, and the exit code is a run's."""

import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Ended, call, simulator_thread

from batcher.providers.simulator.settings import SimulatorSettings
from batcher.types import ModelInfo

KEY = "gsk_0123456789abcdefghijklmnopqrstuvwxyz"
CHECKS = ["key and endpoint", "disk", "open files", "event loop"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with simulator_thread(SimulatorSettings(keys=frozenset({KEY}))) as server:
        yield server.url


def wrong(ended: Ended) -> dict[str, tuple[str, str]]:
    """Return what is wrong: check to (seen, remedy); every check must stand there, in order."""
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    findings = [line for line in lines if not line.startswith(" ")]
    assert [line[7:].split(":")[0] for line in findings] == CHECKS
    assert {line[:7] for line in findings} <= {"ok     ", "WRONG  "}
    return {
        line[7:].split(":")[0]: (line.partition(": ")[2], lines[number + 1].strip())
        for number, line in enumerate(lines)
        if line.startswith("WRONG")
    }


@pytest.mark.parametrize(
    ("options", "variable", "name"),
    [
        (["--base-url", "{url}/v1"], "OPENAI_API_KEY", "openai-compatible"),
        (["--base-url", "{url}", "--provider", "groq"], "GROQ_API_KEY", "groq"),
        (["--base-url", "{url}/v1", "--api-key-env", "MINE"], "MINE", "openai-compatible"),
    ],
    ids=["compatible", "groq", "own variable"],
)
def test_a_machine_in_order(tmp_path: Path, url: str, options: list[str], variable: str, name: str) -> None:
    ended = call("doctor", *(part.format(url=url) for part in options), cwd=tmp_path, **{variable: KEY})
    assert (ended.code, wrong(ended)) == (0, {})
    assert f"ok     key and endpoint: {name} answers and offers 3 models" in ended.stdout
    assert not list(tmp_path.iterdir()), "it looks and changes nothing"


def test_no_key(tmp_path: Path) -> None:
    ended = call("doctor", cwd=tmp_path)
    [(seen, _)] = wrong(ended).values()
    assert ended.code == 78
    assert "set GROQ_API_KEY" in seen
    assert "--simulate" in seen


def test_a_refused_key(tmp_path: Path, url: str) -> None:
    ended = call(
        "doctor", "--base-url", f"{url}/v1", cwd=tmp_path, OPENAI_API_KEY="sk-no-such-key-0123456789"
    )
    assert ended.code == 77
    assert wrong(ended)["key and endpoint"] == (
        "openai-compatible refused the key: HTTP 401: Invalid API Key",
        "put a valid key into OPENAI_API_KEY",
    )
    assert "0123456789" not in ended.stdout


@pytest.mark.parametrize("where", ["nobody", "another path"])
def test_an_endpoint_that_is_none(tmp_path: Path, url: str, where: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        address = f"http://127.0.0.1:{closed_soon.getsockname()[1]}/v1"
    base_url = address if where == "nobody" else f"{url}/nowhere"
    ended = call("doctor", "--base-url", base_url, cwd=tmp_path, OPENAI_API_KEY=KEY)
    seen, remedy = wrong(ended)["key and endpoint"]
    assert ended.code == 69
    assert ("Connection refused" if where == "nobody" else "HTTP 404") in seen
    assert remedy.startswith("check --base-url")


def test_an_account_without_models(tmp_path: Path) -> None:
    with simulator_thread(SimulatorSettings(models=())) as server:
        ended = call("doctor", "--base-url", f"{server.url}/v1", cwd=tmp_path)
    assert ended.code == 78
    assert wrong(ended)["key and endpoint"][0] == "the account lists no models"


@pytest.mark.parametrize("place", ["a-file", "a-file/below", "a-program/below"])
def test_results_that_cannot_be_written(tmp_path: Path, url: str, place: str) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "a-program").touch(mode=0o755)
    environ = {"OPENAI_API_KEY": KEY, "BATCHER_RESULTS": place}
    ended = call("doctor", "--base-url", f"{url}/v1", cwd=tmp_path, **environ)
    seen, remedy = wrong(ended)["disk"]
    assert ended.code == 74
    assert seen == f"{tmp_path / place.split('/', maxsplit=1)[0]} cannot be written"
    assert "-o" in remedy


def test_too_few_descriptors(tmp_path: Path, url: str) -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        "from batcher.cli.main import main; main()"
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 100
    done = subprocess.run(
        [sys.executable, "-c", script, "doctor", "--base-url", f"{url}/v1"],
        cwd=tmp_path,
        env={"OPENAI_API_KEY": KEY},
        capture_output=True,
        text=True,
        check=False,
    )
    ended = Ended(done.returncode, done.stdout, done.stderr)
    assert ended.code == 78
    assert wrong(ended)["open files"][0] == "this process may open 100 files"


def test_the_first_finding_decides_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "results").touch()
    ended = call("doctor", cwd=tmp_path)
    assert (ended.code, list(wrong(ended))) == (78, ["key and endpoint", "disk"])


def test_a_configuration_that_makes_no_sense_ends_it(tmp_path: Path) -> None:
    ended = call("doctor", "--timeout", "soon", cwd=tmp_path)
    assert (ended.code, ended.stdout) == (2, "")
    assert "Invalid value for '--timeout': duration: 'soon' is not a duration" in ended.stderr


def test_foreign_text_cannot_steer_the_terminal(tmp_path: Path) -> None:
    evil = (ModelInfo(id="a\x1b[2J"), ModelInfo(id="b\u202e"))
    with simulator_thread(SimulatorSettings(models=evil)) as server:
        ended = call("doctor", "--base-url", f"{server.url}/v1", cwd=tmp_path)
    assert ended.code == 0
    assert not {"\x1b", "\u202e"} & set(ended.stdout)
