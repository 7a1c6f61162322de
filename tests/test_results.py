import asyncio
import errno
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import OutputError
from batcher.results import (
    ResultWriter,
    check_crc,
    encode_result,
    open_output,
    stream_to,
    write_whole,
)
from batcher.types import Failure, Job, OutputPaths, Reply, Result, Usage, output_paths

ANSWER = b'{"choices":[{"message":{"content":"hello"}}]}'
REPLY = Reply(
    status=200,
    body=ANSWER,
    request_id="req_1",
    finish_reason="stop",
    usage=Usage(input_tokens=3, output_tokens=5),
)
FAILURE = Failure(code="too_large", message="no model can take it")


def made(
    answer: Reply | Failure = REPLY,
    *,
    job_id: str = "row-1",
    body: bytes = b"{}",
    metadata: bytes | None = None,
) -> Result:
    return Result(
        job=Job(
            id=job_id,
            endpoint="/v1/chat/completions",
            model="m",
            body=body,
            request_sha256="ab" * 32,
            where="jobs.jsonl:1",
            metadata=metadata,
        ),
        answer=answer,
        model="openai/gpt-oss-20b",
        provider="groq",
        attempts=2,
        latency_s=0.12345678,
        queued_s=1.5,
        finished_at="2026-01-02T03:04:05Z",
        cost_usd=0.25,
    )


