"""What a run leaves behind is what PRODUCT promises, byte for byte where it says so."""

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from answering import answering
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """A simulator that refuses row-3 for good, however often it is asked."""
    faults = ["--fault", "id:status:400=row-3"] * 20
    with simulating(tmp_path_factory.mktemp("simulator"), *faults) as simulator:
        yield simulator


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """A directory with a job file of six lines, the fourth of which fails."""
    lines = [job(name, metadata={"row": name}) for name in names(6)]
    write_jobs(tmp_path / "jobs.jsonl", lines)
    return tmp_path


GOOD = [name for name in names(6) if name != "row-3"]
ABOUT = {
    "model", "provider", "attempts", "latency_s", "queued_s", "cached", "usage", "cost_usd", "request_sha256",
    "finished_at", "crc32",
}  # fmt: skip


def test_only_their_owner_reads_the_files(cwd: Path, server: Simulator) -> None:
    (cwd / "umask").mkdir()
    done = batcher("run", "jobs.jsonl", "--base-url", server.url, "-o", "umask/new/x.jsonl", cwd=cwd)
    assert done.code == 3, done.stderr
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (cwd / "umask" / "new").iterdir()}
    assert files.keys() >= {"x.jsonl", "x.errors.jsonl", "x.journal", "x.summary.json"}
    assert set(files.values()) == {0o600}
    assert stat.S_IMODE((cwd / "umask" / "new").stat().st_mode) == 0o700


def test_a_result_line_is_an_openai_batch_line_and_more(cwd: Path, server: Simulator) -> None:
    batcher("run", "jobs.jsonl", "--base-url", server.url, cwd=cwd)
    out = cwd / "results" / "jobs.jsonl"
    assert_each_once(out, GOOD, failed=["row-3"])
    for line in read_lines(out):
        assert list(line) == ["id", "custom_id", "response", "error", "batcher"]
        assert list(line["response"]) == ["status_code", "request_id", "body"]
        assert line["response"]["status_code"] == 200
        assert line["response"]["request_id"].startswith("req_")
        assert line["error"] is None
        about = line["batcher"]
        assert about.keys() >= ABOUT
        assert (about["model"], about["attempts"], about["cached"]) == (MODEL, 1, False)
        assert about["metadata"] == {"row": line["custom_id"]}
        assert about["usage"]["output_tokens"] == line["response"]["body"]["usage"]["completion_tokens"]
        assert re.fullmatch("[0-9a-f]{64}", about["request_sha256"])


def test_a_failed_job_keeps_its_last_reply(cwd: Path, server: Simulator) -> None:
    batcher("run", "jobs.jsonl", "--base-url", server.url, cwd=cwd)
    [line] = read_lines(cwd / "results" / "jobs.errors.jsonl")
    assert list(line) == ["id", "custom_id", "response", "error", "batcher"]
    assert line["error"].keys() == {"code", "message"}
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"]["error"]["message"] == "Simulated error 400"
    assert line["batcher"]["attempts"] == 1


ODD_BODY = (
    b'{\r\n  "choices" : [ {"index":0,  "message": {"role":"assistant","content":"caf\\u00e9 \xc3\xa9 '
    b'\\n \xe2\x80\xa8"},\n "finish_reason":"stop"} ],\r\n\t"big": 123456789012345678901234567890, '
    b'"tiny": 1.0E-2, "twice": 1, "twice": 2, "usage": {"prompt_tokens":1,"completion_tokens":2,'
    b'"total_tokens":3}\n}\n'
)


def test_the_body_is_the_providers_byte_for_byte_on_one_line(cwd: Path) -> None:
    write_jobs(cwd / "jobs.jsonl", map(job, names(3)))
    with answering(ODD_BODY) as url:
        done = batcher("run", "jobs.jsonl", "--base-url", url, cwd=cwd)
    assert done.code == 0, done.stderr
    out = cwd / "results" / "jobs.jsonl"
    assert sorted(line["custom_id"] for line in read_lines(out)) == names(3)
    expected = ODD_BODY.replace(b"\r", b" ").replace(b"\n", b" ")
    assert out.read_bytes().count(expected.strip()) == 3


def test_a_failed_jobs_body_that_is_not_json_is_quoted(cwd: Path) -> None:
    write_jobs(cwd / "jobs.jsonl", [job("a")])
    with answering(b"<html>no such thing " + b"x" * 5_000, status=422) as url:
        done = batcher("run", "jobs.jsonl", "--base-url", url, cwd=cwd)
    assert done.code == 3, done.stderr
    [line] = read_lines(cwd / "results" / "jobs.errors.jsonl")
    assert line["response"]["status_code"] == 422
    message = line["response"]["body"]["error"]["message"]
    assert message.startswith("<html>no such thing xxx")
    assert len(message) == 2048


