"""Costs come from the user's table, then from the dated tables, and are never guessed."""

import pytest

from batcher.pricing import FREE, Price, Pricing
from batcher.types import Usage

PRICE = Price(input_usd=1.0, output_usd=4.0, cached_input_usd=0.5)


@pytest.mark.parametrize(
    ("price", "usage", "cost_usd"),
    [
        pytest.param(PRICE, Usage(input_tokens=0, output_tokens=0), 0.0, id="nothing"),
        pytest.param(PRICE, Usage(input_tokens=1_000_000, output_tokens=0), 1.0, id="input"),
        pytest.param(PRICE, Usage(input_tokens=0, output_tokens=500_000), 2.0, id="output"),
        pytest.param(
            PRICE,
            Usage(input_tokens=1_000_000, output_tokens=0, cached_tokens=400_000),
            0.8,
            id="cached",
        ),
        pytest.param(
            Price(input_usd=1.0, output_usd=4.0),
            Usage(input_tokens=1_000_000, output_tokens=0, cached_tokens=400_000),
            1.0,
            id="cached tokens without a price of their own",
        ),
        pytest.param(
            PRICE,
            Usage(input_tokens=0, output_tokens=1_000_000, reasoning_tokens=900_000),
            4.0,
            id="thoughts are output",
        ),
        pytest.param(FREE, Usage(input_tokens=10**9, output_tokens=10**9), 0.0, id="free"),
    ],
)
def test_what_an_answer_costs(price: Price, usage: Usage, cost_usd: float) -> None:
    assert price.cost_usd(usage) == pytest.approx(cost_usd)


USAGE = Usage(input_tokens=1_000_000, output_tokens=1_000_000)


def test_the_users_table_comes_first() -> None:
    pricing = Pricing("groq", {"openai/gpt-oss-20b": PRICE}, default=FREE)
    assert pricing.price("openai/gpt-oss-20b") is PRICE
    assert pricing.cost_usd("openai/gpt-oss-20b", USAGE) == 5.0


def test_a_default_stands_in_for_all_other_models() -> None:
    assert Pricing("simulator", {}, default=FREE).cost_usd("whatever", USAGE) == 0.0


@pytest.mark.parametrize("model", ["openai/gpt-oss-20b", "openai/gpt-oss-120b"])
def test_the_dated_tables_know_what_groq_serves(model: str) -> None:
    price = Pricing("groq", {}).price(model)
    assert price is not None
    assert 0 < price.input_usd < price.output_usd < 10
    assert price.cached_input_usd is not None
    assert 0 < price.cached_input_usd <= price.input_usd


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        pytest.param("groq", "no-such-model-at-all", id="a model that nobody lists"),
        pytest.param("openai_compatible", "openai/gpt-oss-20b", id="a provider that nobody lists"),
        pytest.param("localhost", "", id="nothing"),
    ],
)
def test_a_price_that_is_not_known_is_not_guessed(provider: str, model: str) -> None:
    pricing = Pricing(provider, {})
    assert pricing.price(model) is None
    assert pricing.cost_usd(model, USAGE) is None


def test_usage_that_is_not_known_costs_an_unknown_amount() -> None:
    assert Pricing("groq", {"m": PRICE}).cost_usd("m", None) is None
