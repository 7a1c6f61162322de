"""Three lanes at one address, driven at random through everything: the books balance, nobody is forgotten."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from creeping_clock import CreepingClockLoop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lane_kit import lesson, make_lane

from batcher.errors import LaneHeldUp, LaneParked, TooLarge
from batcher.events import CircuitChanged, Event
from batcher.limits.breaker import BreakerPolicy, Circuit
from batcher.limits.limit import Demand
from batcher.limits.quota import QuotaLimits
from batcher.scheduling.allowance import NOTHING, LaneLimits
from batcher.scheduling.circuits import HostCircuit
from batcher.scheduling.lane import OVERTAKEN_S, Lane
from batcher.scheduling.permit import Permit
from batcher.scheduling.slots import RunSlots
from batcher.types import Outcome

POLICY = BreakerPolicy(
    failures_in_a_row=2,
    minimum_volume=6,
    first_wait_s=5.0,
    longest_wait_s=40.0,
    probe_timeout_s=20.0,
    successes_to_close=3,
)
QUOTAS = {
    "tokens": QuotaLimits(tpm=1_000),
    "requests": QuotaLimits(rpm=30, rpd=5_000),
    "free": QuotaLimits(),
}
TICK_S = 1.0
SUCCESS, FAILED = Outcome.SUCCESS, Outcome.FAILED
REFUSED = partial(lesson, Outcome.OVERLOADED, refused=True, host=SUCCESS, used_tokens=0)
GOOD = lesson(SUCCESS, host=SUCCESS)
ENDS = {
    "fair": [GOOD, GOOD, GOOD, lesson(SUCCESS, host=SUCCESS, used_tokens=40), lesson(Outcome.IGNORED)],
    "model down": [
        lesson(FAILED, host=SUCCESS),
        lesson(FAILED, host=SUCCESS),
        lesson(FAILED, host=SUCCESS, retry_after_s=30.0),
        lesson(Outcome.IGNORED),
    ],
    "host down": [
        lesson(FAILED, host=FAILED),
        lesson(FAILED, host=FAILED),
        lesson(FAILED, host=FAILED, retry_after_s=35.0),
        lesson(Outcome.IGNORED),
    ],
    "crowded": [
        GOOD,
        REFUSED(),
        REFUSED(retry_after_s=2.0),
        REFUSED(retry_after_s=50.0),
        lesson(Outcome.OVERLOADED, host=SUCCESS),
        lesson(FAILED, host=SUCCESS),
        lesson(FAILED, host=FAILED),
    ],
}
TOO_LONG = REFUSED(retry_after_s=3601.0)
TOO_LONG_NUMBER = 100
NUMBERS = st.integers(0, 99)


@dataclass(eq=False)
class Asking:
    """Somebody who asks a lane for a permit."""

    lane: Lane
    key: tuple[int, float]
    tokens: int
    patience_s: float
    task: asyncio.Task[Permit] = field(init=False)
    overtaken_at: float | None = None


class World(RuleBasedStateMachine):
    """Lanes with tokens, with requests and without a quota, over a few slots, behind one host."""

    @initialize(slots=st.integers(1, 6))
    def start(self, slots: int) -> None:
        self.loop = CreepingClockLoop()
        self.slots = RunSlots(slots)
        self.asking: list[Asking] = []
        self.line: list[Asking] = []
        self.open: list[tuple[Lane, Permit]] = []
        self.asleep: list[tuple[Lane, asyncio.Task[None]]] = []
        self.granted: Counter[Lane] = Counter()
        self.settled: Counter[Lane] = Counter()
        self.answered: Counter[tuple[object, int]] = Counter()
        self.arrivals = 0
        self.made = 0
        self.used_elsewhere = 0
        self.orderly = True
        self.weather = "fair"
        self.opened_at: dict[str, float] = {}
        self.since: dict[Permit, float] = {}
        self.lanes: dict[str, Lane] = {}
        self.do(self.make_lanes)

    def make_lanes(self) -> None:
        self.host = HostCircuit("host", POLICY, self.note)
        for name in QUOTAS:
            self.make_lane(name)

    def make_lane(self, name: str) -> None:
        limits = LaneLimits(quota=QUOTAS[name], concurrency=5)
        self.made += 1
        self.lanes[name] = make_lane(
            limits,
            slots=self.slots,
            route=f"{name} {self.made}",
            emit=self.note,
            host=self.host,
            breaker=POLICY,
        )

    def note(self, event: Event) -> None:
        """Watch the circuits: an open one is not tried before its time."""
        if isinstance(event, CircuitChanged):
            now = self.loop.time()
            if event.state == "open":
                self.opened_at[event.route] = now
            elif event.state == "half-open":
                assert now - self.opened_at[event.route] >= 0.8 * POLICY.first_wait_s, (
                    "let through while open"
                )

    def do(self, *acts: Callable[[], object]) -> None:
        """Do things in one step of the loop, and see what comes of it."""

        async def run() -> None:
            self.orderly = len(acts) == 1
            for act in acts:
                act()
            await self.come_to_rest()
            self.orderly = True

        self.loop.run_until_complete(run())

    async def come_to_rest(self) -> None:
        for _ in range(12):
            await asyncio.sleep(0)
        self.collect()
        for name, lane in list(self.lanes.items()):
            if lane.parked is not None:
                assert not lane.waiting
                assert not any(sleeper.lane is lane for sleeper in self.asking)
                assert not any(where is lane for where, _ in self.asleep), "asleep at a parked lane"
                self.make_lane(name)

    # What may happen

    @rule(weather=st.sampled_from(list(ENDS)))
    def change(self, weather: str) -> None:
        self.weather = weather

    @rule(
        asked=st.lists(
            st.tuples(
                st.sampled_from(list(QUOTAS)),
                st.integers(-1, 1),
                st.integers(0, 1_050),
                st.sampled_from([float("inf")] * 3 + [1.0, 10.0, 45.0]),
            ),
            min_size=1,
            max_size=6,
        )
    )
    def ask(self, asked: list[tuple[str, int, int, float]]) -> None:
        for one in asked:
            self.do(partial(self.ask_for_one, *one))

    def ask_for_one(self, name: str, priority: int, tokens: int, patience_s: float) -> None:
        self.arrivals += 1
        tokens = tokens if name == "tokens" else 0
        asking = Asking(self.lanes[name], (-priority, float(self.arrivals)), tokens, patience_s)
        asking.task = self.loop.create_task(self.wait(asking))
        self.asking.append(asking)

    async def wait(self, asking: Asking) -> Permit:
        lane = asking.lane
        self.line.append(asking)
        try:
            permit = await lane.permit(
                priority=-asking.key[0],
                since=asking.key[1],
                demand=Demand(asking.tokens, 0) if asking.tokens else NOTHING,
                patience_s=asking.patience_s,
            )
        finally:
            self.line.remove(asking)  # tasks wake in the order in which the lane let them go
        self.open.append((lane, permit))
        self.granted[lane] += 1
        self.since[permit] = now = self.loop.time()
        self.check_order(asking, now)
        if self.orderly:
            assert lane.parked is None
            assert lane.hindrance(now) == "", "let through a gate that is shut"
            assert lane.in_flight <= lane.concurrency
        return permit

    @precondition(lambda self: self.asking)
    @rule(which=NUMBERS)
    def cancel(self, which: int) -> None:
        self.do(self.asking[which % len(self.asking)].task.cancel)

    @rule(name=st.sampled_from(list(QUOTAS)))
    def cancel_before_it_begins(self, name: str) -> None:
        def ask_and_cancel() -> None:
            self.ask_for_one(name, 1, 10, 10.0)
            self.asking[-1].task.cancel()

        self.do(ask_and_cancel)

    @precondition(lambda self: self.open)
    @rule(which=NUMBERS, end=NUMBERS)
    def settle(self, which: int, end: int) -> None:
        self.do(lambda: self.settle_one(which, end))

    @precondition(lambda self: self.open and self.arrivals % 7 == 0)
    @rule(which=NUMBERS)
    def settle_so_that_the_lane_parks(self, which: int) -> None:
        self.do(lambda: self.settle_one(which, TOO_LONG_NUMBER))

    @precondition(lambda self: len(self.open) > 1)
    @rule(ends=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=4))
    def settle_several_in_one_step(self, ends: list[tuple[int, int]]) -> None:
        self.do(*(partial(self.settle_one, which, end) for which, end in ends))

    @precondition(lambda self: self.open and self.asking)
    @rule(which=NUMBERS, end=NUMBERS, victims=st.integers(1, 3))
    def settle_and_cancel_who_was_let_through(self, which: int, end: int, victims: int) -> None:
        """The narrowest gap: the permit is granted, and its waiter is cancelled before it runs again."""
        best = sorted(self.asking, key=lambda asking: asking.key)[:victims]
        self.do(lambda: self.settle_one(which, end), *(asking.task.cancel for asking in best))

    def settle_one(self, which: int, number: int) -> None:
        """Settle some permit as the weather is; the number beyond all is a refusal for too long."""
        if not self.open:
            return
        end = TOO_LONG if number == TOO_LONG_NUMBER else ENDS[self.weather][number % len(ENDS[self.weather])]
        lane, permit = self.open.pop(which % len(self.open))
        self.settled[lane] += 1
        if permit.tickets.route.probe and end.outcome in (SUCCESS, Outcome.OVERLOADED):
            self.answered[lane, permit.tickets.route.generation] += 1
        if permit.tickets.host.probe and end.host is SUCCESS:
            self.answered[self.host, permit.tickets.host.generation] += 1
        permit.settle(end)

    @rule(
        name=st.sampled_from(list(QUOTAS)),
        seconds=st.sampled_from([0.0, 0.0, 1.0, 30.0]),
        counted=st.booleans(),
        many=st.sampled_from([1, 1, 30]),
    )
    def sleep_before_a_retry(self, name: str, seconds: float, counted: bool, many: int) -> None:
        def sleep() -> None:
            lane = self.lanes[name]
            for _ in range(many):
                self.asleep.append((lane, self.loop.create_task(lane.backoff(seconds, counted=counted))))

        self.do(sleep)

    @precondition(lambda self: self.asleep)
    @rule(which=NUMBERS)
    def cancel_a_sleeper(self, which: int) -> None:
        self.do(self.asleep[which % len(self.asleep)][1].cancel)

    @precondition(lambda self: self.arrivals % 5 == 0)
    @rule(name=st.sampled_from(list(QUOTAS)))
    def park(self, name: str) -> None:
        self.do(lambda: self.lanes[name].park("closed"))

    @rule(name=st.sampled_from(["tokens", "requests"]), share=st.sampled_from([1.0, 0.5, 0.25]))
    def share(self, name: str, share: float) -> None:
        self.do(lambda: self.lanes[name].set_share(share))

    @precondition(lambda self: self.used_elsewhere < 4_800)  # or the machine would have to wait for a day
    @rule(requests=st.integers(0, 200))
    def others_use_the_day(self, requests: int) -> None:
        self.used_elsewhere += requests
        self.do(lambda: self.lanes["requests"].used_elsewhere(requests, 0))

    @rule(seconds=st.one_of(st.floats(0.0, 3.0), st.floats(0.0, 60.0)))
    def advance(self, seconds: float) -> None:
        async def run() -> None:
            left_s = seconds
            while left_s > 0:
                await asyncio.sleep(min(TICK_S, left_s))
                left_s -= TICK_S
                await self.come_to_rest()

        self.loop.run_until_complete(run())

    # What must hold

    def check_order(self, asking: Asking, now: float) -> None:
        """See that nobody better was passed over by who got through just now, unless for want of tokens."""
        rivals = [rival for rival in self.line if rival.lane is asking.lane and rival.key < asking.key]
        for rival in rivals:
            assert rival.key[0] == asking.key[0], "somebody more urgent was passed over"
            assert rival.tokens > asking.tokens, "somebody older was passed over"
        if rivals:
            first = min(rivals, key=lambda rival: rival.key)
            if first.overtaken_at is None:
                first.overtaken_at = now
            assert now - first.overtaken_at < OVERTAKEN_S, "the first in line is starved"

    def collect(self) -> None:
        """See what became of those who no longer ask."""
        through = [asking for asking in self.asking if asking.task.done()]
        self.asking = [asking for asking in self.asking if not asking.task.done()]
        for asking in through:
            if not asking.task.cancelled() and (error := asking.task.exception()):
                self.check_error(asking, error)
        for _, sleeper in self.asleep:
            if sleeper.done() and not sleeper.cancelled() and (error := sleeper.exception()):
                assert isinstance(error, LaneParked)
        self.asleep = [(lane, task) for lane, task in self.asleep if not task.done()]

    def check_error(self, asking: Asking, error: BaseException) -> None:
        if isinstance(error, TooLarge):
            assert asking.tokens > 1_000
        elif isinstance(error, LaneHeldUp):
            assert asking.patience_s < float("inf")
        elif not isinstance(error, LaneParked):
            raise error

    @invariant()
    def the_books_balance(self) -> None:
        lanes = {*self.lanes.values(), *self.granted}
        for lane in lanes:
            assert lane.in_flight == self.granted[lane] - self.settled[lane]
            assert lane.waiting == sum(asking.lane is lane for asking in self.asking)
        assert self.slots.taken == sum(lane.in_flight for lane in lanes) == len(self.open)
        assert self.slots.taken <= self.slots.limit

    @invariant()
    def few_probes_are_out(self) -> None:
        out: Counter[tuple[object, int]] = Counter()
        for lane, permit in self.open:
            out[lane, permit.tickets.route.generation] += permit.tickets.route.probe
            out[self.host, permit.tickets.host.generation] += permit.tickets.host.probe
        for breaker, probes in out.items():
            assert probes <= max(1, 2 * self.answered[breaker])

    @invariant()
    def before_the_first_answer_a_single_probe_is_out(self) -> None:
        for watched in (self.host, *self.lanes.values()):
            tickets = [
                permit.tickets.host if watched is self.host else permit.tickets.route
                for lane, permit in self.open
                if watched in (self.host, lane)
                and self.is_fresh(permit, "host" if watched is self.host else lane.route)
            ]
            probes = [ticket for ticket in tickets if ticket.probe]
            if not any(self.answered[watched, ticket.generation] for ticket in probes):
                assert len(probes) <= 1

    def is_fresh(self, permit: Permit, circuit: str) -> bool:
        """Whether it was let through since the circuit opened last, and can not yet be given up as lost."""
        since = self.since[permit]
        lost = self.loop.time() - since >= POLICY.probe_timeout_s
        return since > self.opened_at.get(circuit, 0.0) and not lost

    @invariant()
    def nobody_waits_while_all_gates_are_open(self) -> None:
        lane = self.lanes["free"]
        if not lane.waiting or lane.hindrance(self.loop.time()):
            return
        if lane.in_flight >= lane.concurrency or self.slots.taken >= self.slots.limit:
            return
        probing = any(permit.tickets.route.probe for holder, permit in self.open if holder is lane)
        probing |= self.host.breaker.state is Circuit.HALF_OPEN and any(
            permit.tickets.host.probe for _, permit in self.open
        )
        assert probing, "a wake-up was lost"

    @invariant()
    def nobody_waits_beyond_patience(self) -> None:
        for asking in self.asking:
            assert asking.patience_s + 0.001 >= asking.lane.held_up_s(self.loop.time())

    def teardown(self) -> None:
        """Let everything end well: then everybody is served, and nothing ticks on."""
        if not hasattr(self, "loop"):
            return
        try:
            self.end_well()
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()

    def end_well(self) -> None:
        self.weather = "fair"
        self.do(*(partial(lane.set_share, 1.0) for lane in self.lanes.values()))
        for _ in range(500):
            while self.open:
                self.do(lambda: self.settle_one(0, 0))
            if not self.asking and not self.asleep:
                break
            self.loop.run_until_complete(asyncio.sleep(30.0))
            self.collect()
        assert not self.asking, "somebody is never let through"
        assert not self.asleep, "somebody never wakes"
        assert self.slots.taken == 0
        self.loop.run_until_complete(asyncio.sleep(200.0))
        assert not asyncio.all_tasks(self.loop)
        assert self.loop.timers == 0, "a timer fires for ever"


def run(examples: int, steps: int) -> None:
    """Run the machine; how fast a shared computer makes its examples proves nothing."""
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    run_state_machine_as_test(World, settings=chosen)


def test_the_books_balance_and_nobody_is_forgotten() -> None:
    run(examples=60, steps=40)


@pytest.mark.long
def test_the_books_balance_and_nobody_is_forgotten_over_100_000_steps() -> None:
    run(examples=1_000, steps=100)
