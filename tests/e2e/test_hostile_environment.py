"""Nothing around a run moves its calls to another host or its key into a file."""

import resource
import subprocess
from pathlib import Path

import pytest
from harness import (
    BATCHER,
    Done,
    assert_each_once,
    batcher,
    environment,
    job,
    names,
    nobody,
    read_lines,
    simulating,
    without_long_waits,
    write_jobs,
)

SENTINEL = "5entinel"
GROQ_KEY = f"gsk_{SENTINEL}{'0123456789' * 4}"
OPENAI_KEY = f"sk-{SENTINEL}{'0123456789' * 4}"
PROMPT = "a-private-prompt"
IDS = names(30)


@pytest.mark.parametrize(
    ("provider", "path"), [("groq", ""), ("openai-compatible", "/v1")], ids=["groq", "openai-compatible"]
)
def test_variables_of_other_programs_change_nothing(tmp_path: Path, provider: str, path: str) -> None:
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, IDS))
    with simulating(tmp_path, "--accept-key", GROQ_KEY) as server, nobody() as (elsewhere, was_called):
        proxies = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"]
        env = environment(
            **dict.fromkeys(proxies, elsewhere),
            NO_PROXY="",
            GROQ_BASE_URL=elsewhere,
            OPENAI_BASE_URL=elsewhere,
            OPENAI_API_BASE=elsewhere,
            GROQ_CUSTOM_HEADERS=f"x-client-request-id: forged\nauthorization: Bearer {OPENAI_KEY}",
            GROQ_API_KEY=GROQ_KEY,
            PYTHONWARNINGS="error",
        )
        options = ("--provider", provider, "--api-key-env", "GROQ_API_KEY")
        url = server.url.removesuffix("/v1") + path
        done = batcher("run", jobs.name, "--base-url", url, *options, cwd=tmp_path, env=env)
        models = batcher("models", "--base-url", url, *options, cwd=tmp_path, env=env)
        assert (done.code, models.code) == (0, 0), done.stderr + models.stderr
        assert not was_called()
        assert server.stats()["by_id"] == dict.fromkeys(IDS, 1)
    assert_each_once(tmp_path / "results" / "jobs.jsonl", IDS)


def test_a_certificate_file_of_the_environment_is_not_blamed_on_the_configuration(tmp_path: Path) -> None:
    write_jobs(tmp_path / "jobs.jsonl", map(job, IDS))
    env = environment(SSL_CERT_FILE="/nonexistent")
    done = batcher("run", "jobs.jsonl", "--simulate", cwd=tmp_path, env=env)
    assert done.code == 0 or "SSL_CERT_FILE" in done.stderr, done.stderr


def test_keys_and_prompts_show_up_nowhere_and_no_redirect_is_followed(tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path / "jobs.jsonl", [job(name, f"{PROMPT} {name}") for name in names(120)])
    with nobody() as (elsewhere, was_called):
        faults = ["mixed=0.15", *(f"redirect:{status}=0.02" for status in (301, 302, 303, 307, 308))]
        faults += [f"id:401={PROMPT} row-119"]
        options = [arg for fault in faults for arg in ("--fault", fault)]
        with simulating(tmp_path, *options, "--redirect-to", elsewhere, "--accept-key", GROQ_KEY) as server:
            endpoint = ("--provider", "groq", "--base-url", server.url.removesuffix("/v1"))
            quick = without_long_waits(tmp_path)
            run = ("run", jobs.name, *endpoint, "-c", quick, "--log-level", "debug")
            ends = [
                batcher(*run, *more, cwd=tmp_path, env=environment(GROQ_API_KEY=GROQ_KEY))
                for more in ([], ["--retry-failed", "--json"])
            ]
            key_file = tmp_path / "key"
            key_file.write_text(GROQ_KEY + "\n")
            key_file.chmod(0o600)
            ends += [
                batcher(*command, cwd=tmp_path, env=environment(GROQ_API_KEY_FILE="key"))
                for command in ((*run, "--show-config"), ("doctor", *endpoint))
            ]
            key_file.unlink()
            met = server.stats()["by_fault"]
            assert sum(met.values()) > 20
            assert {kind for kind in met if kind.startswith("redirect:")}
        assert not was_called()

    assert {done.code for done in ends} <= {0, 3}, ends  # a 401 among answers ends no run
    assert not [done for done in ends if SENTINEL in done.stdout + done.stderr]
    assert not [done for done in ends if PROMPT in done.stdout + done.stderr]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert not [path for path in files if SENTINEL.encode() in path.read_bytes()]


