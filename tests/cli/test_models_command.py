"""`batcher models` against a simulator over HTTP."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import call, simulator_thread

from batcher.providers.simulator.settings import DEFAULT_MODELS, SimulatorSettings
from batcher.types import ModelInfo

KEY = "gsk_0123456789abcdefghijklmnopqrstuvwxyz"
FOREIGN = ModelInfo(id="evil\x1b[2J\u202emodel", owner="somebody", active=False)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = SimulatorSettings(models=(*DEFAULT_MODELS, FOREIGN), keys=frozenset({KEY}))
    with simulator_thread(settings) as server:
        yield server.url


def test_models_are_listed_with_context_and_price(tmp_path: Path, url: str) -> None:
    (tmp_path / "c.yaml").write_text("prices: {openai/gpt-oss-20b: {input_usd: 0.1, output_usd: 0.5}}")
    ended = call("models", "-c", "c.yaml", "--base-url", f"{url}/v1", cwd=tmp_path, OPENAI_API_KEY=KEY)
    assert (ended.code, ended.stderr) == (0, "")
    heading, *rows = ended.stdout.splitlines()
    assert heading.split() == ["model", "context", "answer", "$", "in", "$", "out"]
    assert [row.split()[0] for row in rows[1:]] == sorted(model.id for model in DEFAULT_MODELS)
    assert "openai/gpt-oss-20b 131072 65536 0.100 0.500" in " ".join(ended.stdout.split())
    assert "simulated/embedding 8192 ? ? ?" in " ".join(ended.stdout.split())


def test_foreign_names_cannot_steer_the_terminal(tmp_path: Path, url: str) -> None:
    stdout = call("models", "--base-url", f"{url}/v1", cwd=tmp_path, OPENAI_API_KEY=KEY).stdout
    assert not {"\x1b", "\u202e"} & set(stdout)
    [row] = [line for line in stdout.splitlines() if line.startswith("evil")]
    assert row.endswith("not active")


def test_groq_models_come_through_its_own_client(tmp_path: Path, url: str) -> None:
    ended = call("models", "--provider", "groq", "--base-url", url, "--json", cwd=tmp_path, GROQ_API_KEY=KEY)
    assert (ended.code, ended.stderr) == (0, "")
    rows = {row["id"]: row for row in json.loads(ended.stdout)}
    assert set(rows) == {model.id for model in (*DEFAULT_MODELS, FOREIGN)}
    price = rows["openai/gpt-oss-20b"].pop("price_usd_per_million")
    assert rows["openai/gpt-oss-20b"] == {
        "id": "openai/gpt-oss-20b",
        "owner": "OpenAI",
        "context_tokens": 131_072,
        "max_output_tokens": 65_536,
        "active": True,
    }
    assert 0 < price["input_usd"] < price["output_usd"]
    assert rows["simulated/embedding"]["price_usd_per_million"] is None


def test_json_may_be_asked_for_by_variable(tmp_path: Path, url: str) -> None:
    environ = {"OPENAI_API_KEY": KEY, "BATCHER_JSON": "1", "BATCHER_BASE_URL": f"{url}/v1"}
    assert len(json.loads(call("models", cwd=tmp_path, **environ).stdout)) == 4


@pytest.mark.parametrize(
    ("path", "key", "code", "message"),
    [
        ("/v1", "gsk_wrong", 77, "openai-compatible refused the key: HTTP 401: Invalid API Key"),
        ("/v1", "", 77, "openai-compatible refused the key: HTTP 401: Invalid API Key"),
        ("/nowhere", KEY, 69, "openai-compatible gave no list of models: HTTP 404: Unknown request URL"),
    ],
    ids=["wrong key", "no key", "wrong path"],
)
def test_a_failed_call_is_one_line(url: str, path: str, key: str, code: int, message: str) -> None:
    ended = call("models", "--base-url", url + path, cwd=Path(), OPENAI_API_KEY=key)
    assert (ended.code, ended.stdout) == (code, "")
    assert ended.stderr.startswith(f"batcher: {message}")
    assert ended.stderr.count("\n") == 1


def test_nobody_listening(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    ended = call("models", "--base-url", f"http://127.0.0.1:{port}/v1", cwd=tmp_path)
    assert ended.code == 69
    assert f"cannot connect (http://127.0.0.1:{port}): Connection refused" in ended.stderr
