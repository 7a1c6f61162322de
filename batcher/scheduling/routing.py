"""From a model's name to the lanes and the providers that serve it."""

import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from batcher.clock import monotonic
from batcher.errors import LaneParked
from batcher.providers.base import Provider
from batcher.scheduling.lane import Lane
from batcher.types import Job

PATIENCE_S = 1.0
"""A lane that is shut for longer is left, if another account can serve the same model."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Account:
    """An account at a provider, or one of its service tiers: the owner of a quota.

    Attributes:
        provider: who is called.
        owner: whose keys are used.
        tier: the service tier that requests are sent with, "" for none.
        overflow: only for what the account's other tier has no room for.
        weight: how large a share it takes while others have room, too (> 0).
        fingerprint: tells accounts apart over all runs, without telling the key.
    """

    provider: Provider
    owner: str = ""
    tier: str = ""
    overflow: bool = False
    weight: float = 1.0
    fingerprint: str = ""

    @property
    def name(self) -> str:
        """The owner, and the tier where it has a quota of its own."""
        return f"{self.owner} {self.tier}".strip() if self.overflow else self.owner


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One way to an answer: a model at an account, behind its lane."""

    model: str
    account: Account
    lane: Lane

    @property
    def provider(self) -> Provider:
        """Who is called."""
        return self.account.provider


