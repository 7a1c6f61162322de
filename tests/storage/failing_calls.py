"""Runs batcher again and again in processes of its own, where one system call fails; says what became of it.

Usage: python failing_calls.py DIRECTORY < cases, one JSON object a line:
`{"story", "call", "error", "nth", "lasting"}`; each is answered by a line on stdout. An `nth` of 0 fails
nothing. Works wherever fork does: the seam is the `os` and `fcntl` modules.
"""

import asyncio
import contextlib
import errno
import fcntl
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from batcher import run_jobs
from batcher.errors import BatcherError
from batcher.providers.simulator.server import start_embedded
from batcher.providers.simulator.settings import SimulatorSettings
from batcher.results.scan import Scan, pieces
from batcher.types import OutputPaths, output_paths

JOBS = 12
MODULES = {"flock": fcntl}
OWN_WRITE = os.write


class Seam:
    """Counts the calls of one kind, and lets the `nth` fail, or all from then on.

    Calls by name count if it is the name of `directory` or of a file of the output in it.
    """

    def __init__(self, directory: Path, *, call: str, error: str, nth: int, lasting: bool) -> None:
        self._directory = directory
        self.count = 0
        self.failed = False
        self._call = call
        self._error = error
        self._nth = nth
        self._lasting = lasting

    def install(self) -> None:
        module = MODULES.get(self._call, os)
        setattr(module, self._call, self._failing(getattr(module, self._call)))
        os.fdopen = _fdopen  # type: ignore[assignment]

    def _failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*args: Any, **options: Any) -> Any:
            if isinstance(args[0], str | Path) and not self._is_ours(Path(args[0])):
                return call(*args, **options)
            self.count += 1
            if not self._nth or self.count < self._nth or (self.count > self._nth and not self._lasting):
                return call(*args, **options)
            self.failed = True
            if self._error == "short":
                if self.count > self._nth:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return call(args[0], bytes(args[1])[: len(args[1]) // 2])
            number = getattr(errno, self._error)
            raise OSError(number, os.strerror(number))

        return failing

    def _is_ours(self, path: Path) -> bool:
        return path == self._directory or (path.parent == self._directory and path.name.startswith("x"))


class _Raw(io.RawIOBase):
    """A file whose every call goes through the `os` module, unlike those of `io`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, data: Any) -> int:
        return os.write(self._fd, data)

    def truncate(self, size: int | None = None) -> int:
        assert size is not None
        os.ftruncate(self._fd, size)
        return size

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)


def _fdopen(fd: int, _: str, buffering: int) -> io.BufferedWriter:
    return io.BufferedWriter(_Raw(fd), buffering)


# Stories


def job(number: int, prompt: str = "") -> dict[str, object]:
    name = f"row-{number}"
    hopeless = {"deadline_s": 1e-6} if number == 3 else {}
    return {"id": name, "model": "m", "prompt": prompt or name, **hopeless}


def write_jobs(directory: Path, *, changed: bool) -> None:
    lines = [job(number, f"row-{number}, again" if changed and number == 5 else "") for number in range(JOBS)]
    (directory / "jobs.jsonl").write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def prepare(directory: Path, story: str, url: str) -> None:
    """Make the state that a story begins with."""
    directory.mkdir()
    write_jobs(directory, changed=False)
    if story == "first":
        return
    paths = output_paths(directory / "x.jsonl")
    run_jobs(directory / "jobs.jsonl", output=paths.results, base_url=url, limit=9)
    if story == "mend":
        paths.journal.unlink()
        lines = paths.results.read_bytes().splitlines(keepends=True)
        paths.results.write_bytes(
            b"".join([*lines[:3], b"\0" * 600 + b"\n", *lines[3:], lines[0], b'{"torn'])
        )
        write_jobs(directory, changed=True)


OPTIONS: dict[str, dict[str, Any]] = {
    "first": {},
    "mend": {"on_changed": "rerun", "retry_failed": True},
    "fresh": {"fresh": True},
}


def run(directory: Path, url: str, options: dict[str, Any]) -> tuple[int, list[str]]:
    """Run the jobs; return the exit code, and the ids of the results that were reported as safe."""
    safe: list[str] = []
    try:
        summary = run_jobs(
            directory / "jobs.jsonl",
            output=directory / "x.jsonl",
            base_url=url,
            on_result=lambda result: safe.append(result.job.id),
            concurrency=4,
            **options,
        )
    except BatcherError as error:
        return error.exit_code, safe
    except BaseException:
        traceback.print_exc()
        return -1, safe
    return summary["exit_code"], safe


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Run a simulator in a process of its own, and give its address."""
    reader, writer = os.pipe()

    async def serve() -> None:
        async with start_embedded(SimulatorSettings(latency_s=0)) as server:
            OWN_WRITE(writer, f"{server.url}/v1\n".encode())
            await asyncio.Event().wait()

    if (child := os.fork()) == 0:
        asyncio.run(serve())
    with open(reader, "rb", buffering=0) as pipe:
        url = pipe.readline().decode().strip()
    try:
        yield url
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def in_child(work: Callable[[], object]) -> Any:
    """Do `work` in a process of its own and return what it returns."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            OWN_WRITE(writer, json.dumps(work()).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(child, 0)
    return answer


# What must hold


def ids_in(path: Path) -> list[str]:
    return [job_id for job_id, _, _ in Scan(path)] if path.exists() else []


def everywhere(directory: Path) -> bytes:
    """Return all that is kept, wherever it was moved."""
    kept = [path for path in sorted(directory.glob("x*")) if path.suffix in (".jsonl", ".quarantine")]
    return b"".join(path.read_bytes() for path in kept)


def whole_lines(directory: Path) -> list[bytes]:
    paths = output_paths(directory / "x.jsonl")
    return [raw for path in (paths.results, paths.errors) for raw, line in pieces(path) if line is not None]


def faults_of(directory: Path, before: list[bytes], safe: list[str], codes: tuple[int, int]) -> list[str]:
    """Say what does not hold after a run that something failed in, and the run after it."""
    paths: OutputPaths = output_paths(directory / "x.jsonl")
    kept = everywhere(directory)
    faults = [f"lost: {raw[:80]!r}" for raw in before if raw not in kept]
    current = Counter(ids_in(paths.results) + ids_in(paths.errors))
    if current != Counter(f"row-{number}" for number in range(JOBS)):
        faults.append(f"after the next run there are {current}")
    if paths.results.with_name("x.jsonl.tmp").exists():
        faults.append("a temporary file is left")
    if codes[0] not in (0, 3, 74):
        faults.append(f"exit code {codes[0]}")
    if codes[1] not in (0, 3):
        faults.append(f"the next run ended with {codes[1]}")
    faults += [f"safe, but lost: {name}" for name in safe if f'"custom_id":"{name}"'.encode() not in kept]
    return faults


def try_case(root: Path, url: str, case: dict[str, Any], number: int) -> dict[str, Any]:
    """Run a story in which something fails, and once more; return what was seen."""
    directory = root / str(number)
    shutil.copytree(root / case["story"], directory)
    before = whole_lines(directory)
    seam = Seam(directory, call=case["call"], error=case["error"], nth=case["nth"], lasting=case["lasting"])

    def failing() -> dict[str, Any]:
        seam.install()
        code, safe = run(directory, url, OPTIONS[case["story"]])
        return {"code": code, "safe": safe, "count": seam.count, "failed": seam.failed}

    told = in_child(failing)
    # What was reported as safe is so before anything is mended.
    current = set(ids_in(directory / "x.jsonl") + ids_in(directory / "x.errors.jsonl"))
    early = [f"reported as safe, but not in a file: {name}" for name in told["safe"] if name not in current]
    after = {name: value for name, value in OPTIONS[case["story"]].items() if name != "fresh"}

    def again() -> dict[str, Any]:
        code, safe = run(directory, url, after)
        return {"code": code, "safe": safe}

    next_run = in_child(again)
    faults = early + faults_of(
        directory, before, told["safe"] + next_run["safe"], (told["code"], next_run["code"])
    )
    shutil.rmtree(directory)
    return {
        "case": case,
        "faults": faults,
        "count": told["count"],
        "failed": told["failed"],
        "code": told["code"],
    }


def main() -> None:
    root = Path(sys.argv[1])
    tempfile.gettempdir()  # finding it tries a write
    with serving() as url:
        for story in OPTIONS:
            in_child(partial(prepare, root / story, story, url))
        for number, line in enumerate(sys.stdin):
            sys.stdout.write(json.dumps(try_case(root, url, json.loads(line), number)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
