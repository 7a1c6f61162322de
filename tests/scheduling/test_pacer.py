"""Pacing: never more requests in any minute than allowed, and nearly as many."""

import asyncio
import math
from itertools import pairwise

import pytest
from creeping_clock import on_creeping_clock
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_kit import MINUTE_S, most_in_a_minute

from batcher.clock import monotonic
from batcher.scheduling.pacer import Pacer


class Paced:
    """Somebody who starts requests as early as the pacer lets them."""

    def __init__(self, requests_per_minute: int) -> None:
        self.started: list[float] = []
        self._token = asyncio.Event()
        self._pacer = Pacer(requests_per_minute, self._token.set)

    async def ready(self) -> None:
        for _ in range(6):
            free_at = self._pacer.free_at(now := monotonic())
            if free_at <= now:
                return
            self._token.clear()
            if free_at < math.inf:
                asyncio.get_running_loop().call_at(free_at, self._token.set)
            await self._token.wait()
        pytest.fail(f"waits again and again: {self._pacer!r}")

    async def start(self) -> None:
        await self.ready()
        self.started.append(monotonic())
        self._pacer.spend(self.started[-1])

    def share(self, requests_per_minute: int) -> None:
        self._pacer.share(requests_per_minute)

    async def start_until(self, end_s: float) -> None:
        while monotonic() < end_s:
            await self.start()


@pytest.mark.parametrize("requests_per_minute", [1, 2, 30, 600, 1200])
def test_nearly_every_request_allowed_is_made_and_none_beyond(requests_per_minute: int) -> None:
    async def run() -> None:
        paced = Paced(requests_per_minute)
        await paced.start_until(11 * MINUTE_S)
        assert most_in_a_minute(paced.started) <= requests_per_minute
        steady = [moment for moment in paced.started if MINUTE_S <= moment < 11 * MINUTE_S]
        assert len(steady) >= math.floor(0.97 * 10 * requests_per_minute)

    on_creeping_clock(run())


def test_requests_are_spread_over_the_minute() -> None:
    async def run() -> None:
        paced = Paced(600)
        await paced.start_until(10.0)
        gaps = [later - earlier for earlier, later in pairwise(paced.started[5:])]
        assert 0.09 < min(gaps) <= max(gaps) < 0.11

    on_creeping_clock(run())


@given(
    requests_per_minute=st.integers(1, 60),
    visits=st.lists(st.tuples(st.floats(0.0, 90.0), st.integers(1, 90)), max_size=10),
)
@settings(max_examples=60, deadline=None)
def test_no_minute_holds_more_than_allowed_however_requests_come(
    requests_per_minute: int, visits: list[tuple[float, int]]
) -> None:
    async def run() -> None:
        paced = Paced(requests_per_minute)
        for pause_s, requests in visits:
            await paced.ready()
            await asyncio.sleep(pause_s)  # its token in hand
            for _ in range(requests):
                await paced.start()
        assert most_in_a_minute(paced.started) <= requests_per_minute

    on_creeping_clock(run())


def test_a_token_kept_in_hand_is_no_extra_request() -> None:
    async def run() -> None:
        paced = Paced(30)
        await paced.ready()
        await asyncio.sleep(100.0)  # nobody uses it, and meanwhile the limiter has recovered in full
        await paced.start_until(300.0)
        assert most_in_a_minute(paced.started) == 30

    on_creeping_clock(run())


async def test_closing_ends_the_fetching() -> None:
    told: list[float] = []
    pacer = Pacer(1, lambda: told.append(monotonic()))
    assert pacer.free_at(0.0) == math.inf
    await asyncio.sleep(0.1)
    assert repr(pacer) == "<Pacer token_in_hand=True>"
    pacer.spend(monotonic())
    assert pacer.free_at(monotonic()) == math.inf
    pacer.close()
    await asyncio.sleep(300.0)
    assert len(told) == 1


@pytest.mark.parametrize(("requests_per_minute", "kept"), [(49, 1), (98, 2), (30, 3), (600, 7)])
def test_a_share_is_exact_however_it_divides(requests_per_minute: int, kept: int) -> None:
    async def run() -> None:
        paced = Paced(requests_per_minute)
        await paced.start_until(5.0)
        paced.share(kept)
        began_at = monotonic()
        await paced.start_until(began_at + 10 * MINUTE_S)
        shared = [moment for moment in paced.started if moment > began_at]
        assert most_in_a_minute(shared) == kept
        assert len(shared) >= math.floor(0.97 * 9 * kept)

    on_creeping_clock(run())


def test_a_new_share_goes_on_at_an_even_distance_and_voids_the_token_in_hand() -> None:
    async def run() -> None:
        paced, other = Paced(30), Paced(30)
        await paced.start()
        await paced.ready()
        joined_at = monotonic()
        paced.share(15)
        other.share(15)
        other.share(10)
        await asyncio.gather(paced.start_until(20.0), other.start_until(20.0))
        assert paced.started[1:4] == pytest.approx([4.02, 8.03, 12.05], abs=0.1)
        assert other.started[0] == pytest.approx(joined_at + 6.02, abs=0.1)

    on_creeping_clock(run())


async def test_a_share_that_changes_while_a_token_is_fetched_leaves_one_fetch() -> None:
    told: list[float] = []
    pacer = Pacer(60, lambda: told.append(monotonic()))
    assert pacer.free_at(monotonic()) == math.inf
    pacer.share(30)
    await asyncio.sleep(10.0)
    assert not told
    assert pacer.free_at(monotonic()) == math.inf
    await asyncio.sleep(0.1)
    assert pacer.free_at(monotonic()) == monotonic()
    assert len(told) == 1
