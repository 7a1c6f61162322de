"""What the bench measures beside load: profile, adherence, scale and start-up; no figure is timed here."""

import os
from pathlib import Path

import pytest

import batcher
from batcher.bench import adherence, scale, startup
from batcher.bench.adherence import measure_adherence, share_of_limit
from batcher.bench.processes import Cores, choose_cores, measured, pinned
from batcher.bench.profiled import ELSEWHERE, EVENT_LOOP, IMPORTS, Sampler, place
from batcher.bench.scale import Grown, Reading, measure_scale, verdicts
from batcher.bench.startup import compared, measure_start_up

pytestmark = pytest.mark.real_loop

ANY = Cores(client=None, server=None)
PACKAGE = Path(batcher.__file__).parent


def silent(words: str) -> None:
    """Take progress words."""


@pytest.mark.parametrize(
    ("stack", "where"),
    [
        ([(f"{PACKAGE}/jobs/lines.py", "check_line")], ("jobs", "jobs/lines.py:check_line")),
        (
            [("<string>", "__init__"), (f"{PACKAGE}/clock.py", "monotonic"), (f"{PACKAGE}/jobs/x.py", "f")],
            ("clock", "clock.py:monotonic"),
        ),
        ([("/lib/asyncio/runners.py", "Runner.run"), (f"{PACKAGE}/cli/run.py", "_run")], (EVENT_LOOP,) * 2),
        ([(f"{PACKAGE}/wiring.py", "<module>"), ("<frozen importlib._bootstrap>", "_load")], (IMPORTS,) * 2),
        ([(f"{PACKAGE}/bench/profiled.py", "main")], (ELSEWHERE,) * 2),
        ([], (ELSEWHERE,) * 2),
    ],
    ids=["ours", "called by ours", "event loop", "import", "the bench", "nothing"],
)
def test_a_sample_counts_for_the_innermost_function_of_ours(
    stack: list[tuple[str, str]], where: tuple[str, str]
) -> None:
    assert place(stack) == where


def test_shares_are_sorted_and_add_up() -> None:
    sampler = Sampler()
    sampler.seconds.update({("jobs", "a"): 1.0, ("jobs", "b"): 2.0, ("results", "c"): 5.0})
    content = sampler.content()
    assert list(content["rooms"].items()) == [("results", 0.625), ("jobs", 0.375)]
    assert list(content["functions"].items()) == [("c", 0.625), ("b", 0.25), ("a", 0.125)]
    assert content["cpu_s"] == 8.0


def test_the_first_minute_is_left_out_of_a_longer_run() -> None:
    burst, steady = [0.0] * 60, [60.0 + second for second in range(120)]
    assert share_of_limit(burst + steady, rpm=60, seconds=180) == 1.0
    assert share_of_limit(burst + steady[:60], rpm=60, seconds=180) == 0.5
    assert share_of_limit([0.5] * 3, rpm=60, seconds=6) == 0.5


def test_start_up_is_compared_round_by_round() -> None:
    times = {"python -c pass": [1.0, 4.0, 1.0], "batcher --help": [2.0, 12.0, 5.0]}
    found = compared(times, times)["batcher --help"]
    assert (found.ratio, found.cpu_ratio, found.wall_s) == (3.0, 3.0, 5.0)


def test_adherence_of_a_run_that_is_told_and_of_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adherence, "LIMITERS", ("token-bucket",))
    section = measure_adherence(tmp_path, 1, ANY, silent)
    assert [run["told"] for run in section.content["runs"]] == [True, False]
    assert all(run["share_of_limit"] >= 0 for run in section.content["runs"])
    assert section.remarks == []
    assert len(section.tables[0].rows) == 2


def test_scale_counts_every_result_and_reads_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "ROUNDS", 1)
    monkeypatch.setattr(scale, "FEW", 20)
    section = measure_scale(tmp_path, 60, ANY, silent)
    assert [run["jobs"] for run in section.content["runs"]] == [6, 20, 60]
    assert all(run["peak_mb"] is None or run["peak_mb"] > 10 for run in section.content["runs"])
    assert (section.lost, section.remarks) == (0, [])
    assert {verdict.target for verdict in section.verdicts} <= {
        "peak_mb",
        "peak_growth_mb",
        "index_mb_per_s",
        "index_to_loads",
        "resume_to_loads",
    }


def test_the_index_is_held_against_the_easier_of_its_targets() -> None:
    grown = [Grown(jobs=6_000, cpu_us_per_job=1.0, peak_mb=None, lost=0, reasons=())]
    fast = Reading(cpu_s=1.0, loads_cpu_s=0.1, file_bytes=70_000_000)
    slow = Reading(cpu_s=1.0, loads_cpu_s=0.5, file_bytes=50_000_000)
    assert [(one.target, one.met) for one in verdicts(grown, fast, None)] == [("index_mb_per_s", True)]
    assert [(one.target, one.met) for one in verdicts(grown, slow, None)] == [("index_to_loads", True)]


def test_what_a_job_costs_is_held_against_the_smallest_run_that_is_long_enough() -> None:
    sizes = {1_000: 900.0, 5_000: 300.0, 10_000: 200.0, 100_000: 210.0, 1_000_000: 240.0}
    grown = [
        Grown(jobs=jobs, cpu_us_per_job=cost, peak_mb=50.0 + jobs / 1e5, lost=0, reasons=())
        for jobs, cost in sizes.items()
    ]
    found = {(one.target, one.of): (one.value, one.met) for one in verdicts(grown, None, None)}
    assert found == {
        ("peak_mb", "1,000,000 jobs"): (60.0, True),
        ("peak_growth_mb", "1,000,000 jobs"): (10.0, True),
        ("marginal_growth", "100,000 to 10,000 jobs"): (1.05, True),
        ("marginal_growth", "1,000,000 to 10,000 jobs"): (1.2, False),
    }


def test_start_up_is_held_against_bare_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "ROUNDS", 1)
    section = measure_start_up(tmp_path, ANY, silent)
    assert list(section.content["commands"]) == ["python -c pass", "batcher --help", "a run of one job"]
    assert section.content["valid"]
    assert [verdict.target for verdict in section.verdicts] == ["help_to_pass"] * 2 + ["one_job_to_pass"] * 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin processes")
def test_processes_start_on_the_core_that_was_chosen(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    cores = choose_cores()
    assert cores.client is not None
    script = "import os, sys; sys.stdout.write(str(os.sched_getaffinity(0))); sys.stderr.write('words')"
    use = measured(["python3", "-c", script], cwd=tmp_path, core=cores.client)
    assert (use.stdout.decode(), use.last_words, use.exit_code) == (f"{{{cores.client}}}", "words", 0)
    with pinned(cores.server):
        assert os.sched_getaffinity(0) == {cores.server}
    assert os.sched_getaffinity(0) == before


def test_cores_are_told_in_words() -> None:
    assert "any core" in ANY.words
    assert "they take time from each other" in Cores(client=0, server=0).words
    assert Cores(client=1, server=0).words == "client on core 1, server on core 0"
