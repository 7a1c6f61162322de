"""Start-up: what a command costs before it does anything, against Python itself."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from batcher.bench.processes import BATCHER, Cores, clean_environment, measured
from batcher.bench.report import Section, Table
from batcher.bench.server import running
from batcher.bench.targets import judge
from batcher.bench.work import write_jobs

ROUNDS = 20
_BARE = "python -c pass"
_HELP = "batcher --help"
_ONE = "a run of one job"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Medians of one command in seconds, and what they are to those of bare Python (wall, CPU)."""

    wall_s: float
    cpu_s: float
    ratio: float
    cpu_ratio: float


def compared(wall_s: dict[str, list[float]], cpu_s: dict[str, list[float]]) -> dict[str, Started]:
    """Return the medians of each command; ratios are medians over rounds, as rounds lie close in time."""

    def to_pass(times: dict[str, list[float]], name: str) -> float:
        return round(median(a / b for a, b in zip(times[name], times[_BARE], strict=True)), 3)

    return {
        name: Started(
            wall_s=round(median(wall_s[name]), 5),
            cpu_s=round(median(cpu_s[name]), 5),
            ratio=to_pass(wall_s, name),
            cpu_ratio=to_pass(cpu_s, name),
        )
        for name in wall_s
    }


def measure_start_up(directory: Path, cores: Cores, tell: Callable[[str], None]) -> Section:
    """Start each command `ROUNDS` times, taking turns."""
    jobs, out = directory / "one.jsonl", directory / "out.jsonl"
    write_jobs(jobs, 1, 600)
    script = Path(sys.executable).with_name("batcher")
    batcher = [str(script)] if script.exists() else [*BATCHER]
    environment = clean_environment(directory)
    problems = []
    with running(["--fast"], directory, cores.server) as server:
        commands = {
            _BARE: [sys.executable, "-c", "pass"],
            _HELP: [*batcher, "--help"],
            _ONE: [*batcher, "run", str(jobs), "-o", str(out), "--base-url", f"{server.url}/v1", "-q"],
        }
        wall_s: dict[str, list[float]] = {name: [] for name in commands}
        cpu_s: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(-1, ROUNDS):  # the first is not counted: it fills the caches
            if number % 5 == 0:
                tell(f"start-up, round {number + 1} of {ROUNDS}")
            for name, command in commands.items():
                use = measured(command, cwd=directory, core=cores.client, env=environment)
                for file in directory.glob("out.*"):
                    file.unlink()
                if use.exit_code:
                    problems.append(f"{name} ended with exit code {use.exit_code}: {use.last_words}")
                if number >= 0:
                    wall_s[name].append(use.wall_s)
                    cpu_s[name].append(use.user_s + use.system_s)
    found = compared(wall_s, cpu_s)
    return _section(found, problems)


def _section(found: dict[str, Started], problems: list[str]) -> Section:
    rows = [
        [
            name,
            "",
            f"{one.wall_s * 1000:,.0f}",
            f"{one.cpu_s * 1000:,.0f}",
            f"{one.ratio:.1f}",
            f"{one.cpu_ratio:.1f}",
        ]
        for name, one in found.items()
    ]
    content: dict[str, Any] = {
        name: {
            "wall_s": one.wall_s,
            "cpu_s": one.cpu_s,
            "wall_to_pass": one.ratio,
            "cpu_to_pass": one.cpu_ratio,
        }
        for name, one in found.items()
    }
    valid = not problems
    return Section(
        name="start_up",
        tables=[Table("Start-up", ["command", "", "wall ms", "CPU ms", "wall / pass", "CPU / pass"], rows)],
        content={"rounds": ROUNDS, "commands": content, "valid": valid, "reasons": problems},
        verdicts=[
            judge("help_to_pass", "wall", found[_HELP].ratio, valid=valid),
            judge("help_to_pass", "CPU", found[_HELP].cpu_ratio, valid=valid),
            judge("one_job_to_pass", "wall", found[_ONE].ratio, valid=valid),
            judge("one_job_to_pass", "CPU", found[_ONE].cpu_ratio, valid=valid),
        ],
        remarks=[f"start-up: {problem}" for problem in dict.fromkeys(problems)],
    )
