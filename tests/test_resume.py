import os
import resource
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from batcher.errors import OutputError
from batcher.results import encode_result
from batcher.results.earlier import FAILED
from batcher.results.fingerprints import hash_id, hash_request
from batcher.results.scan import Scan
from batcher.resume import done_records, repair, set_aside, supersede
from batcher.types import Failure, Job, OutputPaths, Reply, Result, output_paths

SHA = "cd" * 32


def line_of(job_id: str, *, ok: bool = True, text: str = "hi") -> bytes:
    answer: Reply | Failure = Failure(code="too_large", message=text)
    if ok:
        answer = Reply(status=200, body=orjson.dumps({"text": text}))
    return encode_result(
        Result(
            job=Job(
                id=job_id,
                endpoint="/v1/chat/completions",
                model="m",
                body=b"{}",
                request_sha256=SHA,
                where="jobs.jsonl:1",
            ),
            answer=answer,
            model="m",
            provider="groq",
            attempts=1,
            latency_s=0.1,
            queued_s=0.0,
            finished_at="2026-01-02T03:04:05Z",
        )
    )


@pytest.fixture
def paths(tmp_path: Path) -> OutputPaths:
    return output_paths(tmp_path / "x.jsonl")


def content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def everything_in(paths: OutputPaths) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths.results.parent.iterdir()}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Scan and repair

A, B, C = line_of("a"), line_of("b", text="é\u2028"), line_of("c")
NULS = b"\0" * 600


@pytest.mark.parametrize(
    ("before", "after", "quarantined"),
    [
        pytest.param(b"", b"", b"", id="empty"),
        pytest.param(A + B, A + B, b"", id="whole"),
        pytest.param(A + B[:-1], A + B, b"", id="newline missing"),
        pytest.param(A + B[:-2], A, B[:-2], id="torn tail"),
        pytest.param(A + B + NULS, A + B, NULS, id="zeroed tail"),
        pytest.param(A[:40], b"", A[:40], id="nothing but a torn line"),
        pytest.param(A + B[:99] + b"\n" + C, A + C, B[:99] + b"\n", id="torn in the middle"),
        pytest.param(A + NULS + B + C, A + C, NULS + B, id="zeroed in the middle"),
        pytest.param(A + NULS + b"\n" + C[:-1], A + C, NULS + b"\n", id="zeroed, newline missing"),
        pytest.param(A + b"\n\n" + B + b"?", A + B, b"\n\n?", id="blank lines"),
        pytest.param(B.replace(b'"c"', b'"z"') + A[1:], B, A[1:], id="a line behind its start"),
        pytest.param(A.replace(b"hi", b"ho") + B, B, A.replace(b"hi", b"ho"), id="one word changed"),
        pytest.param(
            b'{"event":"sent","id":"a","at":1.5}\n' + NULS,
            b"",
            b'{"event":"sent","id":"a","at":1.5}\n' + NULS,
            id="an old sector of the journal",
        ),
        pytest.param(A[:-1] + b"\r\n" + B, A[:-1] + b"\r\n" + B, b"", id="an editor's line ends"),
    ],
)
def test_repair_leaves_intact_lines_and_loses_no_byte(
    paths: OutputPaths, before: bytes, after: bytes, quarantined: bytes
) -> None:
    paths.results.write_bytes(before)
    report = repair(paths)
    assert content(paths.results) == after
    assert content(paths.quarantine) == quarantined
    assert report.quarantined_bytes == len(quarantined)
    assert report.repeated_lines == 0
    settled = everything_in(paths)
    assert repair(paths).quarantined_bytes == 0
    assert everything_in(paths) == settled


