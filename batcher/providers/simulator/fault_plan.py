"""Which request meets which fault: by rate, by outage, by id."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from batcher.errors import UsageError
from batcher.providers.simulator.faults import MIXED, find_fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A time in which every call meets the same fault, in seconds since the simulator's start."""

    kind: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """Where faults strike.

    Attributes:
        rates: kind, or the preset `mixed`, to the share of calls that meet it; 0 to 1, together at most 1.
        outages: times in which no call gets through.
        by_id: request id to the kinds that its first calls meet, in order.
        max_in_a_row: bound on the faults by rate that one id meets in a row; outages and faults by id
            strike as told.
        redirect_to: where the redirecting faults point.

    Raises:
        UsageError: an unknown kind, or rates that do not add up.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    outages: tuple[Outage, ...] = ()
    by_id: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    max_in_a_row: int = 3
    redirect_to: str = "http://127.0.0.1:9/"

    def __post_init__(self) -> None:
        named = [kind for kind in self.rates if kind != "mixed"]
        named += [outage.kind for outage in self.outages]
        named += [kind for kinds in self.by_id.values() for kind in kinds]
        for kind in named:
            find_fault(kind)
        if any(not 0 <= rate <= 1 for rate in self.rates.values()) or sum(self.rates.values()) > 1 + 1e-9:
            raise UsageError(f"fault rates must lie between 0 and 1 and add up to at most 1: {self.rates}")


class FaultChooser:
    """Chooses the fault of each call; remembers only the ids that are amid faults."""

    def __init__(self, plan: FaultPlan) -> None:
        self._plan = plan
        self._thresholds: list[tuple[float, str]] = []
        self._met: dict[str, int] = {}
        self._in_a_row: dict[str, int] = {}
        upper = 0.0
        for kind, rate in plan.rates.items():
            kinds = MIXED if kind == "mixed" else (kind,)
            for each in kinds:
                upper += rate / len(kinds)
                self._thresholds.append((upper, each))

    def choose(self, request_id: str, draw: float, elapsed_s: float) -> str:
        """Return the kind of fault this call meets, or "".

        Args:
            request_id: whose call it is.
            draw: uniform in [0, 1).
            elapsed_s: seconds since the simulator's start.
        """
        if outage := self.outage(elapsed_s):
            return outage
        due = self._plan.by_id.get(request_id, ())
        met = self._met.get(request_id, 0)
        if met < len(due):
            self._met[request_id] = met + 1
            return due[met]
        kind = next((kind for upper, kind in self._thresholds if draw < upper), "")
        in_a_row = self._in_a_row.get(request_id, 0)
        if not kind or in_a_row >= self._plan.max_in_a_row:
            if in_a_row:
                del self._in_a_row[request_id]
            return ""
        self._in_a_row[request_id] = in_a_row + 1
        return kind

    def outage(self, elapsed_s: float) -> str:
        """Return the kind of the outage that reigns now, or ""."""
        for outage in self._plan.outages:
            if outage.start_s <= elapsed_s < outage.end_s:
                return outage.kind
        return ""


def parse_faults(
    specs: Iterable[str], *, max_in_a_row: int = 3, redirect_to: str = "http://127.0.0.1:9/"
) -> FaultPlan:
    """Read fault specs as the command line gives them.

    `KIND=RATE` strikes that share of the calls, `outage:KIND=START..END` every call in that time (seconds
    since the start), `id:KIND=ID` the next call of that request; repeated, its calls in that order.

    Raises:
        UsageError: a spec that is none of the three, an unknown kind, a number out of range.
    """
    rates: dict[str, float] = {}
    outages: list[Outage] = []
    by_id: dict[str, tuple[str, ...]] = {}
    for spec in specs:
        if spec.startswith("id:"):
            kind, request_id = _split(spec.removeprefix("id:"), spec, "id:KIND=ID")
            by_id[request_id] = (*by_id.get(request_id, ()), kind)
        elif spec.startswith("outage:"):
            kind, span = _split(spec.removeprefix("outage:"), spec, "outage:KIND=START..END")
            start, dots, end = span.partition("..")
            start_s, end_s = _number(start or "0", spec), _number(end, spec) if end else math.inf
            if not dots or not start_s < end_s:
                raise UsageError(
                    f"fault {spec!r}: expected outage:KIND=START..END in seconds, START before END"
                )
            outages.append(Outage(kind=kind, start_s=start_s, end_s=end_s))
        else:
            kind, rate = _split(spec, spec, "KIND=RATE")
            rates[kind] = rates.get(kind, 0.0) + _number(rate, spec)
    return FaultPlan(
        rates=rates, outages=tuple(outages), by_id=by_id, max_in_a_row=max_in_a_row, redirect_to=redirect_to
    )


def _split(text: str, spec: str, form: str) -> tuple[str, str]:
    kind, equals, value = text.partition("=")
    if not (kind and equals and value):
        raise UsageError(
            f"fault {spec!r}: expected {form}, such as reset=0.02, outage:hang=5..9, id:429=row-7"
        )
    if kind != "mixed":
        find_fault(kind)
    return kind, value


def _number(text: str, spec: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"fault {spec!r}: {text!r} is not a number") from None
    if not 0 <= value < math.inf:
        raise UsageError(f"fault {spec!r}: {text!r} must be 0 or more")
    return value
