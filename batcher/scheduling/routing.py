"""From a model's name to the lane and the provider that serve it."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from batcher.providers.base import Provider
from batcher.scheduling.lane import Lane
from batcher.types import Job


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One way to an answer: a model at a provider, behind its lane."""

    model: str
    provider: Provider
    lane: Lane


class Routing:
    """The routes of a run, each made when its model is first asked for.

    Attributes:
        asleep: for each model asked for, how many of its jobs sleep between two attempts, on whatever route.
    """

    def __init__(self, provider: Provider, make_lane: Callable[[str], Lane]) -> None:
        self._provider = provider
        self._make_lane = make_lane
        self._routes: dict[str, Route] = {}
        self._parked = ""
        self.asleep: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Routing {list(self._routes)}>"

    @property
    def parked(self) -> bool:
        """Whether no route lets anything more through in this run."""
        return bool(self._parked)

    def route(self, model: str) -> Route:
        """Return the route to `model`."""
        route = self._routes.get(model)
        if route is None:
            route = self._routes[model] = Route(model, self._provider, self._make_lane(model))
            if self._parked:
                route.lane.park(self._parked)
        return route

    def candidates(self, job: Job) -> Iterator[Route]:
        """Yield the routes that may answer `job`: the model asked for, then its fallbacks, each once."""
        for model in dict.fromkeys((job.model, *job.fallback)):
            yield self.route(model)

    def has_open(self, job: Job) -> bool:
        """Return whether a route is left that may answer `job` in this run."""
        return any(route.lane.parked is None for route in self.candidates(job))

    async def backoff(self, job: Job, route: Route, seconds: float) -> None:
        """Sleep between two attempts at `job` on `route`; parking its lane ends the sleep.

        Raises:
            LaneParked: the route lets nothing more through in this run.
        """
        self.asleep[job.model] += 1
        try:
            await route.lane.backoff(seconds)
        finally:
            self.asleep[job.model] -= 1

    def lanes(self) -> list[Lane]:
        """Return the lanes that exist so far."""
        return [route.lane for route in self._routes.values()]

    def park(self, reason: str) -> None:
        """Let nothing more through on any route, those not yet made included; calls in flight go on."""
        self._parked = reason
        for lane in self.lanes():
            lane.park(reason)