@given(st.data())
@settings(deadline=None)
def test_repair_of_any_damage(data: st.DataObject) -> None:
    """Cut, zero, insert at random: every line that is still whole stays, every other byte is set aside."""
    whole = [line_of(f"job-{number}", text="x" * number) for number in range(6)]
    damaged = b"".join(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, 5000)) % (len(damaged) + 1)
        length = data.draw(st.integers(0, 1200))
        garbage = data.draw(
            st.binary(max_size=40)
            | st.just(bytes(length))
            | st.just(b"\n")
            | st.just(damaged[at : at + length])
        )
        keep = at if data.draw(st.booleans()) else at + length
        damaged = damaged[:at] + garbage + damaged[keep:]
    pieces = [piece + b"\n" for piece in damaged.split(b"\n")]
    pieces[-1] = pieces[-1][:-1]
    intact = [piece for piece in pieces if piece.rstrip(b"\r\n") + b"\n" in whole]
    survivors = list(dict.fromkeys(piece.rstrip(b"\r\n") for piece in intact))
    bad = b"".join(piece for piece in pieces if piece not in intact)
    assume(survivors)  # one damaged line alone may look like somebody else's file

    with TemporaryDirectory() as directory:
        paths = output_paths(Path(directory) / "x.jsonl")
        paths.results.write_bytes(damaged)
        repair(paths)
        assert [line.rstrip(b"\r") for line in content(paths.results).split(b"\n")[:-1]] == survivors
        assert content(paths.quarantine) == bad
        scan = Scan(paths.results)
        assert len(list(scan)) == len(survivors)
        assert (scan.bad, scan.unterminated) == ([], False)
        assert stat.S_IMODE(paths.results.stat().st_mode) & 0o600 == 0o600


def test_a_scan_tells_where_the_damage_is(paths: OutputPaths) -> None:
    paths.results.write_bytes(A + b"??\n\n" + B + b"{")
    scan = Scan(paths.results)
    assert list(scan) == [("a", SHA, True), ("b", SHA, True)]
    end = len(A + B) + 4
    assert scan.bad == [(len(A), len(A) + 4), (end, end + 1)]
    assert (scan.size, scan.good_end, scan.bad_bytes) == (end + 1, end, 5)


@pytest.mark.parametrize(
    "first",
    [b'{"custom_id":"a","response":{}}', b'{"batcher":{"model":"m"}}', b'{"batcher":1}', b"{}"],
    ids=["batch output", "no crc", "odd", "empty"],
)
@pytest.mark.parametrize("side", ["results", "errors"])
def test_a_file_of_somebody_else_is_refused_and_left_alone(
    paths: OutputPaths, side: str, first: bytes
) -> None:
    path: Path = getattr(paths, side)
    path.write_bytes(first + b"\n" + A[:90])
    before = everything_in(paths)
    with pytest.raises(OutputError, match=f"{path.name}:1: .*did not write the file"):
        repair(paths)
    with pytest.raises(OutputError, match="did not write the file"):
        list(done_records(paths))
    assert everything_in(paths) == before


def test_done_records_cover_both_files(paths: OutputPaths) -> None:
    assert list(done_records(paths)) == []
    paths.results.write_bytes(A)
    paths.errors.write_bytes(line_of("f", ok=False))
    assert list(done_records(paths)) == [("a", SHA, True), ("f", SHA, False)]


def test_an_id_stands_once_and_no_answer_is_lost(paths: OutputPaths) -> None:
    late_answer = line_of("x", text="late")
    failures = [line_of("x", ok=False), line_of("f", ok=False), line_of("f", ok=False, text="again")]
    answers = [A, line_of("a", text="second"), B]
    paths.results.write_bytes(b"".join([*answers, failures[0], late_answer]))
    paths.errors.write_bytes(b"".join([*failures[1:], line_of("b", ok=False)]))
    assert repair(paths).repeated_lines == 4
    assert content(paths.results) == A + B + late_answer
    assert content(paths.errors) == failures[1]
    assert len(content(paths.superseded).splitlines()) == 4
    assert answers[1] in content(paths.superseded)
    assert repair(paths).repeated_lines == 0


def test_what_cannot_be_written_leaves_the_output_as_it_was(paths: OutputPaths) -> None:
    paths.results.write_bytes(before := A * 20 + b"?\n" + B)
    with largest_file(2000), pytest.raises(OutputError, match="ulimit"):
        repair(paths)
    assert content(paths.results) == before
    assert repair(paths).quarantined_bytes == 2


