"""No call starts unless what it may cost is there."""

import asyncio
from collections.abc import Sequence

import pytest
from msgspec.structs import replace
from scripted import Answer, Run, job, reply

from batcher.errors import (
    BadReply,
    CallError,
    ConnectFailed,
    ConnectionLost,
    InvalidRequest,
    LaneParked,
    OutputError,
    RateLimited,
    TooLarge,
)
from batcher.execution.purse import TEMPLATE_TOKENS, TURNED_DOWN_IN_A_ROW, MostTokens, Purse
from batcher.journal import Sent
from batcher.limits.budget import Budget
from batcher.pricing import Price, Pricing
from batcher.text.tokens import ANSWERS_NEEDED
from batcher.types import Endpoint, Failure, Job, Reply, Request, Usage

PRICES = {
    "m": Price(input_usd=0.0, output_usd=1_000_000.0),
    "dear": Price(input_usd=0.0, output_usd=1_000_000_000.0),
}
BODY = b'{"model":"m","messages":[],"max_completion_tokens":10}'
OPEN_BODY = b'{"model":"m","messages":[]}'
REQUEST = Request(endpoint="/v1/chat/completions", model="m", body=BODY)
TEN = reply(usage=Usage(input_tokens=5, output_tokens=10))
FIVE = reply(usage=Usage(input_tokens=5, output_tokens=5))
ONE = reply(usage=Usage(input_tokens=5, output_tokens=1))


class Spending:
    """A purse of so many dollars, where a token of an answer costs one."""

    def __init__(self, limit_usd: float) -> None:
        self.budget = Budget(limit_usd)
        self.exhausted: list[float] = []
        self.purse = Purse(self.budget, Pricing("scripted", PRICES), self._tell)

    def _tell(self, budget: Budget) -> None:
        self.exhausted.append(budget.spent_usd)


async def run_jobs(
    script: Sequence[Answer], spending: Spending, number: int, *, body: bytes = BODY
) -> tuple[list[Reply | BaseException], int]:
    """Run so many jobs at once, of ten dollars at most each; return how they ended, and the calls made."""
    run = Run({"m": script}, purse=spending.purse)
    jobs = [job(body=body) for _ in range(number)]
    ended = await asyncio.gather(*(run.complete(each) for each in jobs), return_exceptions=True)
    assert run.slots.taken == 0
    return ended, len(run.provider.calls)


def costing(most: int) -> Job:
    """A job that may cost so many dollars."""
    return job(body=b'{"model":"m","messages":[],"max_completion_tokens":%d}' % most)


@pytest.mark.parametrize(
    ("endpoint", "body", "most_usd"),
    [
        ("/v1/chat/completions", BODY, 10.0),
        ("/v1/chat/completions", BODY[:-1] + b',"n":2}', 20.0),
        ("/v1/chat/completions", OPEN_BODY, 1024.0),
        ("/v1/embeddings", BODY, 0.0),
    ],
)
async def test_a_call_may_cost_its_longest_answer(endpoint: Endpoint, body: bytes, most_usd: float) -> None:
    claim = await Spending(2000.0).purse.room(Request(endpoint=endpoint, model="m", body=body))
    assert claim.most_usd == most_usd


async def test_many_at_once_never_cost_more_than_the_budget() -> None:
    spending = Spending(105.0)
    ended, calls = await run_jobs([TEN], spending, 64)
    assert (calls, spending.budget.spent_usd) == (10, 100.0)
    assert sum(isinstance(end, LaneParked) for end in ended) == 54
    assert spending.budget.turned_down_usd == 10.0


async def test_money_that_calls_give_back_is_used() -> None:
    spending = Spending(105.0)
    _, calls = await run_jobs([FIVE], spending, 64)
    assert 18 <= calls <= 20, "as long as ten dollars are left, a call may start"
    assert spending.budget.spent_usd == 5.0 * calls <= 105.0


async def test_a_call_that_waits_for_money_holds_no_slot() -> None:
    spending = Spending(15.0)
    run = Run({"m": [FIVE]}, purse=spending.purse, latency_s=50.0)
    tasks = [asyncio.create_task(run.complete(job(body=BODY))) for _ in range(4)]
    await asyncio.sleep(10.0)
    assert run.slots.taken == 1
    tasks[1].cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ended] == [Reply, asyncio.CancelledError, Reply, LaneParked]


