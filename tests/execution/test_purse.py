"""No call starts unless what it may cost is there."""

import asyncio
from collections.abc import Sequence

import pytest
from scripted import Answer, Run, job, reply

from batcher.errors import (
    BadReply,
    CallError,
    ConnectFailed,
    ConnectionLost,
    InvalidRequest,
    LaneParked,
    RateLimited,
)
from batcher.execution.purse import Purse
from batcher.limits.budget import Budget
from batcher.pricing import Price, Pricing
from batcher.types import Reply, Request, Usage

PRICES = {"m": Price(input_usd=0.0, output_usd=1_000_000.0)}
BODY = b'{"model":"m","messages":[],"max_completion_tokens":10}'
REQUEST = Request(endpoint="/v1/chat/completions", model="m", body=BODY)
TEN = reply(usage=Usage(input_tokens=5, output_tokens=10))
FIVE = reply(usage=Usage(input_tokens=5, output_tokens=5))


class Spending:
    """A purse of so many dollars, where a token of an answer costs one."""

    def __init__(self, limit_usd: float) -> None:
        self.budget = Budget(limit_usd)
        self.exhausted: list[float] = []
        self.purse = Purse(self.budget, Pricing("scripted", PRICES), self._tell)

    def _tell(self, budget: Budget) -> None:
        self.exhausted.append(budget.spent_usd)


async def run_jobs(
    script: Sequence[Answer], spending: Spending, number: int
) -> tuple[list[Reply | BaseException], int]:
    """Run so many jobs at once that may cost ten dollars each; return how they ended, and the calls made."""
    run = Run({"m": script}, purse=spending.purse)
    jobs = [job(body=BODY) for _ in range(number)]
    ended = await asyncio.gather(*(run.complete(each) for each in jobs), return_exceptions=True)
    assert run.slots.taken == 0
    return ended, len(run.provider.calls)


def test_a_call_may_cost_its_prompt_and_its_longest_answer() -> None:
    spending = Spending(1.0)
    assert spending.purse.most_usd(REQUEST) == 10.0
    twice = Request(endpoint=REQUEST.endpoint, model="m", body=BODY[:-1] + b',"n":2}')
    assert spending.purse.most_usd(twice) == 20.0
    assert spending.purse.most_usd(Request(endpoint="/v1/embeddings", model="m", body=BODY)) == 0.0


async def test_many_at_once_never_cost_more_than_the_budget() -> None:
    spending = Spending(105.0)
    ended, calls = await run_jobs([TEN], spending, 64)
    assert (calls, spending.budget.spent_usd) == (10, 100.0)
    assert sum(isinstance(end, LaneParked) for end in ended) == 54
    assert spending.exhausted == [100.0]


async def test_money_that_calls_give_back_is_used() -> None:
    spending = Spending(105.0)
    _, calls = await run_jobs([FIVE], spending, 64)
    assert 18 <= calls <= 20, "as long as ten dollars are left, a call may start"
    assert spending.budget.spent_usd == 5.0 * calls <= 105.0


async def test_a_call_that_waits_for_money_holds_no_slot() -> None:
    spending = Spending(10.0)
    run = Run({"m": [TEN]}, purse=spending.purse, latency_s=50.0)
    tasks = [asyncio.create_task(run.complete(job(body=BODY))) for _ in range(3)]
    await asyncio.sleep(10.0)
    assert run.slots.taken == 1
    tasks[1].cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ended] == [Reply, asyncio.CancelledError, LaneParked]


@pytest.mark.parametrize(
    ("error", "cost_usd"),
    [
        pytest.param(RateLimited("busy", code="x", status=429), 0.0, id="refused"),
        pytest.param(InvalidRequest("bad", code="x", status=400), 0.0, id="bad request"),
        pytest.param(ConnectFailed("refused", code="x", sent=False), 0.0, id="never sent"),
        pytest.param(ConnectionLost("cut", code="x"), 10.0, id="broken after sending"),
        pytest.param(BadReply("html", code="x", status=200), 10.0, id="an unusable body"),
    ],
)
async def test_what_a_failed_call_costs(error: CallError, cost_usd: float) -> None:
    spending = Spending(100.0)
    await spending.purse.room(10.0)
    assert spending.purse.reserve(10.0)
    spending.purse.failed(10.0, error)
    assert spending.budget.spent_usd == cost_usd
    assert spending.budget.idle


async def test_an_answer_without_usage_costs_all_that_was_reserved() -> None:
    spending = Spending(25.0)
    _, calls = await run_jobs([reply(usage=None)], spending, 8)
    assert (calls, spending.budget.spent_usd) == (2, 20.0)


async def test_a_model_without_a_price_is_closed() -> None:
    run = Run({"x": [TEN]}, purse=Spending(100.0).purse)
    with pytest.raises(LaneParked, match="x: its price is unknown"):
        await run.complete(job(model="x"))
    assert run.provider.calls == []
