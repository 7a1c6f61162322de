import fcntl
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from batcher.errors import LockHeld, OutputError
from batcher.lock import OutputLock
from batcher.results.files import make_directory
from batcher.types import OutputPaths, output_paths

# Says "ready", waits for a line, tries, says how it went, and holds on until its stdin closes.
RIVAL = """
import sys
from pathlib import Path
from batcher.errors import LockHeld
from batcher.lock import OutputLock
from batcher.types import output_paths
print("ready", flush=True)
sys.stdin.readline()
try:
    with OutputLock(output_paths(Path(sys.argv[1])), run_id="rival"):
        print("held", flush=True)
        sys.stdin.read()
except LockHeld as exc:
    print(exc, flush=True)
    sys.stdin.read()
"""


class Rival:
    def __init__(self, paths: OutputPaths) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", RIVAL, str(paths.results)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def wait_until_ready(self) -> None:
        assert self.read() == "ready"

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
def paths(tmp_path: Path) -> OutputPaths:
    return output_paths(tmp_path / "out" / "x.jsonl")


@pytest.fixture
def rivals(paths: OutputPaths, request: pytest.FixtureRequest) -> Iterator[list[Rival]]:
    started = [Rival(paths) for _ in range(getattr(request, "param", 1))]
    try:
        for rival in started:
            rival.wait_until_ready()
        yield started
    finally:
        for rival in started:
            rival.kill()


@pytest.mark.parametrize("rivals", [20], indirect=True)
def test_one_of_many_holds_the_output(rivals: list[Rival], paths: OutputPaths) -> None:
    for rival in rivals:
        rival.go()
    answers = [rival.read() for rival in rivals]
    assert answers.count("held") == 1
    holder = rivals[answers.index("held")]
    assert all("in use by" in answer for answer in answers if answer != "held")
    with pytest.raises(LockHeld, match=rf"x\.jsonl is in use by run rival \(pid {holder.pid} on .*, since 2"):
        OutputLock(paths, run_id="late").acquire()
    holder.kill()
    with OutputLock(paths, run_id="next"):
        assert '"run_id":"next"' in paths.lock.read_text()


def test_a_deleted_lock_file_lets_nobody_in(rivals: list[Rival], paths: OutputPaths) -> None:
    with OutputLock(paths, run_id="mine"):
        paths.lock.unlink()
        rivals[0].go()
        assert "in use by another run" in rivals[0].read()


def test_a_replaced_result_file_is_locked_again(rivals: list[Rival], paths: OutputPaths) -> None:
    with OutputLock(paths, run_id="mine") as lock:
        paths.results.with_suffix(".new").write_text("new")
        paths.results.with_suffix(".new").rename(paths.results)
        lock.relock()
        paths.lock.unlink()
        rivals[0].go()
        assert "in use by" in rivals[0].read()
    assert paths.results.read_text() == "new"


def test_relocking_fails_if_another_run_was_faster(rivals: list[Rival], paths: OutputPaths) -> None:
    with OutputLock(paths, run_id="mine") as lock:
        paths.lock.unlink()
        paths.results.rename(paths.results.with_suffix(".old"))
        rivals[0].go()
        assert rivals[0].read() == "held"
        with pytest.raises(LockHeld, match=f"run rival .pid {rivals[0].pid} on {socket.gethostname()}"):
            lock.relock()


def test_the_lock_creates_what_is_missing_and_keeps_what_is_there(paths: OutputPaths) -> None:
    with OutputLock(paths, run_id="first"):
        paths.results.write_text("kept")
    with OutputLock(paths, run_id="second") as lock:
        lock.release()
        lock.acquire()
    assert paths.results.read_text() == "kept"
    assert {stat.S_IMODE(path.stat().st_mode) for path in (paths.results, paths.lock)} == {0o600}
    assert stat.S_IMODE(paths.lock.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("side", ["lock", "results"])
def test_a_link_is_not_followed(paths: OutputPaths, side: str) -> None:
    path: Path = getattr(paths, side)
    path.parent.mkdir()
    path.symlink_to("elsewhere")
    with pytest.raises(OutputError, match=f"{path.name}: .*symbolic link"):
        OutputLock(paths, run_id="mine").acquire()
    path.unlink()
    with OutputLock(paths, run_id="mine"):
        pass


def test_the_lock_is_not_inherited(paths: OutputPaths) -> None:
    with OutputLock(paths, run_id="mine"):
        child = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            close_fds=False,
        )
        assert child.stdout is not None
        child.stdout.readline()
    try:
        with OutputLock(paths, run_id="next"):
            assert '"run_id":"next"' in paths.lock.read_text()
    finally:
        child.communicate(b"\n")


def test_a_moment_of_somebody_who_asks_for_the_holder_keeps_no_run_out(paths: OutputPaths) -> None:
    with OutputLock(paths, run_id="before"):
        pass
    with paths.lock.open("rb") as asked, ThreadPoolExecutor() as threads:
        fcntl.flock(asked, fcntl.LOCK_SH)
        lock = OutputLock(paths, run_id="mine")
        taken = threads.submit(lock.acquire)
        fcntl.flock(asked, fcntl.LOCK_UN)
        taken.result()
    lock.release()


def test_a_holder_that_has_not_signed_yet_is_waited_for(paths: OutputPaths) -> None:
    make_directory(paths.lock.parent)
    with paths.lock.open("wb") as held, ThreadPoolExecutor() as threads:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused = threads.submit(OutputLock(paths, run_id="mine").acquire)
        held.write(b'{"run_id":"theirs","pid":7,"host":"here","started":"now"}\n')
        held.flush()
        with pytest.raises(LockHeld, match="run theirs"):
            refused.result()