async def test_only_the_call_that_does_not_fit_is_turned_down() -> None:
    spending = Spending(600.0)
    run = Run({"m": [ONE]}, purse=spending.purse)
    jobs = [costing(2000), *(costing(1) for _ in range(500))]
    results = await asyncio.gather(*map(run.executor.execute, jobs))
    assert [result is None for result in results] == [True, *[False] * 500]
    assert (spending.exhausted, spending.budget.turned_down_usd) == ([], 2000.0)
    assert "$500.0000 are spent, and the next call may cost $2000.00: raise" in spending.budget.reached


async def test_once_nothing_fits_in_a_long_row_the_run_is_told_once() -> None:
    spending = Spending(5.0)
    _, calls = await run_jobs([TEN], spending, TURNED_DOWN_IN_A_ROW - 1)
    assert (calls, spending.exhausted) == (0, [])
    await run_jobs([TEN], spending, 10)
    assert spending.exhausted == [0.0]


async def test_a_row_of_dear_calls_does_not_end_a_run_in_which_a_cheap_one_is_under_way() -> None:
    spending = Spending(5.0)
    run = Run({"m": [ONE]}, purse=spending.purse, latency_s=50.0)
    cheap = asyncio.create_task(run.complete(costing(1)))
    await asyncio.sleep(1.0)
    dear = [asyncio.create_task(run.complete(costing(10))) for _ in range(TURNED_DOWN_IN_A_ROW + 10)]
    await asyncio.sleep(1.0)
    assert (spending.exhausted, sum(task.done() for task in dear)) == ([], TURNED_DOWN_IN_A_ROW)
    await asyncio.gather(cheap, *dear, return_exceptions=True)
    assert spending.exhausted == [1.0]


async def test_a_fallback_that_does_not_fit_is_not_taken() -> None:
    spending = Spending(100.0)
    wait = RateLimited("later", code="rate_limited", status=429, retry_after_s=60.0)
    run = Run({"m": [wait, FIVE], "dear": [ONE]}, purse=spending.purse)
    jobs = [replace(job(body=BODY, fallback=("dear",)), id=f"j{number}") for number in range(6)]
    results = await asyncio.gather(*map(run.executor.execute, jobs))
    assert [result.model for result in results if result] == ["m"] * 6
    assert "dear" not in run.models_called


async def test_a_fallback_of_unknown_price_is_never_used_and_leaves_no_job_pending() -> None:
    run = Run(
        {"m": [TooLarge("too long", code="too_large", status=413)], "x": [ONE]},
        purse=Spending(100.0).purse,
    )
    result = await run.executor.execute(job(body=BODY, fallback=("x",)))
    assert result is not None
    assert isinstance(result.answer, Failure)
    assert result.answer.code == "price_unknown"
    assert "x: its price is unknown" in result.answer.message
    assert "x" not in run.models_called


async def test_other_routes_answer_where_a_price_is_unknown() -> None:
    run = Run({"x": [ONE], "m": [ONE]}, purse=Spending(100.0).purse)
    result = await run.executor.execute(job(model="x", fallback=("m",), body=BODY))
    assert result is not None
    assert run.models_called == ["m"]
    with pytest.raises(TooLarge, match="x: its price is unknown"):
        await run.complete(job(model="x"))


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
    claim = await spending.purse.room(REQUEST)
    assert spending.purse.reserve(claim)
    spending.purse.failed(claim, error)
    assert spending.budget.spent_usd == cost_usd
    assert spending.budget.idle


async def test_an_answer_without_usage_costs_all_that_was_reserved() -> None:
    spending = Spending(25.0)
    _, calls = await run_jobs([reply(usage=None)], spending, 8)
    assert (calls, spending.budget.spent_usd) == (2, 20.0)


async def test_calls_without_a_maximum_go_out_one_by_one_until_enough_answers_are_known() -> None:
    spending = Spending(1e6)
    run = Run({"m": [FIVE]}, purse=spending.purse)
    tasks = [asyncio.create_task(run.complete(job(body=OPEN_BODY))) for _ in range(ANSWERS_NEEDED + 16)]
    await asyncio.sleep(ANSWERS_NEEDED - 0.5)
    assert (len(run.provider.calls), run.slots.taken) == (ANSWERS_NEEDED, 1)
    await asyncio.sleep(1.0)
    assert run.slots.taken > 1
    await asyncio.gather(*tasks)


async def test_a_turn_that_is_given_up_goes_to_the_next() -> None:
    run = Run({"m": [ConnectFailed("no", code="x", sent=False), FIVE]}, purse=Spending(1e6).purse)
    tasks = [asyncio.create_task(run.complete(job(body=OPEN_BODY))) for _ in range(4)]
    await asyncio.sleep(0.5)
    for task in tasks[:2]:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ended] == [asyncio.CancelledError] * 2 + [Reply] * 2


