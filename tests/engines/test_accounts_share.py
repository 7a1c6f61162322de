"""Accounts whose limits bind are all used, also where few calls may be in flight."""

import asyncio
from pathlib import Path

import pytest
from creeping_clock import on_creeping_clock
from test_online import Rig

from batcher.providers.simulator.memory import MemoryProvider
from batcher.providers.simulator.model import Simulation
from batcher.providers.simulator.settings import SimulatorSettings
from batcher.types import Reply, Request

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
        jobs = JOBS_EACH * accounts
        rig = Rig(tmp_path, jobs, settings, concurrency=concurrency, providers=[Counted] * accounts, rpm=30)
        await rig()
        calls = [provider.calls for provider in rig.providers if isinstance(provider, Counted)]
        assert len(calls) == accounts
        assert all(abs(each - JOBS_EACH) <= 2 for each in calls), calls
        assert asyncio.get_running_loop().time() < 2.2 * JOBS_EACH

    on_creeping_clock(run())
