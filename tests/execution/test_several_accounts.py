"""Several accounts, tiers and fallbacks: work goes where there is room, and on when a lane is shut."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from scripted import Answer, RememberingJournal, ScriptedProvider, job, reply

from batcher.clock import monotonic
from batcher.errors import CallError, CapacityExceeded, KeyRefused, RateLimited, ServerError
from batcher.events import AttemptFinished, Event, FallbackTaken
from batcher.execution.attempt import Attempts, Story
from batcher.execution.complete import Completer
from batcher.execution.departures import Departures
from batcher.limits.breaker import BreakerPolicy
from batcher.limits.retry import RetryPolicy
from batcher.scheduling.allowance import LaneLimits
from batcher.scheduling.circuits import HostCircuit
from batcher.scheduling.lane import Lane
from batcher.scheduling.routing import Account, Routing
from batcher.scheduling.slots import RunSlots
from batcher.types import Reply

DEAD = KeyRefused("unknown key", code="http_401", status=401)
DOWN = ServerError("down", code="http_503", status=503)
FULL = CapacityExceeded("flex is full", code="capacity_exceeded", status=498)
LONG = RateLimited("later", code="rate_limited", status=429, retry_after_s=1800.0)
YES = reply()


class Accounts:
    """Accounts by name, each with a script for each model, behind lanes of `concurrency` calls."""

    def __init__(
        self,
        scripts: dict[str, dict[str, Sequence[Answer]]],
        *,
        weights: dict[str, float] | None = None,
        tiers: dict[str, str] | None = None,
        concurrency: int = 4,
    ) -> None:
        self.events: list[Event] = []
        self.all_refused: list[str] = []
        log: list[tuple[str, ...]] = []
        self.providers = {name: ScriptedProvider(models, log) for name, models in scripts.items()}
        slots, breaker = RunSlots(64), BreakerPolicy()
        host = HostCircuit("host", breaker, self.events.append)
        accounts = [
            Account(
                provider=self.providers[name],
                owner=name.partition(" ")[0],
                tier=(tiers or {}).get(name, ""),
                overflow=" " in name,
                weight=(weights or {}).get(name, 1.0),
            )
            for name in scripts
        ]

        def make_lane(model: str, account: Account) -> Lane:
            return Lane(
                f"{model} ({account.name})",
                LaneLimits(concurrency=concurrency),
                slots=slots,
                breaker=breaker,
                emit=self.events.append,
                host=host,
                model=model,
            )

        self.routing = Routing(accounts, make_lane, on_all_refused=self.all_refused.append)
        journal = RememberingJournal(log)
        attempts = Attempts(journal, Departures(journal.sent), self.events.append, timeout_s=300.0)
        self.completer = Completer(self.routing, attempts, RetryPolicy())

    async def ask(self, *fallback: str) -> Reply:
        story = Story(job(fallback=fallback), began_at=monotonic(), deadline_at=float("inf"))
        return await self.completer.complete(story)

    async def ask_many(self, number: int, *fallback: str) -> list[Reply | BaseException]:
        asked = [asyncio.create_task(self.ask(*fallback)) for _ in range(number)]
        return await asyncio.gather(*asked, return_exceptions=True)

    def calls(self, name: str) -> int:
        return len(self.providers[name].calls)

    @property
    def answered(self) -> Counter[str]:
        """Answers by account, as events tell them."""
        finished = (event for event in self.events if isinstance(event, AttemptFinished))
        return Counter(event.account for event in finished if not event.code)


async def test_equal_accounts_share_the_work_equally() -> None:
    run = Accounts({"a": {"m": [YES]}, "b": {"m": [YES]}})
    assert await run.ask_many(40) == [YES] * 40
    assert run.answered == {"a": 20, "b": 20}


async def test_weights_shift_the_work_while_all_have_room() -> None:
    run = Accounts({"a": {"m": [YES]}, "b": {"m": [YES]}}, weights={"a": 3.0}, concurrency=40)
    await run.ask_many(4)
    assert run.answered == {"a": 3, "b": 1}


async def test_the_slow_account_gets_less() -> None:
    run = Accounts({"a": {"m": [YES]}, "b": {"m": [YES]}})
    run.providers["b"].latency_s = 10.0
    ending = asyncio.create_task(run.ask_many(60))
    for _ in range(60):  # jobs that come one after the other see where there is room
        await run.ask()
        await asyncio.sleep(0)
    await ending
    assert run.answered["a"] > 2 * run.answered["b"] > 0


async def test_a_paused_account_leaves_its_work_to_the_other() -> None:
    run = Accounts({"a": {"m": [LONG, YES]}, "b": {"m": [YES]}})
    assert await run.ask_many(20) == [YES] * 20
    assert monotonic() < 60.0, "nobody waits half an hour while the other account has room"
    assert run.answered["b"] >= 17


async def test_a_dead_account_leaves_its_work_to_the_other() -> None:
    run = Accounts({"a": {"m": [DEAD]}, "b": {"m": [YES]}})
    assert await run.ask_many(20) == [YES] * 20
    assert run.calls("a") <= 4 + 1, "only what was out, or let through by the first end"
    assert not run.all_refused
    assert {str(lane.parked) for lane in run.routing.lanes()} == {
        "scripted refused the keys of account a: unknown key",
        "None",
    }


async def test_when_all_accounts_are_dead_the_run_is_told_once() -> None:
    run = Accounts({"a": {"m": [DEAD]}, "b": {"m": [DEAD]}})
    assert not any(isinstance(answer, Reply | CallError) for answer in await run.ask_many(20))
    [told] = run.all_refused
    assert told.startswith("scripted refused the keys of account ")


async def test_flex_takes_what_the_other_tier_has_no_room_for() -> None:
    tiers = {"x": "on_demand", "x flex": "flex"}
    run = Accounts({"x": {"m": [YES]}, "x flex": {"m": [YES]}}, tiers=tiers)
    await run.ask()
    assert run.answered == {"x": 1}
    await run.ask_many(20)
    assert run.answered["x flex"] > 0
    for name, tier in tiers.items():
        assert all(
            b'"service_tier":"%s"' % tier.encode() in call.body for _, call, _ in run.providers[name].calls
        )


async def test_a_full_flex_tier_sends_its_work_back() -> None:
    tiers = {"x": "on_demand", "x flex": "flex"}
    run = Accounts({"x": {"m": [YES]}, "x flex": {"m": [FULL]}}, tiers=tiers)
    assert await run.ask_many(20) == [YES] * 20
    assert run.answered == {"x": 20}
    assert run.calls("x flex") > 0


async def test_a_fallback_is_taken_when_the_model_fails_for_too_long() -> None:
    run = Accounts({"a": {"m": [DOWN], "n": [YES]}})
    assert await run.ask_many(30, "n") == [YES] * 30
    assert monotonic() < 120.0
    taken = {(event.wanted, event.taken) for event in run.events if isinstance(event, FallbackTaken)}
    assert taken == {("m", "n")}


async def test_a_model_that_recovers_is_asked_again() -> None:
    run = Accounts({"a": {"m": [*[DOWN] * 14, YES], "n": [YES]}})
    await run.ask_many(30, "n")
    for _ in range(40):
        await asyncio.sleep(30.0)
        await run.ask("n")
    models = [event.route for event in run.events if isinstance(event, AttemptFinished)]
    assert models[-10:] == ["m"] * 10


async def test_without_a_fallback_a_job_waits_for_its_model() -> None:
    run = Accounts({"a": {"m": [*[DOWN] * 16, YES]}})
    assert await run.ask_many(12) == [YES] * 12


@pytest.mark.parametrize("recovers", ["m", "n"])
async def test_when_all_models_are_shut_the_first_to_come_back_is_taken(recovers: str) -> None:
    scripts: dict[str, Sequence[Answer]] = {"m": [DOWN], "n": [DOWN]}
    run = Accounts({"a": scripts | {recovers: [*[DOWN] * 25, YES]}})
    assert await run.ask_many(12, "n") == [YES] * 12
    assert monotonic() < 2 * 3600.0


async def test_a_full_flex_tier_is_left_alone_for_a_while() -> None:
    tiers = {"x": "on_demand", "x flex": "flex"}
    run = Accounts({"x": {"m": [YES]}, "x flex": {"m": [FULL]}}, tiers=tiers)
    assert await run.ask_many(200) == [YES] * 200
    assert run.calls("x flex") <= 10, "not a refused call for each job"


async def test_flex_alone_is_asked_again_when_it_was_full() -> None:
    tiers = {"x": "on_demand", "x flex": "flex"}
    run = Accounts({"x": {"m": [YES]}, "x flex": {"m": [FULL, FULL, YES]}}, tiers=tiers)
    run.routing.routes("m")[0].lane.park("on_demand is gone")
    assert await run.ask_many(10) == [YES] * 10


async def test_a_fallback_is_told_once_for_each_job_that_was_asked_of_it() -> None:
    run = Accounts({"a": {"m": [LONG, YES], "n": [YES]}})
    await run.ask_many(20, "n")
    told = [event for event in run.events if isinstance(event, FallbackTaken)]
    finished = [event for event in run.events if isinstance(event, AttemptFinished)]
    asked = [event for event in finished if event.route == "n"]
    assert len(told) == len(asked) > 0
    assert all("m (a)" in event.reason for event in told)
    parked = Accounts({"a": {"m": [YES], "n": [YES]}})
    parked.routing.park("stopped")
    await parked.ask_many(5, "n")
    assert not any(isinstance(event, FallbackTaken) for event in parked.events)
