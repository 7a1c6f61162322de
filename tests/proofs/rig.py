"""One whole run on a virtual clock against the simulator in memory, and a record of every call."""

import asyncio
import itertools
import math
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVarTuple

import orjson
from creeping_clock import CreepingClockLoop

from batcher.clock import monotonic
from batcher.config import Settings
from batcher.engines.online import OnlineRun
from batcher.engines.stop import Stop
from batcher.errors import CallError
from batcher.events import AttemptFinished, CircuitChanged, Event, JobFinished, LaneChanged
from batcher.jobs.index import index_jobs
from batcher.jobs.lines import LineDefaults
from batcher.jobs.source import open_sources
from batcher.journal import Journal
from batcher.limits.breaker import BreakerPolicy
from batcher.limits.quota import QuotaLimits
from batcher.observe.stats import Stats
from batcher.providers.simulator.calls import Call
from batcher.providers.simulator.memory import MemoryProvider
from batcher.providers.simulator.model import Simulation
from batcher.providers.simulator.settings import LimiterKind, SimulatorSettings
from batcher.results import ResultWriter, open_output
from batcher.scheduling.allowance import LaneLimits
from batcher.scheduling.lane import Lane
from batcher.scheduling.queue import JobQueue
from batcher.scheduling.routing import Account, Routing
from batcher.scheduling.slots import RunSlots
from batcher.types import Failure, ModelInfo, Reply, Request, Result, output_paths
from batcher.wiring import build_run

Ts = TypeVarTuple("Ts")

MODEL = "m"
MINUTE_S = 60.0
LIMITERS: tuple[LimiterKind, ...] = ("token-bucket", "fixed-window", "sliding-window")
ONE_WAY_S = (0.01, 0.04)
"""Shortest and longest time from us to the provider, and back."""


class ProofLoop(CreepingClockLoop):
    """The loop of all proofs: its clock creeps and jumps, and it counts the timers that are set."""

    def __init__(self) -> None:
        self.timers_set = 0
        super().__init__()

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Count the timer and set it."""
        self.timers_set += 1
        return super().call_at(when, callback, *args, context=context)


@dataclass(slots=True, kw_only=True)
class CallSeen:
    """One call as both sides saw it; `status` is 0 where no reply came."""

    model: str
    sent_at: float
    arrived_at: float = math.nan
    ended_at: float = math.inf
    status: int = 0
    code: str = ""
    tokens: int = 0


class Network:
    """The simulator in memory, as far away as a provider is; notes every call.

    Args:
        simulation: who answers.
        name: the provider's name, `groq` for one that counts as Groq does.
        seed: of the delays on the way.
    """

    def __init__(self, simulation: Simulation, *, name: str, seed: int) -> None:
        self.calls: list[CallSeen] = []
        self._memory = MemoryProvider(simulation, name=name)
        self._random = random.Random(seed)

    @property
    def name(self) -> str:
        """The provider's name."""
        return self._memory.name

    async def send(self, request: Request, *, timeout_s: float) -> Reply:
        """Answer after the way there, the simulated latency and the way back."""
        call = CallSeen(model=request.model, sent_at=monotonic())
        self.calls.append(call)
        try:
            await asyncio.sleep(self._random.uniform(*ONE_WAY_S))
            call.arrived_at = monotonic()
            try:
                reply = await self._memory.send(request, timeout_s=timeout_s)
            except CallError as error:
                call.status, call.code = error.status, error.code
                await asyncio.sleep(self._random.uniform(*ONE_WAY_S))
                raise
            call.status = reply.status
            call.tokens = reply.usage.total_tokens if reply.usage else 0
            await asyncio.sleep(self._random.uniform(*ONE_WAY_S))
            return reply
        finally:
            call.ended_at = monotonic()

    async def models(self) -> list[ModelInfo]:
        """List the models of the simulator."""
        return await self._memory.models()

    async def aclose(self) -> None:
        """Do nothing: there is nothing to release."""