async def test_a_turn_is_given_up_by_who_waits_for_leave() -> None:
    run = Run({"m": [FIVE]}, purse=Spending(1e6).purse, latency_s=50.0)
    busy = [asyncio.create_task(run.complete(costing(1))) for _ in range(8)]
    await asyncio.sleep(1.0)
    waiting = asyncio.create_task(run.complete(job(body=OPEN_BODY)))
    await asyncio.sleep(1.0)
    waiting.cancel()
    await asyncio.gather(waiting, *busy, return_exceptions=True)
    assert await run.complete(job(body=OPEN_BODY)) is FIVE


async def test_a_call_that_is_cancelled_before_it_is_written_down_gives_its_money_back() -> None:
    spending = Spending(15.0)
    run = Run({"m": [TEN]}, purse=spending.purse)
    cancelled = asyncio.create_task(run.complete(job(body=BODY)))
    for _ in range(10):
        if not spending.budget.reserved_usd:
            await asyncio.sleep(0)
    assert spending.budget.reserved_usd == 10.0
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert not run.provider.calls
    assert spending.budget.reserved_usd == 0.0
    # A call that does not fit finds nothing under way that it could wait for.
    with pytest.raises(LaneParked):
        await run.complete(costing(20))
    assert isinstance(await run.complete(job(body=BODY)), Reply)


async def test_calls_that_cannot_be_written_down_hold_no_money() -> None:
    class Full:
        def sent(self, calls: Sequence[Sent]) -> None:
            raise OutputError("no space left on device")

        def unknown(self, job_id: str, attempt: int, code: str) -> None:
            raise OutputError("no space left on device")

    spending = Spending(105.0)
    run = Run({"m": [TEN]}, purse=spending.purse, journal=Full())
    ended = await asyncio.gather(*(run.complete(job(body=BODY)) for _ in range(8)), return_exceptions=True)
    assert {type(end) for end in ended} == {OutputError}
    assert run.slots.taken == 0
    assert spending.budget.reserved_usd == 0.0


async def test_without_a_maximum_at_most_one_answer_longer_than_all_before_exceeds_the_budget() -> None:
    spending = Spending(20_000.0)
    long = reply(usage=Usage(input_tokens=5, output_tokens=8000))
    _, calls = await run_jobs([long], spending, 64, body=OPEN_BODY)
    assert (calls, spending.budget.spent_usd) == (2, 16_000.0)


async def test_what_waits_for_its_permit_is_priced_again() -> None:
    spending = Spending(20_000.0)
    request = Request(endpoint=REQUEST.endpoint, model="m", body=OPEN_BODY)
    for _ in range(ANSWERS_NEEDED):
        claim = await spending.purse.room(request)
        assert spending.purse.reserve(claim)
        spending.purse.answered(claim, Usage(input_tokens=5, output_tokens=1))
    out, waiting = await spending.purse.room(request), await spending.purse.room(request)
    assert spending.purse.reserve(out)
    spending.purse.answered(out, Usage(input_tokens=5, output_tokens=15_000))
    assert not spending.purse.reserve(waiting), "by now it may cost 15,000 dollars, too"
    assert spending.budget.idle


def test_prompts_count_as_dense_until_enough_are_known_and_then_as_the_densest() -> None:
    tokens = MostTokens()
    assert tokens.usage(10_000, 10, 1).input_tokens == 5000 + TEMPLATE_TOKENS
    for _ in range(ANSWERS_NEEDED):
        tokens.learn(100, 10, 1, Usage(input_tokens=150, output_tokens=1))  # mostly template
    assert tokens.usage(10_000, 10, 1).input_tokens == 5000 + TEMPLATE_TOKENS
    for _ in range(ANSWERS_NEEDED):
        tokens.learn(10_000, 10, 1, Usage(input_tokens=2500, output_tokens=1))
    assert tokens.usage(10_000, 10, 1).input_tokens == 2500 + TEMPLATE_TOKENS
    tokens.learn(10_000, 10, 1, Usage(input_tokens=7500, output_tokens=1))
    assert tokens.usage(10_000, 10, 1).input_tokens == 7500 + TEMPLATE_TOKENS


def test_the_longest_answer_is_that_of_one_choice() -> None:
    tokens = MostTokens()
    tokens.learn(100, None, 2, Usage(input_tokens=5, output_tokens=6000))
    assert tokens.usage(100, None, 1).output_tokens == 3000
    assert tokens.usage(100, None, 3).output_tokens == 9000
    assert tokens.usage(100, 50, 3).output_tokens == 150
