"""What fails at the address stops all lanes that talk to it, and a single call finds out for all."""

import asyncio
import itertools

import pytest
from lane_kit import lesson, make_lane, now_or_never, settled

from batcher.clock import monotonic
from batcher.errors import HostBlocked, LaneParked
from batcher.events import CircuitChanged, Event
from batcher.limits.breaker import BreakerPolicy
from batcher.scheduling.allowance import LaneLimits, Lesson
from batcher.scheduling.circuits import HostCircuit
from batcher.scheduling.lane import Lane
from batcher.scheduling.permit import Permit
from batcher.scheduling.slots import RunSlots
from batcher.types import Outcome

POLICY = BreakerPolicy()
REFUSED = lesson(Outcome.FAILED, host=Outcome.FAILED)
ANSWERED = lesson(Outcome.SUCCESS, host=Outcome.SUCCESS)
BROKEN = lesson(Outcome.FAILED, host=Outcome.SUCCESS)  # a 500 of the API
LANES = 3


class House:
    """Some lanes behind one address."""

    def __init__(self, limits: LaneLimits | None = None, *, policy: BreakerPolicy = POLICY) -> None:
        self.events: list[Event] = []
        self.slots = RunSlots(64)
        self.host = HostCircuit("a-host", policy, self.events.append)
        self.lanes = [
            make_lane(
                limits,
                slots=self.slots,
                route=f"model-{number}",
                emit=self.events.append,
                host=self.host,
                breaker=policy,
            )
            for number in range(LANES)
        ]

    async def all_end(self, end: Lesson, *, times: int) -> None:
        """Let calls end in the same way, on one lane after the other."""
        for lane in itertools.islice(itertools.cycle(self.lanes), times):
            (await now_or_never(lane.permit())).settle(end)

    async def ask_all(self, each: int = 1) -> list[asyncio.Task[Permit]]:
        tasks = [asyncio.create_task(lane.permit()) for lane in self.lanes for _ in range(each)]
        await settled()
        return tasks

    @property
    def shut(self) -> list[bool]:
        return ["a-host fails" in lane.hindrance(monotonic()) for lane in self.lanes]

    def changes(self, name: str) -> list[str]:
        return [
            event.state for event in self.events if isinstance(event, CircuitChanged) and event.route == name
        ]


async def open_house(end: Lesson = REFUSED, limits: LaneLimits | None = None) -> House:
    house = House(limits)
    await house.all_end(end, times=POLICY.failures_in_a_row)
    assert house.shut == [True] * LANES
    return house


async def test_refused_connections_on_any_lanes_stop_all_of_them() -> None:
    house = House()
    await house.all_end(REFUSED, times=POLICY.failures_in_a_row - 1)
    assert house.shut == [False] * LANES
    await house.all_end(REFUSED, times=1)
    assert house.shut == [True] * LANES
    assert house.changes("a-host") == ["open"]
    asking = await house.ask_all()
    await asyncio.sleep(0.79 * POLICY.first_wait_s)
    assert not any(task.done() for task in asking)
    for task in asking:
        task.cancel()


async def test_refused_connections_are_no_failures_of_the_model() -> None:
    house = House()
    for _ in range(POLICY.failures_in_a_row):
        (await now_or_never(house.lanes[0].permit())).settle(REFUSED)
    assert house.shut == [True] * LANES
    assert house.changes("model-0") == []


async def test_an_answer_on_another_lane_breaks_the_row() -> None:
    house = House()
    await house.all_end(REFUSED, times=POLICY.failures_in_a_row - 1)
    await house.all_end(ANSWERED, times=1)
    await house.all_end(REFUSED, times=POLICY.failures_in_a_row - 1)
    assert house.shut == [False] * LANES


async def test_a_model_that_fails_does_not_stop_the_others() -> None:
    house = House()
    for _ in range(POLICY.failures_in_a_row):
        (await now_or_never(house.lanes[0].permit())).settle(BROKEN)
    assert house.changes("model-0") == ["open"]
    assert house.changes("a-host") == []
    for lane in house.lanes[1:]:
        (await now_or_never(lane.permit())).settle(ANSWERED)


async def test_one_call_probes_for_all_and_its_failure_shuts_all_again() -> None:
    house = await open_house()
    asking = await house.ask_all(each=2)
    await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    await settled()
    assert 0.8 * POLICY.first_wait_s <= monotonic() <= 1.2 * POLICY.first_wait_s
    [probe] = [task.result() for task in asking if task.done()]
    assert probe.probe
    assert house.slots.taken == 1
    await asyncio.sleep(10.0)
    assert house.slots.taken == 1
    probe.settle(REFUSED)
    await settled()
    assert house.slots.taken == 0
    assert house.shut == [True] * LANES
    assert house.changes("a-host") == ["open", "half-open", "open"]
    for task in asking:
        task.cancel()


