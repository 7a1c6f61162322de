import os
import resource
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import OutputError
from batcher.events import AttemptFinished
from batcher.history import read_journal
from batcher.journal import Journal, Sent
from batcher.types import Outcome


def without_time(path: Path) -> list[dict[str, object]]:
    records = list(read_journal(path))
    assert all(isinstance(record.pop("at"), float) for record in records)
    assert all("crc32" in record for record in records if record["event"] == "committed")
    for record in records:
        record.pop("crc32", None)
    return records


def fill(journal: Journal) -> None:
    for _ in range(100):
        journal.committed(1, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "x.journal"


def test_what_is_written_is_there_at_once(path: Path) -> None:
    journal = Journal(path)
    journal.run_started("r1", 42, "jobs.jsonl", queued=7, results_before=3)
    journal.sent([Sent("é", "ab" * 32, 1, "m")])
    journal.unknown("é", 1, "timeout")
    journal.failed("é", 2, 500)
    journal.committed(100, 0)
    journal.notice("m: pauses", datetime.now(UTC))
    journal.run_ended(75)
    assert without_time(path) == [
        {
            "event": "run_started",
            "run_id": "r1",
            "pid": 42,
            "inputs": "jobs.jsonl",
            "queued": 7,
            "results_before": 3,
        },
        {"event": "sent", "id": "é", "request_sha256": "ab" * 32, "attempt": 1, "model": "m"},
        {"event": "unknown", "id": "é", "attempt": 1, "code": "timeout"},
        {"event": "failed", "id": "é", "attempt": 2, "status": 500},
        {"event": "committed", "results_bytes": 100, "errors_bytes": 0},
        {"event": "notice", "message": "m: pauses"},
        {"event": "run_ended", "exit_code": 75},
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    journal.close()
    journal.close()


def test_only_what_is_asked_for_is_read(path: Path) -> None:
    journal = Journal(path)
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    journal.run_started("r1", 42, "jobs.jsonl", queued=7, results_before=3)
    journal.sent([Sent('"event":"notice"', "ab" * 32, 1, "m")])
    journal.notice("m: pauses", noon)
    journal.run_ended(0)
    records = list(read_journal(path, "notice", "run_ended"))
    assert [record["event"] for record in records] == ["notice", "run_ended"]
    assert records[0] == {"event": "notice", "message": "m: pauses", "at": noon.timestamp()}
    assert len(list(read_journal(path))) == 4


def test_no_journal_has_no_records(path: Path) -> None:
    assert list(read_journal(path)) == []


@given(cut=st.integers(0, 10_000), junk=st.binary(max_size=30))
def test_a_torn_journal_is_read_and_continued(
    tmp_path_factory: pytest.TempPathFactory, cut: int, junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("journal") / "x.journal"
    first = Journal(path)
    for number in range(4):
        first.committed(number, 0)
    first.close()
    whole = path.read_bytes()
    torn = whole[: cut % (len(whole) + 1)]
    path.write_bytes(torn + b"\x01" + junk)
    second = Journal(path)
    second.run_ended(0)
    second.close()
    read = without_time(path)
    assert [record["results_bytes"] for record in read[:-1]] == list(range(torn.count(b"\n")))
    assert read[-1] == {"event": "run_ended", "exit_code": 0}


def test_a_full_disk_tears_no_record(path: Path) -> None:
    journal = Journal(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match=r"x\.journal: No space"):
            fill(journal)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.run_ended(74)
    journal.close()
    records = without_time(path)
    assert len(records) > 5
    assert records[-1] == {"event": "run_ended", "exit_code": 74}
    assert path.read_bytes().count(b"\n") == len(records)


def test_a_journal_that_cannot_be_kept_is_an_output_error(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(OutputError, match=r"x\.journal: Is a directory"):
        Journal(path)
    with pytest.raises(OutputError, match=r"x\.journal: Is a directory"):
        list(read_journal(path))
    journal = Journal(path.parent / "y.journal")
    journal.close()
    with pytest.raises(OutputError, match=r"y\.journal: Bad file descriptor"):
        journal.run_ended(0)


def test_no_call_goes_out_whose_answer_could_not_be_kept(path: Path) -> None:
    journal = Journal(path)
    journal.refuse_calls(OutputError("x.jsonl: full"))
    with pytest.raises(OutputError, match=r"x\.jsonl: full"):
        journal.sent([Sent("a", "ab" * 32, 1, "m")])
    journal.run_ended(74)
    assert [record["event"] for record in without_time(path)] == ["run_ended"]


def test_a_run_without_files_can_journal_to_nowhere() -> None:
    journal = Journal(Path(os.devnull))
    journal.sent([Sent("a", "b", 1, "m")])
    journal.close()


def test_only_what_was_not_charged_is_told_by_an_attempt(path: Path) -> None:
    journal = Journal(path)
    for call, (outcome, status, sent) in enumerate(
        [
            (Outcome.SUCCESS, 200, True),
            (Outcome.FAILED, 0, True),
            (Outcome.IGNORED, 429, True),
            (Outcome.FAILED, 0, False),
        ]
    ):
        journal.attempt_finished(
            AttemptFinished(
                job_id="a",
                call=call,
                route="m",
                outcome=outcome,
                code="",
                message="",
                status=status,
                latency_s=0.0,
                sent=sent,
                usage=None,
            )
        )
    assert [(record["attempt"], record["status"]) for record in without_time(path)] == [(2, 429), (3, 0)]
