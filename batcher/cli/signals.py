"""What signals do to a run: the first drains it, the second aborts it, the third ends the process."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from batcher.engines.stop import Stop, StopReason


class EndingSignals:
    """Takes SIGINT, SIGTERM and SIGHUP, as a context: none of them ends the process by its default.

    What comes before a run is `ending` on them counts as its first signal; what comes after the run
    changes nothing any more. In both times a second one ends the process, as nothing is in hand then.

    SIGHUP stays ignored where it was ignored at the start (`nohup`). SIGINT is taken even if the shell
    started this process with it ignored, as it does in the background.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._received: list[signal.Signals] = []
        self._obeyed = 0
        self._something_in_hand = False

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def ending(self, stop: Stop, say: Callable[[str], None]) -> Iterator[None]:
        """Let the signals end the run of the running loop for as long as the context lasts."""
        loop = asyncio.get_running_loop()
        self._something_in_hand = True
        for number in self._before:
            # The loop's handler wakes the loop, whichever thread the signal reaches. Counting is left to
            # the process's own one, so that a third signal ends even a process whose loop is stuck.
            loop.add_signal_handler(number, self._obey, stop, say)
            signal.signal(number, self._receive)
        self._obey(stop, say)
        try:
            yield
        finally:
            for number in self._before:
                loop.remove_signal_handler(number)
                signal.signal(number, self._receive)
            self._something_in_hand = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received.append(signal.Signals(number))
        if len(self._received) > 1 + self._something_in_hand:
            os._exit(128 + number)

    def _obey(self, stop: Stop, say: Callable[[str], None]) -> None:
        for number in self._received[self._obeyed :]:
            self._obeyed += 1
            if self._obeyed == 1:
                say(f"{number.name}: finishing the calls in flight; once more to give them up")
                stop.drain(StopReason.INTERRUPTED, f"{number.name} received")
            else:
                forced = StopReason.FORCED_INT if number is signal.SIGINT else StopReason.FORCED_TERM
                say(f"{number.name}: giving up the calls in flight, keeping what has come in")
                stop.abort(forced, f"a second signal ({number.name}) forced the end")
