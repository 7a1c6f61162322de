"""Where calls leave from: those of one step of the loop together, once they are written down."""

import asyncio
from collections.abc import Callable, Sequence

from batcher.journal import Sent


class Departures:
    """Lets calls go out in groups, as a system call costs more than what it does.

    Before the first byte of a group goes out, the results that have come in so far are with the kernel, and
    then its calls are in the journal. So a killed process loses at most one call for each that it may have
    in flight, what may be charged is known, and no call is paid for whose answer could not be kept.

    Args:
        write_down: writes a group into the journal; raises `OutputError` if no call may go out any more.
        keep_results: brings the results that have come in to the kernel.
    """

    def __init__(
        self, write_down: Callable[[Sequence[Sent]], None], keep_results: Callable[[], None] = lambda: None
    ) -> None:
        self._write_down = write_down
        self._keep_results = keep_results
        self._loop = asyncio.get_running_loop()
        self._ready: list[tuple[Sent, asyncio.Future[None]]] = []

    def __repr__(self) -> str:
        return f"<Departures ready={len(self._ready)}>"

    async def leave(self, call: Sent) -> None:
        """Wait until `call` is written down; it is to go out at once then.

        Raises:
            OutputError: it cannot be, or no call may go out any more.
        """
        written = self._loop.create_future()
        if not self._ready:
            self._loop.call_soon(self._write_group)
        self._ready.append((call, written))
        await written

    def _write_group(self) -> None:
        # A call that was cancelled meanwhile does not go out.
        group = [(call, written) for call, written in self._ready if not written.done()]
        self._ready.clear()
        try:
            self._keep_results()
            self._write_down([call for call, _ in group])
        except Exception as error:
            for _, written in group:
                written.set_exception(error)
                written.exception()  # whoever is cancelled just now need not hear of it
        else:
            for _, written in group:
                written.set_result(None)
