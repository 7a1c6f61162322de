"""The limits over real HTTP: the installed command against simulators in processes of their own, for 75 s."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import rig
from harness import Simulator, Started, read_summary, simulating, started, write_jobs

from batcher.providers.simulator.settings import LimiterKind

pytestmark = [pytest.mark.real_loop, pytest.mark.long]

RPM = 1_200
TPM = 120_000
RUNS_S = 75
WAYS = {"requests": ("--rpm", RPM), "tokens, told": ("--tpm", TPM), "tokens, learned": ()}


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one simulator has seen of one run.

    Attributes:
        admitted_s: when calls were let in, in seconds since its start.
        refused: answers with 429.
        used: tokens charged to each answered call at last, on average.
    """

    admitted_s: list[float]
    calls: int
    answered: int
    refused: int
    used: float
    failed: int

    def within_a_minute(self) -> int:
        """Return how many calls were let in from the 10th to the 70th second of the run."""
        start = self.admitted_s[0] + 10
        return sum(start <= at < start + 60 for at in self.admitted_s)


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, LimiterKind], Traffic]]:
    """Let all runs go at once: each of them is idle most of the time."""
    directory = tmp_path_factory.mktemp("limits")
    with ExitStack() as stack:
        runs = {
            (way, limiter): _begin(stack, directory / f"{number}-{limiter}", way, limiter)
            for number, way in enumerate(WAYS)
            for limiter in rig.LIMITERS
        }
        yield {name: _seen(*run) for name, run in runs.items()}


def _begin(
    stack: ExitStack, directory: Path, way: str, limiter: LimiterKind
) -> tuple[Path, Simulator, Started]:
    directory.mkdir()
    limit = ("--rpm", RPM) if way == "requests" else ("--tpm", TPM)
    server = stack.enter_context(
        simulating(directory, "--latency", 0.5, "--limiter", limiter, "--output-tokens", "20..200", *limit)
    )
    jobs = ({"id": f"row-{number}", "prompt": f"row-{number}", "model": "m"} for number in range(4 * RPM))
    listed = write_jobs(
        directory / "jobs.jsonl", ({**job, "params": {"max_completion_tokens": 200}} for job in jobs)
    )
    options = ("--base-url", server.url, "--deadline", f"{RUNS_S}s", *WAYS[way])
    return directory, server, stack.enter_context(started("run", listed.name, *options, cwd=directory))


def _seen(directory: Path, server: Simulator, command: Started) -> Traffic:
    done = command.end(timeout_s=2 * RUNS_S)
    assert done.code == 75, done.stderr
    stats = server.stats()
    answered = stats["by_status"]["200"]
    return Traffic(
        admitted_s=[each["at_s"] for each in server.admissions()],
        calls=stats["requests"],
        answered=answered,
        refused=stats["by_status"].get("429", 0),
        used=sum(stats["tokens"].values()) / answered,
        failed=read_summary(directory / "results" / "jobs.jsonl")["jobs"]["failed"],
    )


@pytest.mark.parametrize("limiter", rig.LIMITERS)
def test_requests_a_minute_are_used_to_98_percent(
    traffic: dict[tuple[str, LimiterKind], Traffic], limiter: LimiterKind
) -> None:
    seen = traffic["requests", limiter]
    assert seen.failed == 0
    assert 1000 * seen.refused <= seen.calls, (seen.refused, seen.calls)
    assert seen.within_a_minute() >= 0.98 * RPM, seen.within_a_minute()


@pytest.mark.parametrize("limiter", rig.LIMITERS)
@pytest.mark.parametrize("way", ["tokens, told", "tokens, learned"])
def test_tokens_a_minute_are_used_to_95_percent(
    traffic: dict[tuple[str, LimiterKind], Traffic], way: str, limiter: LimiterKind
) -> None:
    seen = traffic[way, limiter]
    used, allowed = seen.answered * seen.used, TPM * RUNS_S / 60
    assert seen.failed == 0
    assert 100 * seen.refused <= seen.calls, (seen.refused, seen.calls)
    assert 0.95 * allowed <= used <= 1.05 * allowed, (used, allowed)
