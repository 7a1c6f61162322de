"""Builds the objects of a run from settings, and closes them in reverse."""

import asyncio
import math
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from batcher.config import Settings
from batcher.engines.online import OnlineRun, RunLimits
from batcher.engines.stop import Stop, StopReason
from batcher.errors import KeyRefused
from batcher.events import Emit
from batcher.execution.attempt import Attempts, CallLog
from batcher.execution.complete import Completer
from batcher.execution.execute import Executor
from batcher.limits.quota import QuotaLimits
from batcher.pricing import FREE, Pricing
from batcher.providers.base import Provider
from batcher.results import ResultWriter
from batcher.scheduling.allowance import ProviderRules
from batcher.scheduling.lane import Lane, LaneLimits
from batcher.scheduling.queue import JobQueue
from batcher.scheduling.routing import Routing
from batcher.scheduling.slots import RunSlots

GROQ_URL = "https://api.groq.com"
DESCRIPTORS_FOR_OTHERS = 64
SIMULATOR = "simulator"


@asynccontextmanager
async def open_provider(
    settings: Settings, environ: Mapping[str, str], *, simulate: bool = False
) -> AsyncIterator[Provider]:
    """Open the provider that the settings name over the one connection pool.

    Args:
        settings: what was configured.
        environ: where the key is looked for.
        simulate: start the simulator on a free loopback port and talk to that instead.

    Raises:
        KeyMissing: there is no key and the endpoint needs one.
        ConfigError: key, address, proxy or certificates cannot be used.
    """
    if simulate:
        from batcher.providers.simulator.server import start_embedded  # noqa: PLC0415 - only needed here
        from batcher.providers.simulator.settings import SimulatorSettings  # noqa: PLC0415

        async with start_embedded(SimulatorSettings()) as server:
            local = Settings(base_url=server.url + "/v1", api_key_env="BATCHER_SIMULATOR_KEY")
            async with _open_remote(local, {}, name=SIMULATOR, concurrency=settings.concurrency) as provider:
                yield provider
        return
    async with _open_remote(
        settings, environ, name=settings.provider_name, concurrency=settings.concurrency
    ) as provider:
        yield provider


@asynccontextmanager
async def _open_remote(
    settings: Settings, environ: Mapping[str, str], *, name: str, concurrency: int
) -> AsyncIterator[Provider]:
    from batcher.providers.keys import check_base_url, is_loopback, load_key  # noqa: PLC0415
    from batcher.providers.transport import Pool, PoolSettings  # noqa: PLC0415 - loads pyreqwest

    groq = settings.provider_name == "groq"
    base_url = check_base_url(settings.base_url or GROQ_URL, insecure_http=settings.insecure_http)
    key = load_key(
        settings.key_variable,
        environ=environ,
        env_file=settings.env_file,
        required=groq or not is_loopback(base_url),
    )
    pool = Pool(
        PoolSettings(
            max_connections=2 * concurrency + 10,
            connect_timeout_s=min(settings.connect_timeout, 0.9 * settings.timeout),
            proxy=settings.proxy,
            ca_file=settings.ca_file,
        )
    )
    try:
        provider: Provider
        if groq:
            assert key is not None  # it was required
            from batcher.providers.groq import Groq  # noqa: PLC0415 - takes 0.3 s to import

            provider = Groq(pool, key, base_url)
        else:
            from batcher.providers.openai_compatible import OpenAICompatible  # noqa: PLC0415

            provider = OpenAICompatible(pool, base_url, key, name=name)
        try:
            yield provider
        finally:
            await provider.aclose()
    finally:
        await pool.aclose()


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
    provider: Provider,
    queue: JobQueue,
    writer: ResultWriter,
    journal: CallLog,
    emit: Emit,
    stop: Stop,
    concurrency: int,
    deadline_at: float | None,
    room: Callable[[], Awaitable[None]],
) -> tuple[OnlineRun, Routing]:
    """Put together the parts of a run that starts now.

    Args:
        settings: what was configured.
        provider: who answers.
        queue: what is to be done.
        writer: where results go.
        journal: where calls are written down.
        emit: who is told what happens.
        stop: how the run is told to end.
        concurrency: calls in flight.
        deadline_at: loop time of the run's end, None without one.
        room: waits while who takes the results has fallen behind.
    """
    slots = RunSlots(concurrency)
    groq = provider.name == "groq"
    lane_limits = LaneLimits(
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

    def make_lane(model: str) -> Lane:
        return Lane(model, lane_limits, slots=slots, breaker=settings.breaker, emit=emit)

    def keys_refused(error: KeyRefused) -> None:
        stop.drain(StopReason.KEYS_REFUSED, f"{provider.name} refused the key: {error}")
        routing.park(stop.message)  # at once: further calls would only be refused, too

    routing = Routing(provider, make_lane)
    attempts = Attempts(journal, emit, timeout_s=settings.timeout)
    pricing = Pricing(provider.name, settings.prices, default=FREE if provider.name == SIMULATOR else None)
    executor = Executor(
        Completer(routing, attempts, settings.retry),
        pricing,
        emit,
        provider=provider.name,
        on_key_refused=keys_refused,
    )
    limits = RunLimits(concurrency=concurrency, grace_s=settings.grace, deadline_at=deadline_at)
    return OnlineRun(queue, routing, executor.execute, writer, limits, room=room), routing