def shell(line: str, cwd: Path, **variables: str) -> Done:
    """Run a shell line in which $BATCHER is the command."""
    ended = subprocess.run(
        ["sh", "-c", line],
        cwd=cwd,
        env=environment(BATCHER=str(BATCHER), **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    done = Done(ended.returncode, ended.stdout.decode(), ended.stderr.decode())
    assert "Traceback" not in done.stderr
    return done


STREAMS = {
    "stderr closed": ("$BATCHER run jobs.jsonl --simulate 2>&-", {0}),
    "all closed": ("$BATCHER run jobs.jsonl --simulate <&- >&- 2>&-", {0}),
    "stderr full": ("$BATCHER run jobs.jsonl --simulate 2>/dev/full", {0}),
    "summary to a full stdout": ("$BATCHER run jobs.jsonl --simulate --json >/dev/full", {0, 74}),
    "summary to a closed stdout": ("$BATCHER run jobs.jsonl --simulate --json >&-", {0, 74}),
}


@pytest.mark.parametrize(("line", "codes"), STREAMS.values(), ids=STREAMS.keys())
def test_a_stream_that_is_gone_costs_no_result(tmp_path: Path, line: str, codes: set[int]) -> None:
    write_jobs(tmp_path / "jobs.jsonl", map(job, IDS))
    done = shell(line, tmp_path)
    assert done.code in codes, done.stderr
    assert_each_once(tmp_path / "results" / "jobs.jsonl", IDS)


LOST_STREAMS = {
    "full": "$BATCHER run jobs.jsonl --simulate -o - >/dev/full",
    "closed": "$BATCHER run jobs.jsonl --simulate -o - >&-",
}


@pytest.mark.parametrize("line", LOST_STREAMS.values(), ids=LOST_STREAMS.keys())
def test_results_that_cannot_be_streamed_end_the_run(tmp_path: Path, line: str) -> None:
    write_jobs(tmp_path / "jobs.jsonl", map(job, names(2_000)))
    done = shell(line, tmp_path)
    assert done.code == 74, done.stderr
    assert "stdout" in done.stderr


def test_a_reader_that_has_seen_enough_ends_the_run_without_noise(tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, names(5_000)))
    with simulating(tmp_path, "--latency", 0.01) as server:
        done = shell(
            "{ $BATCHER run jobs.jsonl --base-url $URL -o - -q; echo $? >code; } | head -1",
            tmp_path,
            URL=server.url,
        )
        assert server.requests < 5_000
    assert jobs.exists()
    assert done.stdout.count("\n") == 1
    assert (tmp_path / "code").read_text() == "74\n"


def test_few_file_descriptors_only_slow_a_run_down(tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path / "jobs.jsonl", map(job, names(150)))

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))

    with simulating(tmp_path, "--latency", 0.02) as server:
        run = ("run", jobs.name, "--base-url", server.url, "--concurrency", 200)
        done = batcher(*run, cwd=tmp_path, before=few)
    assert done.code == 0, done.stderr
    assert_each_once(tmp_path / "results" / "jobs.jsonl", names(150))


def test_an_environment_as_bare_as_it_gets(tmp_path: Path) -> None:
    lines = [job("ä-Straße-日本", "grüße"), job("b")]
    write_jobs(tmp_path / "jobs.jsonl", lines)
    done = batcher("run", "jobs.jsonl", "--simulate", cwd=tmp_path, env={})
    assert done.code == 0, done.stderr
    ids = {line["custom_id"] for line in read_lines(tmp_path / "results" / "jobs.jsonl")}
    assert ids == {"ä-Straße-日本", "b"}


def test_an_id_is_never_a_path(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    ids = ["../../escaped", "/etc/escaped", "con", "a" * 256, "{run_id}", "%s", "-rf"]
    write_jobs(tmp_path / "inner" / "jobs.jsonl", [job(name, "x") for name in ids])
    done = batcher("run", "jobs.jsonl", "--simulate", cwd=tmp_path / "inner")
    assert done.code == 0, done.stderr
    lines = read_lines(tmp_path / "inner" / "results" / "jobs.jsonl")
    assert {line["custom_id"] for line in lines} == set(ids)
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    assert {path.name for path in (tmp_path / "inner").iterdir()} == {"jobs.jsonl", "results"}
