"""Processes that are started on one core, and measured from their start to their end."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ENTRY = "batcher.cli.main:main"
BATCHER = (sys.executable, "-m", "batcher.cli.main")
LOADS = (sys.executable, "-m", "batcher.bench.loads")
PROFILED = (sys.executable, "-m", "batcher.bench.profiled")
YARDSTICK = (sys.executable, "-m", "batcher.bench.yardsticks")

_DESCRIPTORS = 65_536
_LAST_WORDS = 300
_NOT_OURS = ("BATCHER_", "GROQ_", "OPENAI_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """Which core each side of a measurement runs on; None is any."""

    client: int | None
    server: int | None

    @property
    def words(self) -> str:
        """Say it to a person."""
        if self.client is None:
            return "processes run on any core: this system cannot pin them"
        if self.client == self.server:
            return f"one core (number {self.client}) for client and server: they take time from each other"
        return f"client on core {self.client}, server on core {self.server}"


def choose_cores() -> Cores:
    """Choose a core for the client and another for the server, where there is one and it can be had."""
    if not hasattr(os, "sched_setaffinity"):
        return Cores(client=None, server=None)
    cores = sorted(os.sched_getaffinity(0))
    client = cores[-1]
    others = [core for core in cores if core != client]
    apart = [core for core in others if core not in _siblings(client)]
    return Cores(client=client, server=next(iter(apart or others), client))


def _siblings(core: int) -> set[int]:
    """Return the hardware threads that share a core with this one, none if the system does not say."""
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
        spans = [[int(end) for end in span.split("-")] for span in text.strip().split(",")]
    except (OSError, ValueError):
        return set()
    return {thread for span in spans for thread in range(span[0], span[-1] + 1)}


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Keep this thread, and so every process it starts meanwhile, on one core."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a process used (seconds, MB of 10**6 bytes), how it ended and what it said.

    `ended_at` is the moment of its end on `time.monotonic()`. `peak_mb` is None where it was less than the
    bench itself has used, as the system counts from what the process was before it became another program.
    """

    exit_code: int
    wall_s: float
    user_s: float
    system_s: float
    peak_mb: float | None
    ended_at: float
    stdout: bytes
    last_words: str

    @property
    def cpu_s(self) -> float:
        """User and system."""
        return self.user_s + self.system_s


def measured(
    command: Sequence[str], *, cwd: Path, core: int | None = None, env: Mapping[str, str] | None = None
) -> Use:
    """Run a process to its end; whatever happens, it is gone afterwards."""
    words, out = cwd / "words.txt", cwd / "told.txt"
    with words.open("wb") as stderr, out.open("wb") as stdout, pinned(core):
        began = time.monotonic()
        process = subprocess.Popen(  # noqa: S603 - our own modules, with arguments of our own
            command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=env
        )
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        process.wait()
        raise
    ended_at = time.monotonic()
    process.returncode = os.waitstatus_to_exitcode(status)
    return Use(
        exit_code=process.returncode,
        wall_s=ended_at - began,
        user_s=usage.ru_utime,
        system_s=usage.ru_stime,
        peak_mb=_peak_mb(usage.ru_maxrss),
        ended_at=ended_at,
        stdout=out.read_bytes(),
        last_words=words.read_text(errors="replace").strip()[-_LAST_WORDS:],
    )


def _peak_mb(maxrss: int) -> float | None:
    if sys.platform == "darwin":
        return maxrss / 1e6
    return maxrss * 1024 / 1e6 if maxrss > _own_peak_kb() else None


def _own_peak_kb() -> int:
    """Return the most memory of this process; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def raise_descriptor_limit() -> None:
    """Let this process and its children open as many files as the system allows it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def clean_environment(directory: Path) -> dict[str, str]:
    """Return this process's environment without settings and keys of the user, and with books of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
    return kept | {"BATCHER_STATE_DIR": str(directory / "state")}
