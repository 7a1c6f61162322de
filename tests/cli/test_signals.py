"""What signals do to a run: the first drains, the second aborts, the third ends the process."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from batcher.cli.signals import EndingSignals
from batcher.engines.stop import Stop, StopReason

TAKEN = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def name_of(number: signal.Signals) -> str:
    return number.name


async def send(*numbers: signal.Signals) -> None:
    """Send signals to this process, and let the loop take each."""
    for number in numbers:
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", TAKEN, ids=name_of)
async def test_the_first_signal_drains(number: signal.Signals) -> None:
    stop, said = Stop(), list[str]()
    with EndingSignals() as signals, signals.ending(stop, said.append):
        await send(number)
    assert (stop.reason, stop.message) == (StopReason.INTERRUPTED, f"{number.name} received")
    assert (stop.draining.is_set(), stop.aborting.is_set()) == (True, False)
    assert said == [f"{number.name}: finishing the calls in flight; once more to give them up"]


@pytest.mark.parametrize("first", TAKEN, ids=name_of)
@pytest.mark.parametrize(
    ("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
async def test_the_second_signal_aborts(first: signal.Signals, second: signal.Signals, code: int) -> None:
    stop, said = Stop(), list[str]()
    with EndingSignals() as signals, signals.ending(stop, said.append):
        await send(first, second)
    assert (stop.reason, stop.aborting.is_set()) == (code, True)
    assert said[1] == f"{second.name}: giving up the calls in flight, keeping what has come in"


@pytest.mark.parametrize("number", TAKEN, ids=name_of)
async def test_a_signal_that_came_before_the_run_drains_it_at_its_start(number: signal.Signals) -> None:
    stop, said = Stop(), list[str]()
    with EndingSignals() as signals:
        await send(number)
        with signals.ending(stop, said.append):
            assert (stop.message, stop.aborting.is_set()) == (f"{number.name} received", False)
            await send(number)
            assert stop.aborting.is_set()
    assert len(said) == 2


@pytest.mark.parametrize("number", TAKEN, ids=name_of)
async def test_a_signal_that_comes_after_the_run_changes_nothing(number: signal.Signals) -> None:
    stop, said = Stop(), list[str]()
    with EndingSignals() as signals:
        with signals.ending(stop, said.append):
            pass
        await send(number)
    assert (stop.reason, said) == (None, [])


async def test_afterwards_signals_do_what_they_did_before() -> None:
    before = [signal.getsignal(number) for number in TAKEN]
    with EndingSignals() as signals, signals.ending(Stop(), print):
        assert not {signal.getsignal(number) for number in TAKEN} & set(before)
    assert [signal.getsignal(number) for number in TAKEN] == before


STORY = """
import asyncio, signal, sys, time
from batcher.cli.signals import EndingSignals
from batcher.engines.stop import Stop
from batcher.wiring import fastest_loop

def reach(stage):
    print(stage, flush=True)
    if stage == sys.argv[1]:
        time.sleep(20)

def say(text):
    print(text, flush=True)

async def story(signals):
    with signals.ending(Stop(), say):
        if sys.argv[1] == "stuck":
            reach("stuck")
        print("running", flush=True)
        await asyncio.sleep(20 if sys.argv[1] == "running" else 0)

for name in sys.argv[3:]:
    signal.signal(getattr(signal, name), signal.SIG_IGN)
with EndingSignals() as signals:
    reach("before")
    with asyncio.Runner(loop_factory=fastest_loop() if sys.argv[2] == "fastest" else None) as runner:
        runner.run(story(signals))
    reach("after")
"""


@contextmanager
def waiting(stage: str, *ignored: str, loop: str = "fastest") -> Iterator[subprocess.Popen[str]]:
    """Start a process that takes signals, started with some of them ignored, and let it reach a stage."""
    with subprocess.Popen(
        [sys.executable, "-c", STORY, stage, loop, *ignored],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            while (line := process.stdout.readline()) != f"{stage}\n":
                assert line, "it ended too early"
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("loop", ["fastest", "asyncio"])
@pytest.mark.parametrize("third", TAKEN, ids=name_of)
def test_the_third_signal_ends_the_process(third: signal.Signals, loop: str) -> None:
    with waiting("running", loop=loop) as process:
        for number in (signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
            assert said(process).startswith(f"{number.name}: ")
        process.send_signal(third)
        _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (128 + third, "")


def test_the_third_signal_ends_a_process_whose_loop_is_stuck() -> None:
    with waiting("stuck") as process:
        # Of several kinds, as equal ones that wait are one.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            process.send_signal(number)
        assert process.wait(10) in {128 + number for number in TAKEN}


@pytest.mark.parametrize("stage", ["before", "after"])
def test_outside_of_the_run_the_second_signal_ends_the_process(stage: str) -> None:
    with waiting(stage) as process:
        for number in (signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        assert process.wait(10) in {128 + signal.SIGTERM, 128 + signal.SIGHUP}


def test_nohup_keeps_a_hangup_from_ending_the_run() -> None:
    with waiting("running", "SIGHUP") as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert said(process).startswith("SIGTERM: finishing")


def test_an_interrupt_counts_even_if_the_shell_had_it_ignored() -> None:
    with waiting("running", "SIGINT") as process:
        process.send_signal(signal.SIGINT)
        assert said(process).startswith("SIGINT: finishing")
