"""What the same command does on a second day: nothing is repaid, replaced or deleted unasked."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import (
    Simulator,
    answer_of,
    assert_each_once,
    batcher,
    job,
    names,
    read_lines,
    simulating,
    write_jobs,
)

IDS = names(30)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """One simulator for all tests."""
    with simulating(tmp_path_factory.mktemp("simulator")) as simulator:
        yield simulator


@pytest.fixture
def server(shared: Simulator) -> Simulator:
    """The simulator, which has forgotten all counts."""
    shared.reset()
    return shared


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, shared: Simulator) -> Path:
    """The directory of a first run."""
    directory = tmp_path_factory.mktemp("first")
    write_jobs(directory / "jobs.jsonl", map(job, IDS))
    done = batcher("run", "jobs.jsonl", "--base-url", shared.url, cwd=directory)
    assert done.code == 0, done.stderr
    return directory


@pytest.fixture
def out(tmp_path: Path, first: Path) -> Path:
    """A first run's output; its job file lies in `tmp_path`."""
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    return tmp_path / "results" / "jobs.jsonl"


def test_a_second_run_pays_nothing(tmp_path: Path, server: Simulator, out: Path) -> None:
    before = out.read_bytes()
    done = batcher("run", "jobs.jsonl", "--base-url", server.url, "--json", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert server.requests == 0
    assert out.read_bytes() == before
    assert json.loads(done.stdout)["jobs"]["done_before"] == len(IDS)


def test_order_priority_and_inserted_lines_repay_nothing(
    tmp_path: Path, server: Simulator, out: Path
) -> None:
    lines = [job(name, priority=number % 5, metadata={"n": number}) for number, name in enumerate(IDS)]
    lines += [job("new-1"), job("new-2")]
    random.Random(1).shuffle(lines)
    reordered = [dict(reversed(line.items())) for line in lines[:-3]]  # three lines are gone
    write_jobs(tmp_path / "jobs.jsonl", reordered)
    new = {line["id"] for line in reordered} & {"new-1", "new-2"}
    done = batcher("run", "jobs.jsonl", "--base-url", server.url, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert server.requests == len(new)
    assert_each_once(out, [*IDS, *map(str, new)])


def test_a_limit_runs_so_many_more_each_time(tmp_path: Path, server: Simulator) -> None:
    write_jobs(tmp_path / "jobs.jsonl", map(job, IDS))
    for paid in (12, 24, 30):
        done = batcher("run", "jobs.jsonl", "--base-url", server.url, "--limit", 12, cwd=tmp_path)
        assert done.code == 0, done.stderr
        assert server.requests == paid
    assert_each_once(tmp_path / "results" / "jobs.jsonl", IDS)


def test_fresh_begins_anew_and_deletes_nothing(tmp_path: Path, server: Simulator, out: Path) -> None:
    kept = {path.name: path.read_bytes() for path in out.parent.iterdir() if path.suffix != ".lock"}
    for paid in (len(IDS), 2 * len(IDS)):
        done = batcher("run", "jobs.jsonl", "--base-url", server.url, "--fresh", cwd=tmp_path)
        assert done.code == 0, done.stderr
        assert server.requests == paid
        assert_each_once(out, IDS)
    contents = [path.read_bytes() for path in out.parent.iterdir()]
    assert {name for name, content in kept.items() if content not in contents} == set()
    answers = [path for path in out.parent.iterdir() if path.read_bytes().count(b'"custom_id"') == len(IDS)]
    assert len(answers) == 3


def test_retry_failed_asks_again_only_what_failed(tmp_path: Path) -> None:
    write_jobs(tmp_path / "jobs.jsonl", map(job, IDS))
    out = tmp_path / "results" / "jobs.jsonl"
    faults = ("--fault", "id:status:400=row-7", "--fault", "id:status:400=row-8")
    with simulating(tmp_path, *faults, "--fault", "id:status:400=row-8") as server:
        run = ("run", "jobs.jsonl", "--base-url", server.url)
        assert batcher(*run, cwd=tmp_path).code == 3
        failures = read_lines(out.with_suffix(".errors.jsonl"))
        assert batcher(*run, "--retry-failed", cwd=tmp_path).code == 3
        assert server.requests == len(IDS) + 2
        assert_each_once(out, [name for name in IDS if name != "row-8"], failed=["row-8"])
        assert read_lines(out.with_suffix(".superseded.jsonl")) == failures
        assert batcher(*run, "--retry-failed", cwd=tmp_path).code == 0
        assert server.requests == len(IDS) + 3
    assert_each_once(out, IDS)
    assert len(read_lines(out.with_suffix(".superseded.jsonl"))) == 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What `--on-changed` is told, and what is to come of it."""

    args: tuple[str, ...]
    code: int
    calls: int = 0
    answer: str = "row-4"
    superseded: int = 0


CHOICES = {
    "error": Choice(args=("--on-changed", "error"), code=65),
    "rerun": Choice(args=("--on-changed", "rerun"), code=0, calls=1, answer="row-4, please", superseded=1),
    "keep": Choice(args=("--on-changed", "keep"), code=0),
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES.keys())
def test_an_id_that_comes_back_with_another_request(
    tmp_path: Path, server: Simulator, out: Path, choice: Choice
) -> None:
    before = {line["custom_id"]: line for line in read_lines(out)}
    changed = [job(name, "row-4, please" if name == "row-4" else "") for name in IDS]
    write_jobs(tmp_path / "jobs.jsonl", changed)
    run = ("run", "jobs.jsonl", "--base-url", server.url, *choice.args)
    for _ in range(2):
        assert batcher(*run, cwd=tmp_path).code == choice.code
        assert server.requests == choice.calls
        after = {line["custom_id"]: line for line in read_lines(out)}
        assert len(after) == len(read_lines(out)) == len(IDS)
        assert answer_of(after["row-4"]) == f"[simulated] Answer to: {choice.answer}"
        assert read_lines(out.with_suffix(".superseded.jsonl")) == [before["row-4"]] * choice.superseded


def test_damage_costs_only_the_damaged_lines(tmp_path: Path, server: Simulator, out: Path) -> None:
    lines = out.read_bytes().split(b"\n")[:-1]
    flipped = lines[3][:300] + bytes([lines[3][300] ^ 1]) + lines[3][301:]
    zeros = b"\0" * len(lines[7])
    by_an_editor = [line + b"\r" for line in lines[8:20]]
    twice = [lines[20]] * 2
    # Lines 3 and 7 are damaged, line 21 is gone, and the last one lacks its end.
    left = [*lines[:3], flipped, *lines[4:7], zeros, *by_an_editor, *twice, *lines[22:-1], lines[-1][:-40]]
    out.with_suffix(".journal").unlink()  # it knows that those lines were whole on disk
    out.write_bytes(b"\n".join(left))
    for _ in range(2):
        done = batcher("run", "jobs.jsonl", "--base-url", server.url, cwd=tmp_path)
        assert done.code == 0, done.stderr
        assert server.requests == 4
        assert_each_once(out, IDS)
    quarantine = out.with_suffix(".quarantine").read_bytes()
    assert all(bad in quarantine for bad in (flipped, zeros, lines[-1][:-40]))
