"""What must hold for any bytes at all, of a job file and of a result file; each raises if it does not."""

import os
import tempfile
from pathlib import Path

from batcher.errors import BadInput, OutputError
from batcher.jobs.index import index_jobs
from batcher.jobs.lines import LineDefaults
from batcher.jobs.opened import OpenedFile
from batcher.jobs.source import Sources, open_sources
from batcher.results import encode_result
from batcher.resume import done_records, repair
from batcher.types import Job, Reply, Result, output_paths

_DEFAULTS = LineDefaults(model="m", default_max_completion_tokens=9, fallback=("n",))
_MAX_LINE_BYTES = 2000


def job_lines(data: bytes) -> None:
    """Every line is a job that can be read back, a repetition, blank, or bad for a reason to be shown."""
    fd = os.memfd_create("jobs")
    os.write(fd, data)
    file = OpenedFile(name="jobs.jsonl", fd=fd, start=0, size=len(data))
    _index(Sources([file], max_line_bytes=_MAX_LINE_BYTES, chunk_bytes=64, read_ahead_bytes=16), data)


def job_file(data: bytes) -> None:
    """The same for a file, which may be an archive, or be refused as a whole."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "jobs.jsonl")
        path.write_bytes(data)
        try:
            sources = open_sources([str(path)], spool_dir=Path(directory), max_spool_bytes=1 << 20)
        except BadInput:
            return
        _index(sources, None)
        assert os.listdir(directory) == [path.name]


def _index(sources: Sources, data: bytes | None) -> None:
    places: list[str] = []

    def note(where: str, reason: str) -> None:
        assert reason.isprintable(), ascii(reason)
        assert len(reason) < 1000
        places.append(where)

    index = index_jobs(sources, _DEFAULTS, on_bad=note, on_warning=note)
    assert len(places) == len(set(places)) == index.bad + index.duplicates
    if data is not None:
        lines = data.count(b"\n") + (not data.endswith(b"\n") and data != b"")
        assert index.queued + index.bad + index.duplicates + index.blank == lines
    ids = set()
    for model in index.models:
        assert model.isprintable()
        while (row := index.pop(model)) is not None:
            job = index.read(row)
            assert job.id.isprintable()
            assert job.where not in places
            assert index.prefix_group(row) < 1 << 16
            ids.add(job.id)
    assert len(ids) == index.queued
    index.close()


def result_line(name: str) -> bytes:
    """Return an intact line of a result file."""
    job = Job(
        id=name, endpoint="/v1/chat/completions", model="m", body=b"{}", request_sha256="0" * 64, where="j:1"
    )
    answer = Reply(status=200, body=b'{"choices":[]}')
    return encode_result(
        Result(
            job=job,
            answer=answer,
            model="m",
            provider="groq",
            attempts=1,
            latency_s=0.1,
            queued_s=0.0,
            finished_at="2026-01-02T03:04:05Z",
        )
    )


_FIRST, _LAST = result_line("first"), result_line("last")


def result_file(data: bytes) -> None:
    """Bytes amid intact lines cost none of those, go to quarantine, and leave a file that is whole."""
    with tempfile.TemporaryDirectory() as directory:
        paths = output_paths(Path(directory, "x.jsonl"))
        paths.results.write_bytes(_FIRST + data + b"\n" + _LAST + data)
        repair(paths)
        ids = [name for name, _, _ in done_records(paths)]
        assert set(ids) >= {"first", "last"}
        assert len(ids) == len(set(ids))
        kept = paths.results.read_bytes()
        assert kept.startswith(_FIRST)
        assert _LAST in kept
        again = repair(paths)
        assert (again.quarantined_bytes, again.repeated_lines) == (0, 0)
        assert paths.results.read_bytes() == kept


def foreign_file(data: bytes) -> None:
    """A file of other bytes alone is mended or left alone as it is."""
    with tempfile.TemporaryDirectory() as directory:
        paths = output_paths(Path(directory, "x.jsonl"))
        paths.results.write_bytes(data)
        try:
            repair(paths)
        except OutputError:
            assert paths.results.read_bytes() == data
            return
        moved = [path.read_bytes() for path in (paths.quarantine, paths.superseded) if path.exists()]
        assert len(paths.results.read_bytes()) + sum(map(len, moved)) in (len(data), len(data) + 1)


TARGETS = (job_lines, job_file, result_file, foreign_file)