SAFE = {
    "nothing was safe": (A + b"?\n" + B, 0, None),
    "damage behind what was safe": (A + B + b"?\n" + C, len(A + B), None),
    "whole": (A + B, len(A + B), None),
    "more than was safe": (A + B + C, len(A), None),
    "the last newline is lost": (A + B[:-1], len(A), None),
    "damage right in front": (A + b"?" * len(B), len(A + B), rf"x\.jsonl:2: .*byte {len(A)}"),
    "a sector of zeros": (A + B + C[:50] + b"\0" * 512 + C, len(A + B + C), r"x\.jsonl:3: "),
    "cut in a line": (A + B[:-9], len(A + B), r"x\.jsonl:2: "),
}


@pytest.mark.parametrize(
    ("found", "missing"), [(A + B, len(C)), (b"", len(A + B + C))], ids=["cut", "emptied"]
)
def test_whole_lines_that_are_gone_are_counted(paths: OutputPaths, found: bytes, missing: int) -> None:
    paths.results.write_bytes(found)
    assert repair(paths, committed=(len(A + B + C), 0)).missing_bytes == missing
    assert content(paths.results) == found


@pytest.mark.parametrize(("found", "safe_bytes", "refused"), SAFE.values(), ids=SAFE.keys())
@pytest.mark.parametrize("side", ["results", "errors"])
def test_what_was_safe_is_only_lost_by_somebody_elses_hand(
    paths: OutputPaths, side: str, found: bytes, safe_bytes: int, refused: str | None
) -> None:
    path: Path = getattr(paths, side)
    path.write_bytes(found)
    committed = (safe_bytes, 0) if side == "results" else (0, safe_bytes)
    if refused is None:
        repair(paths, committed=committed)
        repair(paths, committed=committed)
        return
    before = everything_in(paths)
    with pytest.raises(OutputError, match=refused.replace("x", path.stem.replace(".", r"\."), 1)) as raised:
        repair(paths, committed=committed)
    assert raised.value.exit_code == 74
    assert f"delete {paths.journal}" in str(raised.value)
    assert everything_in(paths) == before
    repair(paths)  # as if the journal had been deleted
    assert content(path) == b"".join(line for line in found.splitlines(keepends=True) if line in (A, B, C))


def test_marks_are_taken_back_before_a_repeated_line_goes(paths: OutputPaths) -> None:
    seen: list[bytes] = []
    paths.results.write_bytes(A + B)
    repair(paths, before_removing=lambda: seen.append(content(paths.results)))
    assert seen == []
    paths.results.write_bytes(A + B + A)
    repair(paths, committed=(len(A + B + A), 0), before_removing=lambda: seen.append(content(paths.results)))
    assert seen == [A + B + A]
    assert content(paths.results) == A + B


def test_every_result_is_told_and_kept_for_the_index(paths: OutputPaths) -> None:
    told: list[str] = []
    paths.results.write_bytes(A + NULS + b"\n" + B)
    paths.errors.write_bytes(line_of("f", ok=False))
    paths.superseded.write_bytes(C)
    earlier = repair(paths, on_id=told.append).earlier
    assert told == ["a", "b", "f"]
    answer = hash_request(SHA)
    assert [earlier.get(hash_id(job_id)) for job_id in "abcf"] == [answer, answer, None, answer | FAILED]


def test_of_a_repeated_id_the_result_that_stays_is_kept_for_the_index(paths: OutputPaths) -> None:
    paths.results.write_bytes(A + B)
    paths.errors.write_bytes(line_of("f", ok=False) + line_of("b", ok=False) + line_of("f", ok=False))
    earlier = repair(paths).earlier
    answer = hash_request(SHA)
    assert len(earlier) == 3
    assert [earlier.get(hash_id(job_id)) for job_id in "abf"] == [answer, answer, answer | FAILED]


