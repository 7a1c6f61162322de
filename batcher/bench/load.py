"""Load: the runner and the yardsticks on the same jobs, round by round."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from batcher.bench.figures import Figures, Ratio, idle, medians, per_job_us, percentiles, problems, ratio
from batcher.bench.processes import (
    BATCHER,
    ENTRY,
    PROFILED,
    YARDSTICK,
    Cores,
    Use,
    clean_environment,
    measured,
)
from batcher.bench.server import Served, Server, running
from batcher.bench.targets import Verdict, judge
from batcher.bench.work import Found, read_results, write_jobs
from batcher.errors import UsageError
from batcher.types import output_paths

Program = Literal["batcher", "aiohttp", "pyreqwest"]
Shape = Literal["fixed", "uniform", "exponential", "lognormal"]

PROGRAMS: tuple[Program, ...] = ("batcher", "aiohttp", "pyreqwest")

_BOUNDED_MEMORY_AT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What is to be measured.

    Attributes:
        jobs: in each run, > 0.
        job_bytes: of one line of the job file, newline included.
        concurrency: calls in flight, each > 0; every one is measured on its own.
        latency_s: of the server, >= 0.
        latency_shape: how latencies spread; other than `fixed`, they take the ordinary simulator.
        rate: calls a second that the runner is told to keep to (`--rpm`), > 0; None is no limit.
        repeat: rounds, > 0.
        programs: which run in each round, in this order.
        yardstick_loop: the event loop under the yardsticks; the runner chooses its own.
        profile: take samples of where the runner's time goes, which costs it some.
    """

    jobs: int = 20_000
    job_bytes: int = 600
    concurrency: tuple[int, ...] = (64, 256, 1000)
    latency_s: float = 0.0
    latency_shape: Shape = "fixed"
    rate: float | None = None
    repeat: int = 3
    programs: tuple[Program, ...] = PROGRAMS
    yardstick_loop: Literal["asyncio", "uvloop"] = "asyncio"
    profile: bool = False


