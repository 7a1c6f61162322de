"""Keys of one account take turns; one that is refused for good is left out, and the last one ends it."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Generic, TypeVar

import pytest
from hypothesis import strategies as st
from msgspec.structs import replace

from batcher.clock import monotonic
from batcher.errors import CallError, InvalidRequest, KeyDoubted, KeyRefused, ModelUnavailable
from batcher.events import Event, KeyDisabled
from batcher.providers.keys import Secret
from batcher.providers.openai_compatible import OpenAICompatible
from batcher.providers.rotating_keys import (
    CONFIRM_AFTER_S,
    DOUBT_S,
    RotatingKeys,
)
from batcher.providers.simulator.server import start_embedded
from batcher.providers.simulator.settings import SimulatorSettings
from batcher.providers.transport import Pool
from batcher.providers.wire import PoolSettings
from batcher.types import ModelInfo, Outcome, Reply, Request

ASK = Request(
    endpoint="/v1/chat/completions",
    model="m",
    body=b'{"model":"m","messages":[{"role":"user","content":"hi"}]}',
)
YES = Reply(status=200, body=b"{}")
MODELS = st.sampled_from(["x", "y", "z"])
LATENCY_S = 0.1

AnyKey = TypeVar("AnyKey", bound="OneKey")


def refusal(code: str = "invalid_api_key", status: int = 401) -> KeyRefused:
    return KeyRefused(f"HTTP {status}: {code}", code=code, status=status, body=b"no", request_id="r-1")


class OneKey:
    """A provider whose calls end as scripted, the last way for ever, each after `latency_s`."""

    name = "scripted"

    def __init__(self, script: Sequence[Reply | Exception] = (YES,), *, latency_s: float = 0.0) -> None:
        self._script = script
        self.latency_s = latency_s
        self.calls = 0
        self.closed = 0
        self.close_error: Exception | None = None

    async def send(self, request: Request, *, timeout_s: float) -> Reply:
        end = self._script[min(self.calls, len(self._script) - 1)]
        self.calls += 1
        await asyncio.sleep(self.latency_s)
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


class Gateway(OneKey):
    """A provider that refuses its key for some models, or for all during a blip (loop times)."""

    def __init__(
        self,
        *,
        forbidden: Sequence[str] = (),
        blip_s: tuple[float, float] = (0.0, 0.0),
        latency_s: float = LATENCY_S,
    ) -> None:
        super().__init__(latency_s=latency_s)
        self._forbidden = forbidden
        self._blip_s = blip_s
        self.refused = 0

    async def send(self, request: Request, *, timeout_s: float) -> Reply:
        first_s, last_s = self._blip_s
        if request.model in self._forbidden or first_s <= monotonic() < last_s:
            self.calls += 1
            self.refused += 1
            await asyncio.sleep(LATENCY_S)
            raise refusal("no_access")
        return await super().send(request, timeout_s=timeout_s)


class Rig(Generic[AnyKey]):
    """An account over keys K0, K1 ..., and what it told."""

    def __init__(self, *keys: AnyKey, account: str = "main") -> None:
        self.keys = keys
        self.owner = account
        self.events: list[Event] = []
        self.account = RotatingKeys(
            account, [(f"K{number}", key) for number, key in enumerate(keys)], self.events.append
        )

    async def send(self, *, after_s: float = 0.0) -> str:
        """Make one call, `after_s` from now; return how it ended."""
        await asyncio.sleep(after_s)
        try:
            await self.account.send(ASK, timeout_s=10)
        except CallError as error:
            return type(error).__name__
        return "answered"

    async def work(self, *, until_s: float, ends: Counter[str], model: str = "m") -> None:
        """Make call after call until then (loop time), or until one is not to be tried again."""
        while monotonic() < until_s:
            try:
                await self.account.send(replace(ASK, model=model), timeout_s=100)
            except KeyDoubted as error:
                ends["KeyDoubted"] += 1
                await asyncio.sleep(error.retry_after_s or 0.0)
            except CallError as error:
                ends[type(error).__name__] += 1
                return
            else:
                ends["answered"] += 1

    @property
    def calls(self) -> list[int]:
        return [key.calls for key in self.keys]

    @property
    def told(self) -> list[str]:
        assert all(isinstance(event, KeyDisabled) and event.account == self.owner for event in self.events)
        return [event.message for event in self.events if isinstance(event, KeyDisabled)]


async def test_a_single_key_is_doubted_and_then_ends_it() -> None:
    first, last = refusal(), refusal()
    rig = Rig(OneKey([first, last]))
    with pytest.raises(KeyDoubted) as doubted:
        await rig.account.send(ASK, timeout_s=10)
    seen = doubted.value
    assert (seen.code, seen.status, seen.body, seen.request_id) == ("invalid_api_key", 401, b"no", "r-1")
    assert (seen.sent, seen.outcome, seen.retry_after_s) == (True, Outcome.IGNORED, DOUBT_S)
    assert (str(seen), seen.__cause__) == (str(first), first)
    with pytest.raises(KeyDoubted, match="not sent, as the key was refused a moment ago: HTTP 401") as unsent:
        await rig.account.send(ASK, timeout_s=10)
    assert (unsent.value.sent, unsent.value.status, unsent.value.retry_after_s) == (False, 0, DOUBT_S)
    assert (rig.calls, rig.told) == ([1], [])
    await asyncio.sleep(CONFIRM_AFTER_S)
    with pytest.raises(KeyRefused) as refused:
        await rig.account.send(ASK, timeout_s=10)
    assert refused.value is last
    for _ in range(2):
        with pytest.raises(
            KeyRefused, match="main has no key left, the last one was refused: HTTP 401"
        ) as after:
            await rig.account.send(ASK, timeout_s=10)
        assert (after.value.code, after.value.sent, after.value.status) == ("invalid_api_key", False, 0)
    assert rig.calls == [2]
    assert rig.told == [
        "K0 was refused twice in a row and is not used any more: HTTP 401: invalid_api_key; "
        "account main has no key left"
    ]


async def test_without_accounts_it_is_just_no_key_that_is_left() -> None:
    rig = Rig(OneKey([refusal("insufficient_quota")]), account="")
    assert await rig.send() == "KeyRefused"
    assert rig.told[0].endswith("HTTP 401: insufficient_quota; no key is left")


@pytest.mark.parametrize("at_once", [1, 8, 64])
async def test_a_short_blip_costs_a_moment_and_no_key(at_once: int) -> None:
    rig = Rig(Gateway(blip_s=(4.0, 4.4)))
    ends = Counter[str]()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(rig.work(until_s=10.0, ends=ends))
    assert (rig.told, ends["KeyRefused"]) == ([], 0)
    assert rig.keys[0].refused <= at_once
    assert ends["answered"] > 0.75 * at_once * 10.0 / LATENCY_S


async def test_a_dead_key_ends_it_after_few_calls_of_many_at_once() -> None:
    rig = Rig(Gateway(blip_s=(0.0, 1e9)))
    ends = Counter[str]()
    async with asyncio.TaskGroup() as group:
        for _ in range(64):
            group.create_task(rig.work(until_s=10.0, ends=ends))
    assert ends["KeyRefused"] == 64
    assert monotonic() <= 10.0
    assert rig.keys[0].calls <= 64 + 6


@pytest.mark.parametrize("keys", [1, 2])
@pytest.mark.parametrize("latency_s", [0.1, 4.0, 30.0])
async def test_a_model_that_a_key_may_not_use_kills_no_key(latency_s: float, keys: int) -> None:
    rig = Rig(*[Gateway(forbidden=("x",), latency_s=latency_s) for _ in range(keys)])
    ends, of_x = Counter[str](), Counter[str]()
    async with asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(rig.work(until_s=65.0, ends=ends, model="y"))
            group.create_task(rig.work(until_s=65.0, ends=of_x, model="x"))
    assert (rig.told, ends["KeyRefused"], of_x["KeyRefused"]) == ([], 0, 0)
    assert of_x["ModelUnavailable"] == 16
    assert ends["answered"] >= 16
    assert sum(key.refused for key in rig.keys) <= (keys + 1) * 16 + keys * (latency_s + 8.0)
    await asyncio.sleep(CONFIRM_AFTER_S)
    with pytest.raises(ModelUnavailable, match="no_access, while the key serves other models") as error:
        await rig.account.send(replace(ASK, model="x"), timeout_s=10)
    assert (error.value.code, error.value.status) == ("no_access", 401)


async def test_a_key_that_dies_under_two_models_is_dead_for_both() -> None:
    rig = Rig(Gateway(blip_s=(8.0, 1e9)))
    ends = Counter[str]()
    async with asyncio.TaskGroup() as group:
        for model in ["x", "y"] * 16:
            group.create_task(rig.work(until_s=20.0, ends=ends, model=model))
    assert (ends["KeyRefused"], ends["ModelUnavailable"], len(rig.told)) == (32, 0, 1)


async def test_a_model_goes_to_the_key_that_may_use_it() -> None:
    rig = Rig(Gateway(forbidden=("x",)), Gateway())
    ends = Counter[str]()
    async with asyncio.TaskGroup() as group:
        for model in ["x", "y"] * 4:
            group.create_task(rig.work(until_s=50.0, ends=ends, model=model))
    assert (rig.told, ends["KeyRefused"], ends["ModelUnavailable"]) == ([], 0, 0)
    assert rig.keys[0].refused <= 4 + 2


async def test_an_answer_in_between_clears_a_key_of_doubt() -> None:
    rig = Rig(OneKey([refusal(), YES, refusal(), YES, refusal(), refusal()]))
    ends = [await rig.send(after_s=CONFIRM_AFTER_S) for _ in range(6)]
    assert ends == ["KeyDoubted", "answered"] * 2 + ["KeyDoubted", "KeyRefused"]


async def test_other_faults_neither_clear_nor_blame_a_key() -> None:
    rig = Rig(OneKey([InvalidRequest("HTTP 400: x", code="x", status=400), refusal(), YES]))
    ends = [await rig.send(after_s=DOUBT_S) for _ in range(3)]
    assert ends == ["InvalidRequest", "KeyDoubted", "answered"]


async def test_of_three_keys_the_dead_one_is_left_out() -> None:
    rig = Rig(OneKey(), OneKey([refusal()]), OneKey())
    ends = [await rig.send(after_s=1.0) for _ in range(60)]
    assert Counter(ends) == {"answered": 58, "KeyDoubted": 2}
    assert rig.calls == [29, 2, 29]
    [message] = rig.told
    assert message.startswith("K1 was refused twice in a row")
    assert message.endswith("2 keys are left")


async def test_where_another_key_lives_there_is_no_need_to_wait() -> None:
    rig = Rig(OneKey([refusal()]), OneKey([refusal()]))
    waits = []
    for _ in range(2):
        with pytest.raises(KeyDoubted) as doubted:
            await rig.account.send(ASK, timeout_s=10)
        waits.append(doubted.value.retry_after_s)
    assert waits == [None, DOUBT_S]
    await asyncio.sleep(CONFIRM_AFTER_S)
    assert [await rig.send() for _ in range(2)] == ["KeyDoubted", "KeyRefused"]
    assert [message.rpartition("; ")[2] for message in rig.told] == [
        "1 key is left",
        "account main has no key left",
    ]


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
    assert [await rig.send(after_s=CONFIRM_AFTER_S) for _ in range(4)] == ["answered"] * 4
    assert rig.calls == [9, 9]


async def test_calls_that_were_out_when_the_key_died_change_nothing_more() -> None:
    rig = Rig(OneKey([refusal(), YES, refusal()], latency_s=100), OneKey(latency_s=100))
    late = asyncio.gather(*[rig.send() for _ in range(4)])
    await asyncio.sleep(1)
    for key in rig.keys:
        key.latency_s = 0.0
    assert [await rig.send(after_s=CONFIRM_AFTER_S) for _ in range(3)] == [
        "KeyDoubted",
        "answered",
        "KeyDoubted",
    ]
    assert len(rig.told) == 1
    assert Counter(await late) == {"answered": 3, "KeyDoubted": 1}  # a late answer revives nobody
    assert [await rig.send(after_s=CONFIRM_AFTER_S) for _ in range(4)] == ["answered"] * 4
    assert (rig.calls, len(rig.told)) == ([4, 7], 1)


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
        await rig.send(after_s=CONFIRM_AFTER_S)
    assert [model.id for model in await rig.account.models()] == ["m"]
    dead = Rig(OneKey([refusal("insufficient_quota")]))
    await dead.send()
    with pytest.raises(KeyRefused, match="account main has no key left"):
        await dead.account.models()


async def test_all_are_closed_even_if_one_fails_to() -> None:
    keys = [OneKey() for _ in range(3)]
    keys[1].close_error = OSError("stuck")
    rig = Rig(*keys)
    with pytest.raises(OSError, match="stuck"):
        await rig.account.aclose()
    assert [key.closed for key in keys] == [1, 1, 1]


async def test_an_account_has_a_key_and_its_providers_name() -> None:
    with pytest.raises(ValueError, match="one key at least"):
        RotatingKeys("main", [], lambda event: None)
    rig = Rig(OneKey(), OneKey())
    assert rig.account.name == "scripted"
    assert repr(rig.account) == "<RotatingKeys 'main' ['K0', 'K1'] <KeyRing live=[0, 1] doubted=[]>>"


@pytest.mark.real_loop
async def test_over_http_the_good_keys_do_all_the_work_and_no_key_is_shown() -> None:
    good, bad = ["sk-good-1", "sk-good-2"], "sk-bad-0"
    events: list[Event] = []
    refusals: list[str] = []
    pool = Pool(PoolSettings())
    async with start_embedded(SimulatorSettings(keys=frozenset(good))) as server:
        keys = [
            (f"KEY_{number}", OpenAICompatible(pool, server.url + "/v1", Secret(key), name="mine"))
            for number, key in enumerate([good[0], bad, good[1]])
        ]
        account = RotatingKeys("main", keys, events.append)

        async def answered() -> bool:
            for _ in range(5):
                try:
                    await account.send(ASK, timeout_s=10)
                except KeyDoubted as error:
                    refusals.append(str(error))
                    continue
                return True
            return False

        assert all(await asyncio.gather(*[answered() for _ in range(60)]))
        await account.aclose()
    await pool.aclose()
    assert 1 <= len(refusals) <= 20  # at most those that were sent together
    assert all(refusal.startswith("HTTP 401") for refusal in refusals)
    assert events == []
    assert "live=[0, 1, 2] doubted=[1]" in repr(account)
    assert not [key for key in [*good, bad] if key in repr(account) + "".join(refusals)]
