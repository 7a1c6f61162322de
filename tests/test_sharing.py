import asyncio
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_clock import VirtualClockLoop

from batcher.errors import NOT_LET_IN
from batcher.events import AttemptFinished, Event, LaneChanged
from batcher.ledger import Ledger
from batcher.sharing import LOOK_EVERY_S, USED_TOGETHER, SharedAccount, account_fingerprint
from batcher.types import Outcome, Usage

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MODEL = "openai/gpt-oss-20b"
NEVER_FORGOTTEN = (10**6, 10**6)  # nothing leaks before a slot of 900 s has ended


@dataclass
class ScriptedLane:
    """Notes what it is told, and insists that it makes sense."""

    model: str = MODEL
    day_limits: tuple[int | None, int | None] = NEVER_FORGOTTEN
    share: float = 1.0
    requests: int = 0
    tokens: int = 0
    shares: list[float] = field(default_factory=list)

    def set_share(self, share: float) -> None:
        assert 0 < share <= 1
        self.share = share
        self.shares.append(share)

    def used_elsewhere(self, requests: int, tokens: int) -> None:
        assert isinstance(requests, int)
        assert isinstance(tokens, int)
        assert min(requests, tokens) >= 0
        assert requests or tokens
        self.requests += requests
        self.tokens += tokens


class Clock:
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now

    def tick(self, seconds: float = 1.0) -> None:
        self.now += timedelta(seconds=seconds)


