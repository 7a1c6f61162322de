"""Memory does not grow with the job file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import BATCHER, MODEL, environment

# A process of its own in between, because a child's peak starts with that of its parent.
PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stdout)
"""
MB = 1024  # in the unit of ru_maxrss


def peak_of(*args: object, cwd: Path) -> tuple[int, int, str]:
    """Return a command's exit code, its peak of memory in KB, and its stderr."""
    ended = subprocess.run(
        [sys.executable, "-c", PEAK, BATCHER, *map(str, args)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    code, peak_kb = ended.stdout.split()[-2:]
    return int(code), int(peak_kb), ended.stderr


def write_many(path: Path, count: int) -> None:
    """Write lines of both forms, about 500 bytes each, with a bad one amid them."""
    text = "A sentence that is to be translated, and another one after it. " * 4
    with path.open("w") as file:
        for number in range(count - 1):
            prompt = f"{number} {text}"
            body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
            if number % 2:
                line = {"id": f"row-{number}", "model": MODEL, "prompt": prompt, "priority": number % 7}
            else:
                line = {
                    "custom_id": f"row-{number}",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": body,
                }
            file.write(json.dumps(line) + "\n")
            if number == count // 2:
                file.write('{"id": "bad"}\n')


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_a_large_file_is_checked_in_little_memory(tmp_path: Path, count: int) -> None:
    write_many(tmp_path / "jobs.jsonl", count)
    code, peak_kb, stderr = peak_of("check", "jobs.jsonl", cwd=tmp_path)
    assert code == 65, stderr
    assert f"{count - 1:,} jobs" in stderr
    assert f"jobs.jsonl:{count // 2 + 2}: " in stderr
    assert " s, " in stderr, "it says how long it took"
    assert peak_kb < 200 * MB
    os.truncate(tmp_path / "jobs.jsonl", 0)


@pytest.mark.long
def test_a_large_file_runs_in_little_memory_and_resumes_quickly(tmp_path: Path) -> None:
    count = 200_000
    write_many(tmp_path / "jobs.jsonl", count)
    code, peak_kb, stderr = peak_of("run", "jobs.jsonl", "--simulate", cwd=tmp_path)
    assert code == 3, stderr
    assert f"{count - 1:,} answered" in stderr
    assert peak_kb < 300 * MB
    code, again_kb, stderr = peak_of("run", "jobs.jsonl", "--simulate", cwd=tmp_path)
    assert code == 3, stderr
    assert f"{count - 1:,} answered" in stderr
    assert again_kb < 300 * MB
