import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from batcher.ledger import Ledger, state_directory
from batcher.limits.daybook import DayUse, Spent

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MODEL = "openai/gpt-oss-20b"

# Joins, says so, waits for a line, adds 1,000 times one request and three tokens, and waits again.
RUN = """
import sys
from datetime import datetime, timedelta
from pathlib import Path
from batcher.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), "acme", on_warning=lambda said: print(said, flush=True))
now = datetime.fromisoformat(sys.argv[2])
ledger.join(now)
print("joined", flush=True)
sys.stdin.readline()
for second in range(1000):
    ledger.add(sys.argv[3], 1, 3, now + timedelta(seconds=second))
    ledger.refresh(now + timedelta(seconds=second))
print("added", flush=True)
sys.stdin.readline()
ledger.leave(now + timedelta(seconds=1000))
print("left", flush=True)
"""


class OtherRun:
    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(directory), NOON.isoformat(), MODEL],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "batcher"


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def joined(directory: Path, warnings: list[str]) -> Iterator[Callable[..., Ledger]]:
    ledgers: list[Ledger] = []

    def join(account: str = "acme", directory: Path | None = directory) -> Ledger:
        ledgers.append(Ledger(directory, account, on_warning=warnings.append))
        ledgers[-1].join(NOON - timedelta(seconds=1))
        return ledgers[-1]

    yield join
    for ledger in ledgers:
        ledger.leave(NOON)


@pytest.fixture
def others(directory: Path) -> Iterator[list[OtherRun]]:
    runs = [OtherRun(directory) for _ in range(2)]
    try:
        assert [run.read() for run in runs] == ["joined"] * 2
        yield runs
    finally:
        for run in runs:
            run.kill()


def spend(ledger: Ledger, requests: int, tokens: int, now: datetime) -> None:
    ledger.add(MODEL, requests, tokens, now)
    ledger.refresh(now)


def spent(use: DayUse) -> Spent:
    return Spent(use.requests, use.tokens)


def books(directory: Path) -> Path:
    [path] = directory.glob("*.json")
    return path


def test_two_processes_that_count_at_once_lose_nothing(
    others: list[OtherRun], joined: Callable[..., Ledger], warnings: list[str]
) -> None:
    for run in others * 2:
        run.go()
    assert [[run.read(), run.read()] for run in others] == [["added", "left"]] * 2
    assert spent(joined().used_today(MODEL, NOON + timedelta(hours=1))) == (2000, 6000)
    assert not warnings


def test_a_killed_run_frees_its_place_and_loses_a_second_at_most(
    others: list[OtherRun], joined: Callable[..., Ledger], directory: Path
) -> None:
    ledger = joined()
    assert ledger.runs_alive() == 3
    others[0].go()
    assert others[0].read() == "added"
    others[0].kill()
    assert [ledger.runs_alive() for _ in range(2)] == [2, 2]
    assert len(list(directory.glob("*.run"))) == 2
    # One addition a second: what came with the last write may wait for the next one.
    assert spent(ledger.used_today(MODEL, NOON + timedelta(hours=1))).requests >= 999


def test_runs_of_one_account_see_each_other_and_others_do_not(joined: Callable[..., Ledger]) -> None:
    first, second, stranger = joined(), joined(), joined("umbrella")
    assert [run.runs_alive() for run in (first, second, stranger)] == [2, 2, 1]
    spend(first, 1, 100, NOON)
    first.flush(NOON)
    assert spent(second.used_today(MODEL, NOON)) == (1, 100)
    assert spent(second.used_today("another", NOON)) == (0, 0)
    assert spent(stranger.used_today(MODEL, NOON)) == (0, 0)
    second.leave(NOON)
    second.leave(NOON)
    assert first.runs_alive() == second.runs_alive() == 1


def test_use_is_buffered_for_a_second_and_seen_at_once_by_the_run_itself(
    joined: Callable[..., Ledger],
) -> None:
    mine, other = joined(), joined()
    spend(mine, 1, 10, NOON)
    spend(mine, 1, 10, NOON + timedelta(seconds=0.5))
    assert spent(mine.used_today(MODEL, NOON + timedelta(seconds=0.5))) == (2, 20)
    assert spent(other.used_today(MODEL, NOON)) == (1, 10)
    spend(mine, 1, 10, NOON + timedelta(seconds=1))
    assert spent(other.used_today(MODEL, NOON + timedelta(seconds=1))) == (3, 30)


def test_only_the_owner_can_read_it_whatever_the_umask(
    joined: Callable[..., Ledger], directory: Path
) -> None:
    before = os.umask(0)
    try:
        joined("secret-account").flush(NOON)
    finally:
        os.umask(before)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert all(
        "secret" not in path.name and b"secret" not in path.read_bytes() for path in directory.iterdir()
    )


