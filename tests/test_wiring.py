"""How the parts of a run are put together, and taken apart again."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from batcher.config import Settings
from batcher.errors import ConfigError, KeyMissing, KeyRefused
from batcher.providers.simulator.server import start_embedded
from batcher.providers.simulator.settings import SimulatorSettings
from batcher.types import Reply, Request
from batcher.wiring import fastest_loop, fitting_concurrency, open_provider

pytestmark = pytest.mark.real_loop

KEY = "gsk_0123456789abcdefghijklmnopqrstuvwxyz"
REQUEST = Request(
    endpoint="/v1/chat/completions",
    model="m",
    body=b'{"model":"m","messages":[{"role":"user","content":"hi"}]}',
)


@pytest.mark.parametrize(
    ("settings", "environ", "name"),
    [
        ({}, {"GROQ_API_KEY": KEY}, "groq"),
        ({"base_url": "http://localhost:9/v1"}, {}, "openai-compatible"),
        ({"base_url": "https://host.example/v1"}, {"OPENAI_API_KEY": "sk-1"}, "openai-compatible"),
        ({"base_url": "https://host.example/v1", "api_key_env": "MINE"}, {"MINE": "x"}, "openai-compatible"),
        ({"provider": "groq", "base_url": "https://host.example"}, {"GROQ_API_KEY": KEY}, "groq"),
        ({"base_url": "http://198.51.100.1/v1", "insecure_http": True}, {"OPENAI_API_KEY": "sk-1"},
         "openai-compatible"),
    ],
    ids=["groq", "this machine without a key", "remote", "own variable", "groq elsewhere", "plain http"],
)  # fmt: skip
async def test_the_settings_choose_the_provider(
    settings: dict[str, Any], environ: dict[str, str], name: str
) -> None:
    async with open_provider(Settings(**settings), environ) as provider:
        assert provider.name == name


@pytest.mark.parametrize(
    ("settings", "environ", "error", "message"),
    [
        ({}, {}, KeyMissing, "set GROQ_API_KEY"),
        ({"provider": "groq", "base_url": "http://localhost:9"}, {}, KeyMissing, "set GROQ_API_KEY"),
        ({"base_url": "https://host.example/v1"}, {}, KeyMissing, "set OPENAI_API_KEY"),
        ({"base_url": "https://host.example/v1"}, {"GROQ_API_KEY": KEY}, KeyMissing, "set OPENAI_API_KEY"),
        ({"base_url": "http://198.51.100.1/v1"}, {"OPENAI_API_KEY": "sk-1"}, ConfigError, "plain http"),
        ({"base_url": "host.example/v1"}, {}, ConfigError, "https://"),
        ({"ca_file": "/nope.pem"}, {"GROQ_API_KEY": KEY}, ConfigError, "/nope.pem"),
        ({"proxy": "http://"}, {"GROQ_API_KEY": KEY}, ConfigError, "proxy cannot be used"),
    ],
    ids=["no key", "Groq needs one anywhere", "remote needs one", "another's key", "plain http", "no scheme",
         "no such certificates", "no such proxy"],
)  # fmt: skip
async def test_what_does_not_hold_together_is_refused(
    settings: dict[str, Any], environ: dict[str, str], error: type[ConfigError], message: str
) -> None:
    with pytest.raises(error, match=message):
        async with open_provider(Settings(**settings), environ):
            pass


async def test_the_simulator_needs_no_key_and_is_gone_afterwards() -> None:
    before = asyncio.all_tasks()
    async with open_provider(Settings(), {}, simulate=True) as provider:
        assert provider.name == "simulator"
        reply = await provider.send(REQUEST, timeout_s=10)
        assert isinstance(reply, Reply)
        assert reply.text.startswith("[simulated]")
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("name", ["groq", "openai-compatible"])
async def test_the_key_reaches_its_own_provider_only(name: str) -> None:
    simulator = SimulatorSettings(keys=frozenset({KEY}))
    async with start_embedded(simulator) as server:
        path, variable = ("", "GROQ_API_KEY") if name == "groq" else ("/v1", "OPENAI_API_KEY")
        settings = Settings(provider=name, base_url=server.url + path)  # type: ignore[arg-type] # one of two
        async with open_provider(settings, {variable: KEY}) as provider:
            assert isinstance(await provider.send(REQUEST, timeout_s=10), Reply)
        async with open_provider(settings, {variable: "gsk_another"}) as provider:
            with pytest.raises(KeyRefused):
                await provider.send(REQUEST, timeout_s=10)


def test_the_fastest_loop_there_is() -> None:
    loop = fastest_loop()()
    assert type(loop).__module__.startswith("uvloop")
    loop.close()


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "carried", "soft_afterwards"),
    [
        (256, 4096, 64, 64, 256),
        (128, 4096, 64, 64, 202),
        (128, 150, 64, 43, 150),
        (70, 70, 64, 3, 70),
        (60, 60, 64, 1, 60),
        (256, 4096, 5000, 2016, 4096),
    ],
    ids=["enough", "raised", "raised as far as allowed", "few", "hardly any", "more than allowed"],
)
def test_the_concurrency_fits_the_descriptors(
    soft: int, hard: int, wanted: int, carried: int, soft_afterwards: int
) -> None:
    script = (
        "import resource, sys\n"
        "from batcher.wiring import fitting_concurrency\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        f"print(fitting_concurrency({wanted}), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(carried), str(soft_afterwards)]
    assert fitting_concurrency(1) == 1
