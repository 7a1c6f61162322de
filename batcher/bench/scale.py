"""Scale: what many jobs cost in memory, in reading and in CPU a job, against few."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from batcher.bench.figures import per_job_us, problems
from batcher.bench.processes import BATCHER, LOADS, Cores, Use, clean_environment, measured
from batcher.bench.report import Section, Table, number
from batcher.bench.server import Server, running
from batcher.bench.targets import Verdict, judge
from batcher.bench.work import read_results, write_jobs
from batcher.types import output_paths

JOBS = 1_000_000
FEW = 5_000
JOB_BYTES = 600
CONCURRENCY = 256
ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """Runs of several sizes.

    Attributes:
        jobs: of each run.
        cpu_us_per_job: what a job costs beyond a run of one job, in microseconds.
        peak_mb: most memory (resident, MB of 10**6 bytes); None is unknown.
        lost: jobs that do not have exactly one result line.
        reasons: what speaks against the figures.
    """

    jobs: int
    cpu_us_per_job: float | None
    peak_mb: float | None
    lost: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """CPU seconds (user and system) of reading a file of `file_bytes`, and of `orjson.loads` of its lines."""

    cpu_s: float
    loads_cpu_s: float
    file_bytes: int

    @property
    def to_loads(self) -> float:
        """How many times as long as `orjson.loads`."""
        return round(self.cpu_s / self.loads_cpu_s, 3)

    @property
    def mb_per_s(self) -> float:
        """MB of 10**6 bytes a CPU second."""
        return round(self.file_bytes / 1e6 / self.cpu_s, 2)


def measure_scale(directory: Path, jobs: int, cores: Cores, tell: Callable[[str], None]) -> Section:
    """Run 5,000 jobs, `jobs`, a tenth and a hundredth of them; index and resume the most."""
    sizes = sorted({size for size in (FEW, jobs // 100, jobs // 10, jobs) if 1 < size <= jobs})
    with running(["--fast"], directory, cores.server) as server:
        rig = _Rig(directory, cores, server)
        rig.run(1)  # fills the caches
        start_s = _median_cpu_s(lambda: rig.run(1))
        grown = []
        for size in sizes:
            tell(f"a run of {size:,} jobs")
            grown.append(rig.grown(size, start_s))
        tell(f"the index of {jobs:,} jobs")
        index_s = _median_cpu_s(rig.index)
        tell(f"the resume over {jobs:,} results")
        resume_s = _median_cpu_s(lambda: rig.again(rig.out))
        index = rig.reading(index_s - start_s, rig.file)
        resume = rig.reading(resume_s - index_s, rig.out)
    return _section(grown, index, resume)


def _median_cpu_s(run: Callable[[], Use]) -> float:
    return median(run().cpu_s for _ in range(ROUNDS))


class _Rig:
    """Runs jobs in one directory; the files of the last run stay there."""

    def __init__(self, directory: Path, cores: Cores, server: Server) -> None:
        self._directory = directory
        self._cores = cores
        self._server = server
        self.file = directory / "jobs.jsonl"
        self.out = directory / "out.jsonl"

    def run(self, jobs: int) -> Use:
        """Run so many jobs, from the beginning."""
        for file in self._directory.glob("out.*"):
            file.unlink()
        write_jobs(self.file, jobs, JOB_BYTES)
        return self.again(self.out)

    def index(self) -> Use:
        """Read all jobs, without earlier results, and run one of them."""
        out = self._directory / "index.jsonl"
        for file in self._directory.glob("index.*"):
            file.unlink()
        return self.again(out, "--limit", "1")

    def again(self, out: Path, *options: str) -> Use:
        """Run the same jobs, with whatever results there are."""
        command = [*BATCHER, "run", str(self.file), "-o", str(out), "-q", *options]
        command += ["--base-url", f"{self._server.url}/v1", "--concurrency", str(CONCURRENCY)]
        return self._measured(command)

    def grown(self, jobs: int, start_s: float) -> Grown:
        """Run so many jobs and hold what they cost against a run of one."""
        use = self.run(jobs)
        found = read_results([self.out, output_paths(self.out).errors], jobs)
        reasons = problems(
            jobs=jobs,
            exit_code=use.exit_code,
            answered=found.answered,
            missing=found.missing,
            repeated=found.repeated,
            server_cpu_share=None,
        )
        return Grown(
            jobs=jobs,
            cpu_us_per_job=per_job_us(use.cpu_s, start_s, jobs),
            peak_mb=use.peak_mb,
            lost=found.lost,
            reasons=tuple(reasons),
        )

    def reading(self, cpu_s: float, file: Path) -> Reading | None:
        """Hold what reading a file took against `orjson.loads` over it; None if it is too short to tell."""
        loads = orjson.loads(self._measured([*LOADS, str(file)]).stdout)
        if cpu_s <= 0:
            return None
        return Reading(cpu_s=cpu_s, loads_cpu_s=loads["cpu_s"], file_bytes=file.stat().st_size)

    def _measured(self, command: list[str]) -> Use:
        environment = clean_environment(self._directory)
        return measured(command, cwd=self._directory, core=self._cores.client, env=environment)


def _section(grown: Sequence[Grown], index: Reading | None, resume: Reading | None) -> Section:
    most = grown[-1].jobs
    tables = [
        Table(
            f"Growth (concurrency {CONCURRENCY})",
            ["jobs", "", "CPU us/job", "peak MB"],
            [
                [f"{one.jobs:,}", "", number(one.cpu_us_per_job, "{:,.0f}"), number(one.peak_mb, "{:,.0f}")]
                for one in grown
            ],
        ),
        Table(
            f"Reading (CPU time, {most:,} jobs)",
            ["what", "", "s", "orjson.loads s", "times", "MB/s"],
            [["index", "", *_cells(index)], ["resume", "", *_cells(resume)]],
        ),
    ]
    return Section(
        name="scale",
        tables=tables,
        content={
            "job_bytes": JOB_BYTES,
            "concurrency": CONCURRENCY,
            "runs": [asdict(one) for one in grown],
            "index": _content(index),
            "resume": _content(resume),
        },
        verdicts=list(verdicts(grown, index, resume)),
        remarks=[f"a run of {one.jobs:,} jobs: {reason}" for one in grown for reason in one.reasons],
        lost=sum(one.lost for one in grown),
    )


def _cells(reading: Reading | None) -> list[str]:
    if reading is None:
        return ["-"] * 4
    return [
        f"{reading.cpu_s:.2f}",
        f"{reading.loads_cpu_s:.2f}",
        f"{reading.to_loads:.2f}",
        f"{reading.mb_per_s:.0f}",
    ]


def _content(reading: Reading | None) -> dict[str, Any] | None:
    if reading is None:
        return None
    return asdict(reading) | {"to_loads": reading.to_loads, "mb_per_s": reading.mb_per_s}


def verdicts(grown: Sequence[Grown], index: Reading | None, resume: Reading | None) -> Iterator[Verdict]:
    """Hold the figures against their targets; `grown` is in order of size."""
    valid = not any(one.reasons for one in grown)
    by_size = {one.jobs: one for one in grown}
    most, few = grown[-1], by_size.get(FEW)
    of = f"{most.jobs:,} jobs"
    if most.peak_mb is not None:
        yield judge("peak_mb", of, round(most.peak_mb, 1), valid=valid)
        if few is not None and few.peak_mb is not None:
            yield judge("peak_growth_mb", of, round(most.peak_mb - few.peak_mb, 1), valid=valid)
    # Below that size a run is too short for what a job costs.
    base, *larger = [one for one in grown if one.jobs > FEW] or [most]
    for one in larger:
        if one.cpu_us_per_job is not None and base.cpu_us_per_job:
            growth = round(one.cpu_us_per_job / base.cpu_us_per_job, 3)
            yield judge("marginal_growth", f"{one.jobs:,} to {base.jobs:,} jobs", growth, valid=valid)
    if index is not None:
        absolute = judge("index_mb_per_s", of, index.mb_per_s, valid=valid)
        # One of the two is enough.
        yield absolute if absolute.met else judge("index_to_loads", of, index.to_loads, valid=valid)
    if resume is not None:
        yield judge("resume_to_loads", of, resume.to_loads, valid=valid)
