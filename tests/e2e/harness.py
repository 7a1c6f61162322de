"""Runs the installed command against simulators of its own, and reads what it leaves behind."""

import atexit
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCHER = Path(sys.executable).with_name("batcher")
MODEL = "openai/gpt-oss-20b"
PATIENCE_S = 60.0
_POLL_S = 0.005
_HOME = tempfile.TemporaryDirectory(prefix="batcher-e2e-")
atexit.register(_HOME.cleanup)


# --- the command -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def environment(**variables: str) -> dict[str, str]:
    """Return what cron would give a command, and `variables`: nothing of the tester's own."""
    own = {"PATH": os.defpath, "HOME": _HOME.name, "LC_ALL": "C.UTF-8"}
    if state := os.environ.get("BATCHER_STATE_DIR"):
        own["BATCHER_STATE_DIR"] = state  # that of one test, which shares no account with another
    return own | variables


def batcher(
    *args: object,
    cwd: Path,
    env: dict[str, str] | None = None,
    stdin: bytes = b"",
    timeout_s: float = PATIENCE_S,
    before: Callable[[], object] | None = None,
) -> Done:
    """Run a command to its end; `before` runs in the new process ahead of it."""
    ended = subprocess.run(
        [BATCHER, *map(str, args)],
        cwd=cwd,
        env=environment() if env is None else env,
        input=stdin,
        capture_output=True,
        timeout=timeout_s,
        check=False,
        preexec_fn=before,
    )
    return _checked(Done(ended.returncode, ended.stdout.decode(), ended.stderr.decode()))


def _checked(done: Done) -> Done:
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    assert "panicked at" not in done.stderr, done.stderr
    return done


class Started:
    """A command that still runs; its stderr goes to a file, which never fills up."""

    def __init__(self, process: subprocess.Popen[bytes], stdout: Path, stderr: Path) -> None:
        self.process = process
        self._stdout = stdout
        self._stderr = stderr

    @property
    def pid(self) -> int:
        """The process."""
        return self.process.pid

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._stderr.read_text()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it, and to it alone."""
        self.process.send_signal(number)

    def wait_until(self, holds: Callable[[], object]) -> None:
        """Poll until something holds; fail if the command ends before that, or nothing happens."""
        ends_at = time.monotonic() + PATIENCE_S
        while not holds():
            assert self.process.poll() is None, f"it ended too early: {self.stderr}"
            assert time.monotonic() < ends_at, f"it did not happen: {self.stderr}"
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.process.poll() is None, f"it ended too early: {self.stderr}"
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def end(self, timeout_s: float = PATIENCE_S) -> Done:
        """Wait for its end."""
        code = self.process.wait(timeout_s)
        return _checked(Done(code, self._stdout.read_text(), self.stderr))


@contextmanager
def started(
    *args: object,
    cwd: Path,
    name: str = "command",
    env: dict[str, str] | None = None,
    before: Callable[[], object] | None = None,
    under: Sequence[str] = (),
) -> Iterator[Started]:
    """Start a command; it is killed if it outlives the context.

    `name` tells its streams from others', and `under` is a command that runs it.
    """
    logs = cwd / "logs"
    logs.mkdir(exist_ok=True)
    stdout, stderr = logs / f"{name}.stdout", logs / f"{name}.stderr"
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            [*under, BATCHER, *map(str, args)],
            cwd=cwd,
            env=environment() if env is None else env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            preexec_fn=before,  # noqa: PLW1509 - threads of a test hold no lock that `before` takes
        )
    with process:
        try:
            yield Started(process, stdout, stderr)
        finally:
            if process.poll() is None:
                process.kill()


def catches(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)


# --- the simulator -----------------------------------------------------------------------------------


class Simulator:
    """A simulator in a process of its own."""

    def __init__(self, command: Started, port: int) -> None:
        self._command = command
        self.port = port
        self.url = f"http://127.0.0.1:{port}/v1"

    @property
    def requests(self) -> int:
        """How many calls have reached it."""
        count: int = self.stats()["requests"]
        return count

    def stats(self) -> dict[str, Any]:
        """Return its counts."""
        return self._ask("GET", "/admin/stats")

    def admissions(self) -> list[dict[str, float]]:
        """Return time and tokens of each call that it let in."""
        admissions: list[dict[str, float]] = self._ask("GET", "/admin/log")["admissions"]
        return admissions

    def reset(self) -> None:
        """Make it forget all counts."""
        self._ask("POST", "/admin/reset")

    def kill(self) -> None:
        """End it as a power cut would."""
        self._command.kill()

    def _ask(self, method: str, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request(method, path)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer


@contextmanager
def simulating(directory: Path, *options: object, port: int = 0) -> Iterator[Simulator]:
    """Run a simulator for as long as the context lasts."""
    number = len(list(directory.glob("port-*")))
    port_file = directory / f"port-{number}"
    args = ("simulator", "--port", port, "--port-file", port_file, *options)
    with started(*args, cwd=directory, name=f"simulator-{number}") as command:
        command.wait_until(port_file.exists)
        yield Simulator(command, int(port_file.read_text()))


@contextmanager
def nobody() -> Iterator[tuple[str, Callable[[], bool]]]:
    """Give an address that no call may reach, and a question whether one has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        def was_called() -> bool:
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                return True
            return False

        yield f"http://127.0.0.1:{listener.getsockname()[1]}", was_called


