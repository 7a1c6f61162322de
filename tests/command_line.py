"""The command line called inside the test's own process, and a simulator beside it for it to talk to."""

import asyncio
import contextlib
import io
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import pytest

from batcher.cli.main import main
from batcher.providers.simulator.server import RunningServer, start_embedded
from batcher.providers.simulator.settings import SimulatorSettings


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def call(*args: object, cwd: Path, **environ: str) -> Ended:
    """Run a command in `cwd`, with nothing in its environment but `environ`, and put everything back."""
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    root = logging.getLogger()
    handlers, level, umask = root.handlers[:], root.level, os.umask(0o022)
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as streams:
        for name in os.environ:
            patch.delenv(name)
        for name, value in environ.items():
            patch.setenv(name, value)
        patch.chdir(cwd)
        streams.enter_context(contextlib.redirect_stdout(stdout))
        streams.enter_context(contextlib.redirect_stderr(stderr))
        try:
            with pytest.raises(SystemExit) as ended:
                main([str(arg) for arg in args])
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            os.umask(umask)
    assert isinstance(ended.value.code, int)
    return Ended(ended.value.code, _text(stdout), _text(stderr))


@contextlib.contextmanager
def simulator_thread(settings: SimulatorSettings) -> Iterator[RunningServer]:
    """Serve on a free loopback port from another thread, as the command needs this thread's event loop."""
    ready: Future[tuple[RunningServer, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def story() -> None:
        async with start_embedded(settings) as server:
            enough = asyncio.Event()
            ready.set_result((server, asyncio.get_running_loop(), enough))
            await enough.wait()

    thread = threading.Thread(target=asyncio.run, args=(story(),))
    thread.start()
    server, loop, enough = ready.result(timeout=10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(enough.set)
        thread.join(timeout=10)


def _text(stream: io.TextIOWrapper) -> str:
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode()