class Rig:
    """A run of `jobs` (a number of equal ones, or job lines) in a directory of its own.

    The jobs' prompts are their ids, by which the simulator counts. Nothing here uses a thread, so that the
    virtual clock moves only when the run waits.
    """

    def __init__(
        self,
        jobs: int | Sequence[dict[str, Any]],
        simulator: SimulatorSettings,
        *,
        groq: bool = True,
        seed: int = 0,
        deadline_s: float | None = None,
        concurrency: int = 256,
        params: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="batcher-proof-")
        directory = Path(self._directory.name)
        listed = [{"id": f"j{number:06}"} for number in range(jobs)] if isinstance(jobs, int) else jobs
        shared = {"params": params} if params else {}
        lines = [orjson.dumps({"prompt": job["id"], **shared, **job}) + b"\n" for job in listed]
        (directory / "jobs.jsonl").write_bytes(b"".join(lines))
        self.jobs = len(listed)
        self.stop, self.stats = Stop(), Stats()
        self.rival: Rival | None = None
        self.said: list[tuple[float, str]] = []
        self.circuits: list[tuple[float, str]] = []
        self.answered: set[str] = set()
        self.failed: dict[str, str] = {}
        self.refusals: Counter[str] = Counter()
        self.ended_at = math.nan
        self.simulation = Simulation(simulator, now=monotonic())
        self.network = Network(self.simulation, name="groq" if groq else "simulator", seed=seed)
        self._index = index_jobs(
            open_sources([str(directory / "jobs.jsonl")], spool_dir=directory),
            LineDefaults(model=MODEL),
            on_bad=_unexpected,
            on_warning=_unexpected,
        )
        paths = output_paths(directory / "out.jsonl")
        self._journal = Journal(paths.journal)
        writer = ResultWriter(*open_output(paths), on_committed=self._committed, durable=False)
        self._run, self.routing = self._built(
            Settings(concurrency=concurrency, **options), JobQueue(self._index), writer, deadline_s
        )

    def _built(
        self, settings: Settings, queue: JobQueue, writer: ResultWriter, deadline_s: float | None
    ) -> tuple[OnlineRun, Routing]:
        """Put the run together: the one place that knows how."""
        return build_run(
            settings=settings,
            accounts=[Account(provider=self.network)],
            queue=queue,
            writer=writer,
            journal=self._journal,
            emit=self._note,
            stop=self.stop,
            concurrency=settings.concurrency,
            deadline_at=None if deadline_s is None else monotonic() + deadline_s,
            room=_no_wait,
        )

    async def __call__(self) -> None:
        """Run to the end; the rival goes on until then."""
        rival = asyncio.ensure_future(self.rival()) if self.rival else None
        try:
            await self._run.run(
                self.stop, lambda: None if self.stats.reached_provider else self.stats.last_error
            )
            self.ended_at = monotonic()
        finally:
            if rival is not None:
                rival.cancel()
                await asyncio.gather(rival, return_exceptions=True)
            self._journal.close()
            self._index.close()
            self._directory.cleanup()

    @property
    def calls(self) -> list[CallSeen]:
        """Every call of the run, in the order of their starts."""
        return self.network.calls

    @property
    def refused(self) -> int:
        """How many calls ended with 429."""
        return self.refusals.total()

    def figures(self, **more: object) -> str:
        """Return what to print when a proof fails."""
        told = "\n".join(f"  {at:10.2f} {words}" for at, words in self.said[:60])
        known = {
            "jobs": self.jobs,
            "answered": len(self.answered),
            "failed": len(self.failed),
            "calls": len(self.calls),
            "refused": self.refused,
            "most refusals of one job": max(self.refusals.values(), default=0),
            "ended at": round(self.ended_at, 2),
            "stop": f"{self.stop.reason!r} {self.stop.message}",
        }
        return "\n".join(f"  {name}: {value}" for name, value in (known | more).items()) + f"\n{told}"

    def _note(self, event: Event) -> None:
        self.stats(event)
        match event:
            case LaneChanged(message=message):
                self.said.append((monotonic(), message))
            case CircuitChanged(state=state, message=message):
                self.said.append((monotonic(), message))
                self.circuits.append((monotonic(), state))
            case AttemptFinished(job_id=job_id, status=429):
                self.refusals[job_id] += 1

    def _committed(self, results: Sequence[Result]) -> None:
        for result in results:
            self._note(JobFinished(result=result))
            if isinstance(result.answer, Failure):
                self.failed[result.job.id] = result.answer.code
            else:
                assert result.job.id not in self.answered, f"{result.job.id} was answered twice"
                self.answered.add(result.job.id)


class Rival:
    """Somebody else on the same key: calls at random, and asks again for what was refused, as told.

    Args:
        simulation: whose limits are shared.
        per_minute: mean number of its calls a minute.
        body: what it asks, without messages.
        seed: of its arrivals.
    """

    def __init__(self, simulation: Simulation, *, per_minute: float, body: dict[str, Any], seed: int) -> None:
        self.admitted: list[tuple[float, int]] = []
        """When its calls were let in, and the tokens that each used."""
        self._simulation = simulation
        self._per_minute = per_minute
        self._body = body
        self._random = random.Random(f"rival {seed}")

    async def __call__(self) -> None:
        """Go on until cancelled."""
        async with asyncio.TaskGroup() as asking:
            for number in itertools.count():
                await asyncio.sleep(self._random.expovariate(self._per_minute / MINUTE_S))
                asking.create_task(self._ask(f"rival {number}"))

    def spend(self, prompt: str) -> bool:
        """Make one call that ends at once, and tell whether it was let in."""
        plan = self._simulation.begin(self._call(prompt), monotonic())
        self._simulation.finish(plan, monotonic())
        return plan.status == 200

    async def _ask(self, prompt: str) -> None:
        while True:
            began_at = monotonic()
            plan = self._simulation.begin(self._call(prompt), began_at)
            try:
                await asyncio.sleep(plan.latency_s)
            finally:
                self._simulation.finish(plan, monotonic())
            if plan.settlement is not None:
                self.admitted.append((began_at, plan.settlement.used_tokens))
                return
            wait_s = float(dict(plan.headers)["retry-after"])
            await asyncio.sleep(wait_s * self._random.uniform(1.0, 1.5))

    def _call(self, prompt: str) -> Call:
        body = orjson.dumps({**self._body, "messages": [{"role": "user", "content": prompt}]})
        return Call(method="POST", path="/v1/chat/completions", headers={}, body=body)


def finished(make: Callable[[], Rig], *, seed: int = 0) -> Rig:
    """Run what `make` makes to its end, on a clock of its own that begins near 0, with chance by `seed`."""

    async def run() -> Rig:
        rig = make()
        await rig()
        return rig

    random.seed(seed)
    with asyncio.Runner(loop_factory=ProofLoop) as runner:
        return runner.run(run())


def lane_of(slots: RunSlots, quota: QuotaLimits, *, concurrency: int) -> Lane:
    """Return a lane by itself."""
    limits = LaneLimits(quota=quota, concurrency=concurrency)
    return Lane(MODEL, limits, slots=slots, breaker=BreakerPolicy(), emit=lambda event: None)


def within(moments: Iterable[float], start: float, end: float) -> int:
    """Return how many moments lie in [start, end)."""
    return sum(start <= moment < end for moment in moments)


def _unexpected(where: str, reason: str) -> None:
    raise AssertionError(f"{where}: {reason}")


async def _no_wait() -> None:
    """Take every result at once."""