# --- files -------------------------------------------------------------------------------------------


def job(name: str, prompt: str = "", **fields: object) -> dict[str, object]:
    """Return a short line that asks for its own id, so that the answer tells whose it is."""
    return {"id": name, "model": MODEL, "prompt": prompt or name, **fields}


def names(count: int) -> list[str]:
    """Return `count` ids."""
    return [f"row-{number}" for number in range(count)]


def without_long_waits(directory: Path) -> Path:
    """Write a configuration for tests of what happens, not of how long it takes; for `-c`."""
    path = directory / "quick.yaml"
    quick = ", ".join(f"{kind}: {{first_wait_s: 0.1}}" for kind in ("network", "timeout", "server"))
    path.write_text(f"retry: {{{quick}}}\nbreaker: {{first_wait_s: 0.4}}\n")
    return path


def write_jobs(path: Path, jobs: Iterable[dict[str, object]]) -> Path:
    """Write a job file."""
    path.write_bytes(b"".join(json.dumps(each).encode() + b"\n" for each in jobs))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a result file, each of whose lines must be whole and have the right crc32."""
    data = path.read_bytes() if path.exists() else b""
    assert data == b"" or data.endswith(b"\n")
    objects = []
    for line in data.split(b"\n")[:-1]:
        whole = json.loads(line)
        crc32 = whole["batcher"]["crc32"]
        without = line.rstrip(b"\r").replace(b',"crc32":%d' % crc32, b"")
        assert len(without) < len(line)
        assert zlib.crc32(without) == crc32
        objects.append(whole)
    return objects


def answer_of(line: dict[str, Any]) -> str:
    """Return the text of a chat answer."""
    text: str = line["response"]["body"]["choices"][0]["message"]["content"]
    return text


def assert_each_once(out: Path, ids: Iterable[str], *, failed: Iterable[str] = ()) -> None:
    """Check that answers and failures hold each id exactly once, and each answer belongs to its id."""
    answers, failures = read_lines(out), read_lines(out.with_suffix(".errors.jsonl"))
    assert Counter(line["custom_id"] for line in answers) == Counter(ids)
    assert Counter(line["custom_id"] for line in failures) == Counter(failed)
    foreign = [line for line in answers if answer_of(line) != f"[simulated] Answer to: {line['custom_id']}"]
    assert not foreign
    assert len({line["id"] for line in answers + failures}) == len(answers) + len(failures)


def count_lines(path: Path) -> int:
    """Return the number of newlines in a file that may not be there yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def size_of(path: Path) -> int:
    """Return the bytes of a file that may not be there yet."""
    return path.stat().st_size if path.exists() else 0


class FirstAnswer:
    """Asks whether a run that is about to start on an output has brought home a first answer."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._journal = out.with_suffix(".journal")
        self._journal_size = size_of(self._journal)
        self._found_size: int | None = None

    def __call__(self) -> bool:
        """Return whether the results have grown since the run had put them in order."""
        if self._found_size is None:
            if size_of(self._journal) > self._journal_size:
                with self._journal.open("rb") as file:
                    file.seek(self._journal_size)
                    if b'"event":"run_started"' in file.read():
                        self._found_size = size_of(self._out)
            return False
        return size_of(self._out) > self._found_size


def read_journal(out: Path, event: str) -> list[dict[str, Any]]:
    """Return the records of one kind in an output's journal; a torn one is skipped."""
    records = []
    for line in out.with_suffix(".journal").read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if record["event"] == event]


def read_summary(out: Path) -> dict[str, Any]:
    """Return the summary of the last run."""
    summary: dict[str, Any] = json.loads(out.with_suffix(".summary.json").read_bytes())
    return summary
