"""`batcher bench` from end to end, with few jobs; no figure is held against a clock."""

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from command_line import call

from batcher.bench.load import LoadPlan, left_out, possible_per_s
from batcher.bench.report import Table, plain
from batcher.errors import UsageError

pytestmark = pytest.mark.real_loop

PATIENCE_S = 120


def bench(cwd: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the command to its end and read its JSON."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "batcher.cli.main",
            "bench",
            "--json",
            "bench.json",
            "--repeat",
            "1",
            *options,
        ],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = orjson.loads((cwd / "bench.json").read_bytes())
    return done, content


def test_the_runner_beside_both_yardsticks(tmp_path: Path) -> None:
    done, content = bench(tmp_path, "--jobs", "300", "--concurrency", "8", "--dir", str(tmp_path))
    assert list(content) == ["machine", "load", "targets"]
    [one] = content["load"]["concurrency"]
    assert one["concurrency"] == 8
    assert list(one["programs"]) == ["batcher", "aiohttp", "pyreqwest"]
    for name, program in one["programs"].items():
        assert program["reasons"] == []
        assert program["jobs_per_s"] >= program["whole_jobs_per_s"] > 0
        assert program["whole_cpu_us_per_job"] > program["cpu_user_us_per_job"]
        assert 1 <= program["connections"] <= 8 + 1
        assert program["peak_mb"] is None or program["peak_mb"] > 5
        assert 0 < program["cpu_share"] < 2
        assert 0 < program["server_cpu_share"] <= 0.85
        # A loop's clock may stand still for a millisecond.
        assert 0 <= program["latency_p50_s"] <= program["latency_p95_s"] <= program["latency_p99_s"]
        assert (program["queued_p50_s"] is not None) == (name == "batcher")
        assert len(program["rounds"]) == 1
    for found in one["ratios"].values():
        assert all("used only" in reason for reason in found["reasons"])
        assert found["valid"] == (not found["reasons"])
        assert min(found["throughput"], found["whole_throughput"]) > 0
    assert [verdict["target"] for verdict in content["targets"]] == [
        "throughput_to_aiohttp",
        "throughput_to_pyreqwest",
        "peak_mb",
    ]
    assert done.stdout.startswith("Load\nin flight  program ")
    assert "\x1b" not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_a_rate_is_kept_a_latency_waited_for_and_a_profile_taken(tmp_path: Path) -> None:
    options = ["--latency", "0.05", "--latency-shape", "uniform", "--rate", "500", "--profile"]
    done, content = bench(tmp_path, *options, "--jobs", "40", "--concurrency", "4")
    assert "left out: aiohttp: a bare loop keeps to no --rate" in done.stderr
    [four] = content["load"]["concurrency"]
    assert (four["ratios"], list(four["programs"])) == ({}, ["batcher"])
    assert four["programs"]["batcher"]["latency_p50_s"] > 0.01
    assert {verdict["target"] for verdict in content["targets"]} == {"share_of_possible", "peak_mb"}
    profile = four["programs"]["batcher"]["profile"]
    assert profile["samples"] > 0
    assert profile["rooms"]["imports"] > 0
    assert sum(profile["rooms"].values()) == pytest.approx(1, abs=0.01)
    assert "Profile: rooms, of " in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_bench_that_is_ended_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "batcher.cli.main", "bench", "--only", "batcher", "--dir", str(tmp_path)]
    command += ["--jobs", "1000", "--concurrency", "1", "--latency", "0.2"]  # longer than anybody waits
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stderr is not None
    while "round 1" not in (words := process.stderr.readline()):
        assert words, "it ended before its first round"
    [port_file] = tmp_path.glob("*/port")
    port = int(port_file.read_text())
    process.send_signal(number)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_what_is_possible_is_bounded_by_latency_and_rate() -> None:
    assert possible_per_s(LoadPlan(), 64) is None
    assert possible_per_s(LoadPlan(latency_s=0.5), 4000) == 8000
    assert possible_per_s(LoadPlan(latency_s=0.5, rate=100), 4000) == 100


def test_a_missing_yardstick_is_named_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "aiohttp" else object())
    words = "aiohttp is not installed: pip install 'batcher[bench]'"
    assert left_out(LoadPlan()) == {"aiohttp": words}
    with pytest.raises(UsageError, match="aiohttp is not installed"):
        left_out(LoadPlan(programs=("aiohttp",)))


def test_yardsticks_are_left_out_where_a_rate_is_to_be_kept() -> None:
    assert list(left_out(LoadPlan(rate=5.0))) == ["aiohttp", "pyreqwest"]
    with pytest.raises(UsageError, match="a bare loop keeps to no --rate"):
        left_out(LoadPlan(rate=5.0, programs=("pyreqwest",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--concurrency", "64,none"], "expected a whole number from 1 on, got 'none'"),
        (["--only", "batcher,ray"], "'ray' is none of batcher, aiohttp, pyreqwest"),
        (["--latency", "-1"], "not in the range"),
        (["--jobs", "0"], "expected a whole number from 1 on"),
        (["--dir", "nowhere"], "does not exist"),
        (["--job-bytes", "10"], "the shortest line of a job has"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_make_no_sense(tmp_path: Path, options: list[str], message: str) -> None:
    ended = call("bench", *options, cwd=tmp_path, PATH="/usr/bin:/bin")
    assert (ended.code, ended.stdout) == (2, "")
    assert message in ended.stderr


def test_plain_tables_line_up() -> None:
    table = Table("Title", ["name", "of", "n"], [["a", "bcd", "1"], ["long name", "e", "1,000"]])
    assert plain(table).splitlines() == [
        "Title",
        "name       of       n",
        "a          bcd      1",
        "long name  e    1,000",
    ]
