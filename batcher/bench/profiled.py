"""A command of batcher with samples of where its CPU time goes.

Started by the bench as `python -m batcher.bench.profiled FILE ENTRY run ...`; the shares go to FILE as JSON.
A timer of CPU time (SIGPROF) interrupts the main thread between two steps of Python, so what is spent inside
a C function counts for the function that called it, or for the next one. Other threads appear as a whole.
"""

import os
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from pkgutil import resolve_name
from types import FrameType
from typing import Any

import orjson

import batcher

EVERY_S = 0.002
TOP = 25

_PACKAGE = str(Path(batcher.__file__).parent) + os.sep
_LOOP = (f"{os.sep}asyncio{os.sep}runners.py", f"{os.sep}asyncio{os.sep}base_events.py")

OTHER_THREADS = "other threads (HTTP client, syncs)"
EVENT_LOOP = "event loop"
IMPORTS = "imports"
ELSEWHERE = "start and end"


def place(stack: list[tuple[str, str]]) -> tuple[str, str]:
    """Return the room and the function that a sample counts for.

    Args:
        stack: file and function of each frame, innermost first.
    """
    if any(file.startswith("<frozen importlib") for file, _ in stack):
        return IMPORTS, IMPORTS
    for file, function in stack:
        if file.endswith(_LOOP):
            return EVENT_LOOP, EVENT_LOOP
        if file.startswith(_PACKAGE) and not file.startswith(f"{_PACKAGE}bench"):
            inside = file.removeprefix(_PACKAGE)
            return inside.split(os.sep)[0].removesuffix(".py"), f"{inside}:{function}"
    return ELSEWHERE, ELSEWHERE


class Sampler:
    """Weighs each sample by the CPU time that the main thread used since the last one."""

    def __init__(self) -> None:
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.samples = 0
        self._thread_s = self._process_s = 0.0

    def __repr__(self) -> str:
        return f"<Sampler {self.samples} samples>"

    def start(self) -> None:
        """Begin to take samples."""
        self._thread_s, self._process_s = time.thread_time(), time.process_time()
        signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)

    def stop(self) -> None:
        """Take no more samples."""
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _take(self, number: int, frame: FrameType | None) -> None:
        stack = []
        while frame is not None:
            stack.append((frame.f_code.co_filename, frame.f_code.co_qualname))
            frame = frame.f_back
        thread_s, process_s = time.thread_time(), time.process_time()
        used_s = thread_s - self._thread_s
        others_s = process_s - self._process_s - used_s
        self._thread_s, self._process_s = thread_s, process_s
        self.samples += 1
        self.seconds[place(stack)] += used_s
        self.seconds[OTHER_THREADS, OTHER_THREADS] += max(0.0, others_s)

    def content(self) -> dict[str, Any]:
        """Return the shares for the JSON file, the largest first."""
        total_s = sum(self.seconds.values())
        rooms: defaultdict[str, float] = defaultdict(float)
        functions: defaultdict[str, float] = defaultdict(float)
        for (room, function), seconds in self.seconds.items():
            rooms[room] += seconds / total_s
            functions[function] += seconds / total_s
        return {
            "samples": self.samples,
            "cpu_s": round(total_s, 3),
            "rooms": _largest(rooms, len(rooms)),
            "functions": _largest(functions, TOP),
        }


def _largest(shares: dict[str, float], count: int) -> dict[str, float]:
    ranked = sorted(shares.items(), key=lambda item: item[1], reverse=True)
    return {name: round(share, 4) for name, share in ranked[:count]}


def main(file: str, entry: str, *arguments: str) -> None:
    """Run a command at its entry point (`module:function`), write its profile, and end as it ended."""
    sampler = Sampler()
    sampler.start()
    code: object = 0
    try:
        resolve_name(entry)(list(arguments))
    except SystemExit as end:
        code = end.code
    sampler.stop()
    Path(file).write_bytes(orjson.dumps(sampler.content()))
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
