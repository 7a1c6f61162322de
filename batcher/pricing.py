"""What tokens cost: the user's table, then the dated tables of genai-prices, else unknown."""

from collections.abc import Mapping
from dataclasses import dataclass

from batcher.types import Usage

MILLION = 1_000_000
LISTED = frozenset({"groq"})
"""Our providers that the dated tables know; who answers at an address of the user's own, nobody can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Dollars for a million tokens; cached input tokens are part of the input and priced apart."""

    input_usd: float
    output_usd: float
    cached_input_usd: float | None = None

    def cost_usd(self, usage: Usage) -> float:
        """Return the cost of one answer: sum over kinds of tokens * dollars / 1,000,000."""
        cached_usd = self.input_usd if self.cached_input_usd is None else self.cached_input_usd
        return (
            (usage.input_tokens - usage.cached_tokens) * self.input_usd
            + usage.cached_tokens * cached_usd
            + usage.output_tokens * self.output_usd
        ) / MILLION


FREE = Price(input_usd=0.0, output_usd=0.0)


class Pricing:
    """Prices of the models at one provider, each looked up once."""

    def __init__(self, provider: str, table: Mapping[str, Price], *, default: Price | None = None) -> None:
        self._provider = provider
        self._default = default
        self._known: dict[str, Price | None] = dict(table)

    def price(self, model: str) -> Price | None:
        """Return the price of a model, None if it is unknown."""
        if model not in self._known:
            self._known[model] = self._default or _listed_price(model, self._provider)
        return self._known[model]

    def cost_usd(self, model: str, usage: Usage | None) -> float | None:
        """Return what an answer cost, None if its price or its usage is unknown."""
        price = self.price(model)
        return None if price is None or usage is None else price.cost_usd(usage)


def _listed_price(model: str, provider: str) -> Price | None:
    if provider not in LISTED:
        return None
    from genai_prices import Usage as Tokens  # noqa: PLC0415 - takes 150 ms, needed only for unlisted models
    from genai_prices import calc_price  # noqa: PLC0415

    # A thousand tokens stay below every tier of a tiered price.
    thousand = 1000
    try:
        plain = calc_price(Tokens(input_tokens=thousand), model, provider_id=provider).total_price
        cached = calc_price(
            Tokens(input_tokens=thousand, cache_read_tokens=thousand), model, provider_id=provider
        ).total_price
        output = calc_price(Tokens(output_tokens=thousand), model, provider_id=provider).total_price
    except LookupError:
        return None
    return Price(
        input_usd=float(plain) * thousand,
        output_usd=float(output) * thousand,
        cached_input_usd=float(cached) * thousand,
    )