@pytest.mark.parametrize(
    "content",
    [
        b"\x00" * 100,
        b'{"models":{"m":{"1":[1,2]}}}',
        b'{"models":{"m":{"1":[-1,2]}}}\n',
        b'{"models":{"m":{"x":[1,2]}}}\n',
        b'{"models":{"m":{"1":[1e400,2]}}}\n',
        b'{"other":"program"}\n',
        b"[" * 100_000 + b"\n",
        b'{"models":{"\xff":{}}}\n',
    ],
    ids=["zeros", "cut off", "negative", "no slot", "huge", "foreign", "deep", "not UTF-8"],
)
def test_damaged_books_start_anew(
    joined: Callable[..., Ledger], directory: Path, warnings: list[str], content: bytes
) -> None:
    ledger = joined()
    ledger.flush(NOON)
    books(directory).write_bytes(content)
    spend(ledger, 1, 10, NOON)
    ledger.flush(NOON)
    assert spent(joined().used_today(MODEL, NOON)) == (1, 10)
    assert len(warnings) == 1
    assert "damaged and start anew" in warnings[0]


def test_damaged_books_are_mended_by_a_run_that_has_read_them(
    joined: Callable[..., Ledger], directory: Path
) -> None:
    ledger = joined()
    spend(ledger, 1, 10, NOON)
    books(directory).write_bytes(b"torn")
    spend(ledger, 1, 10, NOON + timedelta(seconds=1))
    assert spent(joined().used_today(MODEL, NOON + timedelta(seconds=1))) == (2, 20)


def test_the_rest_of_a_longer_state_is_ignored(
    joined: Callable[..., Ledger], directory: Path, warnings: list[str]
) -> None:
    ledger = joined()
    spend(ledger, 1, 10, NOON)
    ledger.flush(NOON)
    with books(directory).open("ab") as file:
        file.write(b'345]}}}\n{"half')
    assert spent(joined().used_today(MODEL, NOON)) == (1, 10)
    assert not warnings


def test_files_of_others_are_left_alone(
    joined: Callable[..., Ledger], directory: Path, warnings: list[str]
) -> None:
    ledger = joined()
    prefix = books_prefix(directory)
    (directory / "notes.txt").write_text("mine")
    (directory / f"{prefix}.dir.run").mkdir()
    (directory / f"{prefix}.link.run").symlink_to(directory / "notes.txt")
    os.mkfifo(directory / f"{prefix}.fifo.run")
    (directory / f"{prefix}.1-stale.run").touch()
    names = {path.name for path in directory.iterdir()}
    assert ledger.runs_alive() == 1
    assert names - {path.name for path in directory.iterdir()} == {f"{prefix}.1-stale.run"}
    assert (directory / "notes.txt").read_text() == "mine"
    assert not warnings


def books_prefix(directory: Path) -> str:
    [run] = directory.glob("*.run")
    return run.name.partition(".")[0]


def test_a_linked_file_is_not_followed(
    joined: Callable[..., Ledger], directory: Path, tmp_path: Path, warnings: list[str]
) -> None:
    ledger = joined()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    books(directory).unlink()
    (directory / f"{books_prefix(directory)}.json").symlink_to(victim)
    for second in range(3):
        spend(ledger, 1, 10, NOON + timedelta(seconds=second))
    assert victim.read_text() == "precious"
    assert spent(ledger.used_today(MODEL, NOON + timedelta(seconds=3))) == (3, 30)
    assert len(warnings) == 1
    assert "symbolic link" in warnings[0]


def linked(directory: Path) -> None:
    elsewhere = directory.with_name("elsewhere")
    elsewhere.mkdir(parents=True)
    directory.symlink_to(elsewhere)


def open_to_all(directory: Path) -> None:
    directory.mkdir(parents=True)
    directory.chmod(0o777)


def a_file(directory: Path) -> None:
    directory.parent.mkdir()
    directory.touch()


def below_a_file(directory: Path) -> None:
    directory.parent.touch()


@pytest.mark.parametrize("make", [linked, open_to_all, a_file, below_a_file])
def test_a_directory_that_cannot_be_trusted_or_used_is_told_once(
    joined: Callable[..., Ledger], directory: Path, warnings: list[str], make: Callable[[Path], None]
) -> None:
    make(directory)
    use_alone(joined(), warnings, str(directory))
    assert not list(directory.parent.parent.rglob("*.run"))


def test_without_a_home_a_run_keeps_its_own_counts(
    joined: Callable[..., Ledger], warnings: list[str]
) -> None:
    use_alone(joined(directory=None), warnings, "set HOME")


def use_alone(ledger: Ledger, warnings: list[str], reason: str) -> None:
    spend(ledger, 1, 10, NOON)
    ledger.flush(NOON)
    spend(ledger, 1, 10, NOON + timedelta(seconds=5))
    assert spent(ledger.used_today(MODEL, NOON + timedelta(seconds=5))) == (2, 20)
    assert ledger.runs_alive() == 1
    assert len(warnings) == 1
    assert reason in warnings[0]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"HOME": ""}, None),
        ({"HOME": "/home/a"}, "/home/a/.local/state/batcher"),
        ({"HOME": "/home/a", "XDG_STATE_HOME": "/var/a"}, "/var/a/batcher"),
        ({"HOME": "/home/a", "XDG_STATE_HOME": "relative"}, "/home/a/.local/state/batcher"),
        ({"HOME": "/home/a", "XDG_STATE_HOME": "/var/a", "BATCHER_STATE_DIR": "/own"}, "/own"),
    ],
    ids=["nothing", "empty home", "home", "xdg", "relative xdg", "own"],
)
def test_where_the_state_lives(environ: dict[str, str], expected: str | None) -> None:
    assert state_directory(environ) == (expected and Path(expected))


