"""What is asked of a run, and who is told how it goes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from batcher.errors import UsageError
from batcher.events import Notice
from batcher.jobs.index import OnChanged
from batcher.observe.stats import Stats
from batcher.scheduling.routing import Routing
from batcher.types import Result

_SIDE_FILES = (".errors.jsonl", ".superseded.jsonl")


def checked_output(out: Path) -> Path:
    """Return `out` if a result file may have its name.

    Raises:
        UsageError: it does not end in `.jsonl`, is a side file of another result file, or is no text.
    """
    check_name(str(out))
    if not out.name.endswith(".jsonl"):
        raise UsageError(f"{out}: a result file's name ends in .jsonl")
    if out.name.endswith(_SIDE_FILES):
        raise UsageError(f"{out}: that is the name of a side file of another output; choose another")
    return out


def check_name(name: str) -> None:
    """Refuse a file name that no file can have, or that journal and summary, which are UTF-8, cannot hold.

    Raises:
        UsageError: it is not UTF-8, or has a NUL in it.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{name}: the name is not UTF-8, and a run's journal has to hold it: rename it"
        ) from None
    if "\0" in name:
        raise UsageError(f"{name}: is not the name of a file")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What is to be run, where its results go, and what becomes of earlier ones.

    Attributes:
        inputs: job files in order; `-` is standard input.
        out: the result file; None streams results to standard output.
        strict: a bad line ends the run before anything is sent.
        fresh: move earlier results aside and begin anew.
        retry_failed: run jobs again that failed for good.
        on_changed: what to do with ids that come back with another request.
        limit: start at most so many jobs.
        simulate: answer from the embedded simulator.
        run_id: names the run in its files.
    """

    inputs: tuple[str, ...]
    out: Path | None
    strict: bool = False
    fresh: bool = False
    retry_failed: bool = False
    on_changed: OnChanged = "error"
    limit: int | None = None
    simulate: bool = False
    run_id: str = field(default_factory=lambda: os.urandom(4).hex())


class Watcher(Protocol):
    """Who is told how a run goes."""

    def bad_line(self, where: str, reason: str) -> None:
        """A line cannot be used."""

    def warning(self, where: str, reason: str) -> None:
        """Something is worth knowing about a place."""

    def reading(self, what: str, done_bytes: int, total_bytes: int) -> None:
        """Files are being read: earlier results, then the jobs."""

    def running(self, stats: Stats, routing: Routing, queued: int) -> None:
        """The first job is about to start."""

    def committed(self, results: Sequence[Result]) -> None:
        """These results are safe."""

    def notice(self, notice: Notice) -> None:
        """Something happened to a lane, a key or a model."""

    async def room(self) -> None:
        """Wait while too many results have not been taken yet."""
