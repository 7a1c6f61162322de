"""What the figures are to reach; a report names the target beside each figure."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bound, and what it bounds in words."""

    says: str
    bound: float
    kind: Literal["at least", "at most"]

    def met(self, value: float) -> bool:
        """Whether `value` keeps the bound."""
        return value >= self.bound if self.kind == "at least" else value <= self.bound


def _at_least(bound: float, says: str) -> Target:
    return Target(says=says, bound=bound, kind="at least")


def _at_most(bound: float, says: str) -> Target:
    return Target(says=says, bound=bound, kind="at most")


TARGETS = {
    "throughput_to_aiohttp": _at_least(1.0, "jobs a second against a bare aiohttp loop, start-up left out"),
    "throughput_to_pyreqwest": _at_least(0.45, "jobs a second against a bare pyreqwest loop, so too"),
    "share_of_possible": _at_least(0.6, "of the rate that concurrency and latency allow"),
    "peak_mb": _at_most(150, "peak memory at up to 256 in flight (MB)"),
    "peak_growth_mb": _at_most(64, "peak memory beyond that of 5,000 jobs (MB)"),
    "index_mb_per_s": _at_least(60, "reading and checking jobs (MB a CPU second)"),
    "index_to_loads": _at_most(4, "index against orjson.loads of every job (or 60 MB a CPU second)"),
    "resume_to_loads": _at_most(2, "resume against orjson.loads of every result"),
    "share_of_limit": _at_least(0.98, "of a limit that a run was told, used"),
    "marginal_growth": _at_most(1.15, "CPU a job costs, against fewer jobs"),
    "help_to_pass": _at_most(6, "`batcher --help` against `python -c pass`"),
    "one_job_to_pass": _at_most(40, "a run of one job against `python -c pass`"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A figure, its target and whether it is met; `of` says what was measured.

    `met` is None where the measurement is not to be believed.
    """

    target: str
    of: str
    value: float
    bound: float
    kind: str
    says: str
    met: bool | None


def judge(name: str, of: str, value: float, *, valid: bool = True) -> Verdict:
    """Hold a figure against its target."""
    target = TARGETS[name]
    met = target.met(value) if valid else None
    return Verdict(
        target=name, of=of, value=value, bound=target.bound, kind=target.kind, says=target.says, met=met
    )
