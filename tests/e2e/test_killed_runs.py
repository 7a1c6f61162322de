"""A run that is killed loses nothing: the same command brings home what is missing, and pays little twice."""

import contextlib
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import (
    FirstAnswer,
    Started,
    batcher,
    job,
    names,
    read_summary,
    simulating,
    started,
    write_jobs,
)
from interrupted import Kept, assert_nothing_lost_or_repeated

CONCURRENCY = 32
NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How often a run is killed.

    Attributes:
        jobs: lines of the job file.
        kills: SIGKILLs before the run that may finish.
        latency_s: chosen so that the jobs outlast the kills.
    """

    jobs: int
    kills: int
    latency_s: float


ROUNDS = {
    "60 kills": Rounds(jobs=20_000, kills=60, latency_s=0.025),
    "1000 kills": Rounds(jobs=20_000, kills=1_000, latency_s=0.5),
}


def damage(path: Path, rng: random.Random) -> None:
    """Append what a power cut may leave at the end of a file."""
    if not path.exists():
        return
    whole = path.read_bytes().partition(b"\n")[0] or b'{"id":"row'
    torn = whole[: rng.randrange(1, len(whole))]
    tails = [torn, b"\0" * rng.randrange(1, 5_000), torn + b"\0" * 512, b"\0" * 100 + b"\n" + torn + b"\n"]
    with path.open("ab") as file:
        file.write(rng.choice(tails))


def kill_at_random(command: Started, answered: FirstAnswer, rng: random.Random) -> None:
    """Kill a run 50 to 250 ms after its first answer; now and then while it still starts."""
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, 0.4))
    else:
        command.wait_until(answered)
        time.sleep(rng.uniform(0.05, 0.25))
    command.kill()


def answered_ids(out: Path) -> set[str]:
    """Return whose results stand in a file that may be damaged."""
    ids = set()
    for line in out.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            ids.add(json.loads(line)["custom_id"])
    return ids


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(rounds, id=name, marks=() if name == "60 kills" else pytest.mark.long)
        for name, rounds in ROUNDS.items()
    ],
)
def test_kills_lose_and_repeat_nothing(tmp_path: Path, rounds: Rounds) -> None:
    rng = random.Random(rounds.kills)
    ids = names(rounds.jobs)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"
    files = (out, out.with_suffix(".errors.jsonl"), out.with_suffix(".journal"))
    kept = Kept(out)
    with simulating(tmp_path, "--latency", rounds.latency_s, "--seed", rounds.kills) as server:
        run = ("run", jobs.name, "--base-url", server.url, "--concurrency", CONCURRENCY)
        for number in range(rounds.kills):
            answered = FirstAnswer(out)
            with started(*run, cwd=tmp_path, name=f"run-{number}") as command:
                kill_at_random(command, answered, rng)
            kept.remember()
            if rng.random() < 0.2:
                for path in files:
                    damage(path, rng)
        charged = set(server.stats()["by_id"]) - answered_ids(out)
        # Where the kills came so early that most is left, the end takes its time.
        done = batcher(*run[:-1], 256, cwd=tmp_path, timeout_s=300)
        stats = server.stats()

    assert done.code == 0, done.stderr
    told = read_summary(out)["calls"]
    assert len(charged) <= told["possibly_paid_twice"] <= len(charged) + CONCURRENCY
    named = set(told["possibly_paid_twice_ids"])
    assert len(named) == min(told["possibly_paid_twice"], NAMED)
    assert charged <= named or told["possibly_paid_twice"] > NAMED
    given_up = rounds.kills * CONCURRENCY
    assert_nothing_lost_or_repeated(out, ids, kept, stats, given_up=given_up)

    before = out.read_bytes()
    again = batcher(*run, cwd=tmp_path)
    assert again.code == 0
    assert out.read_bytes() == before
