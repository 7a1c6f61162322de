"""Whole runs over outputs that were damaged, cut, filled up or killed; what they cost and what they say."""

import os
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from batcher import arun_jobs
from batcher.errors import OutputError
from batcher.history import read_journal
from batcher.providers.simulator.fault_plan import FaultPlan
from batcher.providers.simulator.server import RunningServer, start_embedded
from batcher.providers.simulator.settings import SimulatorSettings

pytestmark = pytest.mark.real_loop

CONCURRENCY = 8


def jobs(count: int) -> list[dict[str, Any]]:
    return [{"id": f"j{number}", "model": "m", "prompt": f"j{number}"} for number in range(count)]


def ids_in(out: Path) -> list[str]:
    return [orjson.loads(line)["custom_id"] for line in out.read_bytes().splitlines()]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def run(count: int, out: Path, server: RunningServer, **options: Any) -> dict[str, Any]:
    return await arun_jobs(jobs(count), output=out, base_url=f"{server.url}/v1", **options)


# A full disk


@pytest.mark.parametrize("size", [9_000, 25_000, 40_123])
async def test_a_full_disk_loses_at_most_what_was_in_flight(tmp_path: Path, size: int) -> None:
    out, safe = tmp_path / "x.jsonl", list[str]()
    async with start_embedded(SimulatorSettings(latency_s=0.01)) as server:
        with largest_file(size):
            full = await run(
                200,
                out,
                server,
                concurrency=CONCURRENCY,
                on_result=lambda result: safe.append(result.job.id),
            )
        assert full["exit_code"] == 74
        kept, paid = ids_in(out), server.simulation.requests
        assert set(safe) <= set(kept)
        assert 0 <= paid - len(kept) <= CONCURRENCY
        again = await run(200, out, server, concurrency=CONCURRENCY)
        assert again["exit_code"] == 0
        assert server.simulation.requests - paid == 200 - len(kept)
    assert Counter(ids_in(out)) == Counter(f"j{number}" for number in range(200))
    calls = again["calls"]
    sent = Counter(record["id"] for record in read_journal(out.with_suffix(".journal"), "sent"))
    twice = {name for name, times in sent.items() if times > 1}
    assert calls["possibly_paid_twice"] == len(twice)
    assert set(calls["possibly_paid_twice_ids"]) == twice


# Damage between two runs


def flip(out: Path) -> None:
    content = out.read_bytes()
    out.write_bytes(content[:900] + bytes([content[900] ^ 1]) + content[901:])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "cut within a line": lambda out: os.truncate(out, 1000),
}
REMOVED: dict[str, Callable[[Path], object]] = {
    "emptied": lambda out: os.truncate(out, 0),
    "deleted": Path.unlink,
    "a line deleted": lambda out: out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[1:])),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
async def test_what_was_safe_and_is_damaged_ends_the_run_at_its_start(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    out = tmp_path / "x.jsonl"
    async with start_embedded(SimulatorSettings(latency_s=0)) as server:
        await run(6, out, server)
        damage(out)
        for _ in range(2):
            with pytest.raises(OutputError, match=rf"{out}.* delete {out.with_suffix('.journal')}") as raised:
                await run(8, out, server)
            assert raised.value.exit_code == 74
        assert server.simulation.requests == 6
        out.with_suffix(".journal").unlink()
        assert (await run(8, out, server))["exit_code"] == 0
        assert (await run(8, out, server))["jobs"]["queued"] == 0
    assert Counter(ids_in(out)) == Counter(f"j{number}" for number in range(8))


@pytest.mark.parametrize("remove", REMOVED.values(), ids=REMOVED.keys())
async def test_results_that_somebody_has_removed_are_missed_aloud_and_come_again(
    tmp_path: Path, remove: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "x.jsonl"
    async with start_embedded(SimulatorSettings(latency_s=0)) as server:
        await run(6, out, server)
        remove(out)
        left = len(ids_in(out)) if out.exists() else 0
        assert (await run(6, out, server))["exit_code"] == 0
        assert server.simulation.requests == 6 + 6 - left
        assert "bytes of results are gone that were on disk" in caplog.text
        caplog.clear()
        assert (await run(6, out, server))["jobs"]["queued"] == 0
        assert caplog.text == ""
    assert Counter(ids_in(out)) == Counter(f"j{number}" for number in range(6))


async def test_a_fresh_start_asks_for_nothing_back(tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    async with start_embedded(SimulatorSettings(latency_s=0)) as server:
        await run(6, out, server)
        os.truncate(out, 0)
        assert (await run(6, out, server, fresh=True))["exit_code"] == 0
        assert (await run(8, out, server))["jobs"]["queued"] == 2


async def test_what_a_run_replaces_is_not_missed_by_the_next(tmp_path: Path) -> None:
    """Marks are written anew after lines have left the files for good reasons."""
    out = tmp_path / "x.jsonl"
    plan = FaultPlan(by_id={"j1": ("413",), "j2": ("413",)})
    async with start_embedded(SimulatorSettings(latency_s=0, faults=plan)) as server:
        assert (await run(6, out, server))["jobs"]["failed"] == 2
        assert (await run(6, out, server, retry_failed=True, limit=1))["jobs"]["succeeded"] == 1
        assert (await run(6, out, server))["exit_code"] == 0
        with out.open("ab") as file:
            file.write(out.read_bytes().splitlines(keepends=True)[0])  # twice, by somebody's hand
        assert (await run(7, out, server))["exit_code"] == 0
        flip(out)
        with pytest.raises(OutputError, match=r"x\.jsonl:\d: "):
            await run(7, out, server)


# Calls that may be paid twice


async def test_a_lost_answer_that_is_asked_for_again_is_named(tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    plan = FaultPlan(by_id={"j1": ("reset",), "j2": ("status:500",)})
    async with start_embedded(SimulatorSettings(latency_s=0, faults=plan)) as server:
        calls = (await run(4, out, server, retry={"network": {"first_wait_s": 0.01}}))["calls"]
    assert calls["total"] == 6
    assert (calls["possibly_paid_twice"], calls["possibly_paid_twice_ids"]) == (1, ["j1"])


async def test_calls_in_flight_at_a_kill_are_named_by_the_next_run(tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    async with start_embedded(SimulatorSettings(latency_s=0)) as server:
        await run(6, out, server)
        # As if the run had been killed before the last three answers came.
        journal, lines = out.with_suffix(".journal"), out.read_bytes().splitlines(keepends=True)
        out.write_bytes(b"".join(lines[:3]) + lines[3][:100])
        records = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(
            b"".join(line for line in records if b"committed" not in line and b"run_ended" not in line)
        )
        lost = {orjson.loads(line)["custom_id"] for line in lines[3:]}
        first, second = [await run(8, out, server), await run(9, out, server)]
    assert first["calls"]["possibly_paid_twice"] == 3
    assert set(first["calls"]["possibly_paid_twice_ids"]) == lost
    assert second["calls"]["possibly_paid_twice"] == 0