def test_the_summary_agrees_with_the_files(cwd: Path, server: Simulator) -> None:
    server.reset()
    done = batcher("run", "jobs.jsonl", "--base-url", server.url, "--json", cwd=cwd)
    out = cwd / "results" / "jobs.jsonl"
    summary = read_summary(out)
    assert json.loads(done.stdout) == summary
    assert done.stdout.count("\n") == 1
    lines = read_lines(out)
    usages = [line["batcher"]["usage"] for line in lines]
    assert summary["exit_code"] == done.code == 3
    assert summary["jobs"] | {"queued": 6, "succeeded": 5, "failed": 1, "pending": 0} == summary["jobs"]
    assert summary["calls"]["total"] == server.requests == 6
    assert summary["tokens"]["input"] == sum(usage["input_tokens"] for usage in usages)
    assert summary["tokens"]["output"] == sum(usage["output_tokens"] for usage in usages)
    assert 0 < summary["latency_s"]["p50"] <= summary["latency_s"]["p99"] <= summary["latency_s"]["max"]


def test_quiet_is_silent_on_success(cwd: Path) -> None:
    write_jobs(cwd / "jobs.jsonl", map(job, names(3)))
    for _ in range(2):
        done = batcher("run", "jobs.jsonl", "--simulate", "-q", cwd=cwd)
        assert (done.code, done.stdout, done.stderr) == (0, "", "")


def test_quiet_is_not_silent_on_failure(cwd: Path, server: Simulator) -> None:
    done = batcher("run", "jobs.jsonl", "--base-url", server.url, "-q", cwd=cwd)
    assert (done.code, done.stdout) == (3, "")
    assert "1 failed" in done.stderr


def test_a_stream_carries_answers_and_failures_and_leaves_no_files(cwd: Path, server: Simulator) -> None:
    done = batcher("run", "jobs.jsonl", "--base-url", server.url, "-o", "-", cwd=cwd)
    assert done.code == 3, done.stderr
    (cwd / "stream.jsonl").write_text(done.stdout)
    lines = read_lines(cwd / "stream.jsonl")
    assert sorted(line["custom_id"] for line in lines) == names(6)
    assert [line["custom_id"] for line in lines if line["error"]] == ["row-3"]
    assert sorted(path.name for path in cwd.iterdir()) == ["jobs.jsonl", "stream.jsonl"]


def test_a_streams_summary_goes_where_it_does_not_mix_with_results(cwd: Path, server: Simulator) -> None:
    done = batcher("run", "jobs.jsonl", "--base-url", server.url, "-o", "-", "--json", "-q", cwd=cwd)
    assert len(done.stdout.splitlines()) == 6
    assert all("custom_id" in json.loads(line) for line in done.stdout.splitlines())


def test_names_in_the_output_are_filled_in(cwd: Path) -> None:
    write_jobs(cwd / "jobs.jsonl", map(job, names(1)))
    out = "out/{stem}-{date}-{time}-{run_id}.jsonl"
    done = batcher("run", "jobs.jsonl", "--simulate", "-o", out, cwd=cwd)
    assert done.code == 0, done.stderr
    [path] = (cwd / "out").glob("*[!s].jsonl")
    assert re.fullmatch(r"jobs-\d{4}-\d\d-\d\d-\d{6}-[0-9a-f]+\.jsonl", path.name)


def test_every_endpoint_brings_its_own_kind_of_answer(cwd: Path, server: Simulator) -> None:
    def batch_line(name: str, url: str, **body: object) -> dict[str, object]:
        return {"custom_id": name, "method": "POST", "url": url, "body": {"model": MODEL, **body}}

    messages = [{"role": "user", "content": "chat"}]
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    lines = [
        batch_line("chat", "/v1/chat/completions", messages=messages),
        batch_line("stream", "/v1/chat/completions", messages=messages, stream=True),
        batch_line("embedding", "/v1/embeddings", input=["a", "b"]),
        batch_line("response", "/v1/responses", input="say so"),
        job("structured", "five", schema=schema),
    ]
    write_jobs(cwd / "jobs.jsonl", lines)
    done = batcher("run", "jobs.jsonl", "--base-url", server.url, cwd=cwd)
    assert done.code == 0, done.stderr
    by_id = {line["custom_id"]: line for line in read_lines(cwd / "results" / "jobs.jsonl")}
    assert by_id.keys() == {"chat", "stream", "embedding", "response", "structured"}
    assert answer_of(by_id["chat"]) == answer_of(by_id["stream"]) == "[simulated] Answer to: chat"
    assert len(by_id["embedding"]["response"]["body"]["data"]) == 2
    assert by_id["response"]["response"]["body"]["object"] == "response"
    assert isinstance(json.loads(answer_of(by_id["structured"]))["n"], int)
