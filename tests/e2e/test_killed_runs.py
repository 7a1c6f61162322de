"""A run that is killed loses nothing: the same command brings home what is missing, and pays little twice."""

import random
import time
from collections import Counter
from pathlib import Path

import pytest
from harness import (
    Started,
    assert_each_once,
    batcher,
    count_lines,
    job,
    names,
    read_journal,
    simulating,
    started,
    write_jobs,
)

JOBS, KILLS, CONCURRENCY = 3_000, 5, 32


def damage(out: Path, kind: str, rng: random.Random) -> None:
    """Leave behind what a power cut may leave at the end of a file."""
    if kind == "none" or not out.exists():
        return
    lines = out.read_bytes().split(b"\n")
    whole = lines[0] if len(lines) > 1 else b"{}"
    torn = whole[: rng.randrange(1, max(2, len(whole)))]
    tails = {
        "torn": torn,
        "nul": b"\0" * rng.randrange(1, 5_000),
        "torn, then nul": torn + b"\0" * 512,
        "nul amid lines": b"\0" * 100 + b"\n" + torn + b"\n",
    }
    with out.open("ab") as file:
        file.write(tails[kind])


def kill_at_random(command: Started, out: Path, rng: random.Random) -> None:
    """Kill a run at its start or up to some hundred results later."""
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, 0.5))
    else:
        wanted = count_lines(out) + rng.randrange(1, 450)
        command.wait_until(lambda: count_lines(out) >= wanted)
    command.kill()


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 8))])
def test_five_kills_lose_and_repeat_nothing(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    ids = names(JOBS)
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    out = tmp_path / "results" / "jobs.jsonl"
    with simulating(tmp_path, "--latency", 0.02, "--seed", seed) as server:
        run = ("run", jobs.name, "--base-url", server.url, "--concurrency", CONCURRENCY)
        kinds = ["none", "torn", "nul", "torn, then nul", "nul amid lines"]
        rng.shuffle(kinds)
        for number, kind in enumerate(kinds):
            with started(*run, cwd=tmp_path, name=f"run-{number}") as command:
                kill_at_random(command, out, rng)
            damage(out, kind, rng)
        done = batcher(*run, cwd=tmp_path)
        stats = server.stats()

    assert done.code == 0, done.stderr
    assert_each_once(out, ids)
    assert stats["requests"] <= JOBS + KILLS * CONCURRENCY
    sent = Counter(record["id"] for record in read_journal(out, "sent"))
    unseen = {name: calls for name, calls in stats["by_id"].items() if sent[name] < calls}
    assert not unseen, "calls that the journal does not know"

    again = batcher(*run, cwd=tmp_path)
    assert again.code == 0
    assert_each_once(out, ids)
