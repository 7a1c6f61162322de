"""Job files in all the forms in which they come."""

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from harness import (
    MODEL,
    Simulator,
    answer_of,
    assert_each_once,
    batcher,
    job,
    names,
    read_lines,
    read_summary,
    simulating,
    write_jobs,
)

IDS = names(20)
PLAIN = b"".join(json.dumps(job(name)).encode() + b"\n" for name in IDS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """A simulator without faults."""
    with simulating(tmp_path_factory.mktemp("simulator")) as simulator:
        yield simulator


FORMS = {
    "plain": ("jobs.jsonl", PLAIN.rstrip()),
    "as an editor leaves it": (
        "jobs.jsonl",
        b"\xef\xbb\xbf" + PLAIN.replace(b"\n", b"\r\n").rstrip() + b"\r\n \r\n\r\n",
    ),
    "gzip of two members": ("jobs.jsonl.gz", gzip.compress(PLAIN[:100]) + gzip.compress(PLAIN[100:])),
    "zstd": ("jobs.jsonl.zst", zstandard.compress(PLAIN)),
    "gzip without the name": ("jobs.jsonl", gzip.compress(PLAIN)),
}


@pytest.mark.parametrize(("name", "content"), FORMS.values(), ids=FORMS.keys())
def test_every_form_is_read(tmp_path: Path, server: Simulator, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    done = batcher("run", name, "--base-url", server.url, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert_each_once(tmp_path / "results" / "jobs.jsonl", IDS)


def test_standard_input_is_read_and_can_be_resumed(tmp_path: Path, server: Simulator) -> None:
    content = gzip.compress(PLAIN)
    server.reset()
    run = ("run", "-", "-o", "x.jsonl", "--base-url", server.url)
    first = batcher(*run, "--limit", 5, cwd=tmp_path, stdin=content)
    second = batcher(*run, cwd=tmp_path, stdin=content)
    assert (first.code, second.code) == (0, 0), first.stderr + second.stderr
    assert_each_once(tmp_path / "x.jsonl", IDS)
    assert server.requests == len(IDS)
    # Nothing of the spooled copy stays behind.
    assert {path.name for path in tmp_path.iterdir()} == {
        "x.jsonl", "x.errors.jsonl", "x.journal", "x.lock", "x.summary.json",
    }  # fmt: skip


def test_several_files_are_one_list_of_jobs(tmp_path: Path, server: Simulator) -> None:
    write_jobs(tmp_path / "a.jsonl", map(job, IDS[:12]))
    (tmp_path / "b.jsonl.gz").write_bytes(
        gzip.compress(b"".join(json.dumps(job(name)).encode() + b"\n" for name in IDS[8:]))
    )
    done = batcher("run", "a.jsonl", "b.jsonl.gz", "-o", "x.jsonl", "--base-url", server.url, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "b.jsonl.gz:1: warning" in done.stderr
    assert_each_once(tmp_path / "x.jsonl", IDS)
    assert read_summary(tmp_path / "x.jsonl")["jobs"]["duplicates"] == 4


def test_both_line_forms_are_one_request(tmp_path: Path, server: Simulator) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "model": MODEL}
    batch: dict[str, object] = {
        "custom_id": "same",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
    }
    write_jobs(tmp_path / "jobs.jsonl", [job("same", "hello"), batch])
    done = batcher("run", "jobs.jsonl", "--base-url", server.url, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert read_summary(tmp_path / "results" / "jobs.jsonl")["jobs"]["duplicates"] == 1
    [line] = read_lines(tmp_path / "results" / "jobs.jsonl")
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    expected = hashlib.sha256(b"/v1/chat/completions" + canonical.encode()).hexdigest()
    assert line["batcher"]["request_sha256"] == expected


def test_equal_lines_run_once_and_a_changed_twin_is_a_bad_line(tmp_path: Path, server: Simulator) -> None:
    server.reset()
    write_jobs(tmp_path / "jobs.jsonl", [*map(job, IDS), *map(job, IDS), job("row-0", "another request")])
    done = batcher("run", "jobs.jsonl", "--base-url", server.url, cwd=tmp_path)
    assert done.code == 3
    assert f"jobs.jsonl:{2 * len(IDS) + 1}: " in done.stderr
    assert_each_once(tmp_path / "results" / "jobs.jsonl", IDS)
    assert server.requests == len(IDS)


def test_a_missing_id_comes_from_the_request(tmp_path: Path, server: Simulator) -> None:
    server.reset()
    texts = [f"text {number}" for number in range(10)]
    nameless: list[dict[str, object]] = [{"model": MODEL, "prompt": text} for text in texts]
    run = ("run", "jobs.jsonl", "--base-url", server.url)
    write_jobs(tmp_path / "jobs.jsonl", [*nameless[5:], nameless[5], nameless[5]])
    assert batcher(*run, cwd=tmp_path).code == 0
    # Lines inserted at the front repay nothing.
    write_jobs(tmp_path / "jobs.jsonl", [*nameless, nameless[5], nameless[5]])
    assert batcher(*run, cwd=tmp_path).code == 0
    lines = read_lines(tmp_path / "results" / "jobs.jsonl")
    by_id = {line["custom_id"]: line for line in lines}
    assert server.requests == len(lines) == len(by_id) == 12
    for name, line in by_id.items():
        assert name.partition("-")[0] == line["batcher"]["request_sha256"][:16]
    thrice = [name for name, line in by_id.items() if answer_of(line).endswith("text 5")]
    assert sorted(name.partition("-")[2] for name in thrice) == ["", "2", "3"]


BAD_LINES = {
    "not JSON": b"{",
    "NUL": b"\0\0\0\0",
    "array": b"[]",
    "bad UTF-8": b'{"id":"x","model":"m","prompt":"\xff"}',
    "lone surrogate": rb'{"id":"x","model":"m","prompt":"\ud800"}',
    "NaN": b'{"id":"x","model":"m","prompt":"p","params":{"temperature":NaN}}',
    "infinity": b'{"id":"x","model":"m","prompt":"p","params":{"temperature":1e999}}',
    "huge integer": b'{"id":"x","model":"m","prompt":"p","params":{"seed":18446744073709551616}}',
    "deep": b'{"id":"x","model":"m","prompt":"p","metadata":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "two objects": b'{"id":"x","model":"m","prompt":"p"} {"id":"y"}',
    "trailing comma": b'{"id":"x","model":"m","prompt":"p",}',
    "comment": b"# a comment",
    "no model": b'{"id":"x","prompt":"p"}',
    "no prompt": b'{"id":"x","model":"m"}',
    "both prompts": b'{"id":"x","model":"m","prompt":"p","messages":[{"role":"user","content":"p"}]}',
    "messages as a string": b'{"id":"x","model":"m","messages":"p"}',
    "id with an escape": rb'{"id":"x\u001b[2J","model":"m","prompt":"p"}',
    "id too long": b'{"id":"' + b"x" * 257 + b'","model":"m","prompt":"p"}',
    "empty id": b'{"id":"","model":"m","prompt":"p"}',
    "id as a list": b'{"id":[],"model":"m","prompt":"p"}',
    "another host": b'{"id":"x","model":"m","prompt":"p","base_url":"http://127.0.0.1:9/"}',
    "a key": b'{"id":"x","model":"m","prompt":"p","api_key":"made-up"}',
    "headers": b'{"id":"x","model":"m","prompt":"p","headers":{}}',
    "a URL with a host": b'{"custom_id":"x","method":"POST","url":"http://127.0.0.1:9/v1/chat/completions",'
    b'"body":{"model":"m","messages":[{"role":"user","content":"p"}]}}',
    "an unknown endpoint": b'{"custom_id":"x","method":"POST","url":"/v1/files","body":{"model":"m"}}',
    "another method": b'{"custom_id":"x","method":"GET","url":"/v1/chat/completions","body":{"model":"m"}}',
}


def test_each_bad_line_is_named_and_hurts_no_other(tmp_path: Path, server: Simulator) -> None:
    lines = [line for name, bad in zip(IDS * 2, BAD_LINES.values(), strict=False) for line in (bad, name)]
    good = {name: json.dumps(job(name)).encode() for name in IDS}
    content = b"".join((line if isinstance(line, bytes) else good[line]) + b"\n" for line in lines)
    (tmp_path / "jobs.jsonl").write_bytes(content)
    done = batcher("run", "jobs.jsonl", "--base-url", server.url, cwd=tmp_path)
    assert done.code == 3
    reported = [line for line in done.stderr.splitlines() if "warning" not in line]
    for number, kind in enumerate(BAD_LINES):
        place = f"jobs.jsonl:{2 * number + 1}: "
        assert [line for line in reported if line.startswith(place)], f"{kind}: {place}"
    assert_each_once(tmp_path / "results" / "jobs.jsonl", IDS)
    assert read_summary(tmp_path / "results" / "jobs.jsonl")["jobs"]["bad_lines"] == len(BAD_LINES)
    checked = batcher("check", "jobs.jsonl", cwd=tmp_path)
    assert checked.code == 65
    assert f"{len(BAD_LINES)} bad lines" in checked.stderr


def test_a_truncated_archive_is_an_error_after_its_good_lines(tmp_path: Path, server: Simulator) -> None:
    (tmp_path / "jobs.jsonl.gz").write_bytes(gzip.compress(PLAIN, mtime=0)[:-30])
    done = batcher("run", "jobs.jsonl.gz", "--base-url", server.url, cwd=tmp_path)
    assert done.code == 3, done.stderr
    answered = len(read_lines(tmp_path / "results" / "jobs.jsonl"))
    assert f"jobs.jsonl.gz:{answered + 1}: " in done.stderr


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl.gz").write_bytes(gzip.compress(b" " * (1 << 28), 1))
    done = batcher("run", "jobs.jsonl.gz", "--simulate", cwd=tmp_path)
    assert done.code == 65, done.stderr
    assert "jobs.jsonl.gz" in done.stderr


def test_an_output_is_no_input(tmp_path: Path, server: Simulator) -> None:
    write_jobs(tmp_path / "jobs.jsonl", map(job, IDS))
    done = batcher("run", "jobs.jsonl", "-o", "jobs.jsonl", "--base-url", server.url, cwd=tmp_path)
    assert done.code in (2, 65, 74), done.stderr
    assert (tmp_path / "jobs.jsonl").read_bytes() == PLAIN