async def test_all_lanes_are_woken_by_the_answer_and_two_more_go_for_each_that_is_answered() -> None:
    house = await open_house()
    waiting = await house.ask_all(each=30)
    at_once: list[int] = []
    while waiting:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        await settled()
        done = {task for task in waiting if task.done()}
        waiting = [task for task in waiting if not task.done()]
        at_once.append(len(done))
        await asyncio.sleep(1.0)
        for task in done:
            task.result().settle(ANSWERED)
    assert at_once[:2] == [1, 2]
    assert house.changes("a-host") == ["open", "half-open", "closed"]
    assert sum(at_once) == 30 * LANES
    assert monotonic() < 60.0, "somebody was woken by chance only"
    assert not any(house.changes(lane.route) for lane in house.lanes)


async def test_the_wait_for_the_answer_of_a_probe_ends_in_the_same_moment_on_every_lane() -> None:
    house = await open_house()
    await asyncio.sleep(1.2 * POLICY.first_wait_s)
    probe = await now_or_never(house.lanes[0].permit())
    others = [asyncio.create_task(lane.permit()) for lane in house.lanes[1:]]
    await asyncio.sleep(7.0)
    assert not any(task.done() for task in others)
    answered_at = monotonic()
    probe.settle(ANSWERED)
    for task in others:
        assert (await task).probe
    assert monotonic() == answered_at


async def test_a_probe_that_is_cancelled_frees_the_place_for_another_lane() -> None:
    house = await open_house()
    await asyncio.sleep(1.2 * POLICY.first_wait_s)

    async def call() -> None:
        with await house.lanes[0].permit():
            await asyncio.sleep(50.0)

    probe = asyncio.create_task(call())
    await settled()
    other = asyncio.create_task(house.lanes[1].permit())
    await settled()
    assert not other.done()
    probe.cancel()
    assert (await now_or_never(asyncio.shield(other))).probe


async def test_who_is_cancelled_just_as_it_becomes_the_probe_passes_that_on() -> None:
    house = await open_house()
    await asyncio.sleep(1.2 * POLICY.first_wait_s)
    probe = await now_or_never(house.lanes[0].permit())
    next_one, last = (asyncio.create_task(lane.permit()) for lane in house.lanes[:2])
    await settled()
    probe.settle(lesson(Outcome.IGNORED))
    next_one.cancel()  # let through, and not yet aware of it
    assert (await now_or_never(asyncio.shield(last))).probe
    assert house.slots.taken == 1
    assert next_one.cancelled()


async def test_a_firewall_is_left_alone_for_a_minute() -> None:
    blocked = lesson(Outcome.FAILED, host=Outcome.FAILED, retry_after_s=HostBlocked.shortest_wait_s)
    house = await open_house(blocked)
    for again in range(1, 4):
        began_at = monotonic()
        asking = await house.ask_all()
        [probe] = (await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED))[0]
        for task in asking:
            task.cancel()
        assert monotonic() - began_at >= 60.0, again
        probe.result().settle(blocked)


class Outage:
    """Jobs that call one after the other while nothing is answered."""

    def __init__(self, house: House, end: Lesson) -> None:
        self.calls = 0
        self._house = house
        self._end = end

    async def job(self, lane: Lane) -> None:
        while True:
            with await lane.permit() as permit:
                self.calls += 1
                await asyncio.sleep(1.0)
                permit.settle(self._end)

    async def run(self) -> list[BaseException | None]:
        jobs = [self.job(lane) for lane in self._house.lanes for _ in range(5)]
        return await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 10_000.0)


@pytest.mark.parametrize("end", [REFUSED, BROKEN], ids=["of the host", "of each model"])
async def test_an_outage_that_lasts_too_long_parks_every_lane(end: Lesson) -> None:
    house = House(LaneLimits(longest_outage_s=3600.0))
    outage = Outage(house, end)
    ended = await outage.run()
    assert {type(error) for error in ended} == {LaneParked}
    assert all("no answer for 1 h" in str(lane.parked) for lane in house.lanes)
    assert 3600.0 < monotonic() < 3600.0 + LANES * 1.2 * POLICY.longest_wait_s + 20.0
    assert outage.calls < 100
    assert house.slots.taken == 0


async def test_a_lane_that_fails_for_less_is_not_parked() -> None:
    house = House(LaneLimits(longest_outage_s=3600.0))
    outage = asyncio.create_task(Outage(house, REFUSED).run())
    await asyncio.sleep(3590.0)
    assert [lane.parked for lane in house.lanes] == [None] * LANES
    outage.cancel()
