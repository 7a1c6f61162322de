"""Rate adherence: how much of a limit a run uses, and how often it is refused."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from batcher.bench.processes import BATCHER, Cores, clean_environment, measured
from batcher.bench.report import Section, Table
from batcher.bench.server import running
from batcher.bench.targets import judge
from batcher.bench.work import write_jobs

LIMITERS = ("token-bucket", "fixed-window", "sliding-window")
RPM = 600
SECONDS = 180

_WINDOW_S = 60.0
_STOPPED = 75  # what a run ends with whose time is over


@dataclass(frozen=True, slots=True, kw_only=True)
class Adherence:
    """How a run kept to the limit of one kind of server.

    Attributes:
        limiter: how the server keeps its limit.
        told: whether the run was told the limit (`--rpm`).
        share_of_limit: calls let through by what the limit allows, after the first minute where the run is
            longer than two; a server may let a burst through at first.
        refused_per_1000: refusals (429) for each 1,000 calls let through, over the whole run.
        exit_code: of the run.
    """

    limiter: str
    told: bool
    share_of_limit: float
    refused_per_1000: float
    exit_code: int


def share_of_limit(admitted_at_s: list[float], rpm: int, seconds: float) -> float:
    """Return admissions by what `rpm` allows in whole minutes after the first, or in all of a short run."""
    minutes = int(seconds / _WINDOW_S) - 1
    begin_s, end_s = (_WINDOW_S, _WINDOW_S * (1 + minutes)) if minutes > 0 else (0.0, seconds)
    admitted = sum(begin_s <= at_s < end_s for at_s in admitted_at_s)
    return round(admitted / (rpm * (end_s - begin_s) / _WINDOW_S), 4)


def measure_adherence(directory: Path, seconds: int, cores: Cores, tell: Callable[[str], None]) -> Section:
    """Run against each kind of limiter, told and untold, all at once, for `seconds`."""
    tell(f"adherence: {2 * len(LIMITERS)} runs at {RPM} requests a minute, at once, for {seconds} s")
    cases = [(limiter, told) for limiter in LIMITERS for told in (True, False)]

    def measure(case: tuple[str, bool]) -> Adherence:
        limiter, told = case
        return _measure(directory / f"{limiter}-{told}", limiter, told=told, seconds=seconds, cores=cores)

    with ThreadPoolExecutor(len(cases)) as threads:
        found = list(threads.map(measure, cases))
    rows = [
        [
            one.limiter,
            "told" if one.told else "not told",
            f"{one.share_of_limit:.1%}",
            f"{one.refused_per_1000:.1f}",
        ]
        for one in found
    ]
    reasons = [
        f"{one.limiter}: the run ended with exit code {one.exit_code}"
        for one in found
        if one.exit_code not in {0, _STOPPED}
    ]
    return Section(
        name="adherence",
        tables=[
            Table("Rate adherence", ["limiter", "limit", "share of the limit used", "429s per 1,000"], rows)
        ],
        content={"rpm": RPM, "seconds": seconds, "runs": [asdict(one) for one in found]},
        verdicts=[
            judge("share_of_limit", one.limiter, one.share_of_limit, valid=not reasons)
            for one in found
            if one.told and seconds >= 2 * _WINDOW_S
        ],
        remarks=reasons,
    )


def _measure(directory: Path, limiter: str, *, told: bool, seconds: int, cores: Cores) -> Adherence:
    directory.mkdir()
    jobs = directory / "jobs.jsonl"
    write_jobs(jobs, RPM * (seconds // 60 + 3), 600)
    with running(["--limiter", limiter, "--rpm", str(RPM)], directory, cores.server) as server:
        mark = server.mark()
        command = [*BATCHER, "run", str(jobs), "-q", "--max-runtime", str(seconds), "--grace", "5"]
        command += ["-o", str(directory / "out.jsonl"), "--base-url", f"{server.url}/v1"]
        command += ["--rpm", str(RPM)] if told else []
        use = measured(command, cwd=directory, core=cores.client, env=clean_environment(directory))
        admitted_at_s = server.admitted_at_s()
        refused = server.since(mark).refused
    return Adherence(
        limiter=limiter,
        told=told,
        share_of_limit=share_of_limit(admitted_at_s, RPM, seconds),
        refused_per_1000=round(1000 * refused / max(1, len(admitted_at_s)), 2),
        exit_code=use.exit_code,
    )