def test_books_that_another_run_holds_do_not_stall_this_one(
    joined: Callable[..., Ledger], directory: Path, warnings: list[str]
) -> None:
    mine = joined()
    mine.flush(NOON)
    with books(directory).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        spend(mine, 1, 10, NOON + timedelta(seconds=2))
        assert spent(mine.used_today(MODEL, NOON + timedelta(seconds=4))) == (1, 10)
        assert not books(directory).read_bytes()
    mine.flush(NOON + timedelta(seconds=4))
    assert spent(joined().used_today(MODEL, NOON + timedelta(seconds=4))) == (1, 10)
    assert not warnings


def test_negative_use_is_refused(joined: Callable[..., Ledger]) -> None:
    with pytest.raises(ValueError, match="never negative"):
        joined().add(MODEL, 1, -1, NOON)


def test_use_of_others_is_told_once_and_own_use_never(joined: Callable[..., Ledger]) -> None:
    mine, other = joined(), joined()
    spend(mine, 5, 50, NOON)
    spend(other, 1, 10, NOON)
    mine.flush(NOON)
    assert mine.models_elsewhere == {MODEL}
    assert [mine.take_elsewhere(MODEL) for _ in range(2)] == [(1, 10), (0, 0)]
    assert mine.models_elsewhere == frozenset()
    assert [other.take_elsewhere(MODEL) for _ in range(2)] == [(5, 50), (0, 0)]
    spend(other, 2, 20, NOON + timedelta(seconds=1))
    spend(mine, 7, 70, NOON + timedelta(seconds=1))
    spend(other, 3, 30, NOON + timedelta(seconds=2))
    mine.flush(NOON + timedelta(seconds=2))
    assert mine.take_elsewhere(MODEL) == (5, 50)
    assert other.take_elsewhere(MODEL) == (7, 70)
    assert mine.take_elsewhere("another") == (0, 0)


@pytest.mark.parametrize("lost", [b"", b"torn"], ids=["emptied", "damaged"])
def test_books_that_were_lost_and_mended_are_no_new_use(
    joined: Callable[..., Ledger], directory: Path, lost: bytes
) -> None:
    runs = [joined() for _ in range(3)]
    for run in [*runs, *runs]:
        run.add(MODEL, 100, 1000, NOON)
        run.flush(NOON)
    for run in runs:
        run.flush(NOON)
        run.take_elsewhere(MODEL)
    books(directory).write_bytes(lost)
    for run in runs:
        run.flush(NOON)
        assert run.take_elsewhere(MODEL) == (0, 0)
        assert spent(run.used_today(MODEL, NOON)) == (600, 6000)


def test_a_full_disk_makes_nothing_count_twice(
    joined: Callable[..., Ledger], directory: Path, warnings: list[str]
) -> None:
    mine, other = joined(), joined()
    spend(other, 1, 10, NOON)
    mine.add(MODEL, 2, 20, NOON)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
        mine.flush(NOON)
        mine.flush(NOON)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert mine.take_elsewhere(MODEL) == (1, 10)
    assert len(warnings) >= 1
    mine.flush(NOON)
    assert mine.take_elsewhere(MODEL) == (0, 0)
    assert spent(mine.used_today(MODEL, NOON)) == (3, 30)
    assert spent(joined().used_today(MODEL, NOON)) == (3, 30)


def test_what_is_read_late_for_the_first_time_is_no_new_use(
    joined: Callable[..., Ledger], directory: Path, warnings: list[str]
) -> None:
    early = joined()
    early.add(MODEL, 600, 0, NOON - timedelta(hours=47))
    early.add(MODEL, 600, 0, NOON - timedelta(hours=23))
    early.flush(NOON)
    with books(directory).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        late = joined()
        late.add(MODEL, 1, 10, NOON)
    late.flush(NOON)
    assert late.take_elsewhere(MODEL) == (0, 0)
    assert late.used_today(MODEL, NOON).requests_level(1_000) == 1
    spend(early, 2, 0, NOON + timedelta(seconds=1))
    late.flush(NOON + timedelta(seconds=1))
    assert late.take_elsewhere(MODEL) == (2, 0)
    assert not warnings


def test_joining_waits_for_books_that_are_held_for_a_moment(
    joined: Callable[..., Ledger], directory: Path
) -> None:
    early = joined()
    spend(early, 5, 0, NOON)
    with books(directory).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        letting_go = threading.Timer(0.01, fcntl.flock, (held, fcntl.LOCK_UN))
        letting_go.start()
        late = joined()
        letting_go.join()
    spend(early, 2, 0, NOON)
    early.flush(NOON)
    late.flush(NOON)
    assert late.take_elsewhere(MODEL) == (2, 0), "what came since it has joined"
