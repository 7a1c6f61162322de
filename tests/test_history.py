"""What a journal says about earlier runs."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.history import History
from batcher.journal import Journal, Sent, forget_committed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "x.journal"


def begin(path: Path, run_id: str = "r1") -> Journal:
    journal = Journal(path)
    journal.run_started(run_id, 42, "jobs.jsonl", queued=7, results_before=3)
    return journal


def test_the_last_mark_counts_and_can_be_taken_back(path: Path) -> None:
    assert History(path).committed == (0, 0)
    journal = begin(path)
    journal.committed(100, 10)
    journal.committed(200, 20)
    assert History(path).committed == (200, 20)
    forget_committed(path)
    assert History(path).committed == (0, 0)
    begin(path, "r2").committed(50, 5)
    assert History(path).committed == (50, 5)


@given(st.data())
def test_a_damaged_mark_is_no_mark(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("journal") / "x.journal"
    journal = begin(path)
    for number in (1, 2, 3):
        journal.committed(number * 1000, number)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, 1000)) % len(whole)
    byte = data.draw(st.integers(0, 255))
    path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
    assert History(path).committed in {(0, 0), (1000, 1), (2000, 2), (3000, 3)}


def test_a_mark_of_another_run_in_an_old_sector_is_no_mark(path: Path) -> None:
    begin(path).committed(1000, 100)
    old_sector = path.read_bytes().splitlines(keepends=True)[-1]
    forget_committed(path)
    begin(path, "r2").committed(50, 5)
    with path.open("ab") as file:
        file.write(old_sector)
    assert History(path).committed == (50, 5)


CALLS = {
    "in flight at the end": ("sent", True),
    "in flight at the end, then answered by another run": ("sent sent done", False),
    "answered": ("sent done", False),
    "refused": ("sent failed", False),
    "never went out": ("sent unsent", False),
    "lost": ("sent unknown", True),
    "lost, then refused": ("sent unknown sent failed", False),
    "lost, then never went out": ("sent unknown sent unsent", True),
    "lost, then in flight at the end": ("sent unknown sent", True),
    "lost, then answered": ("sent unknown sent done", False),
    "lost for good, to be tried again": ("sent unknown done", True),
    "in flight at the end, then the next never went out": ("sent sent unsent", True),
    "answered by a run that ended well": ("sent ended", False),
    "answered by a run that could not keep it": ("sent broken", True),
    "lost by a run that ended well": ("sent unknown ended", True),
    "replaced after a run that ended well": ("sent ended sent", True),
}


@pytest.mark.parametrize(("story", "in_doubt"), CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("crowd", [0, 1000], ids="{} others".format)
def test_a_call_is_in_doubt_until_its_end_is_known(
    path: Path, story: str, in_doubt: bool, crowd: int
) -> None:
    journal = begin(path)
    done = [f"other-{number}" for number in range(crowd)]
    for other in done:
        journal.sent([Sent(other, "ab" * 32, 1, "m")])
    for event in story.split():
        match event:
            case "sent":
                journal.sent([Sent("é", "ab" * 32, 1, "m")])
            case "failed" | "unsent":
                journal.failed("é", 1, 503 if event == "failed" else 0)
            case "unknown":
                journal.unknown("é", 1, "timeout")
            case "ended" | "broken":
                journal.run_ended(75 if event == "ended" else 74)
            case "done":
                done.append("é")
    history = History(path)
    for job_id in done:
        history.done(job_id)
    doubtful = history.maybe_charged()
    assert ("é" in doubtful) == in_doubt
    assert not any(other in doubtful for other in done if other != "é")


def test_a_long_journal_is_read_in_little_memory(path: Path) -> None:
    """Many calls of few jobs are folded on the way."""
    journal = begin(path)
    line = b'{"event":"%s","id":"%d","attempt":1,"status":500}\n'
    rng = random.Random(1)
    names = [b"sent", b"unknown", b"failed"]
    with path.open("ab") as file:
        for _ in range(40):
            file.write(b"".join(line % (rng.choice(names), rng.randrange(500)) for _ in range(1000)))
        file.write(b"\0" * 3_000_000 + b"\n")
        file.write(b"".join(line % (b"failed", number) for number in range(500)))
        file.write(b'{"event":"unknown","id":"last","attempt":1}\n')
    journal.close()
    doubtful = History(path).maybe_charged()
    assert "last" in doubtful
    assert not any(str(number) in doubtful for number in range(500))


def test_reading_a_journal_tells_how_far_it_is_and_can_be_ended(path: Path) -> None:
    class StopReading(Exception):
        pass

    def stop(done_bytes: int) -> None:
        raise StopReading

    begin(path).close()
    with path.open("ab") as file:
        file.write(b'{"event":"sent","id":"a","attempt":1}\n' * 10_000)
    told: list[int] = []
    assert "a" in History(path, told.append).maybe_charged()
    assert len(told) > 1
    assert told == sorted(told)
    assert 0 < told[-1] <= path.stat().st_size
    with pytest.raises(StopReading):
        History(path, stop)
