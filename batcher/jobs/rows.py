"""The jobs that are to run, as rows of numbers."""

from array import array
from typing import Any

from batcher.errors import OutputError
from batcher.jobs.lines import CheckedLine, LineDefaults, assigned_id, build_job, reread_line
from batcher.jobs.order import LaneOrder
from batcher.jobs.source import Sources
from batcher.results.fingerprints import Fingerprints, hash_id
from batcher.types import Endpoint, Job

# A provider caches prompts from about 1,000 tokens on; below a few hundred characters it never pays.
_MIN_PREFIX_CHARS = 500


class JobIndex:
    """The jobs that are to run: what order they come in, and where each is to be read.

    A row takes 26 bytes: offset, line number, hash of the line, prefix group, place in its lane.

    Attributes:
        earlier_results: results of earlier runs, whether or not a line asks for them.
        replaces: whether a row replaces one of them.
        skipped_done: lines whose request has an answer already.
        skipped_failed: lines whose request failed in an earlier run.
        duplicates: lines equal to an earlier one in id and request.
        bad: lines that cannot be used.
        blank: empty lines.
        changed: `(where, id)` of the first lines whose id has a result for another request.
        changed_count: how many such lines there are.
        endpoints: of the rows, in order of first appearance.
    """

    def __init__(self, sources: Sources, defaults: LineDefaults) -> None:
        self._sources = sources
        self._defaults = defaults
        self._offsets = array("Q")
        self._numbers = array("I")
        self._line_hashes = array("q")
        self._prefixes = array("H")
        self._ordinals = Fingerprints()
        self._lanes: dict[str, LaneOrder] = {}
        self._with_fallback: set[str] = set()
        self._replaced = Fingerprints()
        self.replaces = False
        self.earlier_results = 0
        self.skipped_done = 0
        self.skipped_failed = 0
        self.duplicates = 0
        self.bad = 0
        self.blank = 0
        self.changed: list[tuple[str, str]] = []
        self.changed_count = 0
        self.endpoints: dict[Endpoint, None] = {}

    def __repr__(self) -> str:
        return f"<JobIndex {self.queued} rows, {self.bad} bad, {len(self._lanes)} models>"

    @property
    def queued(self) -> int:
        """How many jobs are to run."""
        return len(self._offsets)

    @property
    def models(self) -> tuple[str, ...]:
        """The models of the rows, in order of first appearance."""
        return tuple(self._lanes)

    def where(self, offset: int, number: int) -> str:
        """Name the place of a line as `FILE:LINE`."""
        return self._sources.where(offset, number)

    def pop(self, model: str) -> int | None:
        """Take the next row of a model, or None: by priority, then deadline, then the order of the file."""
        lane = self._lanes.get(model)
        return None if lane is None else lane.pop()

    def next_priority(self, model: str) -> int | None:
        """Return the priority of the row that `pop` would take, or None."""
        lane = self._lanes.get(model)
        return None if lane is None else lane.next_priority

    def remaining(self, model: str) -> int:
        """Return how many rows of a model have not been taken."""
        return len(self._lanes.get(model, ()))

    def drop(self, model: str) -> int:
        """Drop the rows of a model that have not been taken, and return how many those were."""
        lane = self._lanes.get(model)
        return 0 if lane is None else lane.clear()

    def has_fallback(self, model: str) -> bool:
        """Tell whether any row of a model names a fallback or is given one by default."""
        return model in self._with_fallback

    def prefix_group(self, row: int) -> int:
        """Return a number that jobs with the same long opening message share (1 to 65535); 0 for no group."""
        return self._prefixes[row]

    def is_replaced(self, job_id: str) -> bool:
        """Tell whether a row of this index replaces an earlier result of the same id."""
        return self._replaced.get(hash_id(job_id)) is not None

    def read(self, row: int) -> Job:
        """Read a row's job back from its file.

        Raises:
            OutputError: the line is no longer the one that was indexed.
            InputMissing: the file cannot be read any more.
        """
        offset = self._offsets[row]
        where = self._sources.where(offset, self._numbers[row])
        line = self._sources.read_line(offset)
        if hash(line) != self._line_hashes[row]:
            raise OutputError(_edited(where))
        checked = reread_line(line, self._defaults)
        job_id = checked.id or assigned_id(checked.request_sha256, self._ordinals.get(row) or 1)
        return build_job(checked, line, job_id=job_id, where=where, defaults=self._defaults)

    def mark_replaced(self, id_hash: int) -> None:
        """Note that a row replaces an earlier result."""
        self.replaces = True
        self._replaced.add(id_hash, 0)

    def close(self) -> None:
        """Close the sources."""
        self._sources.close()

    def append(self, checked: CheckedLine, line: bytes, *, offset: int, number: int, ordinal: int) -> None:
        """Queue a line: called by the pass that fills the index, before the first `pop`.

        `ordinal` tells lines without an id and with equal requests apart; 1 for all others.
        """
        row = len(self._offsets)
        self._offsets.append(offset)
        self._numbers.append(number)
        self._line_hashes.append(hash(line))
        self._prefixes.append(_prefix_group(checked.body))
        if ordinal > 1:
            self._ordinals.add(row, ordinal)
        lane = self._lanes.get(checked.model)
        if lane is None:
            lane = self._lanes[checked.model] = LaneOrder()
        fields = checked.fields
        lane.push(checked.priority, row, fields.get("deadline_s"))
        if fields.get("fallback", self._defaults.fallback):
            self._with_fallback.add(checked.model)
        self.endpoints[checked.endpoint] = None


def _prefix_group(body: dict[str, Any]) -> int:
    """Hash the opening that other requests may share: the first of several messages, or the instructions."""
    messages = body.get("messages")
    opening = body.get("instructions")
    # Beside the input of another endpoint, "messages" may be anything: only a chat's have been checked.
    if isinstance(messages, list) and len(messages) > 1 and isinstance(messages[0], dict):
        opening = messages[0].get("content")
    if not isinstance(opening, str) or len(opening) < _MIN_PREFIX_CHARS:
        return 0
    return hash(opening) & 0xFFFF or 1


def _edited(where: str) -> str:
    return f"{where}: the line changed during the run: leave job files alone while they run, then run again"
