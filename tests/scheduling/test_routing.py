"""Routes are made once, offered in the order a job names them, and closed all together."""

import asyncio

from lane_kit import lesson, make_lane, settled

from batcher.errors import LaneParked
from batcher.scheduling.lane import Lane
from batcher.scheduling.routing import Account, Route, Routing
from batcher.types import Job, ModelInfo, Outcome, Reply, Request


class Unused:
    """A provider that nobody asks anything."""

    name = "unused"

    async def send(self, request: Request, *, timeout_s: float) -> Reply:
        raise AssertionError(request)

    async def models(self) -> list[ModelInfo]:
        return []

    async def aclose(self) -> None:
        pass


def make_routing() -> tuple[Routing, list[str]]:
    """Return a routing, and the models that it has made lanes for."""
    made: list[str] = []

    def make(model: str, account: Account) -> Lane:
        made.append(model)
        return make_lane(route=model)

    return Routing([Account(provider=Unused())], make), made


def only(routing: Routing, model: str) -> Route:
    [route] = routing.routes(model)
    return route


def job(model: str, *fallback: str) -> Job:
    return Job(
        id="j",
        endpoint="/v1/chat/completions",
        model=model,
        body=b"{}",
        request_sha256="",
        where="",
        fallback=fallback,
    )


async def test_a_route_is_made_once() -> None:
    routing, made = make_routing()
    assert only(routing, "a") is only(routing, "a")
    assert only(routing, "b").lane is not only(routing, "a").lane
    assert made == ["a", "b"]
    assert [lane.route for lane in routing.lanes()] == ["a", "b"]
    assert repr(routing) == "<Routing ['a', 'b'] at ['']>"


async def test_a_jobs_routes_come_in_its_order_each_once() -> None:
    routing, _ = make_routing()
    assert [route.model for route, _ in routing.candidates(job("a", "b", "a", "c", "b"))] == ["a", "b", "c"]


async def test_a_fallback_that_is_not_needed_has_no_lane() -> None:
    routing, made = make_routing()
    assert next(routing.candidates(job("a", "b")))[0].model == "a"
    assert made == ["a"]


async def test_a_job_is_startable_as_long_as_one_of_its_routes_is_open() -> None:
    routing, _ = make_routing()
    asked = job("a", "b")
    assert routing.has_open(asked)
    only(routing, "a").lane.park("closed")
    assert routing.has_open(asked)
    assert not routing.has_open(job("a"))
    only(routing, "b").lane.park("closed")
    assert not routing.has_open(asked)
    assert not routing.parked


async def test_a_job_that_sleeps_counts_for_the_model_that_it_asked_for() -> None:
    routing, _ = make_routing()
    asked = job("a", "b")
    sleeps = [asyncio.create_task(routing.backoff(asked, only(routing, "b"), 60.0)) for _ in range(3)]
    await settled()
    assert (routing.asleep["a"], routing.asleep["b"]) == (3, 0)
    sleeps[0].cancel()
    await settled()
    assert routing.asleep["a"] == 2
    only(routing, "b").lane.park("closed")
    ended = await asyncio.gather(*sleeps[1:], return_exceptions=True)
    assert [type(error) for error in ended] == [LaneParked] * 2
    assert routing.asleep["a"] == 0


async def test_parking_closes_the_routes_that_are_and_those_to_come() -> None:
    routing, _ = make_routing()
    early = only(routing, "a")
    assert not routing.parked
    routing.park("stopped")
    assert routing.parked
    late = only(routing, "b")
    for route in (early, late):
        assert isinstance(route.lane.parked, LaneParked)
        assert str(route.lane.parked) == "stopped"


async def test_it_says_what_is_waited_for() -> None:
    routing, _ = make_routing()
    assert routing.waits_for() == "nothing that a lane knows of"
    a, b = only(routing, "a").lane, only(routing, "b").lane
    permits = [await a.permit() for _ in range(4)]
    waiting = asyncio.create_task(a.permit())
    b.park("b: closed")
    await settled()
    assert routing.waits_for() == "a: 4 calls in flight, 1 wait; b: 0 calls in flight, 0 wait (b: closed)"
    waiting.cancel()
    await settled()
    for permit in permits:
        permit.settle(lesson(Outcome.SUCCESS))