class Run:
    """One run: an account, its lanes, and what it was told."""

    def __init__(self, directory: Path | None, clock: Clock, account: str = "") -> None:
        self.lanes: list[ScriptedLane] = []
        self.said: list[str] = []
        self.warnings: list[str] = []
        self.killed = False
        self.file: Path | None = None
        before = set(directory.glob("*.run")) if directory else set()
        self.sharing = SharedAccount(
            account,
            Ledger(directory, "acme", on_warning=self.warnings.append),
            lambda: self.lanes,
            emit=self.hear,
            now=clock,
        )
        self.sharing.join()
        if directory and (new := set(directory.glob("*.run")) - before):
            [self.file] = new

    def hear(self, event: Event) -> None:
        assert isinstance(event, LaneChanged)
        self.said.append(event.message)

    def lane(
        self, model: str = MODEL, day_limits: tuple[int | None, int | None] = NEVER_FORGOTTEN
    ) -> ScriptedLane:
        lane = ScriptedLane(model, day_limits)
        self.sharing.prepare(lane)
        self.lanes.append(lane)
        return lane

    def use(self, requests: int = 1, tokens: int = 10, model: str = MODEL) -> None:
        for number in range(requests):
            self.sharing.watch(finished(tokens=tokens // requests if number else tokens, route=model))

    def kill(self) -> None:
        """Let go of its file as the kernel does for a process that is killed: closed and not unlinked."""
        self.killed = True
        for name in os.listdir("/proc/self/fd"):
            path = f"/proc/self/fd/{name}"
            if os.path.exists(path) and os.path.realpath(path) == str(self.file):
                os.close(int(name))


def finished(
    *,
    tokens: int | None = 10,
    cached: int = 0,
    route: str = MODEL,
    outcome: Outcome = Outcome.SUCCESS,
    status: int = 200,
    sent: bool = True,
    account: str = "",
) -> AttemptFinished:
    usage = None if tokens is None else Usage(input_tokens=tokens, output_tokens=0, cached_tokens=cached)
    return AttemptFinished(
        job_id="row-1",
        call=1,
        route=route,
        outcome=outcome,
        code="",
        message="",
        status=status,
        latency_s=0.1,
        sent=sent,
        usage=usage,
        account=account,
        admitted=sent and status not in NOT_LET_IN,
    )


async def look_round(clock: Clock, *runs: Run) -> None:
    """Let every run look twice, so that all have read what all have written."""
    for _ in range(2):
        clock.tick()
        for run in runs:
            await run.sharing.look()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def joined(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def join(account: str = "", directory: Path | None = tmp_path / "state") -> Run:
        runs.append(Run(directory, clock, account))
        return runs[-1]

    yield join
    for run in runs:
        if not run.killed:
            run.sharing.leave()


async def test_a_run_that_joins_shrinks_the_others_and_one_that_leaves_gives_its_share_back(
    joined: Callable[..., Run], clock: Clock
) -> None:
    first = joined()
    early = first.lane()
    assert early.shares == []
    second = joined()
    assert second.lane().shares == [USED_TOGETHER / 2]
    await look_round(clock, first, second)
    assert first.lane("another").shares == [USED_TOGETHER / 2]
    second.sharing.leave()
    second.sharing.leave()
    await look_round(clock, first)
    assert early.shares == [USED_TOGETHER / 2, 1.0]
    assert first.said == [
        "2 runs use this account: each keeps to a half of its limits",
        "this account is this run's alone: it keeps to all of its limits",
    ]
    assert second.said == first.said[:1]


async def test_a_killed_run_gives_its_share_back(joined: Callable[..., Run], clock: Clock) -> None:
    runs = [joined(), joined(), joined()]
    lane = runs[0].lane()
    await look_round(clock, *runs)
    assert lane.share == pytest.approx(USED_TOGETHER / 3)
    runs[2].kill()
    await look_round(clock, *runs[:2])
    assert lane.share == pytest.approx(USED_TOGETHER / 2)


async def test_the_shares_are_said_in_words(joined: Callable[..., Run], clock: Clock) -> None:
    first = joined("work")
    for _ in range(4):
        joined()
        await look_round(clock, first)
    assert first.said == [
        f"{runs} runs use account work: each keeps to {share} of its limits"
        for runs, share in ((2, "a half"), (3, "a third"), (4, "a quarter"), (5, "1/5"))
    ]


async def test_it_looks_again_and_again_until_it_is_cancelled(joined: Callable[..., Run]) -> None:
    first = joined()
    heard = asyncio.Event()
    lane = first.lane()
    lane.set_share = lambda share: heard.set()  # type: ignore[method-assign]
    began_at = asyncio.get_running_loop().time()
    sharing = asyncio.create_task(first.sharing.share_forever())
    await asyncio.sleep(100 * LOOK_EVERY_S)
    assert not heard.is_set()
    joined()
    await heard.wait()
    assert asyncio.get_running_loop().time() - began_at >= 100 * LOOK_EVERY_S
    sharing.cancel()
    await asyncio.gather(sharing, return_exceptions=True)
    assert sharing.cancelled()


async def test_each_run_is_told_what_the_others_used_and_never_its_own(
    joined: Callable[..., Run], clock: Clock
) -> None:
    first, second = joined(), joined()
    mine, other = first.lane(), second.lane()
    for tokens in (10, 20, 30):
        first.use(3, tokens)
        second.use(1, 5)
        await look_round(clock, first, second)
    assert (mine.requests, mine.tokens) == (3, 15)
    assert (other.requests, other.tokens) == (9, 10 + 2 * 3 + 20 + 2 * 6 + 30 + 2 * 10)


async def test_what_was_used_before_is_told_to_a_new_lane_once(
    joined: Callable[..., Run], clock: Clock
) -> None:
    first = joined()
    first.lane()
    first.use(3, 30)
    first.use(7, 0, "another")
    first.sharing.leave()
    second = joined()
    lane = second.lane()
    assert (lane.requests, lane.tokens) == (3, 50)
    await look_round(clock, second)
    assert (lane.requests, lane.tokens) == (3, 50)
    late = second.lane("another")
    assert late.requests == 7


async def test_a_limit_that_is_not_known_says_nothing_of_what_is_left(joined: Callable[..., Run]) -> None:
    first = joined()
    first.use(3, 30)
    first.sharing.leave()
    second = joined()
    assert second.lane(day_limits=(None, None)).requests == 0
    told = second.lane(day_limits=(10, None))
    assert (told.requests, told.tokens) == (3, 0)


async def test_a_new_lane_is_told_a_level_that_a_day_forgets(
    joined: Callable[..., Run], clock: Clock
) -> None:
    first = joined()
    first.use(100, 0)
    first.sharing.leave()
    levels = []
    for _ in range(3):
        levels.append(joined().lane(day_limits=(100, None)).requests)
        clock.tick(43_200)
    assert levels == [100, pytest.approx(51, abs=1), pytest.approx(1, abs=1)]


EVENTS: dict[str, tuple[Event, tuple[int, int]]] = {
    "answer": (finished(), (1, 10)),
    "answer without usage": (finished(tokens=None), (1, 0)),
    "answer from the cache": (finished(cached=4), (1, 10)),
    "broken off": (finished(tokens=None, outcome=Outcome.FAILED, status=0), (1, 0)),
    "server error": (finished(tokens=None, outcome=Outcome.FAILED, status=503), (1, 0)),
    "bad request": (finished(tokens=None, outcome=Outcome.IGNORED, status=400), (1, 0)),
    "never sent": (finished(tokens=None, outcome=Outcome.FAILED, status=0, sent=False), (0, 0)),
    **{
        str(status): (finished(tokens=None, outcome=Outcome.IGNORED, status=status), (0, 0))
        for status in (401, 402, 403, 404, 413, 429, 498)
    },
    "another account": (finished(account="another"), (0, 0)),
}


@pytest.mark.parametrize(("event", "counted"), EVENTS.values(), ids=EVENTS)
async def test_what_counts_is_what_was_let_in(
    joined: Callable[..., Run], event: AttemptFinished, counted: tuple[int, int]
) -> None:
    first = joined()
    first.sharing.watch(event)
    first.sharing.leave()
    lane = joined().lane()
    assert (lane.requests, lane.tokens) == counted


async def test_cached_tokens_do_not_count_where_the_provider_does_not_count_them(
    tmp_path: Path, clock: Clock
) -> None:
    ledger = Ledger(tmp_path / "state", "acme", on_warning=lambda _: None)
    groq = SharedAccount("", ledger, list, emit=print, cached_tokens_count=False, now=clock)
    groq.join()
    groq.watch(finished(tokens=100, cached=60))
    groq.leave()
    lane = Run(tmp_path / "state", clock).lane()
    assert (lane.requests, lane.tokens) == (1, 40)


async def test_a_run_that_can_share_nothing_keeps_its_own_way(
    joined: Callable[..., Run], clock: Clock
) -> None:
    alone = joined(directory=None)
    lane = alone.lane()
    alone.use()
    await look_round(clock, alone)
    assert lane == ScriptedLane()
    assert len(alone.warnings) == 1


async def test_cancelling_a_look_loses_no_use(joined: Callable[..., Run], clock: Clock) -> None:
    first = joined()
    for _ in range(20):
        clock.tick()
        first.use()
        look = asyncio.create_task(first.sharing.look())
        await asyncio.sleep(0)
        look.cancel()
        await asyncio.gather(look, return_exceptions=True)
    first.sharing.leave()
    assert joined().lane().requests == 20


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["join", "use", "use", "use", "kill", "leave"]), st.integers(0, 3), st.integers(1, 40)
    ),
    max_size=14,
)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_shares_add_up_to_one_and_day_use_to_what_all_used(steps: list[tuple[str, int, int]]) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        asyncio.Runner(loop_factory=VirtualClockLoop) as runner,
    ):
        runner.run(share(Path(directory) / "state", steps))