def test_what_is_raised_while_reading_leaves_everything_as_it_was(paths: OutputPaths) -> None:
    class StopReading(Exception):
        pass

    def stop(done_bytes: int) -> None:
        told.append(done_bytes)
        raise StopReading

    told: list[int] = []
    paths.results.write_bytes(line_of("long", text="x" * (1 << 20)) + A + NULS + B)
    before = everything_in(paths)
    with pytest.raises(StopReading):
        repair(paths, on_progress=stop)
    assert everything_in(paths) == before
    assert len(told) == 1
    assert 1 << 20 < told[0] < paths.results.stat().st_size


# Supersede


def test_replaced_lines_move(paths: OutputPaths) -> None:
    failed = [line_of("f", ok=False), line_of("g", ok=False)]
    paths.results.write_bytes(A + B + C)
    paths.errors.write_bytes(b"".join(failed))
    assert supersede(paths, {"nobody"}.__contains__) == 0
    assert not paths.superseded.exists()
    assert supersede(paths, {"b", "f"}.__contains__) == 2
    assert content(paths.results) == A + C
    assert content(paths.errors) == failed[1]
    assert content(paths.superseded) == B + failed[0]
    assert stat.S_IMODE(paths.results.stat().st_mode) == 0o600


@pytest.mark.parametrize("torn", [0, 1, 100], ids="torn by {}".format)
def test_a_crash_between_copy_and_removal_repeats_nothing(paths: OutputPaths, torn: int) -> None:
    paths.results.write_bytes(A + B)
    copies = A + B
    paths.superseded.write_bytes(copies[: len(copies) - torn])
    repair(paths)
    assert supersede(paths, {"a", "b"}.__contains__) == 2
    assert content(paths.results) == b""
    assert sorted(content(paths.superseded).splitlines()) == sorted(copies.splitlines())


@pytest.mark.parametrize("syncs", range(12))
def test_a_kill_at_any_sync_loses_and_repeats_nothing(paths: OutputPaths, syncs: int) -> None:
    failed = line_of("f", ok=False)
    paths.results.write_bytes(A + NULS + b"\n" + B + C)
    paths.errors.write_bytes(failed + b"torn")

    def mend_and_move() -> None:
        repair(paths)
        supersede(paths, {"b", "f"}.__contains__)

    if (child := os.fork()) == 0:
        left = iter(range(syncs))
        sync = os.fsync
        os.fsync = lambda fd: sync(fd) if next(left, None) is not None else os._exit(0)
        try:
            mend_and_move()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    kept = content(paths.results) + content(paths.errors) + content(paths.superseded)
    assert all(line in kept for line in (A, B, C, failed))
    mend_and_move()
    assert content(paths.results) == A + C
    assert content(paths.errors) == b""
    assert content(paths.superseded) == B + failed
    assert set(content(paths.quarantine).replace(b"torn", b"")) == {0, ord("\n")}
    assert not list(paths.results.parent.glob("*.tmp"))


# Setting aside


def test_a_fresh_start_deletes_nothing(paths: OutputPaths) -> None:
    names: Sequence[Any] = [entry.name for entry in fields(paths) if entry.name != "lock"]
    for round_number in range(3):
        for name in names:
            getattr(paths, name).write_text(f"{round_number} {name}")
        paths.lock.write_text("lock")
        moved = set_aside(paths)
        assert len(moved) == len(names)
        assert all(path.read_text().startswith(f"{round_number} ") for path in moved)
        assert not any(getattr(paths, name).exists() for name in names)
    assert paths.lock.read_text() == "lock"
    assert len(list(paths.results.parent.iterdir())) == 3 * len(names) + 1
    assert set_aside(paths) == []


def test_names_of_what_is_set_aside_belong_together(paths: OutputPaths) -> None:
    paths.results.write_bytes(A)
    paths.errors.write_bytes(B)
    paths.summary.write_bytes(b"")
    moved = {path.name for path in set_aside(paths)}
    stem = min(moved, key=len).removesuffix(".jsonl")
    assert moved == {f"{stem}.jsonl", f"{stem}.errors.jsonl"}
    assert stem.startswith("x.")
