"""Where an output stands is read from its files alone, in figures and in words."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from batcher.history import read_journal
from batcher.journal import Journal, Sent
from batcher.observe.standing import EVENTS_READ, NOTICES_SHOWN, in_words, standing
from batcher.types import OutputPaths, output_paths

NOW = datetime.now(UTC).astimezone().replace(hour=12, minute=0, second=30, microsecond=0)


@pytest.fixture
def paths(tmp_path: Path) -> OutputPaths:
    paths = output_paths(tmp_path / "x.jsonl")
    paths.results.write_bytes(b"{}\n{}\n{}\n")
    paths.errors.write_bytes(b"{}\n")
    return paths


@pytest.fixture
def journal(paths: OutputPaths) -> Journal:
    return Journal(paths.journal)


def start(journal: Journal, run_id: str, *, queued: int = 10) -> None:
    journal.run_started(run_id, 1, "jobs.jsonl", queued=queued, results_before=2)


def seen(paths: OutputPaths, holder: dict[str, object] | None = None) -> dict[str, Any]:
    return standing(paths, holder, read_journal(paths.journal, *EVENTS_READ))


def told(paths: OutputPaths, holder: dict[str, object] | None = None) -> list[str]:
    return in_words(seen(paths, holder), NOW).splitlines()


def test_the_last_notices_of_a_run_that_goes_on_are_told(paths: OutputPaths, journal: Journal) -> None:
    start(journal, "r1")
    journal.notice("of an earlier run", NOW)
    start(journal, "r2")
    for minute in range(20, 0, -1):
        journal.notice(f"change {minute % 7}", NOW - timedelta(minutes=minute))
        journal.sent([Sent("j", "0" * 64, 1, "m")])
    lines = told(paths, {"run_id": "r2", "pid": 7, "host": "h", "started": "then"})
    assert lines == [
        f"{paths.results}: 3 answered, 1 failed, 8 pending",
        "running: pid 7 on h, since then",
        "last notices:",
        "  11:55:30 change 5",
        "  11:56:30 change 4",
        "  11:57:30 change 3",
        "  11:58:30 change 2",
        "  11:59:30 change 1",
    ]
    assert len(lines) - 3 == NOTICES_SHOWN
    notices = seen(paths, {"run_id": "r2"})["notices"]
    assert len(notices) == 20
    first = NOW - timedelta(minutes=20)
    assert notices[0] == {"at": first.astimezone(UTC).isoformat(timespec="seconds"), "message": "change 6"}


def test_of_equal_notices_the_last_stands_for_all(paths: OutputPaths, journal: Journal) -> None:
    start(journal, "r1")
    journal.notice("K1 is dead", NOW - timedelta(days=2))
    for minute in range(60, 0, -1):
        journal.notice("a: fails\nagain", NOW - timedelta(minutes=minute))
    two_days_ago = (NOW - timedelta(days=2)).strftime("%Y-%m-%d %H:%M:%S")
    assert told(paths)[2:] == ["last notices:", f"  {two_days_ago} K1 is dead", "  11:59:30 a: fails again"]


def test_notices_are_told_in_the_order_in_which_they_happened(paths: OutputPaths, journal: Journal) -> None:
    start(journal, "r1")
    journal.notice("second", NOW - timedelta(seconds=1))
    journal.notice("first", NOW - timedelta(seconds=2))
    assert [notice["message"] for notice in seen(paths)["notices"]] == ["first", "second"]


def test_a_run_that_still_reads_its_input_has_no_notices_yet(paths: OutputPaths, journal: Journal) -> None:
    start(journal, "r1")
    journal.notice("old news", NOW)
    assert told(paths, {"run_id": "r2"})[2:] == []
    assert seen(paths)["notices"] != []


def test_a_run_that_had_nothing_to_do_leaves_the_news_of_the_last(
    paths: OutputPaths, journal: Journal
) -> None:
    start(journal, "r1")
    journal.notice("old news", NOW)
    start(journal, "r2", queued=0)
    assert told(paths)[-1] == "  12:00:30 old news"
    start(journal, "r3", queued=1)
    assert seen(paths)["notices"] == []


@pytest.mark.parametrize("missing", ["journal", "notices"])
def test_without_notices_nothing_is_said_of_them(paths: OutputPaths, missing: str) -> None:
    if missing == "notices":
        start(Journal(paths.journal), "r1")
    assert told(paths) == [f"{paths.results}: 3 answered, 1 failed", "no run has ended here yet"]


def test_a_record_of_another_make_is_no_notice(paths: OutputPaths, journal: Journal) -> None:
    start(journal, "r1")
    journal.close()
    with paths.journal.open("ab") as file:
        file.write(
            b'{"event":"notice","message":"no time"}\n{"event":"notice","at":1.5}\n{"event":"notice",[\n'
        )
    assert seen(paths)["notices"] == []
