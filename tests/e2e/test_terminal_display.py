"""A person at a terminal sees a run live; a log gets plain lines; neither is steered by foreign text."""

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
from answering import answering
from harness import BATCHER, assert_each_once, batcher, environment, job, names, simulating, write_jobs

# Moves of the cursor, colours and erasing are what a live display is made of; anything else is an attack.
DISPLAY = re.compile(rb"\x1b\[(\??25[lh]|[0-9;]*[mABCDGHJK])")


def at_a_terminal(*args: object, cwd: Path, **variables: str) -> tuple[int, bytes]:
    """Run a command with a terminal for its streams; return its exit code and all that it showed."""
    ours, theirs = pty.openpty()
    env = environment(TERM="xterm-256color", COLUMNS="100", LINES="30", **variables)
    with subprocess.Popen(
        [BATCHER, *map(str, args)], cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:
            pass  # how Linux says that nobody holds the other end any more
        finally:
            os.close(ours)
            process.wait(30)
    assert b"Traceback" not in shown
    return process.returncode, shown


def test_a_terminal_shows_the_run_live_and_is_left_tidy(tmp_path: Path) -> None:
    ids = names(200)
    write_jobs(tmp_path / "jobs.jsonl", map(job, ids))
    with simulating(tmp_path, "--latency", 0.1) as server:
        options = ("--base-url", server.url, "--concurrency", 16)
        code, shown = at_a_terminal("run", "jobs.jsonl", *options, cwd=tmp_path)
    assert code == 0
    redrawn = {int(count) for count in re.findall(rb"(\d+) of 200 done", shown)}
    assert len(redrawn) >= 3
    assert 200 in redrawn
    assert b"in flight" in shown
    assert b"200 answered" in shown
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l"), "the cursor is gone"
    assert shown.endswith(b"\n")
    assert b"\x1b" not in DISPLAY.sub(b"", shown)
    assert_each_once(tmp_path / "results" / "jobs.jsonl", ids)


def test_no_color_is_obeyed(tmp_path: Path) -> None:
    write_jobs(tmp_path / "jobs.jsonl", map(job, names(20)))
    code, shown = at_a_terminal("run", "jobs.jsonl", "--simulate", cwd=tmp_path, NO_COLOR="1")
    assert code == 0
    assert not re.search(rb"\x1b\[[0-9;]*(3[0-7]|9[0-7]|38;|48;)[0-9;]*m", shown)


def test_without_a_terminal_there_are_only_plain_lines(tmp_path: Path) -> None:
    write_jobs(tmp_path / "jobs.jsonl", map(job, names(50)))
    with simulating(tmp_path, "--latency", 0.02) as server:
        options = ("--base-url", server.url, "--concurrency", 8)
        env = environment(TERM="xterm-256color", FORCE_COLOR="1")
        done = batcher("run", "jobs.jsonl", *options, cwd=tmp_path, env=env)
    assert done.code == 0
    assert done.stdout == ""
    assert all(character.isprintable() or character == "\n" for character in done.stderr)
    assert len(done.stderr.splitlines()) <= 4


# Clears the screen, sets the title, fills the clipboard, links, and the 8-bit forms of the same.
HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07\x1b]52;c;b3duZWQ=\x07\x1b]8;;http://127.0.0.1:9/\x1b\\"
    "\x9b2J\x9d0;owned\x9c\r\x08\u202e"
)


def assert_harmless(shown: bytes) -> None:
    text = DISPLAY.sub(b"", shown).decode()
    assert not set(text) & set("\x1b\x07\x08\x9b\x9c\x9d\u202e"), repr(text)


@pytest.mark.parametrize("command", [["run", "--simulate"], ["check"]], ids=["run", "check"])
def test_escape_sequences_in_a_job_file_never_reach_the_terminal(tmp_path: Path, command: list[str]) -> None:
    hostile: list[dict[str, object]] = [
        job(HOSTILE),
        job("model", model=HOSTILE),
        job("field") | {HOSTILE: 1},
        {"custom_id": "url", "method": HOSTILE, "url": HOSTILE, "body": {}},
    ]
    write_jobs(tmp_path / "jobs.jsonl", [job("good"), *hostile])
    with (tmp_path / "jobs.jsonl").open("ab") as file:
        file.write(HOSTILE.encode() + b"\n")
        file.write(b'{"id": "' + HOSTILE.encode() + b'"}\n')
    code, shown = at_a_terminal(*command, "jobs.jsonl", cwd=tmp_path)
    assert code in (3, 65)
    assert shown.count(b"jobs.jsonl:") >= 5
    assert_harmless(shown)


def test_escape_sequences_in_a_file_name_never_reach_the_terminal(tmp_path: Path) -> None:
    name = "\x1b[2J\x1b]0;owned\x07.jsonl"
    write_jobs(tmp_path / name, [job("good"), {"id": 1}])
    code, shown = at_a_terminal("run", name, "--simulate", cwd=tmp_path)
    assert code == 3
    assert_harmless(shown)
    code, shown = at_a_terminal("run", "missing" + name, "--simulate", cwd=tmp_path)
    assert code == 66
    assert_harmless(shown)


@pytest.mark.parametrize("status", [401, 400])
def test_escape_sequences_from_a_provider_never_reach_the_terminal(tmp_path: Path, status: int) -> None:
    write_jobs(tmp_path / "jobs.jsonl", map(job, names(3)))
    body = json.dumps({"error": {"message": HOSTILE}}).encode()
    with answering(body, status) as url:
        options = ("--base-url", url, "--log-level", "debug")
        code, shown = at_a_terminal("run", "jobs.jsonl", *options, cwd=tmp_path)
    assert code in (3, 75, 77)
    assert_harmless(shown)
