"""`batcher check` as a user sees it: streams and exit codes."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from batcher.cli.check import check
from batcher.errors import BadInput, InputMissing

GOOD = b'{"id":"a","model":"m","prompt":"hi"}\n'
SAMPLES = Path(__file__).parents[2] / "jobs"


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(check, [str(arg) for arg in args])


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(lines))
    return path


@pytest.mark.parametrize("name", ["short.jsonl", "batch.jsonl", "priorities.jsonl"])
def test_the_sample_files_are_good(name: str) -> None:
    done = run("-q", SAMPLES / name)
    assert (done.exit_code, done.output) == (0, "")


def test_good_lines_are_summed_up_on_stderr(tmp_path: Path) -> None:
    done = run(write(tmp_path / "jobs.jsonl", GOOD, b"\n"))
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.startswith("1 job, 1 model, 0 bad lines, 0 duplicates, 1 blank line; 0.")
    assert done.stderr.endswith(" MB/s\n")


@pytest.mark.parametrize("quiet", [[], ["-q"]], ids=["aloud", "quiet"])
def test_every_bad_line_is_named(tmp_path: Path, quiet: list[str]) -> None:
    path = write(tmp_path / "jobs.jsonl", b"{\n", GOOD, b'{"prompt":1}')
    done = run(*quiet, path)
    assert (done.exit_code, done.stdout) == (65, "")
    first, second, summary = done.stderr.splitlines()
    assert first.startswith(f"{path}:1: only")
    assert second == f'{path}:3: "prompt" is 1: expected a non-empty string'
    assert summary.startswith("1 job, 1 model, 2 bad lines")


def test_an_equal_duplicate_is_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "jobs.jsonl", GOOD, GOOD)
    done = run(path)
    assert done.exit_code == 0
    assert done.stderr.startswith(f'{path}:2: warning: id "a" with the same request')
    quiet = run("-q", path)
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_the_json_summary_is_one_line_on_stdout(tmp_path: Path) -> None:
    path = write(tmp_path / "jobs.jsonl", GOOD, GOOD, b"\n", b"#\n")
    done = run("--json", path)
    summary = json.loads(done.stdout)
    assert done.exit_code == 65
    assert done.stdout.count("\n") == 1
    assert summary.pop("seconds") >= 0
    assert summary.pop("mb_per_s") >= 0
    size = path.stat().st_size
    assert summary == {"jobs": 1, "models": {"m": 1}, "bad": 1, "duplicates": 1, "blank": 1, "bytes": size}


def test_a_model_is_filled_in_where_a_line_names_none(tmp_path: Path) -> None:
    path = write(tmp_path / "jobs.jsonl", b'{"prompt":"hi"}\n')
    assert run("-q", path).exit_code == 65
    assert run("-q", "--model", "m", path).exit_code == 0
    assert CliRunner().invoke(check, ["-q", str(path)], env={"BATCHER_MODEL": "m"}).exit_code == 0


def test_an_empty_file_has_no_jobs(tmp_path: Path) -> None:
    done = run(write(tmp_path / "jobs.jsonl"))
    assert done.exit_code == 0
    assert done.stderr.startswith("0 jobs, 0 models")


def test_what_cannot_be_read_at_all_is_an_error(tmp_path: Path) -> None:
    assert isinstance(run(tmp_path / "nope.jsonl").exception, InputMissing)
    assert isinstance(run(write(tmp_path / "a.jsonl", b"%PDF-1.4")).exception, BadInput)
    assert run().exit_code == 2
    assert run("--nope", tmp_path).exit_code == 2


def test_foreign_text_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = write(tmp_path / "a\x1b[2J.jsonl", b'{"prompt":"x","\x7f\xe2\x80\xae":1}\n')
    stderr = run(path).stderr
    assert "\\u202e" in stderr
    assert not {"\x1b", "\x7f", "\u202e"} & set(stderr)


INPUTS = {"file": GOOD, "packed file": gzip.compress(GOOD)}


@pytest.mark.parametrize("data", INPUTS.values(), ids=INPUTS.keys())
@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
@pytest.mark.parametrize("piped", [True, False], ids=["pipe", "redirected"])
def test_standard_input_is_checked_like_a_file(tmp_path: Path, data: bytes, name: str, piped: bool) -> None:
    script = "import sys; from batcher.cli.check import check; check(sys.argv[1:])"
    command = [sys.executable, "-c", script, "--json", name]
    if piped:
        done = subprocess.run(command, input=data, capture_output=True, check=True)
    else:
        with write(tmp_path / "jobs", data).open("rb") as stdin:
            done = subprocess.run(command, stdin=stdin, capture_output=True, check=True)
    assert json.loads(done.stdout)["jobs"] == 1


def test_standard_input_that_was_begun_goes_on_from_there(tmp_path: Path) -> None:
    script = "from batcher.cli.check import check; check(['--json', '-'])"
    with write(tmp_path / "jobs", b"heading\n", GOOD).open("rb") as stdin:
        os.lseek(stdin.fileno(), 8, os.SEEK_SET)
        done = subprocess.run([sys.executable, "-c", script], stdin=stdin, capture_output=True, check=True)
    assert json.loads(done.stdout)["jobs"] == 1


def test_process_substitution_is_checked_like_a_file_and_named_as_the_shell_does(tmp_path: Path) -> None:
    write(tmp_path / "good.jsonl", GOOD)
    write(tmp_path / "bad.jsonl", b"\n", GOOD.replace(b'"a"', b'"b"'), b"{}\n")
    batcher = Path(sys.executable).with_name("batcher")
    line = f"{batcher} check --json <(cat good.jsonl) <(gzip -c bad.jsonl) good.jsonl"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 65
    counts = json.loads(done.stdout)
    assert [counts[name] for name in ("jobs", "bad", "duplicates", "blank")] == [2, 1, 1, 1]
    bad, repeated = done.stderr.splitlines()
    assert re.match(r"/dev/fd/\d+:3: the line has neither", bad)
    assert repeated.startswith("good.jsonl:1: warning: ")


def test_the_help_starts_with_examples() -> None:
    assert run("--help").output.startswith("Examples:\n  batcher check jobs.jsonl\n")
