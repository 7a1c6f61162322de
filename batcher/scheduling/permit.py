"""Leave for one attempt."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from batcher.scheduling.allowance import Admission, Lesson
from batcher.scheduling.circuits import Tickets
from batcher.types import Outcome


class Permit:
    """Leave for one attempt, settled exactly once; left unsettled (cancelled), it counts as `IGNORED`.

    Attributes:
        hold: what the attempt holds of the provider's allowance.
        tickets: what it holds of the circuits.
        probe: the attempt finds out for all whether the provider is back.
    """

    __slots__ = ("_on_settled", "_open", "hold", "probe", "tickets")

    def __init__(
        self, hold: Admission, tickets: Tickets, on_settled: "Callable[[Permit, Lesson], None]"
    ) -> None:
        self.hold = hold
        self.tickets = tickets
        self.probe = tickets.probe
        self._on_settled = on_settled
        self._open = True

    def settle(self, lesson: Lesson) -> None:
        """Give the slot back and tell the lane what the attempt brought.

        Raises:
            RuntimeError: the permit was settled before.
        """
        if not self._open:
            raise RuntimeError("a permit is settled exactly once")
        self._open = False
        self._on_settled(self, lesson)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self.settle(Lesson(outcome=Outcome.IGNORED))
