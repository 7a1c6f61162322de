"""What signals do to a run: the first drains it, the second aborts it, the third ends the process."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from batcher.engines.stop import Stop, StopReason


@contextmanager
def ending_on_signals(stop: Stop, say: Callable[[str], None]) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP end the run for as long as the context lasts.

    SIGHUP stays ignored where it was ignored at the start (`nohup`). SIGINT is taken even if the shell
    started this process with it ignored, as it does in the background.
    """
    loop = asyncio.get_running_loop()
    received = 0

    def receive(number: signal.Signals) -> None:
        nonlocal received
        received += 1
        if received == 1:
            say(f"{number.name}: finishing the calls in flight; once more to give them up")
            stop.drain(StopReason.INTERRUPTED, f"{number.name} received")
        elif received == 2:
            forced = StopReason.FORCED_INT if number is signal.SIGINT else StopReason.FORCED_TERM
            say(f"{number.name}: giving up the calls in flight, keeping what has come in")
            stop.abort(forced, f"a second signal ({number.name}) forced the end")
        else:
            os._exit(128 + number)

    taken = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        taken.append(signal.SIGHUP)
    for number in taken:
        loop.add_signal_handler(number, receive, number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