@dataclass(slots=True)
class Measured:
    """The rounds of one program at one concurrency, and what speaks against them."""

    rounds: list[Figures] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    lost: int = 0
    profile: dict[str, Any] | None = None

    @property
    def figures(self) -> Figures:
        """The median of each figure."""
        return medians(self.rounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All programs at one concurrency; `bounded` says whether latency or rate allow only so much."""

    concurrency: int
    programs: dict[Program, Measured]
    bounded: bool = False

    @property
    def ratios(self) -> dict[Program, Ratio]:
        """The runner against each yardstick."""
        runner = self.programs.get("batcher")
        if runner is None:
            return {}
        return {
            name: ratio(
                runner.rounds, other.rounds, [*runner.reasons, *other.reasons, *self.doubts(name, other)]
            )
            for name, other in self.programs.items()
            if name != "batcher"
        }

    def doubts(self, name: Program, measured: Measured) -> list[str]:
        """Say if a program did not have its core: jobs a second then tell who got how much of it."""
        return [] if self.bounded else idle(name, measured.figures.cpu_share)

    def verdicts(self, plan: LoadPlan) -> Iterator[Verdict]:
        """Hold what was measured against the targets that apply."""
        at = f"concurrency {self.concurrency}"
        for name, found in self.ratios.items():
            if found.throughput is not None and not plan.latency_s:
                yield judge(f"throughput_to_{name}", at, found.throughput, valid=found.valid)
        if (runner := self.programs.get("batcher")) is None:
            return
        figures, valid = runner.figures, not runner.reasons
        possible = possible_per_s(plan, self.concurrency)
        if possible is not None and figures.jobs_per_s is not None:
            yield judge("share_of_possible", at, round(figures.jobs_per_s / possible, 4), valid=valid)
        if self.concurrency <= _BOUNDED_MEMORY_AT and figures.peak_mb is not None:
            yield judge("peak_mb", at, figures.peak_mb, valid=valid)


def possible_per_s(plan: LoadPlan, concurrency: int) -> float | None:
    """Return the most jobs a second that the plan leaves room for; None if only the machine bounds them."""
    bounds = [concurrency / plan.latency_s] if plan.latency_s else []
    if plan.rate is not None:
        bounds.append(plan.rate)
    return min(bounds, default=None)


def left_out(plan: LoadPlan) -> dict[Program, str]:
    """Return why those of the plan's programs that cannot be measured are left out.

    Raises:
        UsageError: none is left.
    """
    reasons: dict[Program, str] = {}
    for name in plan.programs:
        if name != "batcher" and plan.rate is not None:
            reasons[name] = f"{name}: a bare loop keeps to no --rate"
        elif name != "batcher" and importlib.util.find_spec(name) is None:
            reasons[name] = f"{name} is not installed: pip install 'batcher[bench]'"
    if len(reasons) == len(plan.programs):
        raise UsageError("; ".join(reasons.values()))
    return reasons


def compare(
    plan: LoadPlan, directory: Path, cores: Cores, tell: Callable[[str], None]
) -> Iterator[Comparison]:
    """Measure at one concurrency after another; the programs take turns, so that all meet the same noise."""
    jobs, one = directory / "jobs.jsonl", directory / "one.jsonl"
    write_jobs(jobs, plan.jobs, plan.job_bytes)
    write_jobs(one, 1, plan.job_bytes)
    with running(_server_options(plan), directory, cores.server) as server:
        rig = _Rig(plan, directory, cores, server)
        # What it costs to start; it also leaves compiled modules and a warm disk cache to all.
        starts = {name: rig.run(name, one, 1, plan.concurrency[0]) for name in plan.programs}
        for concurrency in plan.concurrency:
            found: dict[Program, Measured] = {name: Measured() for name in plan.programs}
            for number in range(plan.repeat):
                for name in plan.programs:
                    tell(f"concurrency {concurrency}, round {number + 1} of {plan.repeat}: {name}")
                    rig.run(name, jobs, plan.jobs, concurrency).add_to(found[name], starts[name].use)
            bounded = possible_per_s(plan, concurrency) is not None
            yield Comparison(concurrency=concurrency, programs=found, bounded=bounded)


def _server_options(plan: LoadPlan) -> list[str]:
    latency = ["--latency", str(plan.latency_s), "--latency-shape", plan.latency_shape]
    return latency if plan.latency_s and plan.latency_shape != "fixed" else [*latency, "--fast"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """One process: what it used, what the server saw, and what its results say."""

    jobs: int
    use: Use
    served: Served
    found: Found
    latency_s: dict[str, float] | None
    queued_s: dict[str, float] | None
    profile: dict[str, Any] | None

    def add_to(self, measured: Measured, start: Use) -> None:
        use, served = self.use, self.served
        busy_s = use.ended_at - served.first_at if served.first_at is not None else 0.0
        share = served.cpu_s / busy_s if busy_s > 0 else None
        measured.rounds.append(self._figures(start, busy_s, share))
        measured.lost += self.found.lost
        measured.profile = self.profile
        reasons = problems(
            jobs=self.jobs,
            exit_code=use.exit_code,
            answered=self.found.answered,
            missing=self.found.missing,
            repeated=self.found.repeated,
            server_cpu_share=share,
        )
        if reasons and use.last_words:
            reasons.append(f"it said: {use.last_words}")
        measured.reasons += [reason for reason in reasons if reason not in measured.reasons]

    def _figures(self, start: Use, busy_s: float, share: float | None) -> Figures:
        use, jobs = self.use, self.jobs
        latency, queued = self.latency_s or {}, self.queued_s or {}
        return Figures(
            jobs_per_s=self.found.answered / busy_s if busy_s > 0 else None,
            whole_jobs_per_s=self.found.answered / use.wall_s,
            cpu_user_us_per_job=per_job_us(use.user_s, start.user_s, jobs),
            cpu_system_us_per_job=per_job_us(use.system_s, start.system_s, jobs),
            cpu_us_per_job=per_job_us(use.cpu_s, start.cpu_s, jobs),
            whole_cpu_us_per_job=use.cpu_s * 1e6 / jobs,
            cpu_share=use.cpu_s / use.wall_s,
            peak_mb=use.peak_mb,
            connections=self.served.connections,
            server_cpu_us_per_job=self.served.cpu_s * 1e6 / jobs,
            server_cpu_share=share,
            latency_p50_s=latency.get("p50"),
            latency_p95_s=latency.get("p95"),
            latency_p99_s=latency.get("p99"),
            queued_p50_s=queued.get("p50"),
            queued_p95_s=queued.get("p95"),
            queued_p99_s=queued.get("p99"),
        )


@dataclass(frozen=True, slots=True)
class _Rig:
    plan: LoadPlan
    directory: Path
    cores: Cores
    server: Server

    def run(self, name: Program, jobs: Path, count: int, concurrency: int) -> _Taken:
        """Run one program once, in a directory of its own files, and read what it wrote."""
        out = self.directory / "out.jsonl"
        profile = self.directory / "profile.json"
        if name == "batcher":
            start = (*PROFILED, str(profile), ENTRY) if self.plan.profile else BATCHER
            command = [*start, *self._run_arguments(jobs, out, concurrency)]
        else:
            url = f"{self.server.url}/v1/chat/completions"
            command = [*YARDSTICK, name, str(jobs), str(out), url, str(concurrency), self.plan.yardstick_loop]
        with _cleared(out, profile):
            mark = self.server.mark()
            use = measured(
                command, cwd=self.directory, core=self.cores.client, env=clean_environment(self.directory)
            )
            served = self.server.since(mark)
            found = read_results([out, output_paths(out).errors], count)
            told = orjson.loads(use.stdout) if name != "batcher" and use.stdout else {}
            return _Taken(
                jobs=count,
                use=use,
                served=served,
                found=found,
                latency_s=told.get("latency_s") or percentiles(found.latency_s),
                queued_s=percentiles(found.queued_s),
                profile=orjson.loads(profile.read_bytes()) if profile.exists() else None,
            )

    def _run_arguments(self, jobs: Path, out: Path, concurrency: int) -> list[str]:
        arguments = ["run", str(jobs), "-o", str(out), "--base-url", f"{self.server.url}/v1", "-q"]
        arguments += ["--concurrency", str(concurrency)]
        return (
            arguments
            if self.plan.rate is None
            else [*arguments, "--rpm", str(max(1, round(self.plan.rate * 60)))]
        )


@contextmanager
def _cleared(out: Path, *files: Path) -> Iterator[None]:
    """Leave nothing of one run to the next."""
    try:
        yield
    finally:
        for file in (*out.parent.glob(f"{out.stem}.*"), *files):
            file.unlink(missing_ok=True)
