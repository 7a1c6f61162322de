"""Whichever system call fails: the files stay valid, nothing safe is lost, and the next run completes."""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("failing_calls.py")
PATIENCE_S = 600
CALLS = ("write", "fdatasync", "fsync", "open", "rename", "replace", "ftruncate", "flock", "unlink")
STORIES = ("first", "mend", "fresh")

Try = Callable[..., dict[str, Any]]


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Try]:
    """Give a function that runs a case in the script, which goes on running."""
    with (
        (tmp_path / "stderr").open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, SCRIPT, tmp_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def attempt(**case: Any) -> dict[str, Any]:
            stdin.write(json.dumps(case) + "\n")
            stdin.flush()
            said = stdout.readline()
            assert said, (tmp_path / "stderr").read_text()
            answer: dict[str, Any] = json.loads(said)
            return answer

        yield attempt
        stdin.close()


def wrong(answers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the answers in which something does not hold."""
    return [answer for answer in answers if answer["faults"]]


def kinds_of(call: str) -> list[tuple[str, bool]]:
    """Return the errors of a call, each as one that passes or one that stays."""
    kinds = [("EIO", False), ("ENOSPC", True)]
    if call == "write":
        kinds += [("EDQUOT", False), ("short", False), ("short", True)]
    return kinds


SOME = [
    ("first", "write", "short", 2, True),
    ("first", "write", "short", 9, False),
    ("first", "fdatasync", "EIO", 1, False),
    ("first", "flock", "EIO", 2, False),
    ("mend", "write", "EDQUOT", 2, True),
    ("mend", "fsync", "EIO", 3, False),
    ("mend", "replace", "ENOSPC", 2, True),
    ("fresh", "rename", "EIO", 2, False),
]


def test_some_failing_calls(attempt: Try) -> None:
    answers = []
    for story, call, error, nth, lasting in SOME:
        answers.append(attempt(story=story, call=call, error=error, nth=nth, lasting=lasting))
        assert answers[-1]["failed"], "this call is not made any more: choose another one"
    assert not wrong(answers)
    assert 74 in {answer["code"] for answer in answers}


@pytest.mark.long
@pytest.mark.parametrize("story", STORIES)
def test_every_failing_call(attempt: Try, story: str) -> None:
    answers = []
    for call in CALLS:
        for error, lasting in kinds_of(call):
            for nth in itertools.count(1):
                answers.append(attempt(story=story, call=call, error=error, nth=nth, lasting=lasting))
                if not answers[-1]["failed"]:
                    break
    assert not wrong(answers)
    assert len(answers) > 120


@pytest.mark.long
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not on this machine")
@pytest.mark.parametrize("error", ["EINTR", "EIO"])
@pytest.mark.parametrize("call", ["write", "fdatasync", "fsync", "flock", "ftruncate", "rename", "openat"])
def test_calls_that_fail_in_the_kernel(tmp_path: Path, call: str, error: str) -> None:
    """The same with faults put in by strace, below Python, which tries again what a signal interrupted."""
    answers = []
    for nth in (1, 2, 3, 5):
        inject = f"inject={call}:error={error}:when={nth}"
        out = tmp_path / str(nth)
        out.mkdir()
        files = (
            "",
            "x.jsonl",
            "x.lock",
            "x.journal",
            "x.errors.jsonl",
            "x.summary.json",
            "x.summary.json.tmp",
        )
        inside = [option for name in files for option in ("-P", str(out / name))]
        traced = subprocess.run(
            [
                "strace",
                "-f",
                "-o",
                tmp_path / "trace",
                *inside,
                "-e",
                f"trace={call}",
                "-e",
                inject,
                *command(out),
            ],
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        again = subprocess.run(command(out), capture_output=True, timeout=PATIENCE_S, check=False)
        answers.append((nth, traced.returncode, again.returncode, traced.stderr[-300:]))
        assert len((out / "x.jsonl").read_bytes().splitlines()) == 3
    tried_again = error == "EINTR" and call != "rename"  # which no local file system interrupts
    allowed = {0} if tried_again else {0, 74}
    assert all(code in allowed and after == 0 for _, code, after, _ in answers), answers


def command(out: Path) -> list[str | Path]:
    """Return the command that runs three jobs into `out`."""
    jobs = out.parent / "jobs.jsonl"
    lines = [{"id": f"row-{number}", "model": "m", "prompt": "hi"} for number in range(3)]
    jobs.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    batcher = Path(sys.executable).with_name("batcher")
    return [batcher, "run", jobs, "--simulate", "-o", out / "x.jsonl"]
