"""What signals do to a run: the first drains, the second aborts, the third ends the process."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from batcher.cli.signals import ending_on_signals
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
    with ending_on_signals(stop, said.append):
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
    with ending_on_signals(stop, said.append):
        await send(first, second)
    assert (stop.reason, stop.aborting.is_set()) == (code, True)
    assert said[1] == f"{second.name}: giving up the calls in flight, keeping what has come in"


async def test_afterwards_signals_do_what_they_did_before() -> None:
    before = [signal.getsignal(number) for number in TAKEN]
    with ending_on_signals(Stop(), print):
        assert [signal.getsignal(number) for number in TAKEN] != before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


WAITING = """
import asyncio, signal, sys
from batcher.cli.signals import ending_on_signals
from batcher.engines.stop import Stop

async def story():
    with ending_on_signals(Stop(), lambda text: print(text, flush=True)):
        print("ready", flush=True)
        await asyncio.sleep(20)

for name in sys.argv[1:]:
    signal.signal(getattr(signal, name), signal.SIG_IGN)
asyncio.run(story())
"""


def waiting(*ignored: str) -> subprocess.Popen[str]:
    """Start a process that takes signals and was started with some ignored; it has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, *ignored], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("third", TAKEN, ids=name_of)
def test_the_third_signal_ends_the_process(third: signal.Signals) -> None:
    process = waiting()
    assert process.stdout is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        assert process.stdout.readline().startswith(f"{number.name}: ")
    process.send_signal(third)
    _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (128 + third, "")


def test_nohup_keeps_a_hangup_from_ending_the_run() -> None:
    process = waiting("SIGHUP")
    assert process.stdout is not None
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline().startswith("SIGTERM: finishing")
    process.kill()
    process.communicate()


def test_an_interrupt_counts_even_if_the_shell_had_it_ignored() -> None:
    process = waiting("SIGINT")
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().startswith("SIGINT: finishing")
    process.kill()
    process.communicate()