async def share(directory: Path, steps: list[tuple[str, int, int]]) -> None:
    clock = Clock()
    alive: list[Run] = []
    own: Counter[int] = Counter()
    total = 0
    for what, who, amount in steps:
        run = alive[who % len(alive)] if alive else None
        if what == "join" and len(alive) < 4:
            alive.append(Run(directory, clock))
            alive[-1].lane()
        elif what == "use" and run is not None:
            run.use(amount)
            own[id(run)] += amount
            total += amount
        elif run is not None and what in {"kill", "leave"}:
            alive.remove(run)
            run.kill() if what == "kill" else run.sharing.leave()
        await look_round(clock, *alive)
        for each in alive:
            assert each.lanes[0].share == pytest.approx(
                1.0 if len(alive) == 1 else USED_TOGETHER / len(alive)
            )
            assert each.lanes[0].requests + own[id(each)] == total
    for each in alive:
        each.sharing.leave()
    assert not [run for run in alive if run.warnings]


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["use", "clock", "clock", "damage", "empty", "delete"]),
            st.integers(0, 1),
            st.integers(-300_000, 300_000),
        ),
        max_size=14,
    )
)
def test_clocks_that_jump_and_books_that_are_lost_are_no_use_of_others(
    steps: list[tuple[str, int, int]],
) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        asyncio.Runner(loop_factory=VirtualClockLoop) as runner,
    ):
        runner.run(disturb(Path(directory) / "state", steps))


def lose_books(directory: Path, how: str) -> None:
    for path in directory.glob("*.json"):
        if how == "delete":
            path.unlink()
        else:
            path.write_bytes(b"torn" if how == "damage" else b"")


async def disturb(directory: Path, steps: list[tuple[str, int, int]]) -> None:
    clock = Clock()
    runs = [Run(directory, clock), Run(directory, clock)]
    for run in runs:
        run.lane()
    used = [0, 0]
    for what, who, amount in steps:
        if what == "use":
            runs[who].use(3)
            used[who] += 3
        elif what == "clock":
            clock.tick(amount)
        else:
            lose_books(directory, what)
        await look_round(clock, *runs)
        assert runs[0].lanes[0].requests <= used[1]
        assert runs[1].lanes[0].requests <= used[0]
    for run in runs:
        run.sharing.leave()


KEYS = ["sk-made-up-1", "sk-made-up-2"]


def test_a_fingerprint_names_host_and_keys_and_shows_none() -> None:
    name = account_fingerprint("https://api.groq.com", KEYS)
    assert name == account_fingerprint("https://API.groq.com:443/openai/v1", reversed(KEYS))
    assert name != account_fingerprint("https://api.groq.com", ["sk-made-up-3"])
    assert name != account_fingerprint("https://api.openai.com", KEYS)
    assert "made-up" not in name
    local = account_fingerprint("http://127.0.0.1:8089/v1", [])
    assert local == "127.0.0.1:8089"
    assert local != account_fingerprint("http://127.0.0.1:8090/v1", [])
