"""The simulator in a process of its own, and what it says of each measurement."""

import http.client
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NewType

import orjson

from batcher.bench.processes import BATCHER, clean_environment, pinned
from batcher.errors import BatcherError

_PATIENCE_S = 30.0
_POLL_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What the server saw of one process.

    Attributes:
        requests: calls that it answered.
        refused: of them, how many with 429; 0 with `--fast`.
        connections: how many were opened.
        first_at: when the first of them came, on the bench's `time.monotonic()`; None if none did.
        cpu_s: what the server used meanwhile, user and system, in seconds.
    """

    requests: int
    refused: int
    connections: int
    first_at: float | None
    cpu_s: float


Mark = NewType("Mark", dict[str, Any])
"""The server's figures at the start of a measurement."""


class Server:
    """A running simulator."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._admin = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)

    def __repr__(self) -> str:
        return f"<Server {self.url}>"

    def mark(self) -> Mark:
        """Begin to count what comes in."""
        self._ask("POST", "/admin/reset")
        return Mark(self._ask("GET", "/admin/stats"))

    def since(self, mark: Mark) -> Served:
        """Return what came in since the mark."""
        before, after = mark, self._ask("GET", "/admin/stats")
        connections = after["connections"]
        first_s_ago = connections["first_s_ago"]
        return Served(
            requests=after["requests"],
            refused=after["by_status"].get("429", 0),
            connections=connections["accepted"] - before["connections"]["accepted"],
            first_at=None if first_s_ago is None else time.monotonic() - first_s_ago,
            cpu_s=after["cpu_s"] - before["cpu_s"],
        )

    def admitted_at_s(self) -> list[float]:
        """Return when each call was let through, in seconds since the mark; not with `--fast`."""
        return [admission["at_s"] for admission in self._ask("GET", "/admin/log")["admissions"]]

    def close(self) -> None:
        """Let go of the admin connection."""
        self._admin.close()

    def _ask(self, method: str, path: str) -> dict[str, Any]:
        # One connection for all of them, so that what is counted beside it is the client's.
        self._admin.request(method, path)
        content: dict[str, Any] = orjson.loads(self._admin.getresponse().read())
        return content


@contextmanager
def running(options: Sequence[str], directory: Path, core: int | None) -> Iterator[Server]:
    """Run a simulator for as long as the context lasts.

    Raises:
        BatcherError: it does not start.
    """
    port_file, words = directory / "port", directory / "simulator.txt"
    port_file.unlink(missing_ok=True)
    command = [*BATCHER, "simulator", "--port", "0", "--port-file", str(port_file), *options]
    with words.open("wb") as stderr, pinned(core):
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, cwd=directory, env=clean_environment(directory), stderr=stderr, stdin=subprocess.DEVNULL
        )
    try:
        until = time.monotonic() + _PATIENCE_S
        while not port_file.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(_POLL_S)
        if not port_file.exists():
            raise BatcherError(f"the simulator did not start: {words.read_text(errors='replace').strip()}")
        server = Server(int(port_file.read_text()))
        try:
            yield server
        finally:
            server.close()
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
