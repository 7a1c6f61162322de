"""Builds the objects of a run from settings, and closes them in reverse."""

import asyncio
import math
import resource
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from batcher.accounts import SIMULATOR
from batcher.config import Settings
from batcher.engines.online import OnlineRun, RunLimits
from batcher.engines.stop import Stop, StopReason
from batcher.events import BudgetReached, Emit
from batcher.execution.attempt import Attempts, CallLog
from batcher.execution.complete import Completer
from batcher.execution.departures import Departures
from batcher.execution.execute import Executor
from batcher.execution.purse import Purse
from batcher.limits.budget import Budget
from batcher.limits.quota import QuotaLimits
from batcher.pricing import FREE, Pricing
from batcher.results import ResultWriter
from batcher.scheduling.allowance import LaneLimits, ProviderRules
from batcher.scheduling.batches import BatchPolicy
from batcher.scheduling.circuits import HostCircuit
from batcher.scheduling.lane import Lane
from batcher.scheduling.queue import JobQueue
from batcher.scheduling.routing import Account, Routing
from batcher.scheduling.slots import RunSlots

DESCRIPTORS_FOR_OTHERS = 64


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the event loop's factory: uvloop's where there is one."""
    try:
        import uvloop  # noqa: PLC0415 - not made for every platform
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def fitting_concurrency(wanted: int) -> int:
    """Raise this process's descriptor limit as far as allowed and return how many calls that carries.

    Each call may take two descriptors, and `DESCRIPTORS_FOR_OTHERS` are left for files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted + 10 + DESCRIPTORS_FOR_OTHERS
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, (soft - DESCRIPTORS_FOR_OTHERS) // 2))


def build_run(
    *,
    settings: Settings,
    accounts: Sequence[Account],
    queue: JobQueue,
    writer: ResultWriter,
    journal: CallLog,
    emit: Emit,
    stop: Stop,
    concurrency: int,
    deadline_at: float | None,
    room: Callable[[], Awaitable[None]],
    budget: Budget | None = None,
    on_lane: Callable[[Account, Lane], None] = lambda account, lane: None,
) -> tuple[OnlineRun, Routing]:
    """Put together the parts of a run that starts now.

    Args:
        settings: what was configured.
        accounts: who answers, all at one provider.
        queue: what is to be done.
        writer: where results go.
        journal: where calls are written down.
        emit: who is told what happens.
        stop: how the run is told to end.
        concurrency: calls in flight.
        deadline_at: loop time of the run's end, None without one.
        room: waits while who takes the results has fallen behind.
        budget: what the run may cost, None if nobody said.
        on_lane: told of each lane that is made, before its first job.
    """
    provider = accounts[0].provider.name
    pricing = run_pricing(settings, provider)

    def lane_made(account: Account, lane: Lane) -> None:
        pricing.price(lane.model)  # loads the tables while there surely are descriptors to open them with
        on_lane(account, lane)

    make_lane = _lane_maker(
        settings, accounts, emit, concurrency=concurrency, deadline_at=deadline_at, on_lane=lane_made
    )

    def keys_refused(reason: str) -> None:
        stop.drain(StopReason.KEYS_REFUSED, reason)
        routing.park(reason)  # at once: further calls would only be refused, too

    routing = Routing(
        accounts,
        make_lane,
        fallback_after_s=settings.fallback_after_s,
        on_all_refused=keys_refused,
    )

    def budget_reached(budget: Budget) -> None:
        emit(BudgetReached(spent_usd=budget.spent_usd, budget_usd=budget.limit_usd))
        stop.drain(StopReason.BUDGET, budget.reached)
        routing.park(stop.message)

    purse = None if budget is None else Purse(budget, pricing, budget_reached)
    departures = Departures(journal.sent, writer.flush)
    attempts = Attempts(journal, departures, emit, timeout_s=settings.timeout, purse=purse)
    executor = Executor(Completer(routing, attempts, settings.retry), pricing, emit, provider=provider)
    limits = RunLimits(
        concurrency=concurrency,
        grace_s=settings.grace,
        deadline_at=deadline_at,
        batch=BatchPolicy(size=settings.batch_size, wait_s=settings.batch_wait_s),
    )
    return OnlineRun(queue, routing, executor.execute, writer, limits, room=room), routing


def run_pricing(settings: Settings, provider: str) -> Pricing:
    """Return what tokens cost at a provider; what is simulated is free unless the user prices it."""
    return Pricing(provider, settings.prices, default=FREE if provider == SIMULATOR else None)


def _lane_maker(
    settings: Settings,
    accounts: Sequence[Account],
    emit: Emit,
    *,
    concurrency: int,
    deadline_at: float | None,
    on_lane: Callable[[Account, Lane], None],
) -> Callable[[str, Account], Lane]:
    provider = accounts[0].provider.name
    slots = RunSlots(concurrency)
    host = HostCircuit(settings.host or provider, settings.breaker, emit)
    groq = provider == "groq"
    limits = LaneLimits(
        quota=QuotaLimits(
            rpm=settings.rpm,
            rpd=settings.rpd,
            tpm=settings.tpm,
            tpd=settings.tpd,
            itpm=settings.itpm,
            otpm=settings.otpm,
            window=settings.window,
        ),
        concurrency=concurrency,
        rules=ProviderRules(admits_maximum=groq, cached_tokens_count=not groq),
        deadline_at=math.inf if deadline_at is None else deadline_at,
    )
    # Limits were told for the tier that is used first; those of an overflow have to be learned.
    untold = replace(limits, quota=QuotaLimits(window=settings.window))

    def make_lane(model: str, account: Account) -> Lane:
        lane = Lane(
            f"{model} ({account.name})" if account.name else model,
            untold if account.overflow else limits,
            slots=slots,
            breaker=settings.breaker,
            emit=emit,
            host=host,
            model=model,
        )
        on_lane(account, lane)
        return lane

    return make_lane