class Committed:
    """Collects what a writer reports."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.groups = 0
        self.sizes = (0, 0)

    def __call__(self, results: Sequence[Result]) -> None:
        self.ids += [result.job.id for result in results]
        self.groups += 1

    def journal(self, results_bytes: int, errors_bytes: int) -> None:
        self.sizes = results_bytes, errors_bytes


@pytest.fixture
def paths(tmp_path: Path) -> OutputPaths:
    return output_paths(tmp_path / "out" / "x.jsonl")


def ids_in(path: Path) -> list[str]:
    lines = path.read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"\n") and check_crc(line) for line in lines)
    return [orjson.loads(line)["custom_id"] for line in lines]


# The line


def test_an_answer_becomes_a_batch_output_line() -> None:
    line = orjson.loads(encode_result(made(metadata=b'{"k":1}')))
    assert line.pop("id").startswith("batch_req_")
    assert line["batcher"].pop("crc32") > 0
    assert line == {
        "custom_id": "row-1",
        "response": {"status_code": 200, "request_id": "req_1", "body": orjson.loads(ANSWER)},
        "error": None,
        "batcher": {
            "model": "openai/gpt-oss-20b",
            "provider": "groq",
            "attempts": 2,
            "latency_s": 0.1235,
            "queued_s": 1.5,
            "cached": False,
            "usage": {"input_tokens": 3, "output_tokens": 5, "cached_tokens": 0, "reasoning_tokens": 0},
            "cost_usd": 0.25,
            "request_sha256": "ab" * 32,
            "finished_at": "2026-01-02T03:04:05Z",
            "finish_reason": "stop",
            "metadata": {"k": 1},
        },
    }


@pytest.mark.parametrize(
    ("status", "body", "in_line"),
    [
        pytest.param(0, b"", None, id="no reply"),
        pytest.param(400, b'{"error":{"code":"x"}}', {"error": {"code": "x"}}, id="json"),
        pytest.param(400, b'{"a":\r\n1}', {"a": 1}, id="pretty json"),
        pytest.param(502, b"<html>\n", {"error": {"message": "<html>\n"}}, id="html"),
        pytest.param(500, b"", {"error": {"message": ""}}, id="empty"),
        pytest.param(500, b"1],[2", {"error": {"message": "1],[2"}}, id="two lists"),
        pytest.param(500, b"1,2", {"error": {"message": "1,2"}}, id="two values"),
        pytest.param(500, b'"\xff"', {"error": {"message": '"�"'}}, id="bad UTF-8"),
        pytest.param(500, b"x" * 3000, {"error": {"message": "x" * 2048}}, id="long text"),
        pytest.param(
            500, b"[" * 1023 + b"]" * 1023, {"error": {"message": "[" * 1023 + "]" * 1023}}, id="deep"
        ),
    ],
)
def test_a_failure_keeps_its_last_reply(status: int, body: bytes, in_line: Any) -> None:
    failure = Failure(code="c", message="m", status=status, body=body, request_id="r")
    line = orjson.loads(encode_result(made(failure)))
    assert line["error"] == {"code": "c", "message": "m"}
    response = {"status_code": status, "request_id": "r", "body": in_line} if status else None
    assert line["response"] == response


def test_line_ids_differ() -> None:
    assert len({orjson.loads(encode_result(made()))["id"] for _ in range(100)}) == 100


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_a_body_stays_as_it_was_but_for_its_line_breaks(value: Any) -> None:
    body = orjson.dumps(value, option=orjson.OPT_INDENT_2).replace(b"\n", b"\r\n")
    line = encode_result(made(Reply(status=200, body=body)))
    assert line.count(b"\n") == 1
    assert body.replace(b"\r\n", b"  ") in line
    assert orjson.loads(line)["response"]["body"] == value


@given(st.binary())
def test_no_failed_body_can_break_a_line(body: bytes) -> None:
    line = encode_result(made(Failure(code="c", message="m", status=500, body=body)))
    assert line.count(b"\n") == 1
    assert check_crc(line)
    assert orjson.loads(line)["custom_id"] == "row-1"


@given(at=st.integers(0, 10_000), flipped=st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(at: int, flipped: int) -> None:
    line = encode_result(made()).rstrip(b"\n")
    at %= len(line)
    assert check_crc(line)
    assert check_crc(line + b"\r\n")
    assert not check_crc(line[:at] + bytes([line[at] ^ flipped]) + line[at + 1 :])
    assert not check_crc(line[:at])


# Files


def test_output_is_for_its_owner_alone(paths: OutputPaths) -> None:
    for sink in open_output(paths):
        assert sink.path is not None
        assert stat.S_IMODE(sink.path.stat().st_mode) == 0o600
        assert not os.get_inheritable(sink.fd)
        sink.close()
    assert stat.S_IMODE(paths.results.parent.stat().st_mode) == 0o700


def test_a_symbolic_link_is_not_written_through(paths: OutputPaths, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    paths.errors.parent.mkdir()
    paths.errors.symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match=r"x\.errors\.jsonl: .*symbolic link"):
        open_output(paths)
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_whole_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.summary.json"
    write_whole(path, b"old")
    with largest_file(10), pytest.raises(OutputError, match=r"x\.summary\.json.*ulimit"):
        write_whole(path, b"n" * 100)
    assert path.read_bytes() == b"old"
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: a write at the edge is short, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# The writer


@contextmanager
def running(writer: ResultWriter) -> Iterator[asyncio.Task[None]]:
    task = asyncio.create_task(writer.commit_forever())
    try:
        yield task
    finally:
        task.cancel()


@pytest.mark.real_loop
async def test_results_keep_their_order_in_two_files(paths: OutputPaths) -> None:
    committed = Committed()
    writer = ResultWriter(
        *open_output(paths), on_committed=committed, journal=committed.journal, max_delay_s=0.001
    )
    with running(writer):
        for number in range(300):
            writer.append(made(FAILURE if number % 3 == 0 else REPLY, job_id=str(number)))
            if number % 20 == 0:
                await asyncio.sleep(0.001)
    await writer.aclose()
    assert committed.ids == [str(number) for number in range(300)]
    assert ids_in(paths.results) == [str(number) for number in range(300) if number % 3]
    assert ids_in(paths.errors) == [str(number) for number in range(300) if number % 3 == 0]
    assert committed.sizes == (paths.results.stat().st_size, paths.errors.stat().st_size)
    assert committed.groups > 1
    assert writer.backlog_bytes == 0


@pytest.mark.real_loop
async def test_a_line_outlives_the_process_before_it_is_committed(paths: OutputPaths) -> None:
    committed = Committed()
    writer = ResultWriter(*open_output(paths), on_committed=committed, max_delay_s=3600)
    with running(writer):
        writer.append(made())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert ids_in(paths.results) == ["row-1"]
        assert committed.ids == []
        assert writer.backlog_bytes >= paths.results.stat().st_size
    await writer.aclose()
    assert committed.ids == ["row-1"]


@pytest.mark.real_loop
async def test_a_result_is_committed_only_after_its_sync(
    paths: OutputPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced_ids: list[str] = []
    committed_early: list[str] = []
    fdatasync = os.fdatasync

    def watched(fd: int) -> None:
        assert threading.current_thread() is not threading.main_thread()
        written = ids_in(paths.results)
        fdatasync(fd)
        synced_ids[:] = written

    monkeypatch.setattr(os, "fdatasync", watched)

    def on_committed(results: Sequence[Result]) -> None:
        committed_early.extend(result.job.id for result in results if result.job.id not in synced_ids)

    writer = ResultWriter(*open_output(paths), on_committed=on_committed, max_delay_s=0)
    with running(writer):
        for number in range(50):
            writer.append(made(job_id=str(number)))
            await asyncio.sleep(0.0005)
    await writer.aclose()
    assert len(synced_ids) == 50
    assert committed_early == []


@pytest.mark.real_loop
async def test_a_large_group_does_not_wait(paths: OutputPaths) -> None:
    committed = Committed()
    writer = ResultWriter(
        *open_output(paths),
        on_committed=committed,
        max_delay_s=3600,
        max_batch_bytes=2000,
        max_backlog_bytes=1000,
    )
    with running(writer):
        for number in range(4):
            writer.append(made(job_id=str(number)))
        await writer.room()
        assert committed.ids == ["0", "1", "2", "3"]
    await writer.aclose()


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        pytest.param(REPLY, b"x" * 20_000, id="a long prompt"),
        pytest.param(
            Failure(code="c", message="m", status=500, body=b"x" * 20_000), b"{}", id="a long reply"
        ),
    ],
)
async def test_the_backlog_counts_what_a_result_holds_beside_its_line(
    paths: OutputPaths, answer: Reply | Failure, body: bytes
) -> None:
    committed = Committed()
    writer = ResultWriter(
        *open_output(paths), on_committed=committed, durable=False, max_backlog_bytes=15_000
    )
    with running(writer):
        writer.append(made(answer, body=body))
        assert writer.backlog_bytes > 20_000
        await writer.room()
        assert committed.ids == ["row-1"]
        assert writer.backlog_bytes == 0
    await writer.aclose()


async def test_without_syncs_no_thread_is_needed(paths: OutputPaths) -> None:
    committed = Committed()
    writer = ResultWriter(*open_output(paths), on_committed=committed, durable=False, max_delay_s=60)
    with running(writer):
        writer.append(made())
        await asyncio.sleep(59)
        assert committed.ids == []
        await asyncio.sleep(2)
        assert committed.ids == ["row-1"]
    await writer.aclose()


@pytest.mark.real_loop
async def test_a_failed_sync_is_never_followed_by_another(
    paths: OutputPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = Committed()
    writer = ResultWriter(*open_output(paths), on_committed=committed, max_delay_s=0, max_backlog_bytes=0)
    with running(writer) as task:
        writer.append(made(job_id="safe"))
        await writer.room()
        syncs = 0

        def fails_once(_: int) -> None:
            nonlocal syncs
            syncs += 1
            if syncs == 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fdatasync", fails_once)
        writer.append(made(job_id="lost"))
        with pytest.raises(OutputError, match=r"x\.jsonl: Input/output error"):
            await task
        writer.append(made(job_id="too late"))
    with pytest.raises(OutputError):
        await writer.aclose()
    assert syncs == 1
    assert committed.ids == ["safe"]
    assert ids_in(paths.results) == ["safe"]


@pytest.mark.real_loop
async def test_a_full_disk_leaves_whole_lines(paths: OutputPaths) -> None:
    committed = Committed()
    writer = ResultWriter(*open_output(paths), on_committed=committed, max_delay_s=0, max_backlog_bytes=0)
    with running(writer) as task, largest_file(5000):
        for number in range(30):
            writer.append(made(job_id=str(number)))
            with suppress(OutputError):
                await writer.room()
        with pytest.raises(OutputError, match=r"x\.jsonl.*ulimit"):
            await task
        with pytest.raises(OutputError):
            await writer.aclose()
    kept = ids_in(paths.results)
    assert 5 < len(kept) < 20
    assert kept[: len(committed.ids)] == committed.ids


@pytest.mark.real_loop
async def test_there_is_no_room_before_an_answer_is_written(paths: OutputPaths) -> None:
    """Eight answers come in one turn of the loop: none of them may lead to another call on a full disk."""
    told: list[OutputError] = []
    writer = ResultWriter(
        *open_output(paths), on_committed=Committed(), on_failure=told.append, max_delay_s=60
    )
    paid_again = []

    async def job(number: int) -> None:
        writer.append(made(job_id=str(number)))
        # The slot is free, and the next call goes out with those of the other jobs.
        await asyncio.sleep(0)
        writer.flush()
        if not told:
            paid_again.append(number)
        await writer.room()

    with largest_file(1000):
        ended = await asyncio.gather(*map(job, range(8)), return_exceptions=True)
        with pytest.raises(OutputError):
            await writer.aclose()
    assert all(isinstance(end, OutputError) for end in ended)
    assert paid_again == []
    assert len(told) == 1
    assert ids_in(paths.results) == ["0"]


def replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").rename(path)


def cut(path: Path) -> None:
    os.truncate(path, 0)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


@pytest.mark.real_loop
@pytest.mark.parametrize("side", ["results", "errors"])
@pytest.mark.parametrize("meddle", [Path.unlink, replace, cut, lengthen], ids=lambda meddle: meddle.__name__)
async def test_a_file_changed_by_others_ends_the_run(paths: OutputPaths, side: str, meddle: Any) -> None:
    committed = Committed()
    writer = ResultWriter(
        *open_output(paths),
        on_committed=committed,
        journal=committed.journal,
        max_delay_s=0,
        max_backlog_bytes=0,
    )
    with running(writer) as task:
        writer.append(made(job_id="before"))
        writer.append(made(FAILURE, job_id="before too"))
        await writer.room()
        path: Path = getattr(paths, side)
        meddle(path)
        writer.append(made(job_id="after"))
        with pytest.raises(OutputError, match=path.name):
            await task
    with pytest.raises(OutputError):
        await writer.aclose()
    assert committed.ids == ["before", "before too"]
    assert committed.sizes == (0, 0), "what was told now must not end the next run, too"


async def test_a_failing_journal_ends_the_run(paths: OutputPaths) -> None:
    def failing_journal(_results: int, _errors: int) -> None:
        raise OutputError("x.journal: full")

    committed = Committed()
    writer = ResultWriter(
        *open_output(paths),
        on_committed=committed,
        journal=failing_journal,
        durable=False,
        max_backlog_bytes=0,
    )
    with running(writer) as task:
        writer.append(made())
        with pytest.raises(OutputError, match="full"):
            await task
        writer.append(made(job_id="too late"))
        with pytest.raises(OutputError, match="full"):
            await writer.room()
    with pytest.raises(OutputError, match="full"):
        await writer.aclose()
    assert committed.ids == ["row-1"]
    assert ids_in(paths.results) == ["row-1"]


@pytest.mark.real_loop
async def test_closing_commits_everything_even_when_cancelled(
    paths: OutputPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncing, go_on = threading.Event(), threading.Event()

    def slow(_: int) -> None:
        syncing.set()
        assert go_on.wait(5)

    monkeypatch.setattr(os, "fdatasync", slow)
    committed = Committed()
    writer = ResultWriter(*open_output(paths), on_committed=committed, max_delay_s=0)
    with running(writer) as task:
        writer.append(made(job_id="0"))
        await asyncio.to_thread(syncing.wait, 5)
        writer.append(made(FAILURE, job_id="1"))
        task.cancel()
        closing = asyncio.create_task(writer.aclose())
        for _ in range(3):
            await asyncio.sleep(0.001)
            closing.cancel()
        assert committed.ids == []
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await closing
    assert committed.ids == ["0", "1"]
    assert (ids_in(paths.results), ids_in(paths.errors)) == (["0"], ["1"])
    await writer.aclose()
    with pytest.raises(RuntimeError):
        writer.append(made())


# The stream


@pytest.mark.real_loop
async def test_a_slow_reader_of_the_stream_stops_no_other_work() -> None:
    reader, fd = os.pipe()
    committed = Committed()
    writer = ResultWriter(*stream_to(fd), on_committed=committed, max_delay_s=0)
    reply = Reply(status=200, body=orjson.dumps({"text": "x" * 200_000}))
    with running(writer):
        writer.append(made(reply, job_id="0"))
        writer.append(made(FAILURE, job_id="1"))
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert committed.ids == []
        closing = asyncio.create_task(writer.aclose())
        received = b""
        while received.count(b"\n") < 2:
            received += await asyncio.to_thread(os.read, reader, 1 << 16)
        await closing
    os.close(fd)
    os.close(reader)
    assert [orjson.loads(line)["custom_id"] for line in received.splitlines()] == ["0", "1"]
    assert committed.ids == ["0", "1"]


@pytest.mark.real_loop
async def test_a_stream_whose_reader_has_gone_ends_the_run() -> None:
    reader, fd = os.pipe()
    os.close(reader)
    committed = Committed()
    writer = ResultWriter(*stream_to(fd), on_committed=committed, max_delay_s=0)
    with running(writer) as task:
        writer.append(made())
        with pytest.raises(OutputError, match="stdout: Broken pipe; let the reader"):
            await task
    with pytest.raises(OutputError):
        await writer.aclose()
    os.close(fd)
    assert committed.ids == []


@pytest.mark.real_loop
async def test_a_stream_that_is_given_up_keeps_what_its_reader_took() -> None:
    reader, fd = os.pipe()
    committed = Committed()
    writer = ResultWriter(*stream_to(fd), on_committed=committed, max_delay_s=0)
    with running(writer) as task:
        for number in range(400):
            writer.append(made(job_id=str(number)))
        received = await asyncio.to_thread(os.read, reader, 1 << 16)
        task.cancel()
        closing = asyncio.create_task(writer.aclose())
        await asyncio.wait([closing], timeout=0.05)
        assert not closing.done()
        writer.give_up()
        await asyncio.wait_for(closing, 5)
    os.close(fd)
    received += await asyncio.to_thread(os.read, reader, 1 << 20)
    os.close(reader)
    whole = received[: received.rfind(b"\n") + 1].splitlines()
    assert [orjson.loads(line)["custom_id"] for line in whole] == committed.ids
    assert 0 < len(committed.ids) < 400
    assert writer.uncommitted == 400 - len(committed.ids)


IDS_AFTER_A_FORK = """
import os, sys
import orjson
from batcher.results.line import encode_result
from batcher.types import Failure, Job, Result
chat = "/v1/chat/completions"
job = Job(id="j", endpoint=chat, model="m", body=b"{}", request_sha256="0" * 64, where="f:1")
result = Result(
    job=job, answer=Failure(code="c", message="m"), model="m", provider="p", attempts=1,
    latency_s=0.0, queued_s=0.0, finished_at="",
)
def say():
    print(orjson.loads(encode_result(result))["id"], flush=True)
say()
for _ in range(2):
    if not (child := os.fork()):
        say()
        os._exit(0)
    os.waitpid(child, 0)
say()
"""


def test_no_two_lines_of_forked_processes_have_one_id() -> None:
    said = subprocess.run(
        [sys.executable, "-c", IDS_AFTER_A_FORK], capture_output=True, text=True, check=True
    )
    assert len(set(said.stdout.split())) == 4
