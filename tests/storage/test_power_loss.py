"""What was promised outlives a power cut at any moment, and nothing wrong is ever read."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import orjson
import pytest
from power_loss import Disk, after_power_loss

from batcher.history import History
from batcher.journal import Journal, Sent, forget_committed
from batcher.results import ResultWriter, encode_result, open_output
from batcher.results.scan import Scan
from batcher.resume import repair, set_aside, supersede
from batcher.types import Failure, Job, OutputPaths, Reply, Result, output_paths

RESULTS = 24
STORIES = ("one run", "two runs", "killed", "replaced", "fresh", "repeated")
LONG = pytest.mark.long


def text_of(job_id: str) -> str:
    """What the answer to a job must say: long enough to span sectors, and its own."""
    return f"<{job_id}>" * (1 + hash_of(job_id) % 150)


def hash_of(job_id: str) -> int:
    return sum(map(ord, job_id)) * 2654435761 % 1009


def result_of(job_id: str) -> Result:
    text = text_of(job_id)
    answer: Reply | Failure = Failure(code="c", message=text)
    if hash_of(job_id) % 4:
        answer = Reply(status=200, body=orjson.dumps({"text": text}))
    job = Job(
        id=job_id,
        endpoint="/v1/chat/completions",
        model="m",
        body=b"{}",
        request_sha256="ab" * 32,
        where="jobs.jsonl:1",
    )
    return Result(
        job=job,
        answer=answer,
        model="m",
        provider="p",
        attempts=1,
        latency_s=0.1,
        queued_s=0.0,
        finished_at="2026-01-02T03:04:05Z",
    )


def put_in_order(paths: OutputPaths) -> None:
    """Do what each run does first."""
    history = History(paths.journal)
    repair(
        paths,
        committed=history.committed,
        on_id=history.done,
        before_removing=partial(forget_committed, paths.journal),
    )


async def run(paths: OutputPaths, job_ids: Sequence[str], disk: Disk, *, durable: bool = True) -> None:
    """Write results in groups as a run does, in between its calls; `disk` learns what is promised."""
    journal = Journal(paths.journal)
    sinks = open_output(paths)
    writer = ResultWriter(
        *sinks,
        on_committed=lambda results: disk.promised.update(result.job.id for result in results),
        journal=journal.committed,
        durable=durable,
        max_delay_s=0,
    )
    journal.run_started(job_ids[0], 1, "jobs.jsonl", queued=len(job_ids), results_before=0)
    journal.committed(*(sink.size for sink in sinks))
    committing = asyncio.create_task(writer.commit_forever())
    for number, job_id in enumerate(job_ids):
        journal.sent([Sent(job_id, "ab" * 32, 1, "m")])
        writer.append(result_of(job_id))
        if number % 3 == 0:
            await writer.room()
        if number % 5 == 0:
            await asyncio.sleep(0.001)
    committing.cancel()
    await writer.aclose()
    journal.run_ended(0)
    journal.close()


def live(root: Path, story: str, *, durable: bool = True) -> Disk:
    """Live through a story, and return all moments at which the power may fail."""
    paths = output_paths(root / "x.jsonl")
    names = [f"row-{number}" for number in range(RESULTS)]
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(root, patch)
        try:
            if story == "repeated":
                lines = [encode_result(result_of(name)) for name in names if hash_of(name) % 4]
                paths.results.write_bytes(b"".join([*lines, *lines[:3], lines[0]]))
            elif story == "killed":
                unsynced = [result for name in names[RESULTS // 2 :] if (result := result_of(name)).ok]
                paths.results.write_bytes(b"".join(map(encode_result, unsynced)))
            put_in_order(paths)
            asyncio.run(run(paths, names[: RESULTS // 2], disk, durable=durable))
            if story == "replaced":
                put_in_order(paths)
                forget_committed(paths.journal)
                supersede(paths, set(names[::3]).__contains__)
                asyncio.run(run(paths, names[RESULTS // 2 :], disk, durable=durable))
            elif story == "fresh":
                set_aside(paths)
                asyncio.run(run(paths, names, disk, durable=durable))
            elif story == "two runs":
                put_in_order(paths)
                asyncio.run(run(paths, names[RESULTS // 2 :], disk, durable=durable))
        finally:
            disk.close()
    return disk


def lay_out(root: Path, files: dict[str, bytes]) -> OutputPaths:
    root.mkdir()
    for name, content in files.items():
        (root / name).write_bytes(content)
    return output_paths(root / "x.jsonl")


def check(paths: OutputPaths, promised: frozenset[str]) -> None:
    """Nothing promised is missing, nothing is wrong, nothing damaged is left, no id stands twice."""
    current: Counter[str] = Counter()
    everywhere: set[str] = set()
    for path in paths.results.parent.glob("*.jsonl"):
        if path.name in ("x.jsonl", "x.errors.jsonl", "x.superseded.jsonl"):
            scan = Scan(path)
            list(scan)
            assert (scan.bad, scan.unterminated) == ([], False)
        for line in path.read_bytes().splitlines():
            whole = orjson.loads(line)
            job_id, body = whole["custom_id"], whole["response"]
            text = whole["error"]["message"] if body is None else body["body"]["text"]
            assert text == text_of(job_id), "a wrong result"
            everywhere.add(job_id)
            current[job_id] += path.name in ("x.jsonl", "x.errors.jsonl")
    assert promised <= everywhere, f"lost: {sorted(promised - everywhere)}"
    assert max(current.values(), default=0) <= 1


def cut_and_mend(root: Path, moments: Disk, rng: random.Random) -> None:
    """Cut the power, mend; cut the power while that is done, mend again; then there is nothing left to do."""
    moment = rng.choice(moments.moments)
    paths = lay_out(root / "first", after_power_loss(moment, rng))
    with pytest.MonkeyPatch.context() as patch:
        mending = Disk(paths.results.parent, patch)
        mending.promised.update(moment.promised)
        mending.remember()
        put_in_order(paths)
        mending.close()
    check(paths, moment.promised)
    mended = {path.name: path.read_bytes() for path in paths.results.parent.iterdir()}
    put_in_order(paths)
    assert {path.name: path.read_bytes() for path in paths.results.parent.iterdir()} == mended

    paths = lay_out(root / "second", after_power_loss(rng.choice(mending.moments), rng))
    put_in_order(paths)
    check(paths, moment.promised)


def rounds_of(tmp_path: Path, story: str, rounds: int, *, durable: bool = True) -> None:
    rng = random.Random(f"{story} {rounds}")
    (tmp_path / "life").mkdir()
    moments = live(tmp_path / "life", story, durable=durable)
    assert moments.moments[-1].promised
    for number in range(rounds):
        root = tmp_path / str(number)
        root.mkdir()
        cut_and_mend(root, moments, rng)


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("rounds", [25, pytest.param(700, marks=LONG)], ids="{} cuts".format)
def test_a_power_cut_at_any_moment_loses_nothing_promised(tmp_path: Path, story: str, rounds: int) -> None:
    rounds_of(tmp_path, story, rounds)


def test_a_promise_before_its_sync_would_be_found_out(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"lost|were on disk|was whole on disk"):
        rounds_of(tmp_path, "one run", 60, durable=False)
