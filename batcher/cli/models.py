"""`batcher models`: what the account can use."""

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.command import Command, option, provider_options
from batcher.text.terminal import on_one_line

if TYPE_CHECKING:
    from batcher.config import Settings
    from batcher.types import ModelInfo

EXAMPLES = """
batcher models                                       on Groq
batcher models --base-url http://localhost:8000/v1   on a local server
batcher models --json                                for scripts
"""


@click.command(cls=Command, examples=EXAMPLES)
@provider_options
@option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def models(as_json: bool, **options: Any) -> None:
    """List the models that the account can use: context, longest answer, price per million tokens."""
    import asyncio  # noqa: PLC0415 - --help stays quick

    from batcher.config import load_settings  # noqa: PLC0415
    from batcher.pricing import Pricing  # noqa: PLC0415

    settings = load_settings(options.pop("config"), options)
    listed = sorted(asyncio.run(list_models(settings)), key=lambda model: model.id)
    pricing = Pricing(settings.provider_name, settings.prices)
    if as_json:
        # Escaped beyond ASCII: C1 controls and bidi marks are as foreign in JSON as in words.
        rows = [{**_columns(model), "price_usd_per_million": pricing.price(model.id)} for model in listed]
        click.echo(json.dumps(rows, indent=2, default=dataclasses.asdict))
        return
    click.echo(f"{'model':40} {'context':>9} {'answer':>8} {'$ in':>8} {'$ out':>8}")
    for model in listed:
        price = pricing.price(model.id)
        name = on_one_line(model.id)
        dollars = ("?", "?") if price is None else (f"{price.input_usd:.3f}", f"{price.output_usd:.3f}")
        click.echo(
            f"{name:40} {model.context_tokens or '?':>9} {model.max_output_tokens or '?':>8} "
            f"{dollars[0]:>8} {dollars[1]:>8}{'' if model.active else '  not active'}"
        )


async def list_models(settings: "Settings") -> "list[ModelInfo]":
    """Ask the provider for its models: those that any of the accounts may use.

    Raises:
        ConfigError: there is no key, or the settings do not hold together.
        KeysRefused: the provider does not know a key.
        Unreachable: the call brought no list.
    """
    from batcher.accounts import open_accounts  # noqa: PLC0415 - loads the transport
    from batcher.errors import CallError, KeyRefused, KeysRefused, Unreachable  # noqa: PLC0415

    listed: dict[str, ModelInfo] = {}
    async with open_accounts(settings, os.environ, lambda event: None) as accounts:
        for account in accounts:
            name = account.provider.name + (f" (account {account.owner})" if account.owner else "")
            try:
                models = await account.provider.models()
            except KeyRefused as error:
                raise KeysRefused(f"{name} refused the key: {error}") from error
            except CallError as error:
                raise Unreachable(f"{name} gave no list of models: {error}") from error
            listed |= {model.id: model for model in models}
    return list(listed.values())


def _columns(model: "ModelInfo") -> dict[str, object]:
    return {
        "id": model.id,
        "owner": model.owner,
        "context_tokens": model.context_tokens or None,
        "max_output_tokens": model.max_output_tokens or None,
        "active": model.active,
    }
