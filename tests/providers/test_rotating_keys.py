"""Keys of one account take turns; one that is refused for good is left out, and the last one ends it."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from batcher.errors import CallError, InvalidRequest, KeyDoubted, KeyRefused
from batcher.events import Event, KeyDisabled
from batcher.providers.keys import Secret
from batcher.providers.openai_compatible import OpenAICompatible
from batcher.providers.rotating_keys import DOUBT_S, KeyRing, RotatingKeys
from batcher.providers.simulator.server import start_embedded
from batcher.providers.simulator.settings import SimulatorSettings
from batcher.providers.transport import Pool, PoolSettings
from batcher.types import ModelInfo, Outcome, Reply, Request

ASK = Request(
    endpoint="/v1/chat/completions",
    model="m",
    body=b'{"model":"m","messages":[{"role":"user","content":"hi"}]}',
)
YES = Reply(status=200, body=b"{}")


def refusal(code: str = "invalid_api_key", status: int = 401) -> KeyRefused:
    return KeyRefused(f"HTTP {status}: {code}", code=code, status=status, body=b"no", request_id="r-1")


class OneKey:
    """A provider whose calls end as scripted, the last way for ever, each after `latency_s`."""

    name = "scripted"

    def __init__(self, script: Sequence[Reply | Exception] = (YES,), *, latency_s: float = 0.0) -> None:
        self._script = script
        self._latency_s = latency_s
        self.calls = 0
        self.closed = 0
        self.close_error: Exception | None = None

    async def send(self, request: Request, *, timeout_s: float) -> Reply:
        end = self._script[min(self.calls, len(self._script) - 1)]
        self.calls += 1
        await asyncio.sleep(self._latency_s)
        if isinstance(end, Exception):
            raise end
        return end

    async def models(self) -> list[ModelInfo]:
        end = self._script[0]
        if isinstance(end, Exception):
            raise end
        return [ModelInfo(id="m")]

    async def aclose(self) -> None:
        self.closed += 1
        if self.close_error is not None:
            raise self.close_error


class Rig:
    """An account over scripted keys K0, K1 ..., and what it told."""

    def __init__(self, *keys: OneKey) -> None:
        self.keys = keys
        self.events: list[Event] = []
        self.account = RotatingKeys(
            "main", [(f"K{number}", key) for number, key in enumerate(keys)], self.events.append
        )

    async def send(self) -> str:
        """Make one call; return how it ended."""
        try:
            await self.account.send(ASK, timeout_s=10)
        except CallError as error:
            return type(error).__name__
        return "answered"

    @property
    def calls(self) -> list[int]:
        return [key.calls for key in self.keys]

    @property
    def told(self) -> list[str]:
        assert all(isinstance(event, KeyDisabled) and event.account == "main" for event in self.events)
        return [event.message for event in self.events if isinstance(event, KeyDisabled)]


class RingMachine(RuleBasedStateMachine):
    """A ring of five keys with calls in flight, against a plain count of refusals for each key."""

    out = Bundle("out")

    def __init__(self) -> None:
        super().__init__()
        self.ring = KeyRing(5)
        self.doubted: set[int] = set()
        self.dead: set[int] = set()
        self.turns = Counter[int]()  # since the last death

    @rule(target=out)
    def take(self) -> tuple[int | None, bool]:
        key = self.ring.take()
        assert (key is None) == (len(self.dead) == 5)
        if key is None:
            return None, False
        assert key not in self.dead
        self.turns[key] += 1
        assert self.ring.is_doubted(key) == (key in self.doubted)
        return key, key in self.doubted

    @rule(call=consumes(out))
    def answer(self, call: tuple[int | None, bool]) -> None:
        key, _ = call
        if key is not None:
            self.ring.answered(key)
            self.doubted.discard(key)

    @rule(call=consumes(out), for_good=st.integers(0, 9).map(lambda n: n == 0))
    def refuse(self, call: tuple[int | None, bool], for_good: bool) -> None:
        key, was_doubted = call
        if key is None:
            return
        dies = key not in self.dead and (for_good or was_doubted)
        assert self.ring.refused(key, sure=for_good or was_doubted) == dies
        self.doubted.add(key)
        if dies:
            self.dead.add(key)
            self.turns.clear()

    @invariant()
    def the_live_are_those_that_did_not_die(self) -> None:
        assert self.ring.live == {0, 1, 2, 3, 4} - self.dead

    @invariant()
    def the_live_are_used_evenly(self) -> None:
        turns = [self.turns[key] for key in self.ring.live]
        assert not turns or max(turns) - min(turns) <= 1


TestKeyRing = RingMachine.TestCase
TestKeyRing.settings = settings(max_examples=60, stateful_step_count=60)


async def test_a_single_key_is_doubted_once_and_then_ends_it() -> None:
    first, second = refusal(), refusal()
    rig = Rig(OneKey([first, second]))
    with pytest.raises(KeyDoubted) as doubted:
        await rig.account.send(ASK, timeout_s=10)
    seen = doubted.value
    assert (seen.code, seen.status, seen.body, seen.request_id) == ("invalid_api_key", 401, b"no", "r-1")
    assert (seen.sent, seen.outcome, seen.retry_after_s) == (True, Outcome.IGNORED, DOUBT_S)
    assert (str(seen), seen.__cause__) == (str(first), first)
    assert rig.told == []
    with pytest.raises(KeyRefused) as refused:
        await rig.account.send(ASK, timeout_s=10)
    assert refused.value is second
    for _ in range(2):
        with pytest.raises(KeyRefused, match="no key is left, the last one was refused: HTTP 401") as after:
            await rig.account.send(ASK, timeout_s=10)
        assert (after.value.code, after.value.sent, after.value.status) == ("invalid_api_key", False, 0)
    assert rig.calls == [2]
    assert rig.told == [
        "K0 was refused twice in a row and is not used any more: HTTP 401: invalid_api_key; no key is left"
    ]


async def test_an_answer_in_between_clears_a_key_of_doubt() -> None:
    rig = Rig(OneKey([refusal(), YES, refusal(), YES, refusal(), refusal()]))
    ends = [await rig.send() for _ in range(6)]
    assert ends == ["KeyDoubted", "answered"] * 2 + ["KeyDoubted", "KeyRefused"]


async def test_other_faults_neither_clear_nor_blame_a_key() -> None:
    rig = Rig(OneKey([InvalidRequest("HTTP 400: x", code="x", status=400), refusal(), YES]))
    assert [await rig.send() for _ in range(3)] == ["InvalidRequest", "KeyDoubted", "answered"]


async def test_of_three_keys_the_dead_one_is_left_out() -> None:
    rig = Rig(OneKey(), OneKey([refusal()]), OneKey())
    ends = [await rig.send() for _ in range(60)]
    assert Counter(ends) == {"answered": 58, "KeyDoubted": 2}
    assert rig.calls == [29, 2, 29]
    [message] = rig.told
    assert message.startswith("K1 was refused twice in a row")
    assert message.endswith("2 keys are left")


async def test_where_another_key_lives_there_is_no_need_to_wait() -> None:
    rig = Rig(OneKey([refusal()]), OneKey([refusal()]))
    waits = []
    for _ in range(3):
        with pytest.raises(KeyDoubted) as doubted:
            await rig.account.send(ASK, timeout_s=10)
        waits.append(doubted.value.retry_after_s)
    # K0 and K1 are doubted; then K0 dies, but K1 has not yet.
    assert waits == [None, None, None]
    assert await rig.send() == "KeyRefused"
    assert [message.rpartition("; ")[2] for message in rig.told] == ["1 key is left", "no key is left"]


@pytest.mark.parametrize(
    "error",
    [refusal("insufficient_quota", 429), refusal("payment_required", 402), refusal("billing_off", 402)],
    ids=lambda error: f"{error.status} {error.code}",
)
async def test_a_key_without_credit_is_left_out_at_once(error: KeyRefused) -> None:
    rig = Rig(OneKey([error]), OneKey())
    assert [await rig.send() for _ in range(5)] == ["KeyDoubted"] + ["answered"] * 4
    assert rig.calls == [1, 4]
    assert rig.told == [f"K0 has no credit and is not used any more: {error}; 1 key is left"]
    alone = Rig(OneKey([error]))
    assert await alone.send() == "KeyRefused"


async def test_refusals_of_calls_that_were_sent_together_are_one_doubt() -> None:
    rig = Rig(OneKey([refusal()] * 7 + [YES], latency_s=1), OneKey(latency_s=1))
    ends = await asyncio.gather(*[rig.send() for _ in range(14)])
    assert Counter(ends) == {"answered": 7, "KeyDoubted": 7}
    assert rig.told == []
    assert [await rig.send() for _ in range(4)] == ["answered"] * 4
    assert rig.calls == [9, 9]


async def test_calls_that_were_out_when_the_key_died_change_nothing_more() -> None:
    rig = Rig(OneKey([refusal()] * 6 + [YES], latency_s=1), OneKey(latency_s=1))
    assert [await rig.send() for _ in range(2)] == ["KeyDoubted", "answered"]
    ends = await asyncio.gather(*[rig.send() for _ in range(12)])
    assert Counter(ends) == {"answered": 7, "KeyDoubted": 5}  # also a late answer, which revives nobody
    assert len(rig.told) == 1
    assert [await rig.send() for _ in range(4)] == ["answered"] * 4
    assert rig.calls == [7, 11]


async def test_a_call_that_is_cancelled_says_nothing_about_its_key() -> None:
    rig = Rig(OneKey(latency_s=100))
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rig.account.send(ASK, timeout_s=1000), 1)
    assert "live=[0] doubted=[]" in repr(rig.account)


async def test_models_come_by_the_first_key_that_lives() -> None:
    rig = Rig(OneKey([refusal()]), OneKey())
    for _ in range(3):
        with pytest.raises(KeyRefused):
            await rig.account.models()
    assert rig.told == []
    for _ in range(4):
        await rig.send()
    assert [model.id for model in await rig.account.models()] == ["m"]
    dead = Rig(OneKey([refusal("insufficient_quota")]))
    await dead.send()
    with pytest.raises(KeyRefused, match="no key is left"):
        await dead.account.models()


async def test_all_are_closed_even_if_one_fails_to() -> None:
    keys = [OneKey() for _ in range(3)]
    keys[1].close_error = OSError("stuck")
    rig = Rig(*keys)
    with pytest.raises(OSError, match="stuck"):
        await rig.account.aclose()
    assert [key.closed for key in keys] == [1, 1, 1]


def test_an_account_has_a_key_and_its_providers_name() -> None:
    with pytest.raises(ValueError, match="one key at least"):
        RotatingKeys("main", [], lambda event: None)
    rig = Rig(OneKey(), OneKey())
    assert rig.account.name == "scripted"
    assert repr(rig.account) == "<RotatingKeys 'main' ['K0', 'K1'] <KeyRing live=[0, 1] doubted=[]>>"


@pytest.mark.real_loop
async def test_over_http_the_good_keys_do_all_the_work_and_no_key_is_shown() -> None:
    good, bad = ["sk-good-1", "sk-good-2"], "sk-bad-0"
    events: list[Event] = []
    pool = Pool(PoolSettings())
    async with start_embedded(SimulatorSettings(keys=frozenset(good))) as server:
        keys = [
            (f"KEY_{number}", OpenAICompatible(pool, server.url + "/v1", Secret(key), name="mine"))
            for number, key in enumerate([good[0], bad, good[1]])
        ]
        account = RotatingKeys("main", keys, events.append)

        async def answered() -> int:
            for doubts in range(5):
                try:
                    await account.send(ASK, timeout_s=10)
                except KeyDoubted:
                    continue
                return doubts
            raise AssertionError("doubted for ever")

        doubts = sum(await asyncio.gather(*[answered() for _ in range(60)]))
        await account.aclose()
    await pool.aclose()
    [event] = events
    assert isinstance(event, KeyDisabled)
    assert event.message.startswith("KEY_1 was refused twice in a row and is not used any more: HTTP 401")
    assert 2 <= doubts <= 40  # the twenty that were sent together, then one turn in three until it is sure
    assert not [key for key in [*good, bad] if key in repr(account) + event.message]
