"""Accounts whose limits bind are all used, also where few calls may be in flight."""

import asyncio
from pathlib import Path

import pytest
from creeping_clock import on_creeping_clock
from test_online import Rig, no_wait

from batcher.config import Settings
from batcher.providers.simulator.memory import MemoryProvider
from batcher.providers.simulator.model import Simulation
from batcher.providers.simulator.settings import SimulatorSettings
from batcher.scheduling.routing import Account
from batcher.types import Reply, Request
from batcher.wiring import build_run

JOBS_EACH = 20


class Counted(MemoryProvider):
    """A provider that counts its calls."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation)
        self.calls = 0

    async def send(self, request: Request, *, timeout_s: float) -> Reply:
        self.calls += 1
        return await super().send(request, timeout_s=timeout_s)


@pytest.mark.parametrize(("accounts", "concurrency"), [(2, 1), (4, 2), (4, 8)])
def test_all_accounts_are_used(tmp_path: Path, accounts: int, concurrency: int) -> None:
    async def run() -> None:
        settings = SimulatorSettings(latency_s=0.2, latency_shape="fixed")
        rig = Rig(tmp_path, JOBS_EACH * accounts, settings, concurrency=concurrency)
        providers = [Counted(rig.simulation) for _ in range(accounts)]
        rig.run, rig.routing = build_run(
            settings=Settings(concurrency=concurrency, rpm=30),
            accounts=[Account(provider=provider, owner=f"a{n}") for n, provider in enumerate(providers)],
            queue=rig.queue,
            writer=rig.writer,
            journal=rig.call_log,
            emit=rig.stats,
            stop=rig.stop,
            concurrency=concurrency,
            deadline_at=None,
            room=no_wait,
        )
        await rig()
        assert all(abs(provider.calls - JOBS_EACH) <= 2 for provider in providers), providers
        assert asyncio.get_running_loop().time() < 2.2 * JOBS_EACH

    on_creeping_clock(run())
