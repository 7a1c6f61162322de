"""However a job file is edited between a kill and the next run, each result belongs to its job's request."""

import asyncio
import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batcher import arun_jobs
from batcher.errors import BadInput
from batcher.jobs.lines import LineDefaults, check_line
from batcher.providers.simulator.server import RunningServer, start_embedded
from batcher.providers.simulator.settings import SimulatorSettings

CHOICES = ("error", "rerun", "keep")
PROMPTS = st.sampled_from([f"prompt {number}" for number in range(8)])


@dataclass(frozen=True)
class Line:
    """A line of a job file; an `id` of "" is left out."""

    id: str
    prompt: str

    def encode(self) -> bytes:
        fields = {"model": "m", "prompt": self.prompt}
        return orjson.dumps(fields | ({"id": self.id} if self.id else {}))

    @property
    def sha256(self) -> str:
        return check_line(self.encode(), LineDefaults()).request_sha256


def insert(lines: list[Line], at: int, other: int, prompt: str) -> None:
    lines.insert(at, Line(id=f"new-{at}-{other}", prompt=prompt))


def delete(lines: list[Line], at: int, other: int, prompt: str) -> None:
    del lines[at]


def move(lines: list[Line], at: int, other: int, prompt: str) -> None:
    lines.insert(other, lines.pop(at))


def change_body(lines: list[Line], at: int, other: int, prompt: str) -> None:
    lines[at] = replace(lines[at], prompt=prompt)


def change_id(lines: list[Line], at: int, other: int, prompt: str) -> None:
    lines[at] = replace(lines[at], id=f"renamed-{other}")


def take_id(lines: list[Line], at: int, other: int, prompt: str) -> None:
    lines[at] = replace(lines[at], id=lines[other].id)


def repeat(lines: list[Line], at: int, other: int, prompt: str) -> None:
    lines.insert(other, lines[at])


def drop_id(lines: list[Line], at: int, other: int, prompt: str) -> None:
    lines[at] = replace(lines[at], id="")


EDITS = st.tuples(
    st.sampled_from([insert, delete, move, change_body, change_id, take_id, repeat, drop_id]),
    st.integers(0, 99),
    st.integers(0, 99),
    PROMPTS,
)


def jobs_of(lines: list[Line]) -> dict[str, Line]:
    """Return the line that counts for each id: the first, named after its request if it has no name."""
    jobs: dict[str, Line] = {}
    for line in lines:
        job_id, ordinal = line.id, 1
        while not job_id:
            candidate = line.sha256[:16] + (f"-{ordinal}" if ordinal > 1 else "")
            job_id = candidate if candidate not in jobs else ""
            ordinal += 1
        jobs.setdefault(job_id, line)
    return jobs


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of a result file by id, each of which must stand once."""
    whole = [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    assert max(Counter(line["custom_id"] for line in whole).values(), default=0) <= 1
    return {line["custom_id"]: line for line in whole}


def sha256s(lines: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {job_id: line["batcher"]["request_sha256"] for job_id, line in lines.items()}


class Edited:
    """Two versions of a job file, and the runs over them."""

    def __init__(self, directory: Path, server: RunningServer) -> None:
        self._jobs = directory / "jobs.jsonl"
        self._url = f"{server.url}/v1"
        self._server = server
        self.out = directory / "x.jsonl"

    async def run(self, lines: list[Line], **options: Any) -> int:
        """Run and return how many calls were made."""
        self._jobs.write_bytes(b"".join(line.encode() + b"\n" for line in lines))
        before = self._server.simulation.requests
        with suppress(BadInput):
            await arun_jobs(self._jobs, output=self.out, base_url=self._url, **options)
        return self._server.simulation.requests - before

    def kill(self, torn: int) -> None:
        """Leave behind what a kill in mid-write does."""
        if not self.out.exists():
            return
        content = self.out.read_bytes()
        self.out.write_bytes(content + content[: torn % (content.find(b"\n") + 1)])
        journal = self.out.with_suffix(".journal")
        journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))


async def story(
    first: list[Line], done: int, torn: int, edits: list[tuple[Any, int, int, str]], choice: str
) -> None:
    second = list(first)
    for edit, at, other, prompt in edits:
        if second:
            edit(second, at % len(second), other % len(second), prompt)
    with TemporaryDirectory() as directory:
        async with start_embedded(SimulatorSettings(latency_s=0)) as server:
            edited = Edited(Path(directory), server)
            await edited.run(first, limit=done)
            edited.kill(torn)
            before = sha256s(read_whole(edited.out))
            assert len(before) == min(done, len(jobs_of(first)))

            wanted = {job_id: line.sha256 for job_id, line in jobs_of(second).items()}
            changed = {job_id for job_id in wanted.keys() & before.keys() if wanted[job_id] != before[job_id]}
            new = wanted.keys() - before.keys()
            calls = await edited.run(second, on_changed=choice)
            after = read(edited.out)
            superseded = sha256s(read(edited.out.with_suffix(".superseded.jsonl")))

            if choice == "error" and changed:
                assert (calls, sha256s(after), superseded) == (0, before, {})
            elif choice == "rerun":
                assert (calls, sha256s(after)) == (len(new) + len(changed), before | wanted)
                assert superseded == {job_id: before[job_id] for job_id in changed}
            else:
                assert (calls, sha256s(after), superseded) == (len(new), wanted | before, {})
            prompts = {line.sha256: line.prompt for line in first + second}
            for line in after.values():
                text = line["response"]["body"]["choices"][0]["message"]["content"]
                assert text == f"[simulated] Answer to: {prompts[line['batcher']['request_sha256']]}"
            assert await edited.run(second, on_changed=choice) == 0
            assert sha256s(read(edited.out)) == sha256s(after)


def read_whole(path: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of a file that may be torn."""
    return {line["custom_id"]: line for line in map(orjson.loads, path.read_bytes().split(b"\n")[:-1])}


FIRST = st.lists(st.tuples(st.booleans(), PROMPTS), min_size=1, max_size=10).map(
    lambda rows: [
        Line(id=f"job-{number}" if named else "", prompt=prompt)
        for number, (named, prompt) in enumerate(rows)
    ]
)


@pytest.mark.parametrize("examples", [30, pytest.param(500, marks=pytest.mark.long)], ids="{} files".format)
def test_each_result_belongs_to_its_request(examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing here hangs on what is on disk, and syncs are what takes time.
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(
        first=FIRST,
        done=st.integers(1, 10),
        torn=st.integers(0, 10_000),
        edits=st.lists(EDITS, max_size=12),
        choice=st.sampled_from(CHOICES),
    )
    def check(first: list[Line], done: int, torn: int, edits: list[Any], choice: str) -> None:
        asyncio.run(story(first, done, torn, edits, choice))

    check()
