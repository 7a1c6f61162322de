"""The installed command in a process of its own, with pipes or a terminal, and every byte that it wrote."""

import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

BATCHER = Path(sys.executable).with_name("batcher")
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended; at a terminal both streams are in `stdout`."""

    code: int
    stdout: str
    stderr: str = ""


def environment(directory: Path) -> dict[str, str]:
    """Return a bare environment whose home and state lie in `directory`."""
    return {"PATH": os.defpath, "HOME": str(directory), "BATCHER_STATE_DIR": str(directory / "state")}


def batcher(
    *args: object,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    before: Callable[[], object] | None = None,
) -> Done:
    """Run a command to its end with pipes; `before` runs in the new process ahead of it."""
    ended = subprocess.run(
        [BATCHER, *map(str, args)],
        cwd=cwd,
        env=environment(cwd) | dict(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
        preexec_fn=before,
    )
    return Done(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


def at_a_terminal(*args: object, cwd: Path) -> Done:
    """Run a command to its end with a terminal as stdout and stderr: there, nothing is stripped by click."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [BATCHER, *map(str, args)],
        cwd=cwd,
        env=environment(cwd) | {"TERM": "xterm-256color", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    deadline = threading.Timer(PATIENCE_S, process.kill)
    deadline.start()
    received = b""
    try:
        while data := os.read(ours, 1 << 16):
            received += data
    except OSError:  # EIO: nobody has the terminal open any more
        pass
    finally:
        os.close(ours)
        code = process.wait()
        deadline.cancel()
    return Done(code, received.decode())
