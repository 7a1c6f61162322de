"""What a run says on stderr, and what it keeps to itself."""

import asyncio
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batcher.cli.console import Console, log_to_stderr
from batcher.clock import monotonic
from batcher.events import CircuitChanged, FallbackTaken, KeyDisabled, LaneChanged
from batcher.limits.breaker import BreakerPolicy
from batcher.observe.stats import Stats
from batcher.providers.simulator.memory import MemoryProvider
from batcher.providers.simulator.model import Simulation
from batcher.providers.simulator.settings import SimulatorSettings
from batcher.scheduling.allowance import LaneLimits
from batcher.scheduling.lane import Lane
from batcher.scheduling.routing import Account, Routing
from batcher.scheduling.slots import RunSlots

EVIL = "\x1b]0;title\x07\u202e"


@pytest.fixture
def root_log() -> Iterator[logging.Logger]:
    """The root logger, as it was before afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("batcher")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield root
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def routing() -> Routing:
    """The lanes of a run on the simulator."""
    simulation = Simulation(SimulatorSettings(), now=monotonic())

    def make_lane(model: str, account: Account) -> Lane:
        return Lane(model, LaneLimits(), slots=RunSlots(1), breaker=BreakerPolicy(), emit=lambda event: None)

    return Routing([Account(provider=MemoryProvider(simulation))], make_lane)


@pytest.mark.parametrize(
    ("quiet", "said"),
    [
        (False, ["news", "warning", "f:1: bad", "f:2: warning: twice", "1 answered", "results: x.jsonl"]),
        (True, ["warning", "f:1: bad"]),
    ],
    ids=["aloud", "quiet"],
)
def test_quiet_keeps_to_what_must_be_known(
    capsys: pytest.CaptureFixture[str], quiet: bool, said: list[str]
) -> None:
    console = Console(quiet=quiet)
    console.say("news")
    console.warn("warning")
    console.bad_line("f:1", "bad")
    console.warning("f:2", "twice")
    console.conclude("1 answered", Path("x.jsonl"), succeeded=True)
    captured = capsys.readouterr()
    assert (captured.out, captured.err.splitlines()) == ("", said)


@pytest.mark.parametrize(
    ("output", "said"), [(Path("x.jsonl"), ["1 failed", "results: x.jsonl"]), (None, ["1 failed"])]
)
def test_what_went_wrong_is_summed_up_even_if_quiet(
    capsys: pytest.CaptureFixture[str], output: Path | None, said: list[str]
) -> None:
    Console(quiet=True).conclude("1 failed", output, succeeded=False)
    assert capsys.readouterr().err.splitlines() == said


def test_foreign_text_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Console(quiet=False).bad_line(f"f{EVIL}:1", EVIL)
    assert not set(EVIL[0] + "\x07\u202e") & set(capsys.readouterr().err)


async def test_reading_a_large_file_is_told_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    async with Console(quiet=False) as console:
        for second in range(12):
            await asyncio.sleep(1)
            console.reading("earlier results" if second < 7 else "the jobs", second * 10, 120)
        console.reading("the jobs", 120, 120)
    assert capsys.readouterr().err.splitlines() == ["reading earlier results: 50 %"]


async def test_without_a_terminal_there_is_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    stats, lanes = Stats(), routing()
    async with Console(quiet=False) as console:
        console.running(stats, lanes, 1200)
        lanes.routes("m")[0].lane.park("m: closed")
        await asyncio.sleep(0.5)
        for _ in range(150):
            stats.succeeded += 5
            await asyncio.sleep(1)
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "1,200 jobs to run"
    assert lines == [
        "300 of 1,200 done, 5.0/s, 3 min 0 s left, 0 in flight, m: closed",
        "600 of 1,200 done, 5.0/s, 2 min 0 s left, 0 in flight, m: closed",
    ]


@pytest.mark.parametrize(("quiet", "queued"), [(True, 5), (False, 0)], ids=["quiet", "nothing to do"])
async def test_there_is_nothing_to_show(capsys: pytest.CaptureFixture[str], quiet: bool, queued: int) -> None:
    async with Console(quiet=quiet) as console:
        console.running(Stats(), routing(), queued)
        await asyncio.sleep(600)
        await console.room()
    assert capsys.readouterr().err == ""


def test_lanes_keys_and_models_are_told_in_the_log(
    root_log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_stderr("info")
    console = Console(quiet=True)
    console.notice(LaneChanged(route="m", message="m: pauses"))
    console.notice(CircuitChanged(route="m", state="open", message="m: fails\nand more"))
    for _ in range(3):
        console.notice(FallbackTaken(job_id="j", wanted="m", taken="n", reason="it is gone"))
    console.notice(KeyDisabled(account="main", message="K1 is dead"))
    *lines, last = capsys.readouterr().err.splitlines()
    assert last.endswith(" WARNING K1 is dead")
    assert [line.split(" INFO ")[1] for line in lines] == [
        "m: pauses",
        "m: fails\\nand more",
        "m: jobs go on with n: it is gone",
    ]


def test_the_log_of_foreign_packages_stays_quiet(
    root_log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_stderr("debug")
    logging.getLogger("groq").debug("a prompt")
    logging.getLogger("batcher.x").debug("ours%s", EVIL)
    captured = capsys.readouterr().err
    assert "a prompt" not in captured
    assert "DEBUG ours" in captured
    assert "\x1b" not in captured


def test_a_traceback_keeps_its_lines(root_log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("error")
    try:
        raise ValueError(EVIL)
    except ValueError:
        logging.getLogger("batcher").exception("a bug")
    captured = capsys.readouterr().err
    assert captured.count("\n") > 3
    assert "\x1b" not in captured


def test_a_log_that_is_set_up_twice_speaks_once(
    root_log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_stderr("info")
    log_to_stderr("info")
    logging.getLogger("batcher").info("once")
    assert capsys.readouterr().err.count("once") == 1


def in_terminal(tmp_path: Path, *options: str) -> tuple[int, str]:
    """Run eight jobs with a terminal as stderr; return the exit code and what the terminal got."""
    lines = [f'{{"id":"{number}","model":"m","prompt":"{number}"}}\n' for number in range(8)]
    (tmp_path / "jobs.jsonl").write_text("".join(lines))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [Path(sys.executable).with_name("batcher"), "run", "jobs.jsonl", "--simulate", *options],
        cwd=tmp_path,
        env={"PATH": os.defpath, "TERM": "xterm-256color", "COLUMNS": "100"},
        stderr=theirs,
    )
    os.close(theirs)
    received = b""
    try:
        while data := os.read(ours, 4096):
            received += data
    except OSError:  # EIO: nobody has the terminal open any more
        pass
    finally:
        os.close(ours)
    return process.wait(timeout=30), received.decode()


def test_a_terminal_gets_a_bar_and_its_cursor_back(tmp_path: Path) -> None:
    code, received = in_terminal(tmp_path)
    assert code == 0
    assert "100 %" in received
    assert "8 of 8 done" in received
    assert received.rindex("\x1b[?25h") > received.rindex("\x1b[?25l")
    assert "8 answered in " in received


def test_a_terminal_gets_nothing_if_quiet(tmp_path: Path) -> None:
    assert in_terminal(tmp_path, "-q") == (0, "")