class Routing:
    """The routes of a run, each made when its model is first asked for.

    Args:
        accounts: who answers, in order of preference where all else is equal.
        make_lane: makes the lane of a model at an account.
        fallback_after_s: how long a model may be shut before its jobs go on to their fallbacks.
        on_all_refused: told why, once the keys of all accounts have been refused.

    Attributes:
        asleep: for each model asked for, how many of its jobs sleep between two attempts, on whatever route.
        on_asleep: told the model of a job that falls asleep, so that another takes its place.
    """

    def __init__(
        self,
        accounts: Sequence[Account],
        make_lane: Callable[[str, Account], Lane],
        *,
        fallback_after_s: float = 30.0,
        on_all_refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._accounts = tuple(accounts)
        self._make_lane = make_lane
        self._fallback_after_s = fallback_after_s
        self._on_all_refused = on_all_refused
        self._routes: dict[str, tuple[Route, ...]] = {}
        self._refused: dict[str, str] = {}  # owner -> why
        self._parked = ""
        self.asleep: Counter[str] = Counter()
        self.on_asleep: Callable[[str], None] = lambda model: None

    def __repr__(self) -> str:
        return f"<Routing {list(self._routes)} at {[account.name for account in self._accounts]}>"

    @property
    def parked(self) -> bool:
        """Whether no route lets anything more through in this run."""
        return bool(self._parked)

    def routes(self, model: str) -> tuple[Route, ...]:
        """Return the routes to `model`, one for each account."""
        routes = self._routes.get(model)
        if routes is None:
            routes = tuple(
                Route(model, account, self._make_lane(model, account)) for account in self._accounts
            )
            self._routes[model] = routes
            for route in routes:
                if reason := self._parked or self._refused.get(route.account.owner):
                    route.lane.park(reason, tell=False)
        return routes

    def candidates(self, job: Job) -> Iterator[tuple[Route, float]]:
        """Yield the routes that may answer `job`, each once, and for how long its lane may be shut (seconds).

        The model asked for comes first, then the fallbacks. Where several accounts serve a model, the one
        comes first where the fewest wait, and by weight where nobody has to.
        """
        if not job.fallback and len(self._accounts) == 1:
            yield self.routes(job.model)[0], math.inf
            return
        for model in dict.fromkeys((job.model, *job.fallback)):
            left = list(self.routes(model))
            while left:
                route = min(left, key=_crowding)
                left.remove(route)
                yield route, PATIENCE_S if left else self._fallback_after_s

    async def wait_for_one(self, job: Job, shut: Sequence[Route]) -> list[tuple[Route, float]]:
        """Wait until one of the routes that are shut may be tried again; return them as `candidates` does."""
        if len(shut) == 1:
            return [(shut[0], math.inf)]
        wait_s = min(route.lane.next_try_in_s(monotonic()) for route in shut)
        with contextlib.suppress(LaneParked):
            # Not all at the same moment, as only one of them is let through.
            await self.backoff(job, shut[0], max(PATIENCE_S, wait_s) * random.uniform(1.0, 1.1))
        return [(route, PATIENCE_S) for route in shut]

    def has_open(self, job: Job) -> bool:
        """Return whether a route is left that may answer `job` in this run."""
        for model in (job.model, *job.fallback):
            for route in self.routes(model):
                if route.lane.parked is None:
                    return True
        return False

    def has_sibling(self, route: Route) -> bool:
        """Return whether another route to the same model is left in this run."""
        return any(other is not route and other.lane.parked is None for other in self.routes(route.model))

    def room(self, model: str) -> int | None:
        """Return how many calls the open lanes of a model may have in flight, None if none is open."""
        room = 0
        for route in self.routes(model):
            if route.lane.parked is None:
                room += route.lane.concurrency
        return room or None

    def ready(self, model: str) -> int:
        """Return how many jobs of a model to keep ready beyond those in flight."""
        return max((route.lane.ready for route in self.routes(model) if route.lane.parked is None), default=0)

    async def backoff(self, job: Job, route: Route, seconds: float, *, counted: bool = False) -> None:
        """Sleep between two attempts at `job` on `route`; parking its lane ends the sleep.

        Args:
            job: that is to be tried again.
            route: where.
            seconds: how long (>= 0).
            counted: the failed attempt counted, so that the lane's retry budget bounds the retry.

        Raises:
            LaneParked: the route lets nothing more through in this run.
        """
        self.asleep[job.model] += 1
        try:
            self.on_asleep(job.model)
            await route.lane.backoff(seconds, counted=counted)
        finally:
            self.asleep[job.model] -= 1

    def lanes(self, account: Account | None = None) -> list[Lane]:
        """Return the lanes that exist so far: all, or those of one account."""
        routes = (route for routes in self._routes.values() for route in routes)
        return [route.lane for route in routes if account is None or route.account is account]

    def waits_for(self) -> str:
        """Return in words what the lanes have under way, and what holds them back."""
        now = monotonic()
        said = []
        for lane in self.lanes():
            hindrance = lane.hindrance(now)
            if lane.in_flight or lane.waiting or hindrance:
                under_way = f"{lane.route}: {lane.in_flight} calls in flight, {lane.waiting} wait"
                said.append(f"{under_way} ({hindrance})" if hindrance else under_way)
        return "; ".join(said) or "nothing that a lane knows of"

    def park(self, reason: str) -> None:
        """Let nothing more through on any route, those not yet made included; calls in flight go on."""
        self._parked = reason
        for lane in self.lanes():
            lane.park(reason, tell=False)  # it is the whole run that ends

    def refused(self, owner: str, reason: str) -> None:
        """Let nothing more through for the owner of keys none of which is left."""
        if owner in self._refused:
            return
        self._refused[owner] = reason
        for account in self._accounts:
            if account.owner == owner:
                for lane in self.lanes(account):
                    lane.park(reason)
        if all(account.owner in self._refused for account in self._accounts):
            self._on_all_refused(reason)


class _Crowding(NamedTuple):
    """Orders routes by how little room they have."""

    parked: bool
    shut: bool
    waiting: int
    overflow: bool  # only for what the account's other tier has no room for
    load: float  # calls in flight by weight


def _crowding(route: Route) -> _Crowding:
    lane = route.lane
    return _Crowding(
        parked=lane.parked is not None,
        shut=lane.held_up_s(monotonic()) > PATIENCE_S,
        waiting=lane.waiting,
        overflow=route.account.overflow,
        load=(lane.in_flight + 1) / route.account.weight,
    )
