"""Opens the accounts of a run: finds their keys, checks where they go, and connects them to one pool."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from batcher.config import AccountSettings, Settings
from batcher.engines.background import in_background
from batcher.errors import ConfigError
from batcher.events import Emit
from batcher.ledger import Ledger, state_directory
from batcher.providers.base import Provider
from batcher.scheduling.routing import Account, Routing
from batcher.sharing import SharedAccount, account_fingerprint

if TYPE_CHECKING:
    from batcher.providers.keys import Secret
    from batcher.providers.transport import Pool

log = logging.getLogger(__name__)

GROQ_URL = "https://api.groq.com"
SIMULATOR = "simulator"


@asynccontextmanager
async def open_accounts(
    settings: Settings, environ: Mapping[str, str], emit: Emit, *, simulate: bool = False
) -> AsyncIterator[list[Account]]:
    """Open the accounts that the settings name over one connection pool.

    Args:
        settings: what was configured.
        environ: where keys are looked for.
        emit: told of keys that are refused for good.
        simulate: start the simulator on a free loopback port and talk to that instead.

    Raises:
        KeyMissing: there is no key and the endpoint needs one.
        ConfigError: a key, the address, the proxy or certificates cannot be used.
    """
    if not simulate:
        async with _open_remote(settings, environ, emit, name=settings.provider_name) as accounts:
            yield accounts
        return
    from batcher.providers.simulator.server import start_embedded  # noqa: PLC0415 - only needed here
    from batcher.providers.simulator.settings import SimulatorSettings  # noqa: PLC0415

    async with start_embedded(SimulatorSettings()) as server:
        local = Settings(
            base_url=server.url + "/v1",
            api_key_env="BATCHER_SIMULATOR_KEY",
            concurrency=settings.concurrency,
        )
        async with _open_remote(local, {}, emit, name=SIMULATOR) as accounts:
            yield [replace(account, fingerprint="") for account in accounts]


@asynccontextmanager
async def share_accounts(
    accounts: Sequence[Account], routing: Routing, environ: Mapping[str, str], emit: Emit
) -> AsyncIterator[dict[Account, SharedAccount]]:
    """Share each account's limits with this user's other runs; what is simulated is not shared.

    Args:
        accounts: as they were opened.
        routing: knows their lanes.
        environ: says where the shared books are kept.
        emit: told when a share changes.
    """
    async with AsyncExitStack() as stack:
        shared = {}
        for account in accounts:
            if not account.fingerprint:
                continue
            ledger = Ledger(state_directory(environ), account.fingerprint, on_warning=log.warning)
            one = shared[account] = SharedAccount(
                account.name,
                ledger,
                partial(routing.lanes, account),
                emit=emit,
                cached_tokens_count=account.provider.name != "groq",
            )
            one.join()
            stack.callback(one.leave)
            await stack.enter_async_context(in_background(one.share_forever()))
        yield shared


@asynccontextmanager
async def _open_remote(
    settings: Settings, environ: Mapping[str, str], emit: Emit, *, name: str
) -> AsyncIterator[list[Account]]:
    from batcher.providers.keys import check_base_url, is_loopback  # noqa: PLC0415
    from batcher.providers.rotating_keys import RotatingKeys  # noqa: PLC0415
    from batcher.providers.transport import Pool  # noqa: PLC0415 - loads pyreqwest
    from batcher.providers.wire import PoolSettings  # noqa: PLC0415

    groq = settings.provider_name == "groq"
    base_url = check_base_url(settings.base_url or GROQ_URL, insecure_http=settings.insecure_http)
    keys = _load_keys(
        settings, environ, required=groq or bool(settings.accounts) or not is_loopback(base_url)
    )
    async with AsyncExitStack() as stack:
        pool = Pool(
            PoolSettings(
                max_connections=2 * settings.concurrency + 10,
                connect_timeout_s=min(settings.connect_timeout, 0.9 * settings.timeout),
                proxy=settings.proxy,
                ca_file=settings.ca_file,
            )
        )
        stack.push_async_callback(pool.aclose)
        accounts = []
        for owner, of_owner in keys.items():
            each = [
                (variable, _connect(pool, base_url, key, groq, name)) for variable, key in of_owner.items()
            ]
            provider = RotatingKeys(owner, each, emit)
            stack.push_async_callback(provider.aclose)
            known = [key.reveal() for key in of_owner.values() if key is not None]
            account = Account(
                provider=provider,
                owner=owner,
                weight=settings.accounts[owner].weight if settings.accounts else 1.0,
                fingerprint=account_fingerprint(base_url, known),
            )
            accounts += _tiers(account, settings.service_tier)
        yield accounts


def _load_keys(
    settings: Settings, environ: Mapping[str, str], *, required: bool
) -> "dict[str, dict[str, Secret | None]]":
    """Return for each account its keys by the variables that hold them.

    Raises:
        KeyMissing: one is not there.
        ConfigError: one cannot be right, or two accounts have the same.
    """
    from batcher.providers.keys import load_key  # noqa: PLC0415

    wanted = settings.accounts or {"": AccountSettings(keys=(settings.key_variable,))}
    keys = {
        owner: {
            variable: load_key(variable, environ=environ, env_file=settings.env_file, required=required)
            for variable in account.keys
        }
        for owner, account in wanted.items()
    }
    owners: dict[str, str] = {}
    for owner, of_owner in keys.items():
        for variable, key in of_owner.items():
            if key is not None and owners.setdefault(key.reveal(), owner) != owner:
                raise ConfigError(
                    f"accounts.{owner}: {variable} holds the same key as account {owners[key.reveal()]!r}: "
                    "each account has keys of its own"
                )
    return keys


def _connect(pool: "Pool", base_url: str, key: "Secret | None", groq: bool, name: str) -> Provider:
    if groq:
        assert key is not None  # it was required
        from batcher.providers.groq import Groq  # noqa: PLC0415

        return Groq(pool, key, base_url)
    from batcher.providers.openai_compatible import OpenAICompatible  # noqa: PLC0415

    return OpenAICompatible(pool, base_url, key, name=name)


def _tiers(account: Account, service_tier: str | None) -> list[Account]:
    """Return an account once for each service tier whose quota is to be used."""
    if service_tier is None:
        return [account]
    if service_tier != "auto":
        return [replace(account, tier=service_tier)]
    flex = replace(account, tier="flex", overflow=True, fingerprint=f"{account.fingerprint} flex")
    return [replace(account, tier="on_demand"), flex]
