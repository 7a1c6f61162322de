"""How a command ends tells a script what to do: the table of exit codes, each with a message that helps."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import (
    Simulator,
    assert_each_once,
    batcher,
    environment,
    job,
    names,
    nobody,
    read_lines,
    read_summary,
    simulating,
    write_jobs,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """A simulator without faults, which several tests ask how often it was called."""
    with simulating(tmp_path_factory.mktemp("simulator")) as simulator:
        yield simulator


@pytest.fixture
def cwd(tmp_path: Path, server: Simulator) -> Path:
    """A directory with a job file of five good lines."""
    server.reset()
    write_jobs(tmp_path / "jobs.jsonl", map(job, names(5)))
    return tmp_path


USAGE = {
    "no file": ["run"],
    "unknown command": ["rum", "jobs.jsonl"],
    "unknown option": ["run", "jobs.jsonl", "--concurency", "5"],
    "zero concurrency": ["run", "jobs.jsonl", "--concurrency", "0"],
    "limit that is no number": ["run", "jobs.jsonl", "--limit", "all"],
    "output that is no jsonl": ["run", "jobs.jsonl", "-o", "out.csv"],
    "output with an unknown name": ["run", "jobs.jsonl", "-o", "{user}.jsonl"],
    "several files without an output": ["run", "jobs.jsonl", "more.jsonl"],
    "standard input without an output": ["run", "-"],
    "a key on the command line": ["run", "jobs.jsonl", "--api-key", "gsk_made_up"],
    "a budget of nothing": ["run", "jobs.jsonl", "--max-cost", "0"],
    "a runtime that is none": ["run", "jobs.jsonl", "--max-runtime", "soon"],
    "not built: --template": ["run", "jobs.jsonl", "--template", "t.txt"],
    "not built: plan": ["plan", "jobs.jsonl"],
    "not built: cron": ["cron", "jobs.jsonl"],
}


@pytest.mark.parametrize("args", USAGE.values(), ids=USAGE.keys())
def test_2_wrong_usage(cwd: Path, args: list[str]) -> None:
    done = batcher(*args, *(["--simulate"] if args[0] == "run" else []), cwd=cwd)
    assert done.code == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr
    assert not (cwd / "results").exists()


def test_3_a_bad_line_is_named_and_the_others_run(cwd: Path, server: Simulator) -> None:
    with (cwd / "jobs.jsonl").open("ab") as file:
        file.write(b'{"id": "broken"\n')
    done = batcher("run", "jobs.jsonl", "--base-url", server.url, cwd=cwd)
    assert done.code == 3
    assert "jobs.jsonl:6: " in done.stderr
    out = cwd / "results" / "jobs.jsonl"
    assert_each_once(out, names(5))
    assert read_summary(out)["jobs"]["bad_lines"] == 1
    assert batcher("run", "jobs.jsonl", "--base-url", server.url, cwd=cwd).code == 3
    assert server.requests == 5


def test_3_a_job_that_fails_for_good_stands_among_the_errors(cwd: Path) -> None:
    with simulating(cwd, "--fault", "id:status:400=row-2") as faulty:
        run = ("run", "jobs.jsonl", "--base-url", faulty.url)
        done = batcher(*run, cwd=cwd)
        again = batcher(*run, cwd=cwd)
        assert faulty.requests == 5, "what failed for good is not asked again unbidden"
    assert (done.code, again.code) == (3, 3)
    out = cwd / "results" / "jobs.jsonl"
    assert_each_once(out, ["row-0", "row-1", "row-3", "row-4"], failed=["row-2"])


BAD_INPUT: dict[str, tuple[bytes, list[str], str]] = {
    "strict": (b'{"id": "broken"\n', ["--strict"], "--strict"),
    "strict, an unknown field": (
        b'{"id":"x","model":"m","prompt":"p","api_base":"y"}\n',
        ["--strict"],
        "api_base",
    ),
}


@pytest.mark.parametrize(("line", "options", "hint"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_65_bad_input_is_refused_before_anything_is_sent(
    cwd: Path, server: Simulator, line: bytes, options: list[str], hint: str
) -> None:
    with (cwd / "jobs.jsonl").open("ab") as file:
        file.write(line)
    done = batcher("run", "jobs.jsonl", "--base-url", server.url, *options, cwd=cwd)
    assert done.code == 65, done.stderr
    assert "jobs.jsonl:6: " in done.stderr
    assert hint in done.stderr
    assert server.requests == 0


@pytest.mark.parametrize(
    "content",
    [b'{"id":1\n[]\n', b"PK\x03\x04\0\0\0\0", '{"id": 1}\n'.encode("utf-16")],
    ids=["two bad lines", "zip", "utf-16"],
)
def test_65_a_file_without_a_good_line(cwd: Path, server: Simulator, content: bytes) -> None:
    (cwd / "jobs.jsonl").write_bytes(content)
    done = batcher("run", "jobs.jsonl", "--base-url", server.url, cwd=cwd)
    assert done.code == 65, done.stderr
    assert "jobs.jsonl" in done.stderr
    assert server.requests == 0
    assert batcher("check", "jobs.jsonl", cwd=cwd).code == 65


def test_65_an_id_that_comes_back_with_another_request(cwd: Path, server: Simulator) -> None:
    run = ("run", "jobs.jsonl", "--base-url", server.url)
    assert batcher(*run, cwd=cwd).code == 0
    write_jobs(cwd / "jobs.jsonl", [job("row-0", "something else"), *map(job, names(5)[1:])])
    done = batcher(*run, cwd=cwd)
    assert done.code == 65
    assert "row-0" in done.stderr
    assert "--on-changed" in done.stderr
    assert server.requests == 5


@pytest.mark.parametrize("path", ["missing.jsonl", "directory", "dangling"])
@pytest.mark.parametrize("command", [["run", "--simulate"], ["check"]], ids=["run", "check"])
def test_66_no_such_input(cwd: Path, command: list[str], path: str) -> None:
    (cwd / "directory").mkdir()
    (cwd / "dangling").symlink_to("nowhere")
    done = batcher(*command, path, cwd=cwd)
    assert done.code == 66, done.stderr
    assert path in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_66_an_input_that_may_not_be_read(cwd: Path) -> None:
    (cwd / "jobs.jsonl").chmod(0)
    assert batcher("run", "jobs.jsonl", "--simulate", cwd=cwd).code == 66


@pytest.mark.long
def test_69_nobody_is_there(cwd: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # never listens
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/v1"
        done = batcher("run", "jobs.jsonl", "--base-url", url, cwd=cwd, timeout_s=120)
    assert done.code == 69, done.stderr
    assert "efused" in done.stderr
    summary = read_summary(cwd / "results" / "jobs.jsonl")
    assert summary["jobs"]["pending"] == 5
    assert summary["calls"]["maybe_charged_without_answer"] == 0


UNWRITABLE = {
    "a file where the directory should be": "jobs.jsonl/out.jsonl",
    "a directory where the file should be": "taken.jsonl",
    "a symbolic link": "link.jsonl",
    "a file of somebody else's": "foreign.jsonl",
}


@pytest.mark.parametrize("output", UNWRITABLE.values(), ids=UNWRITABLE.keys())
def test_74_the_output_cannot_be_written(cwd: Path, server: Simulator, output: str) -> None:
    (cwd / "taken.jsonl").mkdir()
    (cwd / "target.jsonl").write_bytes(b"")
    (cwd / "link.jsonl").symlink_to("target.jsonl")
    (cwd / "foreign.jsonl").write_bytes(b'{"my": "data"}\n')
    done = batcher("run", "jobs.jsonl", "--base-url", server.url, "-o", output, cwd=cwd)
    assert done.code == 74, done.stderr
    assert output.partition("/")[0] in done.stderr
    assert server.requests == 0
    assert (cwd / "foreign.jsonl").read_bytes() == b'{"my": "data"}\n'


def test_77_a_refused_key_leaves_all_jobs_pending(cwd: Path) -> None:
    with simulating(cwd, "--accept-key", "sk-made-up-and-right") as strict:
        run = ("run", "jobs.jsonl", "--base-url", strict.url)
        wrong = batcher(*run, cwd=cwd, env=environment(OPENAI_API_KEY="sk-made-up-but-wrong"))
        summary = read_summary(cwd / "results" / "jobs.jsonl")
        errors = read_lines(cwd / "results" / "jobs.errors.jsonl")
        right = batcher(*run, cwd=cwd, env=environment(OPENAI_API_KEY="sk-made-up-and-right"))
    assert wrong.code == 77, wrong.stderr
    assert "key" in wrong.stderr
    assert "sk-made-up-but-wrong" not in wrong.stderr
    assert (summary["jobs"]["pending"], summary["jobs"]["failed"], errors) == (5, 0, [])
    assert right.code == 0, right.stderr
    assert_each_once(cwd / "results" / "jobs.jsonl", names(5))


def test_78_no_key_says_what_to_set_and_how_to_try_without(cwd: Path) -> None:
    done = batcher("run", "jobs.jsonl", cwd=cwd)
    assert done.code == 78
    assert "GROQ_API_KEY" in done.stderr
    assert "--simulate" in done.stderr
    assert not (cwd / "results").exists()


BAD_KEYS = {
    "with a line break": "gsk_made\nup",
    "not ASCII": "gsk_mädeup",
    "a placeholder": "gsk_xxxxxxxxxxxx",
}


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_78_a_key_that_cannot_be_one_is_never_shown(cwd: Path, server: Simulator, key: str) -> None:
    url = server.url.replace("/v1", "")
    run = ("run", "jobs.jsonl", "--provider", "groq", "--base-url", url)
    done = batcher(*run, cwd=cwd, env=environment(GROQ_API_KEY=key))
    assert done.code == 78, done.stderr
    assert "GROQ_API_KEY" in done.stderr
    assert key not in done.stderr
    assert server.requests == 0


def test_78_a_key_does_not_travel_in_the_clear(cwd: Path) -> None:
    run = ("run", "jobs.jsonl", "--base-url", "http://provider.example/v1")
    done = batcher(*run, cwd=cwd, env=environment(OPENAI_API_KEY="sk-made-up"))
    assert done.code == 78
    assert "--insecure-http" in done.stderr


CONFIGURATIONS = {
    "misspelt key": ("concurency: 5\n", "concurrency"),
    "misspelt key in a section": ("retry: {server: {attemps: 5}}\n", "attempts"),
    "not YAML": ("rpm: [1\n", "batcher.yaml:"),
    "code": ("model: !!python/object/apply:os.getpid []\n", "batcher.yaml"),
}


@pytest.mark.parametrize(("text", "hint"), CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_78_a_configuration_that_makes_no_sense(cwd: Path, text: str, hint: str) -> None:
    (cwd / "batcher.yaml").write_text(text)
    done = batcher("run", "jobs.jsonl", "--simulate", "-c", "batcher.yaml", cwd=cwd)
    assert done.code == 78, done.stderr
    assert hint in done.stderr
    assert not (cwd / "results").exists()


def test_a_configuration_that_nobody_named_is_mentioned_and_not_obeyed(cwd: Path, server: Simulator) -> None:
    with nobody() as (url, was_called):
        (cwd / "batcher.yaml").write_text(f"base_url: {url}/v1\nconcurrency: 1\n")
        done = batcher("run", "jobs.jsonl", "--base-url", server.url, cwd=cwd)
        unasked = batcher("run", "jobs.jsonl", "-o", "other.jsonl", cwd=cwd)
        assert not was_called()
    assert done.code == 0, done.stderr
    assert "batcher.yaml" in done.stderr
    assert unasked.code == 78


def test_0_flags_win_over_variables_and_those_over_the_file(cwd: Path, server: Simulator) -> None:
    (cwd / "batcher.yaml").write_text(f"base_url: {server.url}\nconcurrency: 1\nmodel: from-file\nrpm: 9\n")
    env = environment(BATCHER_CONFIG="batcher.yaml", BATCHER_MODEL="from-variable", BATCHER_RPM="8")
    done = batcher("run", "jobs.jsonl", "--rpm", "7", "--show-config", cwd=cwd, env=env)
    assert done.code == 0, done.stderr
    assert {"concurrency: 1", "model: from-variable", "rpm: 7"} <= set(done.stdout.splitlines())
    ran = batcher("run", "jobs.jsonl", cwd=cwd, env=env | {"BATCHER_RPM": "6000"})
    assert ran.code == 0, ran.stderr
    assert (server.requests, server.stats()["in_flight_peak"]) == (5, 1)


def test_0_a_file_without_jobs(cwd: Path) -> None:
    (cwd / "jobs.jsonl").write_bytes(b"\n\n")
    done = batcher("run", "jobs.jsonl", "--simulate", cwd=cwd)
    assert done.code == 0, done.stderr
    assert "nothing to run" in done.stderr or "0 jobs" in done.stderr


def test_75_is_stronger_than_3(cwd: Path) -> None:
    with simulating(cwd, "--fault", "id:status:400=row-0", "--fault", "id:429-day=row-3") as faulty:
        run = ("run", "jobs.jsonl", "--base-url", faulty.url, "--concurrency", "1")
        assert batcher(*run, cwd=cwd).code == 75
        assert batcher(*run, cwd=cwd).code == 3


@pytest.mark.parametrize("command", ["", "run"])
def test_help_starts_with_examples(cwd: Path, command: str) -> None:
    done = batcher(*command.split(), "--help", cwd=cwd)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith("Examples:\n  batcher ")


def test_models_and_doctor_speak_to_the_endpoint(cwd: Path, server: Simulator) -> None:
    models = batcher("models", "--base-url", server.url, cwd=cwd)
    doctor = batcher("doctor", "--base-url", server.url, cwd=cwd)
    assert (models.code, doctor.code) == (0, 0), models.stderr + doctor.stderr
    assert "openai/gpt-oss-20b" in models.stdout
    assert batcher("doctor", cwd=cwd).code == 78
