"""Accounts are opened with their own keys, at their own address, over one pool."""

import asyncio
from typing import Any

import pytest

from batcher.accounts import open_accounts
from batcher.config import AccountSettings, Settings
from batcher.errors import ConfigError, KeyDoubted, KeyMissing
from batcher.events import Event
from batcher.providers.simulator.server import start_embedded
from batcher.providers.simulator.settings import SimulatorSettings
from batcher.types import Reply, Request

pytestmark = pytest.mark.real_loop


def ignore(event: Event) -> None:
    """For runs that nobody watches."""


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
    async with open_accounts(Settings(**settings), environ, ignore) as [account]:
        assert account.provider.name == name


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
        async with open_accounts(Settings(**settings), environ, ignore):
            pass


async def test_the_simulator_needs_no_key_and_is_gone_afterwards() -> None:
    before = asyncio.all_tasks()
    async with open_accounts(Settings(), {}, ignore, simulate=True) as [account]:
        assert (account.provider.name, account.fingerprint) == ("simulator", "")
        reply = await account.provider.send(REQUEST, timeout_s=10)
        assert isinstance(reply, Reply)
        assert reply.text.startswith("[simulated]")
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("name", ["groq", "openai-compatible"])
async def test_the_key_reaches_its_own_provider_only(name: str) -> None:
    simulator = SimulatorSettings(keys=frozenset({KEY}))
    async with start_embedded(simulator) as server:
        path, variable = ("", "GROQ_API_KEY") if name == "groq" else ("/v1", "OPENAI_API_KEY")
        settings = Settings(provider=name, base_url=server.url + path)  # type: ignore[arg-type] # one of two
        async with open_accounts(settings, {variable: KEY}, ignore) as [account]:
            assert isinstance(await account.provider.send(REQUEST, timeout_s=10), Reply)
        async with open_accounts(settings, {variable: "gsk_another"}, ignore) as [account]:
            with pytest.raises(KeyDoubted):
                await account.provider.send(REQUEST, timeout_s=10)


TWO = {
    "team-a": AccountSettings(keys=("A1", "A2"), weight=2.0),
    "team-b": AccountSettings(keys=("B",)),
}


async def test_each_account_has_its_own_keys_and_name() -> None:
    settings = Settings(base_url="https://host.example/v1", accounts=TWO)
    environ = {"A1": "sk-1", "A2": "sk-2", "B": "sk-3"}
    async with open_accounts(settings, environ, ignore) as accounts:
        assert [(account.name, account.weight) for account in accounts] == [("team-a", 2.0), ("team-b", 1.0)]
        assert len({account.fingerprint for account in accounts}) == 2
        first = accounts[0].fingerprint
    swapped = {"A1": "sk-2", "A2": "sk-1", "B": "sk-3"}
    async with open_accounts(settings, swapped, ignore) as accounts:
        assert accounts[0].fingerprint == first


@pytest.mark.parametrize(
    ("environ", "error", "message"),
    [
        ({"A1": "sk-1", "B": "sk-3"}, KeyMissing, "set A2"),
        ({"A1": "sk-1", "A2": "sk-2", "B": "sk-1"}, ConfigError, "B holds the same key as account 'team-a'"),
    ],
    ids=["one is missing", "two accounts with one key"],
)
async def test_accounts_that_do_not_hold_together(
    environ: dict[str, str], error: type[ConfigError], message: str
) -> None:
    with pytest.raises(error, match=message):
        async with open_accounts(Settings(base_url="https://host.example/v1", accounts=TWO), environ, ignore):
            pass


@pytest.mark.parametrize(
    ("service_tier", "tiers", "names"),
    [
        (None, [""], [""]),
        ("flex", ["flex"], [""]),
        ("auto", ["on_demand", "flex"], ["", "flex"]),
    ],
)
async def test_an_overflow_tier_has_a_quota_of_its_own(
    service_tier: Any, tiers: list[str], names: list[str]
) -> None:
    settings = Settings(service_tier=service_tier)
    async with open_accounts(settings, {"GROQ_API_KEY": KEY}, ignore) as accounts:
        assert [account.tier for account in accounts] == tiers
        assert [account.name for account in accounts] == names
        assert len({account.fingerprint for account in accounts}) == len(accounts)
